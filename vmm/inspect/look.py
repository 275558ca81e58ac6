"""Everything about a VMM that can be told from outside while it stands still: RAM, rings, requests, the balloon.

`inspect` freezes the process, looks, and lets it go; `look` is the looking alone.  Nothing of the process is asked for
help, and nothing of it is changed: not a byte, not a page that the host backs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices import hostcalls
from devices.errors import ConfigError
from devices.memory import PAGE_BYTES, PAGE_SHIFT
from devices.virtio import spec
from vmm.device_table import NAME, TableView, parse
from vmm.inspect import ptrace_import
from vmm.inspect.foreign_memory import ForeignMemory
from vmm.inspect.guest_ram import GuestRam, memory_file_mappings, open_memory_file
from vmm.inspect.rings import Peek, QueueLook, look_at_queue
from vmm.inspect.tracee import ThreadState, Tracee
from vmm.inspect.undisturbed import Undisturbed

RAM_NAME, PAGES_NAME = "guest-ram", "balloon-pages"


@dataclass
class BalloonLook:
    """Pages in the balloon: `ranges` are (first page frame number, count), ascending; `backed` those of them that have
    host memory behind them."""

    pages: int
    ranges: list[tuple[int, int]]
    backed_pages: int
    backed: list[tuple[int, int]]


@dataclass
class DeviceLook:
    """One virtio device as its table says, with its queues, and the balloon's map if it has one."""

    name: str
    device_id: int
    status: int
    offered: int
    negotiated: int
    config: bytes
    queues: list[QueueLook]
    balloon: BalloonLook | None = None
    findings: list[str] = field(default_factory=list)

    def findings_with_places(self) -> list[str]:
        """Everything that is wrong, each with the name of where."""
        own = [f"{self.name}: {text}" for text in self.findings]
        return own + [f"{self.name} {queue.name}: {text}" for queue in self.queues for text in queue.findings]


@dataclass
class MachineLook:
    """One machine of the process."""

    inode: int
    regions: list[tuple[int, int]]
    backed_bytes: int
    devices: list[DeviceLook] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ram_bytes(self) -> int:
        return sum(size for _, size in self.regions)

    def findings(self) -> list[str]:
        return [text for device in self.devices for text in device.findings_with_places()]


@dataclass
class ProcessLook:
    """The whole of it.  `threads` are as they were before; `frozen_ns` is for how long they stood still."""

    pid: int
    threads: list[ThreadState]
    machines: list[MachineLook]
    frozen_ns: int = 0

    def findings(self) -> list[str]:
        return [text for machine in self.machines for text in machine.findings()]


def inspect(pid: int) -> ProcessLook:
    """Freeze the process, look at it, let it go.  ConfigError where that cannot be, in one sentence."""
    mappings = ptrace_import.mappings_of(pid)  # before anything is frozen: is it a VMM at all?
    require_vmm(pid, mappings)
    with Undisturbed(), Tracee(pid, "inspect") as tracee:
        start_ns = time.perf_counter_ns()
        found = look(pid)
        threads = tracee.before
    return ProcessLook(pid, threads, found, time.perf_counter_ns() - start_ns)


def look(pid: int, inode: int | None = None) -> list[MachineLook]:
    """The machines of a process that stands still; with `inode` only the one with that memory file."""
    mappings = ptrace_import.mappings_of(pid)
    rams = require_vmm(pid, mappings)
    tables = {table.ram_inode: table for table in tables_of(pid, mappings)}
    chosen = rams if inode is None else [inode]
    return [_look_at_machine(pid, mappings, each, tables.get(each)) for each in chosen]


def require_vmm(pid: int, mappings: list[Any]) -> list[int]:
    """The inodes of the guest RAMs in a process's memory map; ConfigError where there is none."""
    rams = sorted({mapping.inode for mapping in memory_file_mappings(mappings, RAM_NAME)})
    if not rams:
        raise ConfigError(
            f"process {pid} is no VMM that can be looked at: there is no {RAM_NAME!r} in its memory map, "
            "nor is there where the host has no memory files"
        )
    return rams


def tables_of(pid: int, mappings: list[Any]) -> Iterator[TableView]:
    """The tables of devices of a process, one for each of its machines."""
    for mapping in memory_file_mappings(mappings, NAME):
        fd = open_memory_file(pid, mapping.inode, [mapping])
        try:
            data = hostcalls.read_file(fd, 0, os.fstat(fd).st_size)
        finally:
            os.close(fd)
        yield parse(data)


def _look_at_machine(pid: int, mappings: list[Any], inode: int, table: TableView | None) -> MachineLook:
    with ExitStack() as stack:
        ram = stack.enter_context(GuestRam.attach(pid, inode=inode))
        regions = [(region.gpa, region.size) for region in ram.regions]
        found = MachineLook(inode, regions, ram.backed_bytes())
        if table is None:
            found.notes.append("there is no table of devices: nothing is known of its rings")
            return found
        if table.generation & 1:
            found.notes.append("the VMM was caught while it wrote its table of devices: what follows may be half old")
        peek = stack.enter_context(_own_memory(pid))
        memory = ForeignMemory(ram)
        for row, queues in zip(table.devices, table.queues, strict=True):
            found.devices.append(_look_at_device(pid, mappings, memory, row, queues, peek))
    return found


@contextmanager
def _own_memory(pid: int) -> Iterator[Peek]:
    """The memory of the VMM itself."""
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ptrace_import.refusal(pid, "read the memory of", error) from error
    try:
        yield lambda address, length: os.pread(fd, length, address)
    except OSError as error:
        raise ptrace_import.refusal(pid, "read the memory of", error) from error
    finally:
        os.close(fd)


def _look_at_device(
    pid: int, mappings: list[Any], memory: ForeignMemory, row: Any, queues: NDArray[Any], peek: Peek
) -> DeviceLook:
    negotiated = int(row["negotiated"])
    found = DeviceLook(
        row["name"].decode(errors="replace"),
        int(row["device_id"]),
        int(row["status"]),
        int(row["offered"]),
        negotiated,
        row["config"].tobytes()[: int(row["config_bytes"])],
        [look_at_queue(memory, queue, negotiated, peek) for queue in queues],
    )
    if found.status & spec.Status.DEVICE_NEEDS_RESET:
        found.findings.append("the driver broke a rule: the device needs a reset")
    inside = _pages_given_away(pid, mappings, int(row["map_address"]), int(row["map_pages"]))
    if inside is not None:
        found.balloon = _look_at_balloon(memory, inside)
        if found.balloon.backed_pages:
            found.findings.append(
                f"{found.balloon.backed_pages} pages in the balloon have host memory behind them: "
                "they were not given back, or somebody has touched them since"
            )
        for queue in found.queues:
            queue.findings += _on_pages_given_away(queue, inside)
    return found


def _pages_given_away(pid: int, mappings: list[Any], address: int, pages: int) -> NDArray[np.bool_] | None:
    """For each page whether it is in the balloon, read from its file: that makes no memory of its holes."""
    for mapping in memory_file_mappings(mappings, PAGES_NAME):
        if mapping.start <= address < mapping.end:
            fd = open_memory_file(pid, mapping.inode, [mapping])
            try:
                return np.frombuffer(hostcalls.read_file(fd, mapping.offset, pages), np.bool_)
            finally:
                os.close(fd)
    return None


def _look_at_balloon(memory: ForeignMemory, inside: NDArray[np.bool_]) -> BalloonLook:
    present = np.zeros(len(inside), np.bool_)
    if memory.fd is not None:
        for offset, length in hostcalls.data_extents(memory.fd, 0, len(inside) << PAGE_SHIFT):
            present[offset >> PAGE_SHIFT : -(-(offset + length) >> PAGE_SHIFT)] = True
    present &= inside
    return BalloonLook(int(inside.sum()), runs_of(inside), int(present.sum()), runs_of(present))


def runs_of(marks: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The runs of what is True, (first, count), ascending."""
    edges = np.flatnonzero(np.diff(marks.view(np.int8), prepend=0, append=0)).reshape(-1, 2).tolist()
    return [(start, end - start) for start, end in edges]


def _on_pages_given_away(queue: QueueLook, inside: NDArray[np.bool_]) -> Iterator[str]:
    """§5.5.6: what is in the balloon is not the driver's to use."""

    def is_inside(gpa: int, length: int) -> bool:
        return bool(inside[gpa >> PAGE_SHIFT : (gpa + length + PAGE_BYTES - 1) >> PAGE_SHIFT].any())

    for name, (gpa, length) in queue.parts.items():
        if is_inside(gpa, length):
            yield f"its {name} at {gpa:#x} is on pages in the balloon"
    for request in chain(queue.in_flight, queue.available):
        for buffer in request.buffers:
            if is_inside(buffer.gpa, buffer.length):
                yield f"the chain at {request.head} has a buffer at {buffer.gpa:#x}, on pages in the balloon"
                break
