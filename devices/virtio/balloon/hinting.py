"""Free page hinting (virtio 1.3 §5.5.6.5): the rounds, their command ids, and which hinted pages may be discarded.

Owns the conversation over free_page_vq and what the configuration space shows of it.  Refuses to know how pages are
discarded and who asks for a round.

A round begins when the host starts it: a new command id appears in the configuration space, and guest RAM is watched
for writes from that moment on.  The driver answers with the id, hints page after page, and ends with STOP.  Then, if
the host said so beforehand, the id becomes DONE at once and the driver has its pages back; otherwise the host decides.

Elsewhere hints spare a migration the copying of free pages.  Nothing migrates here: a hinted page is given back to the
host at once, and it is read as zeros if the guest looks.  §5.5.6.5.2 allows that only for a page that the guest has not
modified since the id was issued, whenever the hint itself comes:

- A page is discarded where the tracking of writes proves it unwritten since the id.  A driver may take a hinted page
  back and use it before the device has seen the hint; such a page shows as written, and a race cannot lose it.
- Every other hinted page is counted and keeps what it holds; where the host cannot track writes, that is all of them.
- Pages under another id, under none, or behind a STOP are ignored (D8), and so are those behind an id that is not 4
  bytes long: nobody knows whose they are.
- Ids count up from 2, over resets too.  None comes again before the driver has sent STOP (D7): after 2^32 - 2 starts
  without one no id is left, and no round can be started.
- Nothing is discarded outside a round: STOP and DONE end it as soon as they are in the configuration space (D10).
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np

from devices.memory import GuestMemory
from devices.state import COUNTER, FLAG, PART, Int, Stateful, Table, uint
from devices.virtio import spec
from devices.virtio.balloon.reporting import FreePages, whole_pages
from devices.virtio.chains import Chains, Flags

STOP, DONE = spec.VIRTIO_BALLOON_CMD_ID_STOP, spec.VIRTIO_BALLOON_CMD_ID_DONE
FIRST_ID = 2
ID_BYTES = 4
IDS = (1 << 32) - FIRST_ID


class Hints(NamedTuple):
    """What a batch said.  `hinted` are the pages under the current id, `free` those of them that may be discarded;
    `stale_pages` belong to no current id."""

    hinted: FreePages
    free: FreePages
    stale_pages: int
    ignored_bytes: int
    ended: bool
    """The driver has ended the round."""


class FreePageHinting(Stateful):
    """`cmd_id` is what the configuration space shows; `acknowledges` says that it becomes DONE when the driver has
    ended the round; `hinted_pages` and `discarded_pages` count this round's; `ending` says that the driver has ended it
    in a batch that is still worked off."""

    STATE: ClassVar[Table] = {
        "cmd_id": uint(32),
        "_next_id": Int(FIRST_ID, (1 << 32) - 1),
        "_unstopped": Int(0, IDS),
        **dict.fromkeys(("_answered", "acknowledges", "ending"), FLAG),
        **dict.fromkeys(("hinted_pages", "discarded_pages"), COUNTER),
        "_tracking": PART,
    }

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._tracking = memory.track_writes()
        self._next_id = FIRST_ID
        self._unstopped = 0
        self.acknowledges = True
        self.hinted_pages = self.discarded_pages = 0
        self.driver_lost()

    @property
    def is_live(self) -> bool:
        """Whether a round is going on."""
        return self.cmd_id >= FIRST_ID

    @property
    def has_ids(self) -> bool:
        """Whether an id is left that may be issued."""
        return self._unstopped < IDS

    def start(self, acknowledge: bool) -> str:
        """Begin a round under a new id, instead of one that may be going on.  With `acknowledge` it is DONE as soon as
        the driver has ended it.  Returns "", or why the hints will only be counted."""
        self.cmd_id = self._next_id
        self._next_id = self._next_id + 1 if self._next_id < (1 << 32) - 1 else FIRST_ID
        self._unstopped += 1
        self._answered = self.ending = False
        self.acknowledges = acknowledge
        self.hinted_pages = self.discarded_pages = 0
        return self._tracking.start()

    def end(self, cmd_id: int) -> bool:
        """Show STOP or DONE; whether that changed anything."""
        changed, self.cmd_id = self.cmd_id != cmd_id, cmd_id
        self._answered = self.ending = False
        self._tracking.stop()
        return changed

    def queue_lost(self) -> None:
        """The queue was reset: whatever comes over the new one needs the id once more."""
        self._answered = self.ending = False

    def driver_lost(self) -> None:
        """The driver is gone, and what it hinted is its own again."""
        self.cmd_id = STOP
        self._answered = self.ending = False
        self._tracking.stop()

    def settings(self) -> tuple[object, ...]:
        """What decides how it goes on."""
        return self.cmd_id, self._next_id, self._unstopped, self._answered, self.acknowledges, self.ending

    # -- what the driver says ----------------------------------------------------------------------------------------

    def take(self, chains: Chains, order: spec.ByteOrder = "<") -> Hints:
        """Read a batch, its ids in the driver's byte `order`.  A STOP in it counts from its place on.

        The caller discards, and then tells by `discarded` how much it was and ends the round if it has ended."""
        accepted, ignored_bytes, ended = self._accepted(chains, order)
        hints = chains.writable
        unit = self._memory.host_page_bytes
        hinted = whole_pages(chains.addr[hints & accepted], chains.length[hints & accepted], 0, unit)
        stale = hints & ~accepted
        stale_pages = whole_pages(chains.addr[stale], chains.length[stale], 0, unit).pages if stale.any() else 0
        free = self.still_free(hinted)
        self.hinted_pages += hinted.pages
        return Hints(hinted, free, stale_pages, ignored_bytes + hinted.ignored_bytes, ended)

    def still_free(self, hinted: FreePages) -> FreePages:
        """Those of hinted pages that may be discarded now; none outside a round."""
        return hinted.only(*self._tracking.unwritten(np.asarray(hinted.starts), np.asarray(hinted.counts)))

    def _accepted(self, chains: Chains, order: spec.ByteOrder) -> tuple[Flags, int, bool]:
        """For each buffer whether the id said before it is the current one; bytes that are no id; whether a STOP ended
        the round."""
        borders, states, ignored_bytes, ended = [0], [self._answered], 0, False
        for index, size in enumerate(chains.readable_bytes()):
            if not size:
                continue
            value = None
            if size == ID_BYTES:
                said = chains.only(index).gather_readable(self._memory, ID_BYTES)
                value = int.from_bytes(said, "little" if order == "<" else "big")
            else:
                ignored_bytes += size
            if value == STOP:
                ended |= self._answered
                self._unstopped = 0
            self._answered = self.is_live and value == self.cmd_id
            borders.append(int(chains.first[index]))
            states.append(self._answered)
        lengths = np.diff([*borders, chains.descriptors])
        return np.repeat(np.array(states, np.bool_), lengths), ignored_bytes, ended
