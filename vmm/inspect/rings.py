"""A queue of another process's device, walked by the devices' own code.

Owns what is in flight, what is available, and which rules of the ring are broken.  The device's table says where the
ring is; the marks of what is in flight are in the memory of the VMM, which stands still.  Of a split ring the heads in
flight are followed from the descriptor table, in whatever order they were taken; of a packed ring what lies behind the
next used position is read on, and the first chains there are those in flight: its devices complete in order.

Nothing is tolerated here that a policy for guest errors may tolerate there: every broken rule is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from devices.errors import DriverError
from devices.virtio import spec
from devices.virtio.chains import Chains
from devices.virtio.packed import PackedQueue
from devices.virtio.queue import Ring
from devices.virtio.split import SplitQueue
from devices.virtio.walk import Walker
from vmm.device_table import BIG_ENDIAN, ENABLED, PACKED
from vmm.inspect.foreign_memory import ForeignMemory

MOST_FAULTS = 64
"""So many faults of a queue are told."""

Peek = Callable[[int, int], bytes]
"""So many bytes at an address of the VMM's own memory."""


class Buffer(NamedTuple):
    """A buffer of a chain in guest RAM; `writable` by the device."""

    gpa: int
    length: int
    writable: bool


class Request(NamedTuple):
    """A chain: `head` is where it begins in the descriptor table or ring, `buffer_id` its name."""

    head: int
    buffer_id: int
    buffers: tuple[Buffer, ...]


@dataclass
class QueueLook:
    """One queue: its registers, its indices, its chains, and what is wrong with it.

    `indices` are "available" and "used", which the ring shows, and "next_available", how far the device has come; of a
    packed ring positions, from 0 to twice its size, without "available".  `parts` are the (gpa, bytes) of its three
    parts.  `in_flight` was taken by the device and not put, `available` waits to be taken."""

    name: str
    index: int
    size: int
    enabled: bool
    packed: bool
    big_endian: bool
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    indices: dict[str, int] = field(default_factory=dict)
    in_flight: list[Request] = field(default_factory=list)
    available: list[Request] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def describe_queue(row: Any) -> QueueLook:
    """What the table says of a queue; `row` is of `device_table.QUEUE`."""
    flags = int(row["flags"])
    marks = bool(flags & ENABLED), bool(flags & PACKED), bool(flags & BIG_ENDIAN)
    look = QueueLook(row["name"].decode(errors="replace"), int(row["index"]), int(row["size"]), *marks)
    if look.enabled:
        desc, driver, device = (int(row[name]) for name in ("desc_gpa", "driver_gpa", "device_gpa"))
        if look.packed:
            look.parts["descriptor ring"] = desc, look.size * spec.pvirtq_desc.itemsize
            look.parts["driver events"] = driver, spec.PVIRTQ_EVENT_ALIGN
            look.parts["device events"] = device, spec.PVIRTQ_EVENT_ALIGN
        else:
            look.parts["descriptor table"] = desc, look.size * spec.virtq_desc.itemsize
            look.parts["available ring"] = driver, 4 + 2 * look.size
            look.parts["used ring"] = device, 4 + 8 * look.size
    return look


def look_at_queue(memory: ForeignMemory, row: Any, features: int, peek: Peek) -> QueueLook:
    """The queue that `row` of the table describes; `features` were negotiated."""
    look = describe_queue(row)
    if not look.enabled:
        return look
    marks = peek(int(row["marks_address"]), int(row["marks_bytes"]))
    indirect = bool(features >> spec.VIRTIO_F_INDIRECT_DESC & 1)
    try:
        if look.packed:
            place = int.from_bytes(peek(int(row["place_address"]), 4), "little")
            _look_at_packed(look, memory, row, indirect, marks, place)
        else:
            event_idx = bool(features >> spec.VIRTIO_F_EVENT_IDX & 1)
            _look_at_split(look, memory, row, indirect, event_idx, marks)
    except DriverError as error:  # the queue is not where a queue can be
        look.findings.append(str(error))
    return look


def requests_of(chains: Chains) -> Iterator[Request]:
    """The chains of a batch, one by one."""
    buffers = [Buffer(int(gpa), int(length), bool(writable)) for gpa, length, writable in chains.buffers()]
    ends = np.asarray(chains.first).tolist()
    heads, names = np.asarray(chains.head).tolist(), np.asarray(chains.buffer_id).tolist()
    for head, name, start, end in zip(heads, names, ends[:-1], ends[1:], strict=True):
        yield Request(head, name, tuple(buffers[start:end]))


# -- split rings -----------------------------------------------------------------------------------------------------


def _look_at_split(
    look: QueueLook, memory: ForeignMemory, row: Any, indirect: bool, event_idx: bool, marks: bytes
) -> None:
    order: spec.ByteOrder = ">" if look.big_endian else "<"
    desc, driver, device = (int(row[name]) for name in ("desc_gpa", "driver_gpa", "device_gpa"))
    # Without EVENT_IDX, since with it taking a chain writes to the ring.
    ring = SplitQueue(memory, look.size, desc, driver, device, indirect=indirect, order=order)

    def word(gpa: int) -> int:
        return int.from_bytes(memory.read(gpa, 2), "big" if look.big_endian else "little")

    available, used = word(driver + 2), word(device + 2)
    heads = np.flatnonzero(np.frombuffer(marks, np.uint8)).tolist()
    taken = used + len(heads) & 0xFFFF
    if event_idx and taken:  # §2.7.10: what the device waits for is the next that it will take
        taken = word(device + 4 + 8 * look.size)
    look.indices = {"available": available, "used": used, "next_available": taken}
    if (taken - used) & 0xFFFF > look.size:
        look.findings.append(
            f"the used index {used} is not among the {look.size} before the next available one, {taken} (virtio §2.7.8)"
        )
    look.findings += _wrong_used_elements(memory, device, used, look.size, order)
    walker = Walker(memory, desc, look.size, indirect, order)
    look.in_flight = list(_follow(look, walker, heads))
    state = {"next_available": taken, "next_used": used, "notified_used": used, "in_flight": marks}
    ring.restore_state(state)
    look.available = [request for chains in _take_all(look, ring) for request in requests_of(chains)]


def _wrong_used_elements(memory: ForeignMemory, gpa: int, used: int, size: int, order: spec.ByteOrder) -> Iterable[str]:
    elements: NDArray[Any] = memory.view(gpa + 4, 8 * size).view(spec.virtq_used_elem.newbyteorder(order))
    written = (used - 1 - np.arange(min(used, size))) % size
    wrong = written[elements["id"][written] >= size]
    if len(wrong):
        yield (
            f"the used element {wrong[0]} names the head {elements['id'][wrong[0]]}, "
            f"which is not below the queue size {size} (virtio §2.7.8)"
        )


def _follow(look: QueueLook, walker: Walker, heads: list[int]) -> Iterator[Request]:
    """The chains at `heads`, a part of them at a time."""
    seen = bytearray(look.size)
    while heads:
        try:
            chains, faulty = walker.one_by_one(heads, seen), 0
        except DriverError as error:
            if _is_too_much(look, f"in flight: {error}"):
                return
            sound, faulty = error.sound, 1
            if sound is None:
                heads = heads[1:]
                continue
            chains = sound
        yield from requests_of(chains)
        heads = heads[chains.count + faulty :]


def _is_too_much(look: QueueLook, text: str) -> bool:
    """Note a fault; whether it is the one after which nobody wants to hear more.  A ring may be all faults, and the
    process stands still meanwhile."""
    look.findings.append(text)
    if len(look.findings) < MOST_FAULTS:
        return False
    look.findings.append("and so on: what is behind that was not looked at")
    return True


def _take_all(look: QueueLook, ring: Ring) -> Iterator[Chains]:
    """Everything that a device could take from `ring`, which goes on behind what is at fault."""
    while True:
        try:
            chains = ring.take_available()
        except DriverError as error:
            if _is_too_much(look, f"available: {error}"):
                return
            sound = ring.take_sound(error)
            if sound is not None:
                yield sound
            before = ring.save_state()["next_available"]
            ring.pass_over(error)
            if ring.save_state()["next_available"] == before:  # a packed ring that is full
                return
            continue
        if chains is None:
            return
        yield chains


# -- packed rings ----------------------------------------------------------------------------------------------------


def _look_at_packed(look: QueueLook, memory: ForeignMemory, row: Any, indirect: bool, marks: bytes, place: int) -> None:
    desc, driver, device = (int(row[name]) for name in ("desc_gpa", "driver_gpa", "device_gpa"))
    if place >= 2 * look.size:
        look.findings.append(f"the next used position {place} is not below twice the ring's size (virtio §2.8.1)")
        return
    ring = PackedQueue(memory, look.size, desc, driver, device, indirect=indirect)
    ring.restore_state({"next_available": place, "next_used": place, "notified_used": place, "in_flight": []})
    ids = set(np.flatnonzero(np.frombuffer(marks, np.uint8)).tolist())
    taken = place
    for chains in _take_all(look, ring):
        slots = np.asarray(chains.slots).tolist()
        for request, occupied in zip(requests_of(chains), slots, strict=True):
            if len(look.in_flight) < len(ids):
                look.in_flight.append(request)
                taken = (taken + occupied) % (2 * look.size)
            else:
                look.available.append(request)
    look.indices = {"used": place, "next_available": taken}
    found = {request.buffer_id for request in look.in_flight}
    if found != ids:
        look.findings.append(
            f"the buffer ids in flight are {sorted(ids)}, those behind the next used position {sorted(found)}"
        )
