"""Userspace under Debian's kernel: the checks of userspace.c, and what a shell does all day."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot import debian
from tests.boot.guest import MOUNT, SHELL, SHELL_IS_UP, Linux

pytestmark = debian.needs_debian

CHECKS = (
    "page-faults", "division-by-zero", "invalid-opcode", "breakpoint", "privileged-instruction", "a-signal-to-itself",
    "no-execute", "code-that-changes", "rights-that-change", "copy-on-write", "a-child-that-crashes", "exec",
    "floating-point-across-switches", "interrupted-by-a-timer", "single-step",
)  # fmt: skip

OPTIONS = (
    "-target", "x86_64-freestanding-none", "-O1", "-ffreestanding", "-fno-builtin", "-nostdlib", "-static",
    "-fno-sanitize=all", "-fno-stack-protector", "-Wall", "-Wextra", "-Werror",
)  # fmt: skip


def build(folder: Path) -> bytes:
    """userspace.c as a static program for Linux."""
    program = folder / "userspace"
    source = Path(__file__).with_name("userspace.c")
    command = [sys.executable, "-m", "ziglang", "cc", *OPTIONS, str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    return program.read_bytes()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    folder = tmp_path_factory.mktemp("userspace")
    archive = debian.initramfs(MOUNT + SHELL, files={"bin/userspace": build(folder)})
    with Linux(folder, archive) as linux:
        linux.wait_for(SHELL_IS_UP)
        yield linux


@pytest.fixture(scope="module")
def results(guest: Linux) -> dict[str, str]:
    """What each check of the program came to."""
    lines = guest.ask("userspace || true").splitlines()
    return dict(line.split() for line in lines if line.count(" ") == 1)


@pytest.mark.parametrize("check", CHECKS)
def test_the_processor_does_what_userspace_relies_on(results: dict[str, str], check: str) -> None:
    assert results.get(check) == "ok"


def test_every_check_of_the_program_is_looked_at(results: dict[str, str]) -> None:
    assert set(results) == set(CHECKS)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("seq 1 2000 | sort -rn | tail -n 1", "1\n"),
        ("head -c 1000000 /dev/zero | md5sum", "879f4bba57ed37c9ec5e5aedf9864698  -\n"),
        ("for i in 1 2 3 4 5 6 7 8 9; do sh -c 'echo -n $((9 * $0))' $i; done; echo", "91827364554637281\n"),
        ("sh -c 'trap \"echo caught\" USR1; kill -USR1 $$; echo after'", "caught\nafter\n"),
        (
            "awk 'BEGIN { x = 1; for (i = 0; i < 50; i++) x = x * 1.5 - .25; printf \"%.9e\", x }'; echo",
            "3.188107506e+08\n",
        ),
        ("sh -c 'sleep 100 & kill $!; wait $!; echo $?'", "Terminated\n143\n"),
    ],
)
def test_the_shell_s_tools_work(guest: Linux, command: str, answer: str) -> None:
    assert guest.ask(command) == answer
