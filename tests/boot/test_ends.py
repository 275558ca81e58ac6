"""How a Linux guest ends a run, and what the run's outcome is then."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot import debian
from tests.boot.guest import MOUNT, Linux

pytestmark = debian.needs_debian

PVPANIC = "insmod /lib/pvpanic.ko\ninsmod /lib/pvpanic-mmio.ko\n"
CRASH = "echo c >/proc/sysrq-trigger\n"


@pytest.mark.parametrize(
    ("script", "cmdline", "kind", "exit_code"),
    [
        pytest.param("poweroff -f\n", "", "powered-off", 0, id="power-off"),
        pytest.param("reboot -f\n", "", "reset", 0, id="reboot"),
        pytest.param("reboot -f\n", "nolapic noapic acpi=off", "reset", 0, id="reboot-without-acpi"),
        pytest.param("halt -f\n", "nolapic noapic acpi=off", "halted", 0, id="halt-without-acpi"),
        pytest.param(CRASH, "panic=-1", "reset", 0, id="panic-that-reboots"),
        pytest.param(PVPANIC + CRASH, "panic=-1", "guest-panicked", 3, id="panic-with-pvpanic"),
        pytest.param("exit 1\n", "panic=-1", "reset", 0, id="init-ends"),
    ],
)
def test_the_outcome_is_what_the_guest_did(
    tmp_path: Path, script: str, cmdline: str, kind: str, exit_code: int
) -> None:
    modules = ("pvpanic", "pvpanic-mmio") if PVPANIC in script else ()
    with Linux(tmp_path, debian.initramfs(MOUNT + script, modules), cmdline, memory="160M") as guest:
        outcome = guest.run_to_the_end()

        assert (outcome.kind, outcome.exit_code) == (kind, exit_code), guest.tail()
        if "panic" in cmdline:
            assert "Kernel panic - not syncing" in guest.console
