"""The whole machine: the bundled guests seen from the outside."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

import vmm
from bench.measure import PASSES, Times, alternate, timed_ns
from bench.rig import MIB, REQUEST_PAGES, Pfns, Rig, backed_by
from devices.memory import PAGE_BYTES
from devices.virtio.balloon.pages import PFN, PageSet, PfnReader
from devices.virtio.spec import ByteOrder
from vmm.machine import Machine

GUEST_BYTES, BALLOON_BYTES = 128 * MIB, 64 * MIB
BALLOON_PAGES = BALLOON_BYTES // PAGE_BYTES
LATENCY_REQUESTS = 300
LOOP_TIME = "50ms"  # of guest time: five million blocks
EMPTY_LOOP = bytes.fromhex("48ffc9 ebfb")  # again: dec rcx; jmp again


def _balloon_guest(backing: str, size_bytes: int = GUEST_BYTES) -> Machine:
    """The balloon guest, up and waiting, every free page written to."""
    with backed_by(backing):
        machine = vmm.boot("balloon", memory=size_bytes, parameter="check=0")
    machine.run(until="1s")
    return machine


def _inflated_to(machine: Machine, pages: int) -> Callable[[], None]:
    """Ask for `pages` in the balloon; what is returned runs the guest until it has followed."""
    device = machine.board.need_balloon()[1]
    machine.balloon.set_target(size_of_guest(machine) - pages * PAGE_BYTES)

    def follow() -> None:
        # In short pieces of guest time: a condition would be looked at after each request, which costs as much again.
        while device.actual != pages and machine.run(until="1ms") is None:
            pass
        if machine.outcome is not None:
            raise RuntimeError(f"the guest ended: {machine.console.decode(errors='replace')[-200:]}")

    return follow


def size_of_guest(machine: Machine) -> int:
    """The RAM that targets are measured against."""
    return machine.config.memory_bytes


def _until_told(machine: Machine, pages: int) -> int:
    """Nanoseconds from the host's wish to have `pages` in the balloon until the guest says that it has them.

    The guest then looks at every page it has kept, and goes on doing so until the machine comes back: that is no part
    of inflating, and would be a fifth of the time."""
    device, write = machine.board.need_balloon()[1], machine.platform.mmio_write
    told: list[int] = []

    def watched_write(gpa: int, size: int, value: int) -> None:
        write(gpa, size, value)
        if device.actual == pages:
            told.append(time.perf_counter_ns())

    with mock.patch.object(machine.platform, "mmio_write", watched_write):
        start = time.perf_counter_ns()
        _inflated_to(machine, pages)()
    return told[0] - start


def _requests_of(machine: Machine) -> list[list[Pfns]]:
    """The arrays of page frame numbers that the guest sends to inflate by 64 MiB, those of one notification together.

    The pages are back with the guest afterwards."""
    payloads: list[Pfns] = []

    class Listening(PfnReader):
        def read(self, payload: bytes, order: ByteOrder = "<") -> PageSet:
            payloads.append(np.frombuffer(payload, PFN))
            return super().read(payload, order)

    device = machine.board.need_balloon()[1]
    with mock.patch.object(device, "_reader", Listening(device.memory)):
        _inflated_to(machine, BALLOON_PAGES)()
    machine.run(until="1s")
    _inflated_to(machine, 0)()
    machine.run(until="1s")
    return [np.split(pfns, range(REQUEST_PAGES, len(pfns), REQUEST_PAGES)) for pfns in payloads]


def end_to_end(backing: str) -> Times:
    """Inflating by 64 MiB: "guest" from outside the machine, "device" the guest's own requests, as many with one
    notification, without CPU and guest."""
    machine, rig = _balloon_guest(backing), Rig(backing)
    batches = _requests_of(machine)

    def guest() -> int:
        took = _until_told(machine, BALLOON_PAGES)
        machine.run(until="1s")  # it checks every page that is left, and says so
        _inflated_to(machine, 0)()  # pages that come back are filled again
        machine.run(until="1s")
        return took

    def device() -> int:
        took = 0
        for arrays in batches:
            rig.place(arrays)
            rig.offer(*range(len(arrays)))
            took += timed_ns(rig.kick)
        return took

    pages = np.concatenate([pfns for arrays in batches for pfns in arrays])
    times = alternate({"guest": guest, "device": device}, lambda: rig.touch(pages))
    rig.close()
    machine.close()
    return times


def kick_to_interrupt(backing: str) -> float:
    """Median microseconds from the guest's notification, a store into MMIO, until the CPU's interrupt line is up: the
    buses, the transport, a request that discards nothing, the message and the local APIC."""
    machine = _balloon_guest(backing, 4 * MIB)
    deflateq, write = machine.board.need_balloon()[1].queues[1], machine.platform.mmio_write
    latencies: list[int] = []

    def timed_write(gpa: int, size: int, value: int) -> None:
        requests = deflateq.requests
        took = timed_ns(lambda: write(gpa, size, value))
        if deflateq.requests != requests:
            latencies.append(took)

    with mock.patch.object(machine.platform, "mmio_write", timed_write):
        for _ in range(LATENCY_REQUESTS):
            _inflated_to(machine, 1)()
            machine.run(until="1ms")
            _inflated_to(machine, 0)()
            machine.run(until="1ms")
    machine.close()
    return statistics.median(latencies) / 1000


def blocks_per_second(folder: Path) -> float:
    """Basic blocks a second in an endless loop."""
    image = folder / "loop.bin"
    image.write_bytes(EMPTY_LOOP)
    speeds = []
    with vmm.boot(image, memory="2M") as machine:
        machine.run(until=LOOP_TIME)
        for _ in range(PASSES):
            before = machine.blocks
            took = timed_ns(lambda: machine.run(until=LOOP_TIME))
            speeds.append((machine.blocks - before) / took * 1e9)
    return statistics.median(speeds)


def hello_seconds() -> float:
    """Wall time of `vmm boot hello` as a process of its own."""
    words = [sys.executable, "-m", "vmm", "boot", "hello"]
    times = [timed_ns(lambda: subprocess.run(words, check=True, capture_output=True)) for _ in range(PASSES)]
    return statistics.median(times) / 1e9
