"""The balloon device: inflate, deflate, statistics, free page hinting and reporting, the target (virtio 1.3 §5.5).

Owns the balloon's registers, its target, and what is done with pages.  Page arithmetic is `pages`', what belongs to
statsq is `statsq`'s, to free_page_vq `hinted`'s, the ranges of reports are `reporting`'s, the queues' numbers are
`numbered`'s.

A wrong *payload* is no broken ring: a page that is not RAM, an array that ends within an entry, an unknown tag are
skipped, counted and reported, and the request is completed.  Resetting the device for them would leave a driver waiting
for ever.  All discards of a batch happen before it is acknowledged, never afterwards: from then on the driver may use
the pages again.  A batch of very many pages is worked off in slices, and acknowledged with the last; until then
nothing more is taken from its queue, and the other queues have their turn between two slices.

A report is no inflation: its pages are not in the balloon, and nobody says when they are used again.

Of a legacy driver (§5.5.6, §5.5.6.3) `actual` counts when its last byte is written, and the first statistics buffer
after a reset says nothing: drivers used to post it without writing anything into it.

With PAGE_POISON negotiated a reported page must hold `poison_val` or what it held (§5.5.6.7.2).  A discarded page holds
zeros, so reports are discarded only if the value is 0; otherwise the pages stay, and are counted.  Inflated and hinted
pages are the driver's to initialise again before it uses them (§5.5.6.6.1, §5.5.6.5.1): they are discarded in any case.

DEFLATE_ON_OOM asks nothing of the device.  It allows the driver to take pages back that the target wants, and all that
can be seen of it is that `actual` falls below the target; a driver that is being unloaded looks the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from devices.effects import NOTHING, Effects
from devices.memory import PAGE_SHIFT, GuestMemory, Run
from devices.state import COUNTER, PART, Many, Table, refuse, uint
from devices.virtio import spec
from devices.virtio.balloon.features import DEFAULT_FEATURES, SUPPORTED_FEATURES, config_space
from devices.virtio.balloon.imitation import Handler, imitated
from devices.virtio.balloon.numbering import Numbering
from devices.virtio.balloon.pages import PFN, BalloonPages, PageSet, PfnReader, little_endian
from devices.virtio.balloon.partial import InflatedPages, PartialPages
from devices.virtio.balloon.reporting import FreePages, free_pages
from devices.virtio.balloon.sliced import SLICED_FROM, SlicedBatch
from devices.virtio.balloon.statsq import StatsDevice
from devices.virtio.chains import Chains
from devices.virtio.device import NO_NOTIFICATIONS, Notifications, Queue
from devices.virtio.policy import OUR_PAYLOAD, RESET, Policy

__all__ = ["DEFAULT_FEATURES", "SUPPORTED_FEATURES", "Balloon"]

_PFN_BYTES = PFN.itemsize
_MIN_PFN_LIMIT = 65536
_SLICED_FROM_BYTES = SLICED_FROM * _PFN_BYTES
_LATER: Final = PageSet(0, 0, None)  # stands for pages that are dealt with in slices
_WORK_PER_ENTRY = 2
"""An entry counts as two descriptors towards the work of a call, since it may cost a discard of its own: no two of the
largest batches follow each other in one call.  A page of a report, most of which are in long runs, counts as one."""

_COUNTERS: Final = (
    "inflated_pages",
    "deflated_pages",
    "oom_deflated_pages",
    "reported_pages",
    "poisoned_pages",
    "bad_pfns",
    "stray_pages",
    "failed_discards",
)


class Balloon(StatsDevice):
    """A balloon for `memory`.  ValueError when `features` has a bit that is not supported.

    Its queues have `queue_size` entries; reporting_vq never fewer than 32.  `numbering` says how they are counted,
    `stats_format` ("final" or "v2") how statistics are laid out, `policy` what becomes of the driver's mistakes.

    Pages are always 4096 bytes.  `num_pages` is how many the host wants in the balloon, `actual` how many the driver
    says are, `poison_val` what it fills free pages with.  Counters run on over resets: `inflated_pages` and
    `deflated_pages` count pages that went in and came out, `oom_deflated_pages` those by which `actual` fell below the
    target (with DEFLATE_ON_OOM), `reported_pages` pages reported free (each once a batch), `poisoned_pages` those of
    them that stayed because of PAGE_POISON, `bad_pfns` entries that named no page of RAM, `stray_pages` pages deflated
    without being in the balloon, `failed_discards` runs that the host would not take back; and see `HintedDevice`.
    """

    device_id = spec.DeviceId.BALLOON
    STATE: ClassVar[Table] = {
        **StatsDevice.STATE,
        **dict.fromkeys(("num_pages", "actual", "_told_actual", "poison_val"), uint(32)),
        **dict.fromkeys(_COUNTERS, COUNTER),
        "_pages": PART,
        "_sliced": Many(PART),
    }

    def __init__(
        self,
        memory: GuestMemory,
        *,
        name: str = "balloon0",
        features: int = DEFAULT_FEATURES,
        queue_size: int = 128,
        numbering: Numbering = "offered",
        stats_format: str = "final",
        policy: Policy = RESET,
    ) -> None:
        if features & ~SUPPORTED_FEATURES:
            unknown = ", ".join(spec.feature_names(features & ~SUPPORTED_FEATURES, self.device_id))
            raise ValueError(f"{name}: the balloon does not support {unknown}")
        super().__init__(memory, name, features, numbering, queue_size, stats_format, policy)
        self.config = config_space(features)
        self.num_pages = self.actual = self._told_actual = self.poison_val = 0
        self.inflated_pages = self.deflated_pages = self.oom_deflated_pages = 0
        self.reported_pages = self.poisoned_pages = 0
        self.bad_pfns = self.stray_pages = self.failed_discards = 0
        self._ram_pages = memory.size_bytes >> PAGE_SHIFT
        # More entries than RAM has pages repeat themselves: a batch that has more is no list of pages.
        self._payload_limit = _PFN_BYTES * max(self._ram_pages, _MIN_PFN_LIMIT)
        self._reader = PfnReader(memory)
        self._pages = BalloonPages(memory, "balloon-pages")
        self._partial = None if memory.large is None else PartialPages(memory, memory.large, self._pages)
        self._handlers: Mapping[str, Handler] = {
            "inflateq": self._inflate,
            "deflateq": self._deflate,
            "statsq": self._take_stats,
            "free_page_vq": self._take_hints,
            "reporting_vq": self._take_reports,
        }
        if policy.payload != OUR_PAYLOAD:
            self._handlers = imitated(self, policy.payload, self._handlers)
        # What the slices of each queue's batches do with their pages.
        self._page_handlers = {
            "inflateq": self._put_in,
            "deflateq": self._take_out,
            "free_page_vq": self._discard_hinted_slice,
            "reporting_vq": self._discard,
        }
        self._page_queues = [queue for queue in self.queues if queue.name in self._page_handlers]
        self._sliced = [SlicedBatch(memory, self._reader, self._payload_limit) for _ in self._page_queues]

    # -- the host's side -------------------------------------------------------------------------------------------

    @property
    def target_pages(self) -> int:
        """Pages wanted in the balloon."""
        return self.num_pages

    @property
    def actual_pages(self) -> int:
        """Pages in the balloon, as the driver says."""
        return self._told_actual

    @property
    def balloon_pages(self) -> int:
        """Pages in the balloon, as inflate and deflate requests made it; a reset empties it."""
        return self._pages.count

    @property
    def held_pages(self) -> int:
        """Pages in the balloon that the host has not got back, since its own pages are larger and the neighbours are
        still the driver's; 0 where the host's pages have 4096 bytes."""
        return 0 if self._partial is None else self._partial.held_pages

    def given_away(self) -> NDArray[np.bool_]:
        return self._pages.inside

    def set_target(self, pages: int, now_ns: int) -> Notifications:
        """Ask for `pages` in the balloon, at most all of RAM.  It survives a reset."""
        wanted = min(max(pages, 0), self._ram_pages)
        if wanted == self.num_pages:
            return NO_NOTIFICATIONS
        self.num_pages = wanted
        return self.config_changed() | self.event("target", f"the balloon shall have {wanted} pages")

    # -- the driver's side -----------------------------------------------------------------------------------------

    def process(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        return self._handlers[queue.name](queue, chains, now_ns)

    def _inflate(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        pages, told = self._named_pages(queue, chains)
        if pages is _LATER:
            return told
        if (refused := self._put_in(pages)) is not NO_NOTIFICATIONS:
            told |= refused
        done = self.complete(queue, chains)
        return done if told is NO_NOTIFICATIONS else told | done

    def _deflate(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        pages, told = self._named_pages(queue, chains)
        if pages is _LATER:
            return told
        self._take_out(pages)
        return told | self.complete(queue, chains)

    def _put_in(self, pages: PageSet) -> Notifications:
        self.inflated_pages += self._pages.move(pages, inside=True)
        if self._partial is not None:
            in_use = not self.has_feature(spec.VIRTIO_BALLOON_F_MUST_TELL_HOST)
            return self._discard(self._partial.inflated(pages, in_use=in_use))
        return self._discard(pages) if pages.pages else NO_NOTIFICATIONS

    def _take_out(self, pages: PageSet) -> Notifications:
        removed = self._pages.move(pages, inside=False)
        self.deflated_pages += removed
        self.stray_pages += pages.pages - removed
        return NO_NOTIFICATIONS

    def _named_pages(self, queue: Queue, chains: Chains) -> tuple[PageSet, Notifications]:
        """The pages that all arrays of a batch name, and what is wrong with the rest.

        `_LATER` where they are so many that slices are begun with them."""
        payload, ignored = chains.gather_entries(self.memory, _PFN_BYTES, self._payload_limit)
        self.spend(len(payload) * _WORK_PER_ENTRY // _PFN_BYTES)
        if len(payload) > _SLICED_FROM_BYTES:
            self._begin_slices(queue).begin(chains, little_endian(payload, self.order))
            return _LATER, self._wrong_entries(queue, 0, ignored)
        pages = self._reader.read(payload, self.order)
        if not ignored and not pages.bad:
            return pages, NO_NOTIFICATIONS
        return pages, self._wrong_entries(queue, pages.bad, ignored)

    def _wrong_entries(self, queue: Queue, bad: int, ignored_bytes: int) -> Notifications:
        self.bad_pfns += bad
        self.ignored_bytes += ignored_bytes
        told = NO_NOTIFICATIONS
        if bad:
            told |= self.event("bad-pfns", f"{queue.name}: {bad} page frame numbers are outside guest RAM")
        if ignored_bytes:
            text = f"{queue.name}: {ignored_bytes} bytes are no page frame numbers, or too many"
            told |= self.event("ignored-bytes", text)
        return told

    def _discard(self, pages: PageSet | FreePages | InflatedPages) -> Notifications:
        try:
            self.discarded_bytes += pages.discard(self.memory)
            return NO_NOTIFICATIONS
        except OSError as error:
            # Giving memory back is a favour to the host.  What it refuses stays, and the driver loses nothing by it.
            for run in pages.runs():
                self._discard_one(run)
            return self.event("discard-failed", f"the host refused to take pages back: {error}")

    def _discard_one(self, run: Run) -> None:
        try:
            self.discarded_bytes += self.memory.discard((run,))
        except OSError:
            self.failed_discards += 1

    def _take_reports(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        """§5.5.6.7: discard, then acknowledge.  Nothing was stored: the used length is 0."""
        free = free_pages(chains, self.memory.host_page_bytes)
        self.spend(free.pages)
        self.reported_pages += free.pages
        told = NO_NOTIFICATIONS
        if free.ignored_bytes:
            self.ignored_bytes += free.ignored_bytes
            told |= self.event("ignored-bytes", f"{queue.name}: {free.ignored_bytes} bytes are in no whole free page")
        if free.pages and self.poison_val:
            self.poisoned_pages += free.pages
            text = f"{free.pages} reported pages stay, since they must hold {self.poison_val:#x}"
            return told | self.event("poisoned", text) | self.complete(queue, chains)
        if not free.pages:
            return told | self.complete(queue, chains)
        reported = self.event("reported", f"the driver reported {free.pages} free pages")
        if free.pages > SLICED_FROM:
            self._begin_slices(queue).begin_runs(chains, free.runs())
            return told | reported
        return told | self._discard(free) | reported | self.complete(queue, chains)

    # -- batches in slices -----------------------------------------------------------------------------------------

    def _begin_slices(self, queue: Queue) -> SlicedBatch:
        """Take nothing more from `queue` until the batch that is put into the result is done."""
        queue.paused = True
        self.work_is_left()
        return self._sliced[self._page_queues.index(queue)]

    def _drop_rest(self, queue_name: str) -> None:
        for queue, batch in zip(self._page_queues, self._sliced, strict=True):
            if queue.name == queue_name:
                batch.drop_rest()

    def carry_on(self, now_ns: int) -> Notifications:
        """One slice for each queue that has a batch in slices."""
        told = NO_NOTIFICATIONS
        for queue, batch in zip(self._page_queues, self._sliced, strict=True):
            if batch.chains is not None:
                told |= self._next_slice(queue, batch, batch.chains)
        return told

    def _next_slice(self, queue: Queue, batch: SlicedBatch, chains: Chains) -> Notifications:
        told = NO_NOTIFICATIONS
        deal_with = self._page_handlers[queue.name]
        for pages in batch.next_slice():
            refused = deal_with(pages)
            if refused is not NO_NOTIFICATIONS and not batch.refused:
                batch.refused = True  # it is said once a batch
                told |= refused
        if not batch.is_done:
            self.work_is_left()
            return told
        told |= self._wrong_entries(queue, batch.bad, 0)
        batch.clear()
        queue.paused = False
        return told | self.complete(queue, chains) | self._slices_done(queue)

    # -- the device's life -----------------------------------------------------------------------------------------

    def queue_lost(self, queue: Queue) -> None:
        super().queue_lost(queue)
        if queue in self._page_queues:
            self._sliced[self._page_queues.index(queue)].clear()

    def lost(self) -> None:
        self.actual = self._told_actual = self.poison_val = 0
        self._pages.clear()
        for batch in self._sliced:
            if batch.chains is not None:
                batch.clear()
        super().lost()

    def write_config(self, offset: int, size: int, value: int, now_ns: int) -> Notifications:
        actual, end = self.config.find("actual"), offset + size
        if self.legacy and actual.offset < end < actual.offset + actual.size:
            self.config.write(self, offset, size, value)
            return NO_NOTIFICATIONS
        return super().write_config(offset, size, value, now_ns)

    def write_poison_val(self, value: int, now_ns: int) -> Effects:
        """§5.5.6.6: only a driver that negotiated the feature has one."""
        features = self.driver_features if self.legacy else self.negotiated_features
        if features >> spec.VIRTIO_BALLOON_F_PAGE_POISON & 1:
            self.poison_val = value
        return NOTHING

    def config_written(self, now_ns: int) -> Notifications:
        if self.actual == self._told_actual:
            return NO_NOTIFICATIONS
        # Up to the target the driver was asked to deflate.
        below = min(self._told_actual, self.num_pages) - self.actual
        self._told_actual = self.actual
        told = self.event("actual", f"the driver has {self.actual} pages in the balloon")
        if below > 0 and self.has_feature(spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM):
            self.oom_deflated_pages += below
            told |= self.event("deflate-on-oom", f"the driver took back {below} pages that the target asks for")
        return told

    def check_state(self, saved: Any, where: str) -> None:
        super().check_state(saved, where)
        for number, (queue, batch) in enumerate(zip(self._page_queues, saved["sliced"], strict=True)):
            if batch["chains"] is not None:
                self.check_in_flight(queue, batch["chains"], saved, f"{where}.sliced[{number}].chains")
                if saved["carry_on_ns"] is None:
                    raise refuse(f"{where}.carry_on_ns", "a time, since a batch is worked off in slices", None)
            elif queue.name == "free_page_vq" and saved["hinting"]["ending"]:
                raise refuse(f"{where}.hinting.ending", "false where no hints are worked off", True)

    def restore_state(self, saved: Any) -> None:
        super().restore_state(saved)
        for queue, batch in zip(self._page_queues, self._sliced, strict=True):
            queue.paused = batch.chains is not None

    def settings(self) -> tuple[object, ...]:
        driver = self.actual, self._told_actual, self.poison_val, self._pages, self._sliced
        return self.num_pages, driver, *super().settings()
