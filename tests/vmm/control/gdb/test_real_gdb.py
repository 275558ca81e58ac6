"""Debian's gdb with a bundled guest and its symbol file, and in the firmware from the reset vector on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from guests import GUESTS
from tests.vmm.control.gdb.real import CTRL_C, ROOT, in_order, later, needs_gdb, vmm_for_gdb

pytestmark = needs_gdb

GUEST = "stats"
SYMBOLS = ROOT / "guests" / GUESTS[GUEST].symbols_path("x86_64")
FIRMWARE_SYMBOLS = ROOT / "firmware" / "firmware.debug"
SPIN, ENTRY = b"\xeb\xfe", 0x100000  # a flat image
VIRTUAL = ("-S", "--clock", "virtual")


def check(said: str, *pieces: str) -> None:
    assert in_order(said, pieces), said


def test_a_function_by_name_with_backtrace_variables_and_finish(tmp_path: Path) -> None:
    with vmm_for_gdb(tmp_path, GUEST, *VIRTUAL) as vmm:
        said = vmm.gdb(
            *("break balloon_start", "continue", "backtrace", "print guest->reserved_pages", "print *guest", "finish"),
            *("backtrace", "next", "step", "info threads", "delete", "continue"),
            symbols=SYMBOLS,
        )
        check(
            said,
            "Breakpoint 1, balloon_start (balloon=0x",
            "#0  balloon_start",
            "#1  0x",
            "in guest_main (boot_info=",
            "in guest_start (boot_info=0x7000) at guests/lib/guest.c:",
            "in _start () at guests/lib/x86/crt0.S:",
            "$1 = 16",
            "before_inflate = 0x0",
            "Value returned is $3 = 1",
            "#0  guest_main",
            "* 1    Thread 1 (the processor)",
            "exited normally",
        )
        assert vmm.status() == 0


def test_a_variable_is_watched(tmp_path: Path) -> None:
    with vmm_for_gdb(tmp_path, GUEST, *VIRTUAL) as vmm:
        said = vmm.gdb(
            *("tbreak balloon_step", "continue", "watch -location balloon->target", "continue", "backtrace 2"),
            *("delete", "detach"),
            symbols=SYMBOLS,
        )
        check(said, "Hardware watchpoint 2: -location balloon->target", "Old value = 0", "New value = 8192", "#0  ")
        assert vmm.status() == 0


def test_stepping_lines_changes_nothing_in_the_run(tmp_path: Path) -> None:
    runs = []
    for number, commands in enumerate((["continue"], ["tbreak guest_main", "continue", *["step"] * 20, "continue"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        with vmm_for_gdb(folder, "hello", *VIRTUAL, "--report", str(folder / "report")) as vmm:
            said = vmm.gdb(*commands, symbols=ROOT / "guests/hello/hello.debug")
            assert "exited normally" in said, said
            assert vmm.status() == 0
        report = (folder / "report").read_text()
        runs.append(report[: report.index('"wall_s"')] + report[report.index('"blocks"') :])
    assert runs[0] == runs[1]


def test_from_the_reset_vector_through_real_mode_into_long_mode(tmp_path: Path) -> None:
    with vmm_for_gdb(tmp_path, GUEST, *VIRTUAL) as vmm:
        said = vmm.gdb(
            *("print/x $cs", "print/x $rip", "print $cr0", "x/2xb 0xfffffff0", "stepi", "print/x $rip"),
            *("hbreak *&protected_mode", "continue", "print $cr0", "print/x $cs", "stepi", "info line *$pc"),
            *("hbreak *&long_mode", "continue", "print $cr0", "print $efer", "print/x $cr3", "x/i $pc"),
            *("set var $xmm5.v4_int32[1] = 7", "print $xmm5.v4_int32", "set var $st0 = 1.5", "print $st0"),
            *("set var {int}0x60000 = 0x1234", "print/x {int}0x60000", "kill"),
            symbols=FIRMWARE_SYMBOLS,
        )
        check(
            said,
            "$1 = 0xf000",
            "$2 = 0xfff0",
            "$3 = [ ET NW CD ]",
            "0xe9",
            "$4 = 0xff00",
            "$5 = [ PE ET",
            "$6 = 0x8",
            "$7 = [ PE",
            " PG ]",
            "$8 = [ LME LMA",
            "$10 = {0, 7, 0, 0}",
            "$11 = 1.5",
            "$12 = 0x1234",
            "killed]",
        )
        assert vmm.status() == 130


@pytest.mark.parametrize("guest_state", ["busy", "halted"])
def test_ctrl_c_interrupts_a_running_guest(tmp_path: Path, guest_state: str) -> None:
    spin = tmp_path / "spin.bin"
    spin.write_bytes(SPIN)
    words = [str(spin)] if guest_state == "busy" else [GUEST, "--target", "64M", "--poll", "0", "--for", "60s"]
    with vmm_for_gdb(tmp_path, *words) as vmm:
        if guest_state == "halted":
            vmm.wait_for("statsq 128 entries")
        said = vmm.gdb(CTRL_C, "continue", "info registers rip", "x/i $pc-1", CTRL_C, "continue", "kill")
        check(said, "Program received signal SIGINT", "rip  ", "Program received signal SIGINT", "killed]")
        assert "0x100000" in said if guest_state == "busy" else "hlt" in said, said
        assert vmm.status() == 130


def test_what_is_written_takes_effect(tmp_path: Path) -> None:
    """The endless loop, translated long ago, is overwritten with what ends the run: 3 to the exit device."""
    spin = tmp_path / "spin.bin"
    spin.write_bytes(SPIN + bytes(16))
    exit_code = bytes.fromhex("66baf405 ef f4")  # mov $0x5f4, %dx; out %eax, %dx; hlt
    with vmm_for_gdb(tmp_path, str(spin)) as vmm:
        writes = [f"set var {{unsigned char}}{ENTRY + at} = {byte}" for at, byte in enumerate(exit_code)]
        said = vmm.gdb(CTRL_C, "continue", *writes, "set var $rax = 3", "continue")
        check(said, "SIGINT", "exited with code 03")
        assert vmm.status() == 3


def test_a_second_gdb_is_turned_away_and_the_next_is_not(tmp_path: Path) -> None:
    with vmm_for_gdb(tmp_path, GUEST, *VIRTUAL) as vmm:
        shell = f"shell {' '.join(_second(vmm.socket))}"
        said = vmm.gdb("print/x $rip", shell, "print/x $rip", "detach")
        check(said, "$1 = 0xfff0", "$2 = 0xfff0")
        assert "refused" in said.splitlines()  # gdb keeps its own lines back when they go to a pipe
        assert "detached]" in vmm.gdb("detach")


def _second(socket: Path) -> list[str]:
    code = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX); s.settimeout(30); s.connect(sys.argv[1]); "
        "print('refused' if s.recv(1) == b'' else 'let in')"
    )
    return ["env", "-u", "PYTHONHOME", "python3", "-c", f'"{code}"', str(socket)]


def test_a_gdb_that_is_killed_leaves_a_guest_that_runs(tmp_path: Path) -> None:
    with vmm_for_gdb(tmp_path, GUEST, *VIRTUAL) as vmm:
        vmm.gdb("hbreak *0x10000", "continue", f"shell kill -{signal.SIGKILL} $PPID")
        assert vmm.status() == 0


def test_a_run_ended_at_the_terminal_is_told(tmp_path: Path) -> None:
    with vmm_for_gdb(tmp_path, GUEST, "-S") as vmm:
        said = vmm.gdb(later(signal.SIGTERM, vmm.process.pid), "continue")
        check(said, "exited with code 0202")  # 130 in octal, as gdb writes it
        assert vmm.status() == 130
