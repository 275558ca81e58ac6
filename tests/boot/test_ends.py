"""How a Linux guest ends a run, and what the run's outcome is then."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot import debian
from tests.boot.guest import MOUNT, Linux

pytestmark = debian.needs_debian

PVPANIC = "insmod /lib/pvpanic.ko\ninsmod /lib/pvpanic-mmio.ko\n"
WORDS = "Kernel panic - not syncing"
CRASH = "echo c >/proc/sysrq-trigger\n"


@pytest.mark.parametrize(
    ("script", "cmdline", "kind", "exit_code"),
    [
        pytest.param("poweroff -f\n", "", "powered-off", 0, id="power-off"),
        pytest.param("reboot -f\n", "", "reset", 0, id="reboot"),
        pytest.param("reboot -f\n", "reboot=acpi", "reset", 0, id="reboot-by-the-fadt"),
        pytest.param("reboot -f\n", "reboot=kbd", "reset", 0, id="reboot-by-the-keyboard-controller"),
        pytest.param("reboot -f\n", "nolapic noapic acpi=off", "reset", 0, id="reboot-without-acpi"),
        pytest.param("halt -f\n", "nolapic noapic acpi=off", "halted", 0, id="halt-without-acpi"),
        pytest.param("echo b >/proc/sysrq-trigger\n", "", "reset", 0, id="reboot-by-sysrq"),
        pytest.param(CRASH, "panic=-1", "guest-panicked", 3, id="panic-that-reboots"),
        pytest.param(CRASH, "panic=2 quiet", "guest-panicked", 3, id="panic-that-reboots-later"),
        pytest.param(f"echo '{WORDS}: a joke'\nreboot -f\n", "", "reset", 0, id="the-words-of-a-panic-and-a-reboot"),
        pytest.param(PVPANIC + CRASH, "panic=-1", "guest-panicked", 3, id="panic-with-pvpanic"),
        pytest.param("printf '/ # '; exit 1\n", "panic=-1", "guest-panicked", 3, id="init-ends"),
        pytest.param("poweroff -f\n", "panic=-1 rdinit=/missing", "guest-panicked", 3, id="no-init"),
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
            assert WORDS in guest.console


def test_a_kernel_that_counts_down_to_its_reboot_is_no_success_when_the_time_is_over(tmp_path: Path) -> None:
    """It counts in a loop, so the time is no longer than it must be."""
    with Linux(tmp_path, debian.initramfs(MOUNT + CRASH), "panic=30", memory="160M", duration="4s") as guest:
        outcome = guest.run_to_the_end()

        assert (outcome.kind, outcome.exit_code) == ("guest-panicked", 3), guest.tail()
        assert "panicked: sysrq triggered crash; 4 s of guest time are over" in outcome.detail
        assert "Rebooting in 30 seconds.." in guest.console


@pytest.mark.parametrize(
    ("script", "kind", "exit_code"),
    [
        pytest.param(CRASH, "guest-panicked", 3, id="panic"),
        pytest.param(f"echo '---[ end {WORDS}: a joke ]---'\nsleep 1\necho on\nsleep 99", "deadline", 0, id="joke"),
    ],
)
def test_a_kernel_that_stays_in_its_panic_is_no_success_when_the_time_is_over(
    tmp_path: Path, script: str, kind: str, exit_code: int
) -> None:
    with Linux(tmp_path, debian.initramfs(MOUNT + script), memory="160M", duration="8s") as guest:
        outcome = guest.run_to_the_end()

        assert (outcome.kind, outcome.exit_code) == (kind, exit_code), guest.tail()
        assert f"---[ end {WORDS}: " in guest.console
