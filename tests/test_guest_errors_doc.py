"""docs/guest-errors.md says what the data says: every fault, every policy, every row of every profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.errors import Fault
from devices.virtio.policy import POLICIES, TABLES, TOLERABLE, Treatment
from devices.virtio.profiles import PROFILES, Profile
from vmm.models import find_model

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "guest-errors.md").read_text(encoding="utf-8")


def fault_rows() -> list[str]:
    """The table of faults, with what may be done about each besides `reset`, `skip`, `ignore` and `stall`."""
    more = {
        fault: ", ".join(
            each.value
            for each, possible in ((Treatment.TOLERATE, TOLERABLE), (Treatment.PLAIN, TABLES))
            if fault in possible
        )
        for fault in Fault
    }
    more[Fault.PLACEMENT] = "nothing: always `reset`"
    more[Fault.OVERRUN] = "only `reset` and `stall` mean something"
    return [f"| `{fault.name}` | {fault.value} | {more[fault] or 'nothing'} |" for fault in Fault]


def profile_section(profile: Profile) -> str:
    """The whole section about one profile."""
    lines = [
        f"### {profile.name}",
        "",
        f"What has no row: {profile.usually}. Here: `{profile.usual.value}`.",
        "",
        "| fault | there | here | the same |",
        "|---|---|---|---|",
    ]
    for row in profile.rows:
        same = "yes" if row.exact else "no"
        lines.append(f"| `{row.fault.name}` | {row.original} | `{row.treatment.value}` | {same} |")
    if profile.requests:
        lines += ["", "Requests whose ring is in order:", "", *(f"- {text}" for text in profile.requests)]
    return "\n".join(lines) + "\n"


def test_every_fault_is_described() -> None:
    for row in fault_rows():
        assert row in TEXT


def test_every_treatment_and_policy_is_described() -> None:
    for treatment in Treatment:
        assert f"| `{treatment.value}` |" in TEXT
    for name in POLICIES:
        assert f"`guest-errors={name}`" in TEXT


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_the_section_of_a_profile_is_its_data(profile: Profile) -> None:
    assert profile_section(profile) in TEXT


def test_the_properties_are_those_of_the_models() -> None:
    for driver in ("virtio-balloon-pci", "virtio-balloon-device"):
        choices = {prop.name: prop.choices for prop in find_model(driver).properties if prop.kind == "choice"}
        assert choices["guest-errors"] == tuple(POLICIES)
        assert choices["profile"] == ("none", *PROFILES)
