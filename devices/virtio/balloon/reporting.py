"""Free page reporting (virtio 1.3 §5.5.6.7): the ranges that the driver calls free, turned into runs of pages.

Owns the arithmetic from descriptors to runs.  Refuses to know when they are discarded and what is said about it.

A report carries no payload: each device-writable buffer *is* a range of free memory, in bytes, and until the buffer is
used the device may do to it what it likes.  What a driver may get wrong, and what becomes of it:

- A range outside RAM never comes here: it is a broken descriptor like any other (§2.7.5), and the device needs reset.
- Only whole pages inside one range are taken, whole ones of the host's too where those are larger.  Two halves of a
  page in two ranges are no page.  What is left over keeps its contents and is counted.
- Device-readable buffers name nothing: they are left out and counted, as QEMU leaves them out.
- Ranges may overlap, repeat and touch in any order: all those of a batch are merged, so that a kick never discards a
  page twice.
- A range over the queue's own ring is the driver's loss.  The batch was copied out of the ring before.

Linux reports up to 32 ranges at once.  So few are merged in plain Python: giving 64 MiB back leaves this code out of
the caches, and numpy, of which there is more, took ten times as long to come back as it takes in a loop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from devices.memory import PAGE_BYTES, PAGE_SHIFT, U64, GuestMemory, Run
from devices.virtio.chains import Chains

FEW_RANGES = 64
"""Up to so many ranges are merged without numpy; in a loop both ways cross near 30."""

_SHIFT = np.uint64(PAGE_SHIFT)
_ONE = np.uint64(1)
_TRUE = np.ones(1, np.bool_)
_TRUE.setflags(write=False)


class FreePages(NamedTuple):
    """`pages` different pages in ascending runs that do not touch, `starts` and `counts`: arrays of shape (n,) and
    dtype uint64, or lists; `ignored_bytes` of the buffers were in no whole page, or device-readable."""

    pages: int
    ignored_bytes: int
    starts: U64 | list[int]
    counts: U64 | list[int]

    def only(self, starts: U64, counts: U64) -> FreePages:
        """Those of the pages that lie in these runs, which are some of its own."""
        return FreePages(int(counts.sum()), self.ignored_bytes, starts, counts)

    def discard(self, memory: GuestMemory) -> int:
        """Give the pages back to the host; returns the bytes.  OSError where it refuses."""
        if len(self.starts) == 1:
            return memory.discard_run(int(self.starts[0]), int(self.counts[0]))
        return memory.discard(self.starts, self.counts)

    def runs(self) -> list[Run]:
        """All runs, ascending."""
        return list(map(Run, map(int, self.starts), map(int, self.counts)))


def free_pages(chains: Chains, host_page_bytes: int = PAGE_BYTES) -> FreePages:
    """The pages that all chains of a batch report.  Every buffer is inside RAM: no sum of address and length wraps."""
    if chains.descriptors <= FEW_RANGES:
        return _few_whole_pages(chains.buffers(), host_page_bytes)
    if chains.writable.all():
        return whole_pages(chains.addr, chains.length, 0, host_page_bytes)
    addr, length = chains.addr[chains.writable], chains.length[chains.writable]
    return whole_pages(addr, length, int(chains.length[~chains.writable].sum()), host_page_bytes)


def whole_pages(addr: U64, length: U64, ignored_bytes: int, host_page_bytes: int = PAGE_BYTES) -> FreePages:
    """The whole pages inside ranges of RAM, two arrays of shape (n,); `ignored_bytes` were left out before."""
    total = int(length.sum()) + ignored_bytes
    unit = np.uint64(max(PAGE_BYTES, host_page_bytes))
    starts = (addr + (unit - _ONE)) // unit * unit
    ends = (addr + length) // unit * unit
    whole = ends > starts
    starts, ends = starts[whole] >> _SHIFT, ends[whole] >> _SHIFT
    ignored = total - (int((ends - starts).sum()) << PAGE_SHIFT)
    starts, counts = _merge(starts, ends)
    return FreePages(int(counts.sum()), ignored, starts, counts)


def _few_whole_pages(buffers: list[tuple[int, int, bool]], unit: int) -> FreePages:
    """`whole_pages` of `unit` bytes in the device-writable ones of (gpa, bytes, writable)."""
    ranges, ignored_bytes = [], 0
    for gpa, size, writable in buffers:
        start, end = -(-gpa // unit) * unit, (gpa + size) // unit * unit
        if writable and start < end:
            ranges.append((start, end))
            size -= end - start
        ignored_bytes += size
    ranges.sort()
    starts: list[int] = []
    counts: list[int] = []
    reached = -1
    for start, end in ranges:
        if start > reached:
            starts.append(start >> PAGE_SHIFT)
            counts.append(end - start >> PAGE_SHIFT)
            reached = end
        elif end > reached:
            counts[-1] += end - reached >> PAGE_SHIFT
            reached = end
    return FreePages(sum(counts), ignored_bytes, starts, counts)


def _merge(starts: U64, ends: U64) -> tuple[U64, U64]:
    """The union of the ranges as ascending runs: first pages and numbers of pages."""
    if len(starts) < 2:
        return starts, ends - starts
    order = np.argsort(starts, kind="stable")
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    begins = np.concatenate((_TRUE, starts[1:] > reached[:-1]))
    firsts = np.flatnonzero(begins)
    starts = starts[firsts]
    return starts, reached[np.append(firsts[1:] - 1, len(reached) - 1)] - starts
