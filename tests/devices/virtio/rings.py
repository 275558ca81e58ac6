"""Rings written byte by byte, for tests that need to say exactly what stands where: valid or not."""

from __future__ import annotations

import struct

from devices.memory import GuestMemory
from devices.virtio.packed import PackedQueue
from devices.virtio.split import SplitQueue

LAYOUT = ((0, 0xA0000), (0x100000, 0x100000), (0x200000, 0x100000), (1 << 32, 0x10000))
"""A hole below 1 MiB, two regions that touch at 2 MiB, and RAM above 4 GiB."""

DESC, AVAIL_RING, USED = 0x1000, 0x3000, 0x4000
AVAIL_EVENT = AVAIL_RING
TABLES, BUFFERS = 0x8000, 0x20000
NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED_FLAG = 1 << 7, 1 << 15


def descriptor(gpa: int, length: int, flags: int = 0, link: int = 0) -> bytes:
    return struct.pack("<QIHH", gpa, length, flags, link)


class RawRing:
    """A ring of `size` entries at fixed places, and nothing that keeps the rules."""

    def __init__(self, size: int = 8, memory: GuestMemory | None = None, at: int = 0) -> None:
        self.memory = memory if memory is not None else GuestMemory(LAYOUT)
        self.size = size
        self.desc, self.avail, self.used = DESC + at, AVAIL_RING + at, USED + at
        self.avail_idx = 0

    def queue(
        self,
        *,
        indirect: bool = True,
        event_idx: bool = False,
        in_order: bool = False,
        notify_on_empty: bool = False,
    ) -> SplitQueue:
        """The device's side of it."""
        return SplitQueue(
            self.memory,
            self.size,
            self.desc,
            self.avail,
            self.used,
            indirect=indirect,
            event_idx=event_idx,
            in_order=in_order,
            notify_on_empty=notify_on_empty,
        )

    def set_descriptor(self, index: int, gpa: int, length: int, flags: int = 0, link: int = 0) -> None:
        self.memory.write(self.desc + 16 * index, descriptor(gpa, length, flags, link))

    def set_table(self, gpa: int, *descriptors: bytes) -> None:
        self.memory.write(gpa, b"".join(descriptors))

    def offer(self, *heads: int) -> None:
        """Put heads into the available ring and show them."""
        for head in heads:
            self.memory.write_int(self.avail + 4 + 2 * (self.avail_idx % self.size), 2, head)
            self.avail_idx = (self.avail_idx + 1) % 65536
        self.set_avail_idx(self.avail_idx)

    def set_avail_idx(self, value: int) -> None:
        self.memory.write_int(self.avail + 2, 2, value)

    def set_avail_flags(self, value: int) -> None:
        self.memory.write_int(self.avail, 2, value)

    def set_used_event(self, value: int) -> None:
        self.memory.write_int(self.avail + 4 + 2 * self.size, 2, value)

    def avail_event(self) -> int:
        return self.memory.read_int(self.used + 4 + 8 * self.size, 2)

    def used_idx(self) -> int:
        return self.memory.read_int(self.used + 2, 2)

    def used_elements(self) -> list[tuple[int, int]]:
        """(id, len) of all elements that the used index covers, oldest first (as long as it has not wrapped)."""
        places = (self.used + 4 + 8 * (index % self.size) for index in range(self.used_idx()))
        return [(self.memory.read_int(place, 4), self.memory.read_int(place + 4, 4)) for place in places]


class RawPackedRing:
    """A packed ring of `size` descriptors at fixed places, and nothing that keeps the rules.

    `place` and `wrap` are where the driver goes on."""

    def __init__(self, size: int = 8, memory: GuestMemory | None = None, at: int = 0) -> None:
        self.memory = memory if memory is not None else GuestMemory(LAYOUT)
        self.size = size
        self.desc, self.driver_event, self.device_event = DESC + at, AVAIL_EVENT + at, AVAIL_EVENT + 4 + at
        self.place, self.wrap = 0, 1

    def queue(self, *, indirect: bool = True, event_idx: bool = False, in_order: bool = False) -> PackedQueue:
        """The device's side of it."""
        places = (self.desc, self.driver_event, self.device_event)
        return PackedQueue(self.memory, self.size, *places, indirect=indirect, event_idx=event_idx, in_order=in_order)

    def marks(self) -> int:
        """How a descriptor at `place` is marked available."""
        return AVAIL if self.wrap else USED_FLAG

    def write(self, gpa: int, length: int, flags: int = 0, buffer_id: int = 0, *, available: bool = True) -> int:
        """Write the next descriptor, visible at once unless it is not to be available; its place."""
        place, marks = self.place, self.marks()
        self.set(place, gpa, length, buffer_id, flags | marks if available else flags | (marks ^ (AVAIL | USED_FLAG)))
        self.advance(1)
        return place

    def set(self, place: int, gpa: int, length: int, buffer_id: int, flags: int) -> None:
        """Write any descriptor whatever it was."""
        self.memory.write(self.desc + 16 * place, descriptor(gpa, length, buffer_id, flags))

    def advance(self, count: int) -> None:
        for _ in range(count):
            self.place += 1
            if self.place == self.size:
                self.place, self.wrap = 0, 1 - self.wrap

    def descriptor(self, place: int) -> tuple[int, int, int, int]:
        """Address, length, buffer id and flags as they stand there now."""
        addr, length, buffer_id, flags = struct.unpack("<QIHH", self.memory.read(self.desc + 16 * place, 16))
        return addr, length, buffer_id, flags

    def ring_bytes(self) -> bytes:
        return self.memory.read(self.desc, 16 * self.size)

    def set_driver_event(self, off_wrap: int, flags: int) -> None:
        self.memory.write(self.driver_event, struct.pack("<HH", off_wrap, flags))

    def read_device_event(self) -> tuple[int, int]:
        """off_wrap and flags."""
        off_wrap, flags = struct.unpack("<HH", self.memory.read(self.device_event, 4))
        return off_wrap, flags
