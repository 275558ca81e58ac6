"""Real VMMs as processes of their own, and what may become of them: `python -m tests.inspect.real_vmm HOW` hangs so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vmm.inspect import ptrace_import
from vmm.inspect.inspect_report import config_of
from vmm.inspect.look import BalloonLook, look
from vmm.inspect.tracee import threads_of

ROOT = Path(__file__).resolve().parents[2]
TARGET_PAGES = 2048


class Vmm:
    """A VMM started with `words` behind `python`, and its output."""

    def __init__(self, words: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.pid = self.process.pid

    @classmethod
    def boot(cls, *words: str) -> Vmm:
        return cls(["-m", "vmm", "boot", *words])

    @classmethod
    def hanging(cls, how: str) -> Vmm:
        made = cls(["-m", "tests.inspect.real_vmm", how])
        assert made.process.stdout is not None
        assert made.process.stdout.readline() == b"now it hangs\n"
        time.sleep(0.3)  # so that it does
        return made

    def wait_until(self, met: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not met():
            assert self.process.poll() is None, f"it ended before {what}"
            assert time.monotonic() < deadline, f"nothing of {what}"
            time.sleep(0.02)

    def wait_for_balloon(self, pages: int = TARGET_PAGES) -> None:
        """Until the driver says that so many pages are in the balloon."""
        self.wait_until(lambda: self.actual() == pages, f"{pages} pages in the balloon")

    def actual(self) -> int:
        try:
            (machine,) = look(self.pid)
            (device,) = machine.devices
        except ValueError:  # it has no RAM yet, or no table
            return -1
        return config_of(device)["actual"]

    def balloon(self) -> BalloonLook:
        """The map of its balloon."""
        (device,) = look(self.pid)[0].devices
        assert device.balloon is not None
        return device.balloon

    @property
    def state(self) -> str:
        return "".join(sorted({each.state for each in threads_of(self.pid)}))

    def tracers(self) -> set[str]:
        return {ptrace_import.status_of(self.pid, each.tid)["TracerPid"] for each in threads_of(self.pid)}

    def blocks(self) -> dict[str, int]:
        """What the host has allocated for each of its memory files."""
        found = {}
        for number in os.listdir(f"/proc/{self.pid}/fd"):
            path = f"/proc/{self.pid}/fd/{number}"
            if os.readlink(path).startswith("/memfd:"):
                found[os.readlink(path)] = os.stat(path).st_blocks
        return found

    def end(self, signum: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Ask it to end; exit status and what it wrote."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signum)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out.decode(), err.decode()

    def end_of_run(self) -> str:
        """What it wrote when it had ended by itself."""
        out, _ = self.process.communicate(timeout=60)
        return out.decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def _hang(how: str) -> None:
    """A machine with pages in its balloon, in the middle of a kick of its balloon's driver; it hangs there."""
    import ctypes
    import re

    import vmm

    def stuck(*_arguments: object) -> None:
        print("now it hangs", flush=True)
        if how == "native-loop":
            re.fullmatch(r"(a|a)*b", "a" * 64)  # 2^64 steps in C, with the interpreter's lock held
        elif how == "blocked":
            ctypes.PyDLL(None).pause()  # in the kernel, with the lock held
        else:
            while True:
                pass

    with vmm.boot("stats", memory="16M", targets="8M@0.2s") as machine:
        machine.run(until=lambda m: m.balloon.actual_pages == TARGET_PAGES)
        balloon: Any = machine.board.need_balloon()[1]
        balloon._handlers = {**balloon._handlers, "deflateq": stuck}
        machine.balloon.set_target("16M")
        machine.run("10s")


if __name__ == "__main__":
    _hang(sys.argv[1])
