"""Raw access to a queue that a driver set up: any bytes in the descriptor table, the rings and indirect tables.

`RawQueue` is for split queues, `RawPackedQueue` for packed ones.

Nothing is checked here, that is the point.  Once a test went raw on a queue, the driver's own `offer` and `collect` on
it mean nothing until the device was reset and the queue set up again; `heads_returned` reads the used ring instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from devices.virtio import spec
from vmm.testing.driver import Driver
from vmm.testing.layout import Descriptor, PackedDescriptor
from vmm.testing.packed_ring import AVAIL, USED, PackedQueue, Place
from vmm.testing.pages import PAGE_BYTES
from vmm.testing.ring import SplitQueue

NEXT = spec.VIRTQ_DESC_F_NEXT
WRITE = spec.VIRTQ_DESC_F_WRITE
INDIRECT = spec.VIRTQ_DESC_F_INDIRECT


class _Raw:
    """What both rings have in common: memory, and the kick."""

    def __init__(self, driver: Driver, index: int) -> None:
        self.driver = driver
        self.index = index
        self.size = driver.queues[index].size

    def buffer(self, data: bytes) -> int:
        """Put bytes into pages of their own; their guest-physical address."""
        gpa = self.driver.pages.take(max(1, -(-len(data) // PAGE_BYTES)))
        self.driver.memory.write(gpa, data)
        return gpa

    def kick(self) -> None:
        """Notify the device, wanted or not."""
        self.driver.transport.notify(self.index)


class RawQueue(_Raw):
    """Queue `index` of a started driver, a split one, as bytes in memory."""

    def __init__(self, driver: Driver, index: int = 0) -> None:
        super().__init__(driver, index)
        queue = driver.queues[index]
        assert isinstance(queue, SplitQueue)
        self.layout = queue.layout
        self.order = queue.order
        self._byteorder: Literal["little", "big"] = "little" if queue.order == "<" else "big"
        self.avail_idx = queue.published_idx
        self.used_before = queue.last_used_idx
        self.offered: list[int] = []

    # -- writing -------------------------------------------------------------------------------------------------------

    def descriptor(self, slot: int, addr: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write one entry of the descriptor table."""
        self.driver.memory.write(
            self.layout.descriptor(slot), Descriptor(addr, length, flags, following).pack(self.order)
        )

    def table(self, entries: Sequence[Descriptor]) -> int:
        """Write an indirect table into pages of its own; its guest-physical address."""
        return self.buffer(b"".join(entry.pack(self.order) for entry in entries))

    def available(self, *heads: int) -> None:
        """Put heads into the available ring and publish them."""
        for head in heads:
            self._put16(self.layout.avail_ring(self.avail_idx), head)
            self.avail_idx = (self.avail_idx + 1) % 2**16
            self.offered.append(head)
        self.available_index(self.avail_idx)

    def available_index(self, value: int) -> None:
        """Write the available ring's index, whatever it was."""
        self.avail_idx = value % 2**16
        self._put16(self.layout.avail_idx, self.avail_idx)

    # -- reading -------------------------------------------------------------------------------------------------------

    @property
    def used_idx(self) -> int:
        return int.from_bytes(self.driver.memory.read(self.layout.used_idx, 2), self._byteorder)

    def heads_returned(self) -> list[int]:
        """The ids in the used ring since this object was made, at most a ring full."""
        count = (self.used_idx - self.used_before) % 2**16
        places = [self.layout.used_ring(self.used_before + i) for i in range(min(count, self.size))]
        return [int.from_bytes(self.driver.memory.read(gpa, 4), self._byteorder) for gpa in places]

    def _put16(self, gpa: int, value: int) -> None:
        self.driver.memory.write(gpa, (value % 2**16).to_bytes(2, self._byteorder))


class RawPackedQueue(_Raw):
    """Queue `index` of a started driver, a packed one, as bytes in memory.

    Descriptors are written from where the driver stood, one place after the other."""

    def __init__(self, driver: Driver, index: int = 0) -> None:
        super().__init__(driver, index)
        queue = driver.queues[index]
        assert isinstance(queue, PackedQueue)
        self.layout = queue.layout
        self.next = Place(self.size, queue.published.index, queue.published.wrap)
        self._used = Place(self.size, queue.next_used.index, queue.next_used.wrap)

    def descriptor(self, addr: int, length: int, flags: int = 0, buffer_id: int = 0, *, available: bool = True) -> int:
        """Write the next descriptor, marked available (or with both marks the wrong way round); its place."""
        place = self.next.index
        marks = self.next.available_flags if available else self.next.available_flags ^ (AVAIL | USED)
        entry = PackedDescriptor(addr, length, buffer_id, flags | marks)
        self.driver.memory.write(self.layout.descriptor(place), entry.pack())
        self.next.advance(1)
        return place

    def table(self, entries: Sequence[PackedDescriptor]) -> int:
        """Write an indirect table into pages of its own; its guest-physical address."""
        return self.buffer(b"".join(entry.pack() for entry in entries))

    def ids_returned(self, slots: int = 1) -> list[int]:
        """The ids of used descriptors since this object was made, `slots` descriptors to a chain, at most a ring."""
        place, ids = Place(self.size, self._used.index, self._used.wrap), []
        for _ in range(self.size // slots):
            entry = PackedDescriptor.unpack(self.driver.memory.read(self.layout.descriptor(place.index), 16))
            if entry.flags & (AVAIL | USED) != place.used_flags:
                break
            ids.append(entry.id)
            place.advance(slots)
        return ids
