"""Terminals, jobs and hang-ups: however a run ends, the terminal is as before, and a job in the background never stops.

The bundled guest `stats` stands for any guest: with `--serial stdio` it has the standard input, in raw mode if that is
a terminal.
"""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from devices.errors import ConfigError
from vmm import streams
from vmm.streams import OutputGone, guarded

ROOT = Path(__file__).resolve().parents[2]
VMM = [sys.executable, "-m", "vmm"]
ON_THE_CONSOLE = ["boot", "stats", "--serial", "stdio", "--for", "1h"]
PATIENCE_S = 60


@contextmanager
def on_a_terminal(command: list[str]) -> Iterator[tuple[int, int]]:
    """(process, the user's end): `command` leads a session of its own on a new terminal, as after a login."""
    process, terminal = pty.fork()
    if process == 0:  # pragma: no cover - another process
        os.chdir(ROOT)
        os.execv(command[0], command)
    try:
        yield process, terminal
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        with suppress(OSError):
            os.close(terminal)


def read_until(terminal: int, pattern: bytes) -> bytes:
    """All that is shown until `pattern` matches."""
    shown, end = b"", time.monotonic() + PATIENCE_S
    while not re.search(pattern, shown):
        assert time.monotonic() < end, f"{pattern!r} did not come: {shown[-2000:]!r}"
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65536)
    return shown


def exit_status(process: int) -> int:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    raise AssertionError("it does not end")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_ends_the_run_and_the_terminal_is_as_before(number: signal.Signals) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen([*VMM, *ON_THE_CONSOLE], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT)
    try:
        read_until(ours, b"stats: .* pages")
        assert termios.tcgetattr(theirs) != before
        process.send_signal(number)
        read_until(ours, b"exit status +130")
        assert process.wait(PATIENCE_S) == 130
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("words", [["boot", "stats", "--for", "1h"], ON_THE_CONSOLE], ids=["live", "console"])
def test_when_the_terminal_is_hung_up_the_run_ends_with_its_report(words: list[str], tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    with on_a_terminal([*VMM, *words, "--report", str(report)]) as (process, terminal):
        read_until(terminal, b"stats: .* pages")
        os.close(terminal)
        assert exit_status(process) == 130
    assert json.loads(report.read_text())["outcome"] == "interrupted"


def test_a_hang_up_that_is_told_again_and_again_ends_the_run_once(tmp_path: Path) -> None:
    """The kernel tells the foreground job of it, and so may the shell."""
    report = tmp_path / "r.json"
    with on_a_terminal([*VMM, *ON_THE_CONSOLE, "--report", str(report)]) as (process, terminal):
        read_until(terminal, b"stats: .* pages")
        os.close(terminal)
        until = time.monotonic() + 0.3
        while time.monotonic() < until and not report.exists():
            os.kill(process, signal.SIGHUP)
            time.sleep(0.0005)
        assert exit_status(process) == 130
    assert json.loads(report.read_text())["outcome"] == "interrupted"


def test_nohup_goes_on_when_the_terminal_is_hung_up(tmp_path: Path) -> None:
    """A hang-up that is ignored stays ignored; the output goes to a file, as with nohup."""
    report, out = tmp_path / "r.json", tmp_path / "out"
    script = f'nohup "$@" >{out} 2>&1'
    words = ["boot", "stats", "--for", "60s", "--report", str(report)]
    with on_a_terminal(["/bin/bash", "-c", f"echo here; exec {script}", "bash", *VMM, *words]) as (process, terminal):
        read_until(terminal, b"here")
        while not (out.exists() and b"balloon0" in out.read_bytes()):
            time.sleep(0.02)
        os.kill(process, signal.SIGHUP)
        assert exit_status(process) == 0
    assert json.loads(report.read_text())["outcome"] == "deadline"


def test_a_job_in_the_background_counts_the_terminal_as_ended_input_and_does_not_stop() -> None:
    """`wait` of a shell with job control comes back with 128 + the signal when the job was stopped."""
    words = ["boot", "stats", "--serial", "stdio", "--for", "3s"]
    script = 'set -m; before=$(stty -g); "$@" & wait $!; echo "ended $?"; [ "$before" = "$(stty -g)" ] && echo same'
    with on_a_terminal(["/bin/bash", "-c", script, "bash", *VMM, *words]) as (_, terminal):
        shown = read_until(terminal, b"ended \\d+\\r\\n(same\\r\\n)?")
        assert b"ended 0\r\n" in shown
        assert b"same" in shown or b"same" in read_until(terminal, b"same")


def test_input_that_was_closed_has_ended(tmp_path: Path) -> None:
    """A guest that sleeps for ever while nobody can type is over; with a terminal it would wait."""
    image = tmp_path / "guest.bin"
    image.write_bytes(bytes.fromhex("fb f4 ebfd"))  # sti; hlt; and again
    command = ["bash", "-c", '"$@" <&-', "bash", *VMM, "boot", str(image), "--serial", "stdio"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing is left that could wake it" in " ".join(done.stderr.split())


def test_only_a_terminal_hangs_up_and_a_disk_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(what: str) -> None:
        with guarded(what):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(streams, "_is_device", lambda fd: True)
    with pytest.raises(OutputGone):
        write("The output")
    with pytest.raises(ConfigError, match=r"^The report r cannot be written: Input/output error[.]$"):
        write("The report r")
    monkeypatch.setattr(streams, "_is_device", lambda fd: False)
    with pytest.raises(ConfigError, match=r"^The output cannot be written: Input/output error[.]$"):
        write("The output")
