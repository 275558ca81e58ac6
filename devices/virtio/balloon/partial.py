"""Inflated pages on a host whose own pages are larger: which of the host's are wholly in the balloon (§5.5.6).

Owns the arithmetic between the balloon's map and the host's pages.  Refuses to know how memory is given back
(`devices.large_pages`).  A host with pages of 4096 bytes has no object of this kind, and pays nothing for it.

A page of the host's can be given back when every page of RAM in it is in the balloon, and no sooner.  The balloon's own
map says so: it is all the tracking there is, for all of the host's pages at once.  So a page that was deflated counts
no longer, a reset forgets all of them, and a saved state has what is needed.  A page of the host's may reach beyond
RAM; what lies there is nobody's, and does not hold it back.

Every inflated page reads as zero, given back or not: until its neighbours follow it is cleared.

Without MUST_TELL_HOST a driver may use a page of the balloon before it tells (§5.5.6.1), so that a page in the map may
be in use when the last of its neighbours comes.  Then the host's page is given back only if all of it is zeros, which
it reads as afterwards too: nothing can be lost, whatever the driver does meanwhile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from devices.large_pages import U64, LargePages
from devices.memory import PAGE_BYTES, PAGE_SHIFT, GuestMemory, Run
from devices.virtio.balloon.pages import BalloonPages, PageSet

_PIECE_PAGES = 512


class PartialPages:
    """The pages of the host's behind `memory`, whose pages `pages` are in the balloon."""

    def __init__(self, memory: GuestMemory, large: LargePages, pages: BalloonPages) -> None:
        self.memory = memory
        self.large = large
        self._pages = pages
        rows = pages.rows(large.unit)
        is_ram = memory.are_ram_pages(np.arange(rows.size, dtype=np.uint64)).reshape(rows.shape)
        self._ram_pages = is_ram.sum(axis=1)

    def inflated(self, pages: PageSet, *, in_use: bool) -> InflatedPages:
        """`pages`, which are in the map by now; with `in_use` those that were there before may be in use."""
        pfns = pages.pfns if pages.first is None else np.arange(pages.first, pages.first + pages.pages)
        wide = pfns.astype(np.uint64)
        numbers = wide // np.uint64(self.large.unit)
        touched = numbers[np.append(True, numbers[1:] != numbers[:-1])[: len(numbers)]]
        return InflatedPages(self, pages, wide, touched[self._complete(touched)], in_use)

    def _complete(self, numbers: U64) -> NDArray[np.bool_]:
        """For each page of the host's whether all RAM in it is in the balloon."""
        places = numbers.astype(np.intp)
        inside: NDArray[np.bool_] = self._pages.rows(self.large.unit)[places].sum(axis=1) == self._ram_pages[places]
        return inside

    @property
    def held_pages(self) -> int:
        """How many pages of the balloon wait for neighbours: host memory may still stand behind them."""
        inside = self._pages.rows(self.large.unit).sum(axis=1)
        return int(inside[inside != self._ram_pages].sum())

    def is_clear(self, number: int) -> bool:
        """Whether all RAM in a page of the host's reads as zero.  It gains no host memory by this."""
        first = number * self.large.unit
        zeros = bytes(_PIECE_PAGES * PAGE_BYTES)
        for start in range(first, first + self.large.unit, _PIECE_PAGES):
            for region in self.memory.regions:
                low = max(start << PAGE_SHIFT, region.gpa)
                high = min(min(start + _PIECE_PAGES, first + self.large.unit) << PAGE_SHIFT, region.end)
                if low < high and self.memory.peek(low, high - low) != zeros[: high - low]:
                    return False
        return True


class InflatedPages:
    """Pages that came into the balloon, `pfns`, and the pages of the host's that are `complete` by them."""

    def __init__(self, partial: PartialPages, pages: PageSet, pfns: U64, complete: U64, in_use: bool) -> None:
        self.pages = pages.pages
        self._partial = partial
        self._given = pages
        self._pfns = pfns
        self._complete = complete
        self._in_use = in_use

    def runs(self) -> list[Run]:
        """All runs of the pages, ascending."""
        return self._given.runs()

    def discard(self, memory: GuestMemory) -> int:
        """Give back what is complete and clear the rest; returns the bytes given back.  OSError where the host refuses
        them."""
        large, complete, rest = self._partial.large, self._complete, self._pfns
        if self._in_use:
            large.clear(rest)
            clear = [self._partial.is_clear(number) for number in complete.tolist()]
            complete = complete[np.array(clear, np.bool_)]
        else:
            large.clear(rest[~np.isin(rest // np.uint64(large.unit), complete)])
        self._note_writes(memory)
        return large.free(complete)

    def _note_writes(self, memory: GuestMemory) -> None:
        """What may read otherwise now: the pages, and all of the pages of the host's that are complete."""
        for first, count in self.runs():
            memory.wrote(first << PAGE_SHIFT, count << PAGE_SHIFT)
        size = self._partial.large.unit << PAGE_SHIFT
        for number in self._complete.tolist():
            for region in memory.regions:
                start, end = max(number * size, region.gpa), min((number + 1) * size, region.end)
                if start < end:
                    memory.wrote(start, end - start)
