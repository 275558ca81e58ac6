"""Input for a kernel and an initrd of the user's own, as a user gives it: a pipe or a file at `--serial stdio`.

All of it waits long before the guest can read it.  Linux clears the port's FIFO when it finds the port, and again when
the console is opened, and may have found a port before that on which somebody else had raised RTS.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boot import debian
from tests.boot.guest import MOUNT

pytestmark = debian.needs_debian
PATIENCE_S = 240
COMMANDS = "echo first-$((6 * 7))-and-well-over-sixteen-bytes\necho second-$((6 * 8))\nexec reboot -f\n"
ANSWERS = ["first-42-and-well-over-sixteen-bytes", "second-48"]


@pytest.fixture(scope="module")
def initrd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its init is a shell that reads the serial console."""
    path = tmp_path_factory.mktemp("console") / "initrd"
    path.write_bytes(
        debian.initramfs(MOUNT + "stty -F /dev/ttyS0 -echo\nexec setsid sh </dev/ttyS0 >/dev/ttyS0 2>&1\n")
    )
    return path


def words(initrd: Path, firmware: str, cmdline: str) -> list[str]:
    append = f"console=ttyS0 quiet {cmdline}"
    options = [*("--append", append), *("--firmware", firmware)[: 2 if firmware else 0], "--serial", "stdio"]
    start = [sys.executable, "-m", "vmm", "boot", "--kernel", str(debian.kernel()), "--initrd", str(initrd)]
    return [*start, *options, "-m", "160M", "--for", "60s", "--json"]


@pytest.mark.parametrize(
    ("firmware", "cmdline"),
    [
        pytest.param("", "", id="our-firmware"),
        pytest.param("", "pci=nomsi", id="our-firmware-intx"),
        pytest.param("", "nolapic noapic acpi=off", id="our-firmware-8259"),
        pytest.param("none", "", id="no-firmware"),
        pytest.param("none", "earlyprintk=serial,ttyS0,115200", id="an-early-console-raises-rts"),
    ],
)
def test_nothing_that_is_piped_in_is_lost(initrd: Path, firmware: str, cmdline: str) -> None:
    done = subprocess.run(
        words(initrd, firmware, cmdline),
        input=COMMANDS,
        text=True,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["outcome"]) == (0, "reset"), report["console"][-2000:]
    lines = [line.removeprefix("/ # ") for line in report["console"].splitlines()]
    assert [line for line in lines if line.startswith(("first", "second"))] == ANSWERS


def test_the_same_input_makes_the_same_run(initrd: Path, tmp_path: Path) -> None:
    typed = tmp_path / "typed"
    typed.write_text(COMMANDS, encoding="utf-8")
    reports = []
    for _ in range(2):
        with typed.open("rb") as file:
            done = subprocess.run(
                words(initrd, "", ""), stdin=file, capture_output=True, timeout=PATIENCE_S, check=False
            )
        reports.append(json.loads(done.stdout))
        del reports[-1]["wall_s"]
    assert reports[0] == reports[1]
    assert ANSWERS[1] in reports[0]["console"]
