"""Which pages of guest RAM nobody has written since a moment: a capability that a host may lack.

Owns the watching and its proof.  Refuses to know why somebody asks, and which call of the host finds it out
(`devices.hostcalls`).

The CPU stores to the same mapping as the devices do, so the host's page tables see every write of both, and nobody has
to tell.  What they do not see is the memory file written as a file: that happens only while a saved state is put back,
and then the watching begins anew.

- A page counts as unwritten only where that is proved.  Whatever is unknown counts as written: a page paged out, a
  state that came from a host without the capability.
- Watching costs one fault of the host, about 1 µs, for the first write to each page, and once more after `stop`; not
  watching costs nothing.  `start` itself takes some 20 ms per GiB.
- The answer is true when it is given.  One thread runs the CPU and the devices here, so it still is when a page is
  given back in the same call.  A device whose guest runs beside it would have to stop the guest in between.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from devices import hostcalls
from devices.large_pages import mappings_of
from devices.state import State, refuse, require_fields, require_list

if TYPE_CHECKING:
    from devices.memory import Region

U64 = NDArray[np.uint64]

_PAGE_SHIFT = 12
_SHIFT = np.uint64(_PAGE_SHIFT)
_NEEDED = "(it takes userfaultfd, WP_ASYNC and PAGEMAP_SCAN: Linux 6.7)"


class WriteTracking:
    """Watches the RAM of `regions`, `active` between `start` and `stop`; otherwise no page is known to be unwritten."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions = regions
        self._end_pages = regions[-1].end >> _PAGE_SHIFT
        self._close: tuple[Callable[[], object], ...] = ()
        self._pagemap = -1
        self._written_before: NDArray[np.bool_] | None = None

    @property
    def active(self) -> bool:
        return bool(self._close)

    def start(self) -> str:
        """Watch from now on; what was known before is forgotten.  "" or, where the host cannot, why in one clause."""
        self.stop()
        try:
            watch = hostcalls.open_write_watch()
            self._close = (weakref.finalize(self, os.close, watch),)
            self._pagemap = hostcalls.open_pagemap()
            self._close += (weakref.finalize(self, os.close, self._pagemap),)
            for address, length in mappings_of(self._regions).items():
                hostcalls.watch_writes(watch, address, length)
            hostcalls.unwritten_runs(self._pagemap, self._regions[0].address, hostcalls.PAGE_BYTES)
        except OSError as error:
            self.stop()
            return f"the host does not tell which pages of guest RAM are written: {error.strerror} {_NEEDED}"
        return ""

    def stop(self) -> None:
        """Watch no longer; a second time is no error."""
        for close in self._close:
            close()
        self._close = ()
        self._pagemap = -1
        self._written_before = None

    def unwritten(self, starts: U64, counts: U64) -> tuple[U64, U64]:
        """Of runs of pages in RAM, ascending, first page frame numbers and counts of shape (n,): the runs of those that
        are proved to be unwritten since `start`, ascending, in the same form."""
        found = [
            run for start, count in zip(starts.tolist(), counts.tolist(), strict=True) for run in self._in(start, count)
        ]
        if not found:
            return np.empty(0, np.uint64), np.empty(0, np.uint64)
        runs = np.concatenate(found)
        return runs[:, 0], runs[:, 1] - runs[:, 0]

    def _in(self, start: int, count: int) -> list[U64]:
        """(first page, page behind the last) of the unwritten ones among `count` pages, an array for each region."""
        if not self.active:
            return []
        found = []
        for region in self._regions:
            gpa, end = max(start << _PAGE_SHIFT, region.gpa), min(start + count << _PAGE_SHIFT, region.end)
            if gpa >= end:
                continue
            try:
                runs = hostcalls.unwritten_runs(self._pagemap, region.address + gpa - region.gpa, end - gpa)
            except OSError:  # it worked when it was tried
                continue
            pages = (runs - np.uint64(region.address) + np.uint64(region.gpa)) >> _SHIFT
            found.append(pages if self._written_before is None else self._still_unwritten(pages))
        return found

    def _still_unwritten(self, runs: U64) -> U64:
        """Without the pages that were written before the state was saved."""
        kept: list[tuple[int, int]] = []
        for first, last in runs.tolist():
            part = ~self._written_before[first:last]  # type: ignore[index]
            edges = np.flatnonzero(np.diff(part.view(np.int8), prepend=0, append=0)) + first
            kept += [(begin, end) for begin, end in edges.reshape(-1, 2).tolist()]
        return np.array(kept, np.uint64).reshape(-1, 2)

    # -- the state: what is unwritten, or None if nobody watches -----------------------------------------------------

    def save_state(self) -> State:
        if not self.active:
            return {"unwritten": None}
        starts = np.array([region.gpa for region in self._regions], np.uint64) >> _SHIFT
        counts = np.array([region.size for region in self._regions], np.uint64) >> _SHIFT
        firsts, lengths = self.unwritten(starts, counts)
        return {"unwritten": [[first, count] for first, count in zip(firsts.tolist(), lengths.tolist(), strict=True)]}

    def check_state(self, saved: Any, where: str) -> None:
        runs = require_fields(where, saved, ["unwritten"])["unwritten"]
        end = 0
        for index, run in enumerate(require_list(f"{where}.unwritten", runs) if runs is not None else []):
            place = f"{where}.unwritten[{index}]"
            start, count = require_list(place, run, 2)
            if type(start) is not int or type(count) is not int or start < end or count < 1:
                raise refuse(place, "behind the run before it", run)
            end = start + count
            if end > self._end_pages:
                raise refuse(place, "inside RAM", run)

    def restore_state(self, saved: Any) -> None:
        """Watch again if it was watched; everything that is not in the saved list counts as written."""
        self.stop()
        if saved["unwritten"] is None or self.start():
            return
        self._written_before = np.ones(self._end_pages, np.bool_)
        for first, count in saved["unwritten"]:
            self._written_before[first : first + count] = False
