"""Which pages are in the balloon, and page frame numbers turned into runs (virtio 1.3 §5.5.6).

Owns the arithmetic on arrays of page frame numbers (PFNs: 4096-byte pages, 32 bits) and the map of pages the driver
gave away.  Refuses to know where the arrays come from and what is done with the pages.

A page is in the balloon or it is not: inflating it twice counts once, and deflating what is not in it counts as stray.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from devices.memory import PAGE_SHIFT, GuestMemory

Pfns = NDArray[np.unsignedinteger[Any]]
_ZERO = np.zeros(1, np.intp)


class PageSet(NamedTuple):
    """Different pages of RAM as ascending runs that do not touch: `counts[i]` pages from `starts[i]` on; shape (n,).

    `pages` is their number, `pfns` all of them, ascending; `bad` how many entries of the array named no page of RAM."""

    starts: Pfns
    counts: Pfns
    pages: int
    pfns: Pfns
    bad: int


def page_set(pfns: Pfns, memory: GuestMemory) -> PageSet:
    """The pages that `pfns`, shape (n,), names: in any order, repeated, and outside RAM as the driver likes.

    Drivers mostly send ascending numbers, often without a gap: those cost no sort."""
    count = len(pfns)
    steps = pfns[1:] - pfns[:-1]  # unsigned: going down is a large step up
    if count and np.count_nonzero(steps == 1) == count - 1 and pfns.item(-1) - pfns.item(0) == count - 1:
        if memory.contains(pfns.item(0) << PAGE_SHIFT, count << PAGE_SHIFT):
            return PageSet(pfns[:1], np.array([count], np.uint32), count, pfns, 0)
    elif not (pfns[1:] > pfns[:-1]).all():
        pfns = np.sort(pfns)
    pfns, bad = _only_ram(pfns, memory)
    pfns = _without_repeats(pfns)
    if not len(pfns):
        return PageSet(pfns, pfns, 0, pfns, bad)
    gaps = (pfns[1:] - pfns[:-1] != 1).nonzero()[0] + 1
    first = np.concatenate((_ZERO, gaps, [len(pfns)]))
    counts = (first[1:] - first[:-1]).astype(np.uint32)
    return PageSet(pfns[first[:-1]], counts, len(pfns), pfns, bad)


def _only_ram(ascending: Pfns, memory: GuestMemory) -> tuple[Pfns, int]:
    """Without the pages that are not RAM, and how many those were."""
    if not len(ascending):
        return ascending, 0
    first, last = ascending.item(0), ascending.item(-1)
    if memory.contains(first << PAGE_SHIFT, last - first + 1 << PAGE_SHIFT):
        return ascending, 0
    valid = memory.are_ram_pages(ascending)
    return ascending[valid], len(valid) - int(np.count_nonzero(valid))


def _without_repeats(ascending: Pfns) -> Pfns:
    new = ascending[1:] != ascending[:-1]
    if new.all():
        return ascending
    kept: Pfns = ascending[np.concatenate((np.ones(1, np.bool_), new))]
    return kept


class BalloonPages:
    """The pages in the balloon: one byte for each page up to the end of RAM, untouched until used.

    `count` is how many there are."""

    def __init__(self, memory: GuestMemory) -> None:
        self._size = memory.regions[-1].end >> PAGE_SHIFT
        self.clear()

    def clear(self) -> None:
        """Take all pages out."""
        self._inside: NDArray[np.bool_] = np.zeros(self._size, np.bool_)
        self.count = 0

    def add(self, pages: PageSet) -> int:
        """Put pages in; returns how many were not inside before."""
        new = pages.pages - self._set(pages, True)
        self.count += new
        return new

    def remove(self, pages: PageSet) -> int:
        """Take pages out; returns how many were inside before."""
        old = self._set(pages, False)
        self.count -= old
        return old

    def _set(self, pages: PageSet, inside: bool) -> int:
        """Mark the pages; returns how many of them were inside."""
        if len(pages.starts) == 1:
            start = pages.starts.item(0)
            part = self._inside[start : start + pages.pages]
            before = int(np.count_nonzero(part))
            part[:] = inside
            return before
        before = int(np.count_nonzero(self._inside[pages.pfns]))
        self._inside[pages.pfns] = inside
        return before

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BalloonPages)
            and self.count == other.count
            and bool((self._inside == other._inside).all())
        )
