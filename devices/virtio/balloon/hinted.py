"""The part of the balloon that speaks over free_page_vq (virtio 1.3 §5.5.6.5): the host's commands, and the hints.

Owns the host's commands for a round of hinting, the counters, and what a batch of hints brings about.  The rounds
themselves, and which page may be discarded, are `hinting`'s; how a page is discarded is the balloon's.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from devices.memory import PAGE_SHIFT, GuestMemory
from devices.state import COUNTER, PART, Table
from devices.virtio import spec
from devices.virtio.balloon.hinting import DONE, STOP, FreePageHinting
from devices.virtio.balloon.numbered import NumberedDevice
from devices.virtio.balloon.numbering import Numbering
from devices.virtio.balloon.reporting import FreePages
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
        told, before = NO_NOTIFICATIONS, self.discarded_bytes
        if hints.free.pages:
            told |= self._discard(hints.free)
            discarded = self.discarded_bytes - before >> PAGE_SHIFT
            self.hint_discarded_pages += discarded
            self._hinting.discarded_pages += discarded
        if hints.stale_pages:
            told |= self.event("stale-hints", f"{hints.stale_pages} pages were hinted under no current id")
        if hints.ignored_bytes:
            told |= self.event(
                "ignored-bytes", f"{queue.name}: {hints.ignored_bytes} bytes are no id and no whole page"
            )
        return told | self.complete(queue, chains) | (self._round_ended() if hints.ended else NO_NOTIFICATIONS)

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
