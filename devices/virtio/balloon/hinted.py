"""The part of the balloon that speaks over free_page_vq (virtio 1.3 §5.5.6.5): the host's commands, and the hints.

Owns the host's commands for a round of hinting, the counters, and what a batch of hints brings about.  The rounds
themselves, and which page may be discarded, are `hinting`'s; how a page is discarded, and in slices, is the balloon's.

The driver runs between two slices, and may take a hinted page back and write to it.  So each slice asks again which of
its pages are unwritten, and when the round ends or another begins, the pages that are left are not discarded (D10).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from devices.memory import PAGE_SHIFT, U64, GuestMemory
from devices.state import COUNTER, PART, Table
from devices.virtio import spec
from devices.virtio.balloon.hinting import DONE, STOP, FreePageHinting
from devices.virtio.balloon.numbered import NumberedDevice
from devices.virtio.balloon.numbering import Numbering
from devices.virtio.balloon.pages import PageSet
from devices.virtio.balloon.reporting import FreePages
from devices.virtio.balloon.sliced import SLICED_FROM, SlicedBatch
from devices.virtio.chains import Chains
from devices.virtio.device import NO_NOTIFICATIONS, Notifications, Queue
from devices.virtio.policy import RESET, Policy

_COUNTERS = ("hinted_pages", "hint_discarded_pages", "stale_hint_pages", "ignored_bytes", "discarded_bytes")


class HintedDevice(NumberedDevice):
    """A device with a free_page_vq.  Counters run on over resets: `hinted_pages` pages hinted under the current id,
    `hint_discarded_pages` those of them that were given back (the others were written since, or nobody knows),
    `stale_hint_pages` pages hinted under no current id, `ignored_bytes` parts of any request that meant nothing,
    `discarded_bytes` what was given back to the host by any request."""

    STATE: ClassVar[Table] = {
        **NumberedDevice.STATE,
        **dict.fromkeys(_COUNTERS, COUNTER),
        "_hinting": PART,
    }

    def __init__(
        self,
        memory: GuestMemory,
        name: str,
        features: int,
        numbering: Numbering,
        queue_size: int,
        policy: Policy = RESET,
    ) -> None:
        super().__init__(memory, name, features, numbering, queue_size, policy)
        self._hinting = FreePageHinting(memory)
        self.hinted_pages = self.hint_discarded_pages = self.stale_hint_pages = 0
        self.ignored_bytes = self.discarded_bytes = 0

    @abstractmethod
    def _discard(self, pages: FreePages) -> Notifications:
        """Give pages back to the host, counting `discarded_bytes`: what there is to say if it refused some."""

    @abstractmethod
    def _begin_slices(self, queue: Queue) -> SlicedBatch:
        """The batch of `queue` that is to be worked off in slices, from which nothing more is taken until then."""

    @abstractmethod
    def _drop_rest(self, queue_name: str) -> None:
        """Forget the pages that are left of a queue's batch in slices; its chains go back all the same."""

    # -- the host's side -------------------------------------------------------------------------------------------

    @property
    def free_page_hint_cmd_id(self) -> int:
        """The command id of the configuration space: 0 STOP, 1 DONE, from 2 on a round of hinting is going on."""
        return self._hinting.cmd_id

    @property
    def hinting_obstacle(self) -> str:
        """Why no round of hinting can be started now, in one clause; "" if one can."""
        if obstacle := self.hinting_absence:
            return obstacle
        return "" if self._hinting.has_ids else "every command id was used and the driver has never sent STOP"

    @property
    def hinting_absence(self) -> str:
        """Why the driver hears no command at all; "" if it does."""
        if not self.device_features >> spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT & 1:
            return "the balloon does not offer free page hinting"
        if not self.is_ready:
            return "the guest's driver is not ready"
        if not self.has_feature(spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT):
            return "the guest's driver has not accepted free page hinting"
        return ""

    def start_hinting(self, now_ns: int, *, acknowledge: bool = True) -> Notifications:
        """Ask the driver for hints of free pages, to give them back to the host; with `acknowledge` the driver gets its
        pages back (DONE) as soon as it has ended the round.  An event says so where it cannot be."""
        if obstacle := self.hinting_obstacle:
            return self.event("hinting-refused", f"hinting cannot be started: {obstacle}")
        self._drop_rest("free_page_vq")
        counted_only = self._hinting.start(acknowledge)
        text = f"the driver shall hint free pages under the id {self.free_page_hint_cmd_id}"
        text += f"; they will be counted and not given back: {counted_only}" if counted_only else ""
        return self.config_changed() | self.event("hinting", text)

    def stop_hinting(self, now_ns: int) -> Notifications:
        """Show STOP: the driver shall pause, and keep what it has hinted out of use."""
        return self._end_hinting(STOP)

    def done_hinting(self, now_ns: int) -> Notifications:
        """Show DONE: no hinted page is touched any more, and the driver shall use them again."""
        return self._end_hinting(DONE)

    def _end_hinting(self, cmd_id: int) -> Notifications:
        self._drop_rest("free_page_vq")
        negotiated = self.has_feature(spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT)
        return self.config_changed() if negotiated and self._hinting.end(cmd_id) else NO_NOTIFICATIONS

    # -- the driver's side -----------------------------------------------------------------------------------------

    def _take_hints(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        """§5.5.6.5: discard what may be, then acknowledge; nothing is stored, and the used length is 0."""
        hints = self._hinting.take(chains, self.order)
        self.spend(hints.hinted.pages)
        self.hinted_pages += hints.hinted.pages
        self.stale_hint_pages += hints.stale_pages
        self.ignored_bytes += hints.ignored_bytes
        told = NO_NOTIFICATIONS
        if hints.free.pages > SLICED_FROM:
            self._begin_slices(queue).begin_runs(chains, hints.free.runs())
            self._hinting.ending = hints.ended
        elif hints.free.pages:
            told |= self._discard_hinted(hints.free)
        if hints.stale_pages:
            told |= self.event("stale-hints", f"{hints.stale_pages} pages were hinted under no current id")
        if hints.ignored_bytes:
            told |= self.event(
                "ignored-bytes", f"{queue.name}: {hints.ignored_bytes} bytes are no id and no whole page"
            )
        if queue.paused:
            return told
        return told | self.complete(queue, chains) | (self._round_ended() if hints.ended else NO_NOTIFICATIONS)

    def _discard_hinted(self, pages: FreePages) -> Notifications:
        before = self.discarded_bytes
        told = self._discard(pages)
        discarded = self.discarded_bytes - before >> PAGE_SHIFT
        self.hint_discarded_pages += discarded
        self._hinting.discarded_pages += discarded
        return told

    def _discard_hinted_slice(self, pages: PageSet) -> Notifications:
        """Of a slice, what nobody has written meanwhile."""
        free = self._hinting.still_free(FreePages(pages.pages, 0, *_arrays(pages)))
        return self._discard_hinted(free) if free.pages else NO_NOTIFICATIONS

    def _slices_done(self, queue: Queue) -> Notifications:
        """After the last slice of a queue's batch, whose chains have gone back."""
        return self._round_ended() if queue.name == "free_page_vq" and self._hinting.ending else NO_NOTIFICATIONS

    def _round_ended(self) -> Notifications:
        hinted, discarded = self._hinting.hinted_pages, self._hinting.discarded_pages
        told = self.event("hinted", f"the driver hinted {hinted} free pages, {discarded} of them were given back")
        return told | self._end_hinting(DONE) if self._hinting.acknowledges else told

    # -- the device's life -----------------------------------------------------------------------------------------

    def queue_lost(self, queue: Queue) -> None:
        super().queue_lost(queue)
        if queue.name == "free_page_vq":
            self._hinting.queue_lost()

    def lost(self) -> None:
        super().lost()
        self._hinting.driver_lost()

    def settings(self) -> tuple[object, ...]:
        return *super().settings(), self._hinting.settings()


def _arrays(pages: PageSet) -> tuple[U64, U64]:
    """Its runs, first page frame numbers and counts."""
    if pages.first is not None:
        return np.array([pages.first], np.uint64), np.array([pages.pages], np.uint64)
    return pages.starts.astype(np.uint64), pages.counts.astype(np.uint64)
