"""A live balloon and the smallest driver there can be, for measuring: chains stand ready-made, one descriptor each.

Owns the guest RAM, its rings and the arrays of page frame numbers in it.  Refuses to know what is timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from devices import hostcalls
from devices.memory import PAGE_SHIFT, GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon

MIB = 1 << 20
BACKINGS = ("memfd", "anonymous")
PATTERNS = ("ascending", "descending", "runs of 8", "random")
REQUEST_PAGES = 256
QUEUE_SIZE = 256
RAM_BYTES = 512 * MIB
RAM_START = 0x100000
RINGS = RAM_BYTES - 4 * MIB  # behind every page that is given away
DESC, AVAILABLE, USED, BUFFERS = RINGS, RINGS + 0x2000, RINGS + 0x4000, RINGS + 0x10000
FIRST_PFN, LAST_PFN = 0x1000, RINGS >> PAGE_SHIFT

Pfns = NDArray[Any]


@contextmanager
def backed_by(backing: str) -> Iterator[None]:
    """Guest RAM made inside is a memory file or anonymous, as on a host that has no memory files."""
    if backing == "memfd":
        yield
        return
    with mock.patch.object(hostcalls, "create_memory_file", lambda name, size: None):
        yield


def pfns_of(pattern: str, count: int) -> Pfns:
    """`count` page frame numbers, a multiple of 8."""
    generator = np.random.default_rng(1)
    if pattern == "ascending":
        pfns = np.arange(FIRST_PFN, FIRST_PFN + count)
    elif pattern == "descending":
        pfns = np.arange(FIRST_PFN + count - 1, FIRST_PFN - 1, -1)
    elif pattern == "runs of 8":  # with a gap of 8 pages between any two, in any order
        starts = generator.permutation(np.arange(FIRST_PFN, LAST_PFN - 8, 16))[: count // 8]
        pfns = (starts[:, None] + np.arange(8)).reshape(-1)
    else:
        pfns = generator.permutation(np.arange(FIRST_PFN, LAST_PFN))[:count]
    return pfns.astype("<u4")


class Rig:
    """The balloon at `device`, all its queues enabled, with RAM of its own in `memory`."""

    def __init__(self, backing: str = "memfd") -> None:
        with backed_by(backing):
            self.memory = GuestMemory(((0, 0xA0000), (RAM_START, RAM_BYTES - RAM_START)))
        self.available_index = 0
        self.device = device = Balloon(self.memory, queue_size=QUEUE_SIZE)
        device.set_dma_enabled(True, 0)
        device.write_status(3, 0)
        device.write_driver_features(1 << spec.VIRTIO_F_VERSION_1 | 1 << spec.VIRTIO_F_EVENT_IDX)
        device.write_status(11, 0)
        for field, value in (("desc_gpa", DESC), ("driver_gpa", AVAILABLE), ("device_gpa", USED), ("enabled", 1)):
            device.write_queue(0, field, value, 0)
        device.write_status(15, 0)
        self._available = self.memory.view(AVAILABLE, 6 + 2 * QUEUE_SIZE).view("<u2")
        self._used = self.memory.view(USED, 6 + 8 * QUEUE_SIZE).view("<u2")

    def place(self, arrays: Sequence[Pfns]) -> list[int]:
        """Chain i is descriptor i, whose buffer holds arrays[i]; returns the buffers' addresses."""
        descriptors = self.memory.view(DESC, 16 * QUEUE_SIZE).view(spec.virtq_desc)
        gpas, gpa = [], BUFFERS
        for index, pfns in enumerate(arrays):
            descriptors[index] = (gpa, 4 * len(pfns), 0, 0)
            self.memory.write(gpa, pfns.tobytes())
            gpas.append(gpa)
            gpa += 4 * len(pfns)
        return gpas

    def offer(self, *heads: int) -> None:
        """Make chains available, without a kick."""
        for offset, head in enumerate(heads):
            self._available[2 + (self.available_index + offset) % QUEUE_SIZE] = head
        self.available_index = self.available_index + len(heads) & 0xFFFF
        self._available[1] = self.available_index
        self.memory.take_writes()

    def touch(self, pfns: Pfns) -> None:
        """Put host memory behind the pages: discarding what is not backed would cost nothing."""
        gpas = pfns.astype(np.int64) << PAGE_SHIFT
        for region in self.memory.regions:
            region.array[gpas[(gpas >= region.gpa) & (gpas < region.end)] - region.gpa] = 1
        self.memory.take_writes()

    def kick(self) -> None:
        """From the notification to the used ring."""
        self.device.notify(0, 0)

    def used_index(self) -> int:
        return int(self._used[1])

    def close(self) -> None:
        self.memory.close()
