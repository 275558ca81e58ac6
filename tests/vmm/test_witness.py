"""A running machine seen from another process: the bytes of its rings, and what it asks the host to take back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vmm.inspect import DiscardTrace, GuestRam

# A machine that stops at two places to say what it believes; it goes on when it reads a line.
PROGRAM = """
import json, sys, vmm
with vmm.boot("balloon", memory="16M", targets="8M@0.2s,16M@0.4s") as m:
    def say():
        queues = {q.name: [q.size, q.desc_gpa, q.driver_gpa, q.device_gpa, q.requests]
                  for q in m.board.virtio_devices[0].queues}
        print(json.dumps({"queues": queues, "discarded_bytes": m.balloon.discarded_bytes,
                          "actual_pages": m.balloon.actual_pages, "backed_bytes": m.memory.backed_bytes()}), flush=True)
        sys.stdin.readline()
    m.run(until="100ms"); say()
    m.run(until="200ms"); say()
    m.run(until="200ms"); say()
"""


class Running:
    """The machine's process.  `told` is what it said where it stands now."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process
        self.told: dict[str, Any] = {}
        self.listen()

    def listen(self) -> None:
        assert self._process.stdout is not None
        self.told = json.loads(self._process.stdout.readline())

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


@contextmanager
def running_machine() -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Running(process)
    finally:
        process.kill()
        process.communicate()


def used_index(ram: GuestRam, device_gpa: int) -> int:
    """§2.7.8: the used ring begins with le16 flags and le16 idx."""
    return int(ram.view_records(device_gpa, np.dtype("<u2"), 2)[1])


def test_the_rings_hold_what_the_device_says_it_used() -> None:
    with running_machine() as machine, GuestRam.attach(machine.pid) as ram:
        for _ in range(2):
            for size, desc_gpa, driver_gpa, device_gpa, requests in machine.told["queues"].values():
                if requests == 0:
                    continue
                available = int(ram.view_records(driver_gpa, np.dtype("<u2"), 2)[1])
                assert used_index(ram, device_gpa) == available == requests
                last_head = int(ram.view_records(driver_gpa + 4, np.dtype("<u2"), size)[(available - 1) % size])
                # The last used element (le32 id, le32 len) names the last available head; the balloon writes nothing.
                element = ram.view_records(device_gpa + 4, np.dtype("<u4"), 2 * size).reshape(size, 2)
                assert element[(requests - 1) % size].tolist() == [last_head, 0]
                # Its buffer is an array of 256 page frame numbers of 4 bytes.
                assert int(ram.view_records(desc_gpa + 16 * last_head + 8, np.dtype("<u4"), 1)[0]) % 4 == 0
            machine.go_on()
            machine.listen()
        assert machine.told["queues"]["inflateq"][4] > 0
        assert machine.told["queues"]["deflateq"][4] > 0


def test_host_memory_falls_as_seen_from_outside() -> None:
    with running_machine() as machine, GuestRam.attach(machine.pid) as ram:
        before_bytes = ram.backed_bytes()
        machine.go_on()
        machine.listen()
        assert machine.told["actual_pages"] == 8 * 256
        assert ram.backed_bytes() == machine.told["backed_bytes"]
        assert before_bytes - ram.backed_bytes() > 7 << 20


def test_the_host_was_asked_for_exactly_what_the_balloon_says_it_discarded() -> None:
    with running_machine() as machine:
        with DiscardTrace(machine.pid) as trace:
            machine.go_on()
            inflated = 8 << 20
            traced = 0
            for call in trace.calls():
                traced += call.discarded_bytes
                if traced >= inflated:
                    break
        machine.listen()
        assert machine.told["discarded_bytes"] == traced == inflated
