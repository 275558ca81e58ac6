"""Guest RAM on a host whose pages are larger than the guest's 4096 bytes: huge pages, or a host's own larger ones.

Owns the arithmetic between the two sizes, and what becomes of a range that ends within a page of the host's: only the
whole ones are given back, and the rest is cleared, so that it reads as zero all the same.  Clearing a memory file never
brings a page into being: what the host does not have reads as zero already, and there may be no huge page left.

With huge pages every punched hole is whole pages of the host's: kernels before 6.0 leave the rest of one as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from devices import hostcalls

if TYPE_CHECKING:
    from devices.host_memory import OpenBacking
    from devices.memory import Region

U64 = NDArray[np.uint64]
Flags = NDArray[np.bool_]

_PAGE_BYTES = 4096
_PAGE_SHIFT = 12
_ONE = np.uint64(1)


class LargePages:
    """The pages of the host's behind `regions`: `unit` times 4096 bytes each, and number n begins at guest-physical
    address n * unit * 4096.  `backing` is open, for just these regions."""

    def __init__(self, regions: Sequence[Region], backing: OpenBacking) -> None:
        self.unit = backing.page_bytes >> _PAGE_SHIFT
        self._regions = regions
        self._fd = backing.fd
        self._page_bytes = backing.page_bytes
        self._is_huge = backing.kind == "hugepages"
        self._ragged = _ragged(regions, self.unit)

    def discard(self, starts: U64, counts: U64) -> int:
        """Give the host its pages that lie wholly in one of these runs of pages of RAM, arrays of shape (n,), and clear
        the rest of the runs; of a page that is not all RAM, all its RAM must be in the runs.  Returns the bytes given
        back."""
        unit = np.uint64(self.unit)
        ends = starts + counts
        firsts, lasts = (starts + (unit - _ONE)) // unit, ends // unit
        heads, tails = np.minimum(firsts * unit, ends), np.maximum(lasts * unit, starts)
        whole = firsts < lasts
        # A run within one page of the host's has its head end where it ends itself: then it is all head.
        tails = np.where(heads == ends, ends, tails)
        for start, end in (*_pairs(starts, heads), *_pairs(tails, ends)):
            if start < end:
                self.clear(np.arange(start, end, dtype=np.uint64))
        done = self.free_runs(firsts[whole], (lasts - firsts)[whole])
        return done + self.free(self._covered(starts, ends)) if self._ragged else done

    def _covered(self, starts: U64, ends: U64) -> U64:
        """Which pages of the host's that are not all RAM have all their RAM in these runs."""
        numbers = []
        for number, parts in self._ragged.items():
            low, high = number * self.unit, (number + 1) * self.unit
            near = (starts < high) & (ends > low)
            covered = np.zeros(self.unit, np.bool_)
            for start, end in _pairs(starts[near], ends[near]):
                covered[max(start - low, 0) : end - low] = True
            if all(covered[first - low : last - low].all() for first, last in parts):
                numbers.append(number)
        return np.array(numbers, np.uint64)

    def free(self, numbers: U64) -> int:
        """Give pages of the host's back, ascending `numbers` of shape (n,).  Returns their bytes."""
        runs = np.array(_runs(numbers), np.uint64).reshape(-1, 2)
        return self.free_runs(runs[:, 0], runs[:, 1])

    def free_runs(self, firsts: U64, counts: U64) -> int:
        """The same for runs of them."""
        size = self._page_bytes
        for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
            if self._fd is not None:
                hostcalls.punch_hole(self._fd, first * size, count * size)
                continue
            for region in self._regions:
                start, end = max(first * size, region.gpa), min((first + count) * size, region.end)
                if start < end:
                    hostcalls.discard_anonymous(region.mapping, start - region.base, end - start)
        return int(counts.sum()) * size

    def clear(self, pfns: U64) -> None:
        """Fill pages of RAM with zeros; ascending, different page frame numbers of shape (n,)."""
        for region in self._regions:
            inside = pfns[(pfns >= region.gpa >> _PAGE_SHIFT) & (pfns < region.end >> _PAGE_SHIFT)]
            if not len(inside):
                continue
            if self._fd is not None and not self._is_huge:  # the kernel clears parts of its own pages
                for first, count in _runs(inside):
                    hostcalls.punch_hole(self._fd, first << _PAGE_SHIFT, count << _PAGE_SHIFT)
                continue
            if self._is_huge:
                numbers = inside // np.uint64(self.unit)
                inside = inside[np.isin(numbers, self._held_of(region, numbers))]
            rows = region.array.reshape(-1, _PAGE_BYTES)
            rows[(inside - np.uint64(region.gpa >> _PAGE_SHIFT)).astype(np.intp)] = 0

    def _held_of(self, region: Region, numbers: U64) -> U64:
        """Which of the host's pages with these ascending numbers, which may repeat, the host has."""
        different = numbers[np.append(True, numbers[1:] != numbers[:-1])]
        found = [
            first + np.flatnonzero(self._held(region, first, first + count)).astype(np.uint64)
            for first, count in _runs(different)
        ]
        return np.concatenate(found).astype(np.uint64)

    def held(self, region: Region) -> list[tuple[int, int]]:
        """(gpa, bytes) of what of `region` has huge pages behind it, ascending."""
        size, low = self._page_bytes, region.gpa // self._page_bytes
        flags = self._held(region, low, -(-region.end // size))
        edges = (np.flatnonzero(np.diff(flags.view(np.int8), prepend=0, append=0)) + low) * size
        pairs = [(max(start, region.gpa), min(end, region.end)) for start, end in edges.reshape(-1, 2).tolist()]
        return [(start, end - start) for start, end in pairs]

    def _held(self, region: Region, low: int, high: int) -> Flags:
        """Which of the huge pages from `low` to `high`, all of which `region`'s mapping has, the host has."""
        address = region.address - region.gpa + low * self._page_bytes
        small = hostcalls.present_pages(address, (high - low) * self._page_bytes)
        flags: Flags = np.bitwise_or.reduce(small.reshape(high - low, -1), axis=1)
        return flags


def mappings_of(regions: Sequence[Region]) -> dict[int, int]:
    """The bytes of each mapping behind `regions`, by its address; regions may share one."""
    return {region.address - (region.gpa - region.base): len(region.mapping) for region in regions}


def _ragged(regions: Sequence[Region], unit: int) -> dict[int, list[tuple[int, int]]]:
    """The pages of the host's that have RAM and something else, ascending, each with its pieces of RAM: the first page,
    and the one behind the last."""
    parts: dict[int, list[tuple[int, int]]] = {}
    for region in regions:
        first, last = region.gpa >> _PAGE_SHIFT, region.end >> _PAGE_SHIFT
        for number in {first // unit, (last - 1) // unit}:
            low, high = max(first, number * unit), min(last, (number + 1) * unit)
            parts.setdefault(number, []).append((low, high))
    return {n: found for n, found in sorted(parts.items()) if sum(last - first for first, last in found) < unit}


def _runs(numbers: U64) -> list[tuple[int, int]]:
    """(first, how many) of the runs of ascending, different numbers."""
    if not len(numbers):
        return []
    borders = np.concatenate(([0], np.flatnonzero(np.diff(numbers) != 1) + 1, [len(numbers)]))
    return _pairs(numbers[borders[:-1]], np.diff(borders).astype(np.uint64))


def _pairs(starts: U64, ends: U64) -> list[tuple[int, int]]:
    return list(zip(starts.tolist(), ends.tolist(), strict=True))
