"""Userspace under Debian's kernel: the checks of userspace.c, what a shell does all day, and the kernel's probes, for
which it changes code that is in use: its own, and a program's."""

from __future__ import annotations

import struct
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
    "floating-point-across-switches", "floating-point-across-signals", "interrupted-by-a-timer", "single-step",
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


# -- probes: the kernel puts INT3 and calls into code ------------------------------------------------------------------

TIMES = 5


@pytest.fixture
def traced(guest: Linux) -> Iterator[Linux]:
    """The guest with tracefs, and nothing traced before and after."""
    guest.ask("mkdir -p /t; mount -t tracefs tracing /t")
    yield guest
    guest.ask(
        "echo 0 >/t/events/enable; echo nop >/t/current_tracer; echo >/t/set_ftrace_filter; echo >/t/uprobe_events"
    )
    guest.ask("umount /t")


def entry_offset(program: bytes) -> int:
    """Where in an ELF file its first instruction is."""
    (entry,) = struct.unpack_from("<Q", program, 24)
    (table,), (size, count) = struct.unpack_from("<Q", program, 32), struct.unpack_from("<HH", program, 54)
    for header in range(table, table + size * count, size):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", program, header)
        if kind == 1 and address <= entry < address + length:  # PT_LOAD
            return int(entry - address + offset)
    raise AssertionError("the entry point is in no segment")


def test_a_probe_in_a_program_is_hit_each_time_and_the_program_does_what_it_did(traced: Linux) -> None:
    """A uprobe is an INT3 in the page of the program; the instruction beneath it is stepped over elsewhere."""
    offset = entry_offset(debian.BUSYBOX.read_bytes())
    traced.ask(f"echo 'p:entered /bin/busybox:{offset:#x}' >/t/uprobe_events && echo 1 >/t/events/uprobes/enable")
    numbers = "".join(f"{number}\n" for number in range(1, TIMES + 1))
    assert traced.ask(f"for i in $(/bin/busybox seq {TIMES}); do /bin/busybox echo $i; done") == numbers
    traced.ask("echo 0 >/t/events/uprobes/enable")
    assert traced.ask("grep -c entered: /t/trace") == f"{TIMES + 1}\n"
    assert traced.ask("/bin/busybox echo more; grep -c entered: /t/trace") == f"more\n{TIMES + 1}\n", "it is gone again"


def test_the_kernel_changes_its_own_code_while_it_runs(traced: Linux) -> None:
    """The function tracer turns the NOP at a function's beginning into a call, by way of an INT3, and back."""
    for _ in range(3):
        traced.ask("echo >/t/trace; echo __x64_sys_newuname >/t/set_ftrace_filter && echo function >/t/current_tracer")
        assert traced.ask(f"for i in $(seq {TIMES}); do uname -s; done") == "Linux\n" * TIMES
        assert traced.ask("grep -c __x64_sys_newuname /t/trace") == f"{TIMES}\n"
        traced.ask("echo nop >/t/current_tracer")
        assert traced.ask("uname -s; grep -c __x64_sys_newuname /t/trace || true") == "Linux\n0\n"
    assert traced.complaints == []
