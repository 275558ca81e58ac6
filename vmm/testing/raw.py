"""Raw access to a queue that a driver set up: any bytes in the descriptor table, the rings and indirect tables.

Nothing is checked here, that is the point.  Once a test went raw on a queue, the driver's own `offer` and `collect` on
it mean nothing until the device was reset and the queue set up again; `heads_returned` reads the used ring instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from devices.virtio import spec
from vmm.testing.driver import Driver
from vmm.testing.layout import Descriptor
from vmm.testing.pages import PAGE_BYTES

NEXT = spec.VIRTQ_DESC_F_NEXT
WRITE = spec.VIRTQ_DESC_F_WRITE
INDIRECT = spec.VIRTQ_DESC_F_INDIRECT


class RawQueue:
    """Queue `index` of a started driver, as bytes in memory."""

    def __init__(self, driver: Driver, index: int = 0) -> None:
        queue = driver.queues[index]
        self.driver = driver
        self.index = index
        self.size = queue.size
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
        data = b"".join(entry.pack(self.order) for entry in entries)
        gpa = self.driver.pages.take(max(1, -(-len(data) // PAGE_BYTES)))
        self.driver.memory.write(gpa, data)
        return gpa

    def buffer(self, data: bytes) -> int:
        """Put bytes into pages of their own; their guest-physical address."""
        gpa = self.driver.pages.take(max(1, -(-len(data) // PAGE_BYTES)))
        self.driver.memory.write(gpa, data)
        return gpa

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

    def kick(self) -> None:
        """Notify the device, wanted or not."""
        self.driver.transport.notify(self.index)

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
