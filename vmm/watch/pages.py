"""The rules about pages: in the balloon, on their way there and out of it, and reported (§5.5.6, §5.5.6.7).

Owns what must be remembered of pages besides the balloon's own map, and the one look that shows their use.

A page in the balloon was given back to the host, so nothing stands behind it in the memory file; whoever touches it
brings it back.  The file is asked which of its pages exist (SEEK_DATA, SEEK_HOLE).  Looking through the mapping would
bring back what it looks at.  This takes a memory file in pages of 4096 bytes which the host does not fill in larger
pieces, and discards that the host did not refuse; where that is not so, `obstacle` says why, and R10 and R12 go unseen.

Pages are looked at when they leave the balloon, or come again; all of them, at most every `PATIENCE_NS` of guest time,
when the driver says something anyway, and at the end.  So looking depends on the guest alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from devices import hostcalls
from devices.memory import PAGE_BYTES, PAGE_SHIFT, GuestMemory
from devices.state import FLAG, TEXT, TIME_NS, Bytes, Int, State, Stateful, Table, refuse, require_list
from vmm.watch.breaches import PATIENCE_NS, Breaches

Pfns: TypeAlias = NDArray[np.unsignedinteger[Any] | np.signedinteger[Any]]
Flags: TypeAlias = NDArray[np.bool_]
Runs: TypeAlias = NDArray[np.int64]
"""(n, 2): first page frame number and number of pages of each run, ascending."""

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_UNUSED, _SEEN, _COUNTED = 0, 1, 2
_PIECE_BYTES = 1 << 20


class PageRules(Stateful):
    """R7, R9, R10, R12, R13, R14, R38 and R39 for the balloon of `memory`.

    `obstacle` is why the use of pages cannot be seen, or "".  `_pending` are the pages of requests that are not
    acknowledged yet, by queue; `_marks` has a byte for each page: whether its use in the balloon was seen, and counted.
    `_spare_pages` came in since `actual` was written, so that as many may leave: a page is moved by inflating its
    successor first.  `_exact` says that the device can count what the driver counts."""

    STATE: ClassVar[Table] = {
        "_marks": Bytes(),
        "_spare_pages": Int(0, 1 << 52),
        "_swept_ns": TIME_NS,
        "_exact": FLAG,
        "_actual_written": FLAG,
        "obstacle": TEXT,
    }
    BESIDE: ClassVar = ("pending",)

    def __init__(self, memory: GuestMemory, breaches: Breaches) -> None:
        self._memory = memory
        self._breaches = breaches
        self._marks = bytearray(memory.regions[-1].end >> PAGE_SHIFT)
        self._swept_ns = 0
        self.driver_lost()

    def driver_lost(self) -> None:
        self._marks[:] = bytes(len(self._marks))
        self._pending: dict[str, Runs] = {}
        self._spare_pages = 0
        self._exact = self._actual_written = True
        self.obstacle = _obstacle(self._memory)

    def discards_failed(self) -> None:
        """The host refused to take pages back: they look used, and are not."""
        self.obstacle = self.obstacle or "the host refused to take pages back"

    # -- on their way in -----------------------------------------------------------------------------------------------

    def pending(self, queue: str, runs: Runs) -> None:
        """A request for these pages will be acknowledged later: the driver runs meanwhile."""
        self._pending[queue] = runs

    def acknowledged(self, queue: str, rule_id: str, now_ns: int) -> None:
        """What was pending of `queue` is about to be acknowledged, and was discarded."""
        runs = self._pending.pop(queue, None)
        if runs is not None and len(runs) and not self.obstacle:
            pfns = pages_of(runs)
            self._count(rule_id, pfns[self._backed(pfns)], "used before the request was acknowledged", now_ns)

    def queue_lost(self, queue: str) -> None:
        self._pending.pop(queue, None)

    def inflated(self, pfns: Pfns, inside: Flags, must_tell: bool, now_ns: int) -> None:
        """These pages, ascending, are about to go into the balloon, where those of the map `inside` are already."""
        again = pfns[inside[pfns]]
        if must_tell and len(again):
            self._count_used(again, "used while they were in the balloon, and inflated again", now_ns)
        self._mark(pfns, _UNUSED)
        self._exact &= not len(again)
        self._spare_pages += len(pfns) - len(again)
        self._changed(now_ns)

    # -- on their way out ----------------------------------------------------------------------------------------------

    def deflated(self, pfns: Pfns, inside: Flags, must_tell: bool, now_ns: int) -> None:
        """These pages, ascending, are about to leave it."""
        known = inside[pfns]
        waiting = self._waiting(pfns)
        self._count("R13", pfns[waiting], "deflated before their inflation was acknowledged", now_ns)
        self._count("R9", pfns[~known & ~waiting], "deflated that were not in the balloon", now_ns)
        if must_tell:
            self._count_used(pfns[known & ~waiting], "used before their deflation was acknowledged", now_ns)
        self._mark(pfns, _UNUSED)
        self._exact &= bool(known.all())
        self._changed(now_ns)

    def left(self, count: int, pages: int, wanted: int, now_ns: int) -> None:
        """`count` pages have left it without DEFLATE_ON_OOM; `pages` are in it, and `wanted` should be."""
        missing = min(count, wanted - pages) - self._spare_pages
        self._spare_pages = max(self._spare_pages - count, 0)
        if missing > 0:
            detail = f"{missing} pages left the balloon, which has {pages} pages and should have {wanted}"
            self._breaches.add("R7", now_ns, detail, missing)

    # -- actual --------------------------------------------------------------------------------------------------------

    def bad_entries(self) -> None:
        """The driver named what is no page: it counts otherwise than the device."""
        self._exact = False

    def _changed(self, now_ns: int) -> None:
        self._actual_written = False
        self._breaches.expect("R14", now_ns)

    def actual_written(self, actual: int, pages: int, now_ns: int) -> None:
        """`actual` was written, and `pages` are in the balloon."""
        self._spare_pages = 0
        self._actual_written = True
        if actual == pages:
            self._breaches.met("R14")
        else:
            self._breaches.expect("R14", now_ns)

    def actual_is_wrong(self, actual: int, pages: int) -> bool:
        """Whether the time for an update has gone by without a right one."""
        return actual != pages and (self._exact or not self._actual_written)

    # -- use -----------------------------------------------------------------------------------------------------------

    def sweep(self, inside: Flags, must_tell: bool, now_ns: int, *, at_the_end: bool = False) -> None:
        """Look at all pages of the balloon, unless that was done not long ago; at the end in any case.

        Without MUST_TELL_HOST a page may be used before the deflateq tells of it (R11), but not for ever (R9)."""
        too_soon = now_ns < self._swept_ns + PATIENCE_NS and not (at_the_end and must_tell)
        if self.obstacle or too_soon:
            return
        self._swept_ns = now_ns
        pfns = np.flatnonzero(inside)
        pfns = pfns[~self._waiting(pfns)]
        if must_tell:
            self._count_used(pfns, "used while they were in the balloon", now_ns)
            return
        used = pfns[self._backed(pfns)]
        marks = np.frombuffer(self._marks, np.uint8)[used]
        self._count("R9", used[marks == _SEEN], "used in the balloon, and the deflateq never told of them", now_ns)
        self._mark(used[marks == _SEEN], _COUNTED)
        self._mark(used[marks == _UNUSED], _SEEN)

    def _count_used(self, pfns: Pfns, what: str, now_ns: int) -> None:
        """Of these pages of the balloon count those in use for the first time."""
        if self.obstacle:
            return
        fresh = pfns[np.frombuffer(self._marks, np.uint8)[pfns] != _COUNTED]
        used = fresh[self._backed(fresh)]
        self._mark(used, _COUNTED)
        self._count("R10", used, what, now_ns)

    def _waiting(self, pfns: Pfns) -> Flags:
        """Which of these pages are on their way in."""
        runs = self._pending.get("inflateq")
        if runs is None or not len(runs):
            return np.zeros(len(pfns), np.bool_)
        wide = pfns.astype(np.int64)
        near = runs[np.maximum(np.searchsorted(runs[:, 0], wide, "right") - 1, 0)]
        return (wide >= near[:, 0]) & (wide < near[:, 0] + near[:, 1])

    def _count(self, rule_id: str, pfns: Pfns, what: str, now_ns: int) -> None:
        if len(pfns):
            detail = f"{len(pfns)} pages were {what}, the first at {int(pfns[0]) << PAGE_SHIFT:#x}"
            self._breaches.add(rule_id, now_ns, detail, len(pfns))

    def _mark(self, pfns: Pfns, mark: int) -> None:
        np.frombuffer(self._marks, np.uint8)[pfns] = mark

    def _backed(self, pfns: Pfns) -> Flags:
        """Which of these pages, ascending, have host memory behind them."""
        result = np.zeros(len(pfns), np.bool_)
        fd = self._memory.fd
        if fd is None:
            return result
        for start, end in _runs(pfns):
            first = int(pfns[start])
            for offset, length in hostcalls.data_extents(fd, first << PAGE_SHIFT, first + end - start << PAGE_SHIFT):
                place = start + (offset >> PAGE_SHIFT) - first
                result[place : place + (length >> PAGE_SHIFT)] = True
        return result

    # -- reports -------------------------------------------------------------------------------------------------------

    def reported(self, runs: Runs, poison_val: int, now_ns: int) -> None:
        """With PAGE_POISON these pages were reported, and must hold `poison_val` in each 32-bit word."""
        wrong, where = 0, 0
        for first, count in (runs << PAGE_SHIFT).tolist():
            for start in range(first, first + count, _PIECE_BYTES):
                piece = self._memory.peek(start, min(first + count - start, _PIECE_BYTES))
                words = np.frombuffer(piece, "<u4").reshape(-1, PAGE_BYTES // 4)
                bad = np.flatnonzero((words != np.uint32(poison_val)).any(axis=1))
                if len(bad):
                    where = where if wrong else start + (int(bad[0]) << PAGE_SHIFT)
                    wrong += len(bad)
        if wrong:
            detail = f"{wrong} reported pages do not hold {poison_val:#x}, the first at {where:#x}"
            self._breaches.add("R38", now_ns, detail, wrong)

    # -- the state -----------------------------------------------------------------------------------------------------

    def save_state(self) -> State:
        return {**super().save_state(), "pending": [[name, runs.tolist()] for name, runs in self._pending.items()]}

    def check_state(self, saved: Any, where: str) -> None:
        super().check_state(saved, where)
        for index, entry in enumerate(require_list(f"{where}.pending", saved["pending"])):
            place = f"{where}.pending[{index}]"
            name, runs = require_list(place, entry, 2)
            TEXT.check(None, name, place)
            end = 0
            for run in require_list(place, runs):
                first, count = require_list(place, run, 2)
                if type(first) is not int or type(count) is not int or first < end or count < 1:
                    raise refuse(place, "runs of pages, ascending", run)
                end = first + count
                if not self._memory.contains(first << PAGE_SHIFT, count << PAGE_SHIFT):
                    raise refuse(place, "pages of RAM", run)

    def restore_state(self, saved: Any) -> None:
        super().restore_state(saved)
        self._pending = {name: np.array(runs, np.int64).reshape(-1, 2) for name, runs in saved["pending"]}


def runs_of(pfns: Pfns) -> Runs:
    """The runs of an ascending array of different pages."""
    borders = np.array(_runs(pfns), np.int64).reshape(-1, 2)
    return np.column_stack((pfns[borders[:, 0]].astype(np.int64), borders[:, 1] - borders[:, 0]))


def pages_of(runs: Runs) -> Pfns:
    """All pages of ascending runs."""
    return np.concatenate([np.arange(first, first + count) for first, count in runs.tolist()])


def whole_pages(gpas: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> Runs:
    """The runs of pages that lie wholly in one of these ranges, which may overlap and come in any order."""
    starts = (gpas + np.uint64(PAGE_BYTES - 1) >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    ends = (gpas + lengths >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    merged: list[list[int]] = []
    for start, end in sorted(zip(starts.tolist(), ends.tolist(), strict=True)):
        if end <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    borders = np.array(merged, np.int64).reshape(-1, 2)
    return np.column_stack((borders[:, 0], borders[:, 1] - borders[:, 0]))


def _runs(pfns: Pfns) -> list[tuple[int, int]]:
    """(first, end) of the places in an ascending array between which its entries are neighbours."""
    if not len(pfns):
        return []
    cuts = (np.flatnonzero(np.diff(pfns) != 1) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(pfns)], strict=True))


def _obstacle(memory: GuestMemory) -> str:
    """Why the use of a page cannot be seen on this host, or ""."""
    if memory.fd is None:
        return "guest RAM is no memory file"
    if memory.host_page_bytes != PAGE_BYTES:
        return f"the host's pages behind guest RAM have {memory.host_page_bytes} bytes"
    try:
        setting = _HUGE_PAGES.read_text()
    except OSError:  # a kernel without huge pages
        return ""
    if any(f"[{word}]" in setting for word in ("always", "within_size", "force")):
        return "this host fills memory files in huge pages"
    return ""
