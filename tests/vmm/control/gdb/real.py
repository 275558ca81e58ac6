"""Debian's gdb at the command `vmm`, each in a process of its own.

gdb comes from tools/debian-package, with what it needs, or is the one that is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT

import pytest

ROOT = Path(__file__).resolve().parents[4]
UNPACKED = ROOT / ".venv/packages/gdb"
PATIENCE_S = 120


def _find() -> tuple[list[str], dict[str, str]]:
    """The command, and the environment that it needs."""
    program = UNPACKED / "usr/bin/gdb"
    if program.is_file():
        libraries = ":".join(str(UNPACKED / place / "x86_64-linux-gnu") for place in ("usr/lib", "lib"))
        data = f"--data-directory={UNPACKED / 'usr/share/gdb'}"
        # where Debian's Python is installed, its modules are not among what gdb needs besides
        has_modules = any((UNPACKED / "usr/lib").glob("python3*/encodings"))
        home = str(UNPACKED / "usr") if has_modules else "/usr"
        return [str(program), data], {"LD_LIBRARY_PATH": libraries, "PYTHONHOME": home}
    installed = shutil.which("gdb")
    return ([installed] if installed else []), {}


COMMAND, ENVIRONMENT = _find()
needs_gdb = pytest.mark.skipif(
    not COMMAND, reason="Debian's package gdb is neither unpacked nor installed; see what tools/debian-package says"
)


@dataclass
class Vmm:
    """A running `vmm boot` that waits for gdb at `socket`."""

    process: subprocess.Popen[bytes]
    socket: Path
    console: Path

    def gdb(self, *commands: str, symbols: Path | None = None) -> str:
        """What gdb says to `commands`, after it has connected; an error of one of them ends it."""
        words = [*COMMAND, "-nx", "-q", "-batch", *([str(symbols)] if symbols else [])]
        for command in ("set confirm off", "set width 0", f"target remote {self.socket}", *commands):
            words += ["-ex", command]
        environment = {**os.environ, **ENVIRONMENT, "LC_ALL": "C"}
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=environment,
            check=False,
        )
        return done.stdout + done.stderr

    def status(self) -> int:
        """How the run ended."""
        return self.process.wait(timeout=PATIENCE_S)

    def wait_for(self, text: str) -> str:
        """Until the guest has written `text`; everything that it has written."""
        end_s = time.monotonic() + PATIENCE_S
        while text not in (written := self.console.read_text(errors="replace") if self.console.exists() else ""):
            assert time.monotonic() < end_s and self.process.poll() is None, written[-2000:]
            time.sleep(0.05)
        return written


@contextmanager
def vmm_for_gdb(folder: Path, *words: str) -> Iterator[Vmm]:
    """A `vmm boot WORDS` that gdb can connect to."""
    socket, console = folder / "gdb", folder / "console"
    words = ("boot", *words, "--gdb", f"unix:{socket}", "--serial", f"file:{console}")
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vmm", *words],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT,
        )  # fmt: skip
        try:
            end_s = time.monotonic() + PATIENCE_S
            while not socket.exists():
                assert process.poll() is None and time.monotonic() < end_s, (folder / "output").read_text()
                time.sleep(0.02)
            yield Vmm(process, socket, console)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def later(signal: int, process: int | str) -> str:
    """A command of gdb's that sends a signal a moment later; "$PPID" is gdb itself, for which SIGINT is Ctrl-C."""
    return f"shell (sleep 1; kill -{signal:d} {process}) >/dev/null 2>&1 &"


CTRL_C = later(SIGINT, "$PPID")


def in_order(text: str, pieces: Sequence[str]) -> bool:
    """Whether all pieces stand in `text`, one behind the other."""
    at = 0
    for piece in pieces:
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True
