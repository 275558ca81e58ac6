"""Which pages are in the balloon, and page frame numbers turned into runs (virtio 1.3 §5.5.6).

Owns the arithmetic on arrays of page frame numbers (PFNs: 4096-byte pages, 32 bits) and the map of pages the driver
gave away.  Refuses to know where the arrays come from and what is done with the pages.

A page is in the balloon or it is not: inflating it twice counts once, and deflating what is not in it counts as stray.

The usual request is one run of pages.  It is recognised and handled without numpy: when a driver kicks, its own work
has just pushed this code out of the caches, and each numpy operation then costs several times what a loop shows.
"""

from __future__ import annotations

import mmap
import os
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices import hostcalls
from devices.memory import PAGE_SHIFT, GuestMemory, Run
from devices.state import State, refuse, require_fields, require_list
from devices.virtio import spec

Pfns = NDArray[np.unsignedinteger[Any]]

PFN = np.dtype("<u4")

_PFN_BYTES = PFN.itemsize
_ENTRY = Struct("<I")
_INSIDE, _OUTSIDE = b"\1", b"\0"
_READY_PAGES = 1 << 20
TAKEN_TOGETHER_PAGES = 512
"""`BalloonPages.take` takes so many scattered pages, or up to `_LONGEST_TAKEN_RUN` neighbours."""
_LONGEST_TAKEN_RUN = 2048
_SEARCHED_PAGES = 16384
_SORT_AT_ONCE = 4096  # up to here sorting costs no more than asking whether it is needed
_NONE = np.empty(0, PFN)
_ONES = np.ones(_SORT_AT_ONCE, PFN)
_ZERO = np.zeros(1, np.intp)
_TRUE = np.ones(1, np.bool_)
for _shared in (_NONE, _ONES, _ZERO, _TRUE):
    _shared.setflags(write=False)


class PageSet:
    """`pages` different pages of RAM, and `bad` entries of the array that named none.

    Either all are one run that begins with page `first`; or `first` is None, `starts` and `counts`, shape (n,), are
    ascending runs that do not touch, and `pfns` are all the pages, ascending."""

    __slots__ = ("bad", "counts", "first", "pages", "pfns", "starts")

    def __init__(
        self,
        pages: int,
        bad: int,
        first: int | None,
        starts: Pfns = _NONE,
        counts: Pfns = _NONE,
        pfns: Pfns = _NONE,
    ) -> None:
        self.pages = pages
        self.bad = bad
        self.first = first
        self.starts = starts
        self.counts = counts
        self.pfns = pfns

    def discard(self, memory: GuestMemory) -> int:
        """Give the pages back to the host; returns the bytes.  OSError where it refuses."""
        if self.first is not None:
            return memory.discard_run(self.first, self.pages)
        return memory.discard(self.starts, self.counts)

    @property
    def run_count(self) -> int:
        """How many runs they are."""
        return len(self.starts) if self.first is None else 1

    def runs(self) -> list[Run]:
        """All runs, ascending."""
        if self.first is not None:
            return [Run(self.first, self.pages)]
        return list(map(Run, self.starts.tolist(), self.counts.tolist()))


def little_endian(payload: bytes, order: spec.ByteOrder) -> bytes:
    """An array of page frame numbers in byte `order` as one of le32."""
    return payload if order == "<" else np.frombuffer(payload, PFN.newbyteorder(order)).astype(PFN).tobytes()


class PfnReader:
    """Finds the pages of `memory` that an array of page frame numbers names.

    An array that counts up is a piece of all page frame numbers in ascending order.  They stand ready from the first
    array on: a thousandth of RAM, up to `_READY_PAGES`.  Behind that such an array is sorted like any other."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._ready_pages = min(memory.regions[-1].end >> PAGE_SHIFT, _READY_PAGES)
        self._ascending = b""

    def read(self, payload: bytes, order: spec.ByteOrder = "<") -> PageSet:
        """The pages that `payload` names, a whole number of 32-bit entries in byte `order`: in any order, repeated, and
        outside RAM as the driver likes."""
        payload = little_endian(payload, order)
        count = len(payload) // _PFN_BYTES
        if not count:
            return PageSet(0, 0, None)
        (first,) = _ENTRY.unpack_from(payload)
        if not self._ascending:
            self._ascending = np.arange(self._ready_pages, dtype=PFN).tobytes()
        if self._ascending.startswith(payload, _PFN_BYTES * first) and self._memory.region_of(
            first << PAGE_SHIFT, count << PAGE_SHIFT
        ):
            return PageSet(count, 0, first)
        pfns = np.frombuffer(payload, PFN)
        if count <= _SORT_AT_ONCE or not (pfns[1:] > pfns[:-1]).all():
            pfns = np.sort(pfns)
        return _runs(*_only_ram(pfns, self._memory))


def _only_ram(ascending: Pfns, memory: GuestMemory) -> tuple[Pfns, int]:
    """Without the pages that are not RAM, and how many those were."""
    first, last = ascending.item(0), ascending.item(-1)
    if memory.region_of(first << PAGE_SHIFT, last - first + 1 << PAGE_SHIFT) is not None:
        return ascending, 0
    valid = memory.are_ram_pages(ascending)
    return ascending[valid], len(valid) - int(np.count_nonzero(valid))


def _runs(pfns: Pfns, bad: int) -> PageSet:
    """The runs of ascending page frame numbers, which may repeat."""
    if not len(pfns):
        return PageSet(0, bad, None)
    steps = pfns[1:] - pfns[:-1]
    if np.count_nonzero(steps) != len(steps):
        pfns = pfns[np.concatenate((_TRUE, steps != 0))]
        steps = steps[steps != 0]
    gaps = (steps != 1).nonzero()[0]
    if len(gaps) == len(steps) < _SORT_AT_ONCE:  # no two pages are neighbours
        return PageSet(len(pfns), bad, None, pfns, _ONES[: len(pfns)], pfns)
    borders = np.concatenate((_ZERO, gaps + 1, (len(pfns),)))
    counts = (borders[1:] - borders[:-1]).astype(PFN)
    return PageSet(len(pfns), bad, None, pfns[borders[:-1]], counts, pfns)


class BalloonPages:
    """The pages in the balloon: one byte for each page up to the end of RAM, without memory behind it until used.

    `count` is how many there are.  With a `name` they are in a memory file of that name, if the host has such files:
    somebody who looks at this process from outside can read it without making memory of its holes."""

    def __init__(self, memory: GuestMemory, name: str = "") -> None:
        self._size = memory.regions[-1].end >> PAGE_SHIFT
        self._host_unit = max(memory.host_page_bytes >> PAGE_SHIFT, 1)
        self._name = name
        self.clear()

    def clear(self) -> None:
        """Take all pages out."""
        length = -(-self._size // self._host_unit) * self._host_unit
        fd = hostcalls.create_memory_file(self._name, length) if self._name else None
        self._bytes = mmap.mmap(-1 if fd is None else fd, length)
        if fd is not None:
            os.close(fd)  # the mapping has a descriptor of its own
        self._inside = np.frombuffer(self._bytes, np.bool_)[: self._size]
        self.count = 0

    @property
    def inside(self) -> NDArray[np.bool_]:
        """For each page up to the end of RAM whether it is in the balloon; only to look at."""
        view = self._inside.view()
        view.setflags(write=False)
        return view

    def rows(self, unit: int) -> NDArray[np.bool_]:
        """`inside` in rows of `unit` pages, up to the end of the host's page in which RAM ends."""
        return np.frombuffer(self._bytes, np.bool_).reshape(-1, unit)

    def move(self, pages: PageSet, inside: bool) -> int:
        """Put pages in, or take them out; returns how many were not already where they shall be."""
        total, first = pages.pages, pages.first
        if first is not None:
            some = self._bytes.find(_INSIDE, first, first + total) >= 0
            before = self._bytes[first : first + total].count(_INSIDE) if some else 0
            self._bytes[first : first + total] = (_INSIDE if inside else _OUTSIDE) * total
        else:
            places = pages.pfns.astype(np.intp)
            before = int(np.count_nonzero(self._inside[places]))
            self._inside[places] = inside
        self.count += total - before if inside else -before
        return total - before if inside else before

    def take(self, from_pfn: int) -> tuple[PageSet, int]:
        """Take some of the lowest pages out; returns them, and below which page frame number none is left.  There must
        be some, and none below `from_pfn`.  No page of the host's is cut in two that is wholly in and begins a run."""
        start = from_pfn + int(self._inside[from_pfn:].argmax())
        run = self._inside[start : start + max(_LONGEST_TAKEN_RUN, self._host_unit)]
        length = len(run) if run.all() else int(run.argmin())
        if length >= TAKEN_TOGETHER_PAGES:
            pages, end = PageSet(length, 0, start), start + length
        else:
            found = np.flatnonzero(self._inside[start : start + _SEARCHED_PAGES])[:TAKEN_TOGETHER_PAGES] + start
            pages, end = _runs(found.astype(PFN), 0), found.item(-1) + 1
        self._inside[start:end] = False
        self.count -= pages.pages
        return pages, end

    def save_state(self) -> State:
        """The pages inside as runs, [first page frame number, count], ascending."""
        if not self.count:
            return {"runs": []}
        edges = np.flatnonzero(np.diff(self._inside.view(np.int8), prepend=0, append=0))
        return {"runs": [[start, end - start] for start, end in edges.reshape(-1, 2).tolist()]}

    def check_state(self, saved: Any, where: str) -> None:
        end = 0
        for index, run in enumerate(require_list(where, require_fields(where, saved, ["runs"])["runs"])):
            start, count = require_list(f"{where}.runs[{index}]", run, 2)
            if type(start) is not int or type(count) is not int or start < end or count < 1:
                raise refuse(f"{where}.runs[{index}]", "behind the run before it", run)
            end = start + count
            if end > self._size:
                raise refuse(f"{where}.runs[{index}]", "inside RAM", run)

    def restore_state(self, saved: Any) -> None:
        self.clear()
        for start, count in saved["runs"]:
            self._inside[start : start + count] = True
            self.count += count

    def __eq__(self, other: object) -> bool:
        """Whether the same pages are inside."""
        if not isinstance(other, BalloonPages) or self.count != other.count:
            return False
        return not self.count or bool((self._inside == other._inside).all())
