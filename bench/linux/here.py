"""This project as a peer: a process of its own, as QEMU is one, which carries out the whole scenario.

`python -m bench.linux.here KERNEL INITRD STARTED` prints the timings as JSON.  STARTED is when its parent made the
process, so that the interpreter's start counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import vmm
from bench.linux.scenario import APPEND, MEMORY_MIB, MIB, Timings, measure, now
from devices.effects import Event
from vmm.machine import Machine

PIECE = "5ms"  # of guest time, between two looks (QEMU is asked as often); `until` would look after each event


class Console:
    """What the guest said and nobody has waited for yet."""

    def __init__(self) -> None:
        self.text = ""

    def on_event(self, now_ns: int, event: Event) -> None:
        pass

    def on_console(self, data: bytes) -> None:
        self.text += data.decode(errors="replace")

    def on_stats(self, now_ns: int) -> None:
        pass

    def on_target(self, now_ns: int) -> None:
        pass


class Here:
    """One running guest."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self._console = machine, Console()
        machine.observers.append(self._console)

    def _run_piece(self) -> None:
        if self._machine.run(until=PIECE) is not None:
            raise RuntimeError(f"the guest ended: {self._machine.outcome}")

    def wait_for(self, text: str) -> float:
        while text not in self._console.text:
            self._run_piece()
        self._console.text = self._console.text.split(text, 1)[1]
        return now()

    def type(self, line: str) -> None:
        rest = line.encode() + b"\n"
        while rest:
            rest = rest[self._machine.send_console(rest) :]
            self._run_piece()

    def set_guest_ram(self, mib: int) -> float:
        start, balloon = now(), self._machine.balloon
        balloon.set_target(mib * MIB)
        while balloon.actual_pages != balloon.target_pages:
            self._run_piece()
        return now() - start


def run(kernel: Path, initrd: Path) -> Timings:
    """One boot in a process of its own, measured."""
    words = [sys.executable, "-m", "bench.linux.here", str(kernel), str(initrd), str(now())]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    return Timings(**json.loads(done.stdout))


def main(kernel: str, initrd: str, started: str) -> None:
    with vmm.boot(kernel, memory=MEMORY_MIB * MIB, parameter=APPEND, modules=[initrd]) as machine:
        print(json.dumps(asdict(measure(Here(machine), float(started)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
