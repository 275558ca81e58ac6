"""A batch that names so many pages that it is worked off in slices, one a call (virtio 1.3 §5.5.6).

Owns what is left of such a batch: its chains, which are not returned before the last slice; the rest of its payload;
the map of the pages it names.  Refuses to know what becomes of the pages, when the next slice is due, and who waits.

The payload was copied when the batch came and is never read again in RAM.  First it is read into the map, a piece a
slice.  Then the pages are handed out in ascending order.  So a page that is named twice counts once and neighbours are
one run over the whole batch, as in a small one, and a slice is as much work in whatever order the driver names them.
"""

from __future__ import annotations

from typing import Any, ClassVar

from devices.memory import PAGE_SHIFT, GuestMemory, Run
from devices.state import COUNTER, FLAG, Bytes, Maybe, State, Stateful, Table, refuse
from devices.virtio.balloon.pages import PFN, BalloonPages, PageSet, PfnReader
from devices.virtio.chains import CHAINS, Chains

SLICED_FROM = 16384
"""A batch of more entries, or a report of more pages, is worked off in slices.  Linux sends 256 entries at once; 64
such requests of one kick are the largest batch that is worth finishing before the driver runs again."""

SLICE_ENTRIES = 16384
"""A slice reads so many entries: less than a millisecond in any order."""

SLICE_WORK = 2048
"""A slice hands out pages until they come to so much: a page counts 1 and a run `RUN_WORK` more, as a host that gives
the pages of a memory file back needs about six times as long for a run of one page as for one page of a long run.
From half a millisecond of scattered anonymous pages to three of a memory file's."""
RUN_WORK = 4

_PIECE_BYTES = SLICE_ENTRIES * PFN.itemsize


class SlicedBatch(Stateful):
    """The batch of one queue of `memory`'s balloon that is being worked off, if any: then `chains` is not None.

    `bad` counts the entries that named no page of RAM, `refused` tells whether the host refused to take any back."""

    STATE: ClassVar[Table] = {"chains": Maybe(CHAINS), "bad": COUNTER, "refused": FLAG}
    BESIDE: ClassVar = ("payload", "pages")

    def __init__(self, memory: GuestMemory, reader: PfnReader, longest_bytes: int) -> None:
        self._memory = memory
        self._reader = reader
        self._longest = Bytes(longest_bytes)
        self._pages = BalloonPages(memory)
        self.clear()

    def clear(self) -> None:
        """Drop it; as freshly built."""
        self.chains: Chains | None = None
        self.bad = 0
        self.refused = False
        self._payload = b""
        self._read_bytes = 0
        self._from = 0  # no page in the map is below it
        if self._pages.count:
            self._pages.clear()

    def begin(self, chains: Chains, payload: bytes) -> None:
        """`payload` is the copy of the page frame numbers that `chains` named, whole le32 entries."""
        self.chains, self._payload = chains, payload

    def begin_runs(self, chains: Chains, runs: list[Run]) -> None:
        """The same for pages that are known as runs."""
        self.chains = chains
        for first, count in runs:
            self._pages.move(PageSet(count, 0, first), inside=True)

    def drop_rest(self) -> None:
        """Hand out no more pages."""
        self._payload, self._read_bytes = b"", 0
        if self._pages.count:
            self._pages.clear()

    @property
    def is_done(self) -> bool:
        """Whether every page was handed out: the chains may go back."""
        return not self._payload and not self._pages.count

    def next_slice(self) -> list[PageSet]:
        """The pages to deal with in this slice.  None at all while the payload is being read."""
        if self._payload:
            self._read_piece()
            return []
        work, taken = 0, []
        while work < SLICE_WORK and self._pages.count:
            pages, self._from = self._pages.take(self._from)
            taken.append(pages)
            work += pages.pages + RUN_WORK * pages.run_count
        return taken

    def _read_piece(self) -> None:
        start, self._read_bytes = self._read_bytes, self._read_bytes + _PIECE_BYTES
        pages = self._reader.read(self._payload[start : self._read_bytes])
        self.bad += pages.bad
        self._pages.move(pages, inside=True)
        if self._read_bytes >= len(self._payload):
            self._payload, self._read_bytes = b"", 0

    # -- the state -------------------------------------------------------------------------------------------------

    def save_state(self) -> State:
        rest = self._payload[self._read_bytes :]
        return {**super().save_state(), "payload": rest, "pages": self._pages.save_state()}

    def check_state(self, saved: Any, where: str) -> None:
        super().check_state(saved, where)
        self._longest.check(b"", saved["payload"], f"{where}.payload")
        self._pages.check_state(saved["pages"], f"{where}.pages")
        if len(saved["payload"]) % PFN.itemsize:
            raise refuse(f"{where}.payload", "whole page frame numbers", f"{len(saved['payload'])} bytes")
        for first, count in saved["pages"]["runs"]:
            if not self._memory.contains(first << PAGE_SHIFT, count << PAGE_SHIFT):
                raise refuse(f"{where}.pages", "pages of RAM", [first, count])
        left = saved["payload"] or saved["pages"]["runs"] or saved["bad"] or saved["refused"]
        if saved["chains"] is None and left:
            raise refuse(f"{where}.chains", "there, since something of the batch is left", None)

    def restore_state(self, saved: Any) -> None:
        self.clear()
        super().restore_state(saved)
        self._payload = saved["payload"]
        self._pages.restore_state(saved["pages"])

    def __eq__(self, other: object) -> bool:
        """Whether both would go on alike."""
        return isinstance(other, SlicedBatch) and self.save_state() == other.save_state()
