"""`python -m bench.restore`: how long it takes from the command to the shell of a Debian guest that was booted before.

A guest with 512 MiB is booted once to the prompt of its shell and put into a snapshot.  Then `vmm boot --restore FILE
--shell` is started anew, a process of its own each time, with an `echo` typed already; the time ends when its answer
comes out.  Nothing is kept warm but the host's cache of files.

What a profile showed of half a second of processor time: a tenth of a second up to the command line, a quarter for
importing numpy, Unicorn and the devices, and a tenth for the RAM, on other threads meanwhile; 30 ms until the guest has
answered, whose code is translated anew.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import vmm
from bench.table import machine
from vmm.debian.guest import READY, Task, debian_guest
from vmm.machine import Machine
from vmm.snapshots import write_snapshot

PASSES = 5
MEMORY = "512M"
MIB = 1 << 20
TYPED, ANSWER = b"echo it is $((6 * 7))\n", b"it is 42"
MUST_S = 1.0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def booted() -> Iterator[Machine]:
    """Debian at the prompt of its shell."""
    with debian_guest(Task(shell=True, takes_input=True), say) as guest:
        machine = vmm.boot(guest.kernel, memory=MEMORY, parameter=guest.command_line, modules=[guest.initrd])
    with machine:
        told = bytearray()
        machine.debug_sinks.append(told.extend)
        machine.run(until=lambda machine: READY in told)
        machine.run("500ms")
        yield machine


def to_the_shell(path: Path) -> tuple[float, float]:
    """Seconds from the start of the command to the answer, and of processor time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    words = [sys.executable, "-m", "vmm", "boot", "--restore", str(path), "--shell"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as command:
        assert command.stdin is not None and command.stdout is not None
        command.stdin.write(TYPED)
        command.stdin.flush()
        shown = b""
        while ANSWER not in shown:
            piece = os.read(command.stdout.fileno(), 4096)
            if not piece:
                raise RuntimeError(f"the shell does not answer: {shown!r}")
            shown += piece
        elapsed = time.monotonic() - start
        command.kill()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "debian.snap"
        writing = []
        with booted() as guest:
            backed = guest.memory.backed_bytes()
            for _ in range(PASSES):
                start = time.monotonic()
                size = write_snapshot(guest, path)
                writing.append(time.monotonic() - start)
        runs = []
        for number in range(PASSES):
            runs.append(to_the_shell(path))
            say(f"pass {number + 1} of {PASSES}: {runs[-1][0]:.2f} s, {runs[-1][1]:.2f} s of them the processor's")
    wall, processor = (statistics.median(times) for times in zip(*runs, strict=True))
    print(machine())
    print("| measurement | here | must be |")
    print("|---|---:|---|")
    print(f"| host memory behind the guest's {MEMORY}iB, MiB | {backed / MIB:.0f} | |")
    print(f"| the snapshot, MiB | {size / MIB:.1f} | |")
    print(f"| writing it, s | {statistics.median(writing):.2f} | |")
    print(f"| from the command to the shell's answer, s | {wall:.2f} | ≤ {MUST_S:g} |")
    print(f"| the same in processor time, s | {processor:.2f} | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
