"""The balloon device: inflate, deflate, statistics, free page reporting, the target the host sets (virtio 1.3 §5.5).

Owns the balloon's queues and registers and what the host may ask of it.  Page arithmetic is `pages`', the statistics
are `stats`', the ranges of reports are `reporting`'s.

A wrong *payload* is no broken ring: a page that is not RAM, an array that ends within an entry, an unknown tag are
skipped, counted and reported, and the request is completed.  Resetting the device for them would leave a driver waiting
for ever.  All discards of a batch happen before it is acknowledged, never afterwards: from then on the driver may use
the pages again.  A batch of very many pages is worked off in slices, and acknowledged with the last; until then
nothing more is taken from its queue, and the other queues have their turn between two slices.

A report is no inflation: its pages are not in the balloon, and nobody says when they are used again.

Of a legacy driver (§5.5.6, §5.5.6.3) `actual` counts when its last byte is written, and the first statistics buffer
after a reset says nothing: drivers used to post it without writing anything into it.

DEFLATE_ON_OOM asks nothing of the device.  It allows the driver to take pages back that the target wants, and all that
can be seen of it is that `actual` falls below the target; a driver that is being unloaded looks the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from devices.memory import PAGE_SHIFT, GuestMemory, Run
from devices.registers import Register, RegisterMap
from devices.state import COUNTER, FLAG, PART, Many, Maybe, Table, refuse, require_list, uint
from devices.virtio import spec
from devices.virtio.balloon import stats
from devices.virtio.balloon.imitation import Handler, imitated
from devices.virtio.balloon.pages import PFN, BalloonPages, PageSet, PfnReader, little_endian
from devices.virtio.balloon.reporting import FreePages, free_pages
from devices.virtio.balloon.sliced import SLICED_FROM, SlicedBatch
from devices.virtio.balloon.stats import Statistics, StatsConversation
from devices.virtio.chains import CHAINS, Chains
from devices.virtio.device import NO_NOTIFICATIONS, Notifications, Queue, QueueSpec, VirtioDevice
from devices.virtio.policy import OUR_PAYLOAD, RESET, Policy
from devices.virtio.queue import DEFAULT_RING_FEATURES, LEGACY_RING_FEATURES, RING_FEATURES, is_in_flight

_PFN_BYTES = PFN.itemsize
_MIN_PFN_LIMIT = 65536
_SLICED_FROM_BYTES = SLICED_FROM * _PFN_BYTES
_LATER: Final = PageSet(0, 0, None)  # stands for pages that are dealt with in slices
_WORK_PER_ENTRY = 2
"""An entry counts as two descriptors towards the work of a call, since it may cost a discard of its own: no two of the
largest batches follow each other in one call.  A page of a report, most of which are in long runs, counts as one."""

# §5.5.2, in this order; a queue whose feature is not offered is left out and the ones behind it move up, as in QEMU and
# all that followed it.  The specification's fixed numbers are those of a device that offers everything.
# The last column is the fewest entries a queue may have: Linux refuses a device that cannot take a report of 32 ranges.
_QUEUES: Final = (
    ("inflateq", None, 1),
    ("deflateq", None, 1),
    ("statsq", spec.VIRTIO_BALLOON_F_STATS_VQ, 1),
    ("reporting_vq", spec.VIRTIO_BALLOON_F_PAGE_REPORTING, 32),
)

SUPPORTED_FEATURES: Final = (
    1 << spec.VIRTIO_BALLOON_F_MUST_TELL_HOST
    | 1 << spec.VIRTIO_BALLOON_F_STATS_VQ
    | 1 << spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
    | 1 << spec.VIRTIO_BALLOON_F_PAGE_REPORTING
    | RING_FEATURES
    | LEGACY_RING_FEATURES
    | 1 << spec.VIRTIO_F_VERSION_1
)
_COUNTERS: Final = (
    "inflated_pages",
    "deflated_pages",
    "oom_deflated_pages",
    "reported_pages",
    "discarded_bytes",
    "bad_pfns",
    "stray_pages",
    "ignored_bytes",
    "failed_discards",
)
DEFAULT_FEATURES: Final = (
    1 << spec.VIRTIO_BALLOON_F_MUST_TELL_HOST
    | 1 << spec.VIRTIO_BALLOON_F_STATS_VQ
    | DEFAULT_RING_FEATURES
    | 1 << spec.VIRTIO_F_VERSION_1
)
"""QEMU's.  Whether the guest may take back what the host asked for, and whether free memory leaves it unasked, are
decisions of who runs it."""


def _offered_queues(features: int, size: int) -> list[QueueSpec]:
    exist = (row for row in _QUEUES if row[1] is None or features >> row[1] & 1)
    return [QueueSpec(name, max(size, fewest), bit) for name, bit, fewest in exist]


class Balloon(VirtioDevice):
    """A balloon for `memory`.  ValueError when `features` has a bit that is not supported.

    Its queues have `queue_size` entries; reporting_vq never fewer than 32.  `policy` says what becomes of the driver's
    mistakes.

    Pages are always 4096 bytes.  `num_pages` is how many the host wants in the balloon, `actual` how many the driver
    says are.  Counters run on over resets: `inflated_pages` and `deflated_pages` count pages that went in and came out,
    `oom_deflated_pages` those by which `actual` fell below the target (with DEFLATE_ON_OOM), `reported_pages` pages
    reported free (each once a batch), `discarded_bytes` what was given back to the host, inflated or reported,
    `bad_pfns` entries that named no page of RAM, `stray_pages` pages deflated without being in the balloon,
    `ignored_bytes` parts of requests that meant nothing, `failed_discards` runs that the host would not take back.
    """

    device_id = spec.DeviceId.BALLOON
    config = RegisterMap("balloon", 8, (Register(0, 4, "num_pages", "ro"), Register(4, 4, "actual", "rw")))

    STATE: ClassVar[Table] = {
        **VirtioDevice.STATE,
        **dict.fromkeys(("num_pages", "actual", "_told_actual"), uint(32)),
        **dict.fromkeys(_COUNTERS, COUNTER),
        "_pages": PART,
        "_stats": PART,
        "_held": Maybe(CHAINS),
        "_sliced": Many(PART),
        "_stats_came": FLAG,
    }

    def __init__(
        self,
        memory: GuestMemory,
        *,
        name: str = "balloon0",
        features: int = DEFAULT_FEATURES,
        queue_size: int = 128,
        policy: Policy = RESET,
    ) -> None:
        if features & ~SUPPORTED_FEATURES:
            unknown = ", ".join(spec.feature_names(features & ~SUPPORTED_FEATURES, self.device_id))
            raise ValueError(f"{name}: the balloon does not support {unknown}")
        super().__init__(memory, name, features, _offered_queues(features, queue_size), policy)
        self.num_pages = 0
        self.actual = 0
        self.inflated_pages = self.deflated_pages = self.discarded_bytes = 0
        self.oom_deflated_pages = self.reported_pages = 0
        self.bad_pfns = self.stray_pages = self.ignored_bytes = self.failed_discards = 0
        self._ram_pages = memory.size_bytes >> PAGE_SHIFT
        # More entries than RAM has pages repeat themselves: a batch that has more is no list of pages.
        self._payload_limit = _PFN_BYTES * max(self._ram_pages, _MIN_PFN_LIMIT)
        self._reader = PfnReader(memory)
        self._pages = BalloonPages(memory)
        self._stats = StatsConversation()
        self._held: Chains | None = None
        self._stats_came = False
        self._told_actual = 0
        self._handlers: Mapping[str, Handler] = {
            "inflateq": self._inflate,
            "deflateq": self._deflate,
            "statsq": self._take_stats,
            "reporting_vq": self._take_reports,
        }
        if policy.payload != OUR_PAYLOAD:
            self._handlers = imitated(self, policy.payload, self._handlers)
        # What the slices of each queue's batches do with their pages.
        self._page_handlers = {"inflateq": self._put_in, "deflateq": self._take_out, "reporting_vq": self._discard}
        self._page_queues = [queue for queue in self.queues if queue.name in self._page_handlers]
        self._sliced = [SlicedBatch(memory, self._reader, self._payload_limit) for _ in self._page_queues]
        self._stats_queue = next((queue for queue in self.queues if queue.name == "statsq"), None)

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
    def stats_reports(self) -> int:
        """Statistics buffers ever received."""
        return self._stats.reports

    @property
    def polling_interval_ns(self) -> int:
        """0 when statistics are not polled."""
        return self._stats.interval_ns

    def set_target(self, pages: int, now_ns: int) -> Notifications:
        """Ask for `pages` in the balloon, at most all of RAM.  It survives a reset."""
        wanted = min(max(pages, 0), self._ram_pages)
        if wanted == self.num_pages:
            return NO_NOTIFICATIONS
        self.num_pages = wanted
        return self.config_changed() | self.event("target", f"the balloon shall have {wanted} pages")

    def request_stats(self, now_ns: int) -> Notifications:
        """Ask the driver for statistics.  If no buffer is held the request waits for the next; if one is under way
        already, its reply is the answer."""
        if not self._stats.under_way:
            self._stats.wanted = True
        return self._ask_for_stats(now_ns)

    def set_polling_interval(self, interval_ns: int, now_ns: int) -> Notifications:
        """Ask for statistics every `interval_ns`, the first time at once; 0 stops.  It survives a reset."""
        self._stats.set_interval(max(interval_ns, 0))
        return self._ask_for_stats(now_ns) | Notifications(deadline=True)

    def statistics(self, now_ns: int) -> Statistics:
        """The latest statistics, or why there are none."""
        exists = self._stats_queue is not None and self.has_feature(spec.VIRTIO_BALLOON_F_STATS_VQ)
        return self._stats.statistics(exists, self.is_ready, now_ns)

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

    def _discard(self, pages: PageSet | FreePages) -> Notifications:
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
        free = free_pages(chains)
        self.spend(free.pages)
        self.reported_pages += free.pages
        told = NO_NOTIFICATIONS
        if free.ignored_bytes:
            self.ignored_bytes += free.ignored_bytes
            told |= self.event("ignored-bytes", f"{queue.name}: {free.ignored_bytes} bytes are in no whole free page")
        if free.pages > SLICED_FROM:
            self._begin_slices(queue).begin_runs(chains, free.runs())
        elif free.pages:
            told |= self._discard(free)
        if free.pages:
            told |= self.event("reported", f"the driver reported {free.pages} free pages")
        return told if queue.paused else told | self.complete(queue, chains)

    def _take_stats(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        """Keep the newest buffer, with its figures; any other is one too many (§5.5.6.3.1) and goes back."""
        told = NO_NOTIFICATIONS
        if self._held is not None:
            told |= self.complete(queue, self._held)
        for index in range(len(chains) - 1):
            told |= self.complete(queue, chains.only(index))
        self._held = chains.only(len(chains) - 1)
        primes = self.legacy and not self._stats_came and len(chains) == 1
        self._stats_came = True
        if primes:
            told |= self.event("stats-ignored", "the first statistics of a legacy driver say nothing")
            return told | self._ask_for_stats(now_ns) | Notifications(deadline=True)
        sent_bytes = self._held.readable_bytes()[0]
        payload = self._held.gather_readable(self.memory, stats.MAX_ENTRIES * stats.ENTRY_BYTES)
        report = stats.parse(payload, sent_bytes, self.order)
        self.ignored_bytes += report.ignored_bytes
        self._stats.received(report, now_ns)
        told |= Notifications(deadline=True)
        told |= self.event("stats", f"the driver reported {len(report.raw)} statistics")
        return told | self._ask_for_stats(now_ns)

    def _ask_for_stats(self, now_ns: int) -> Notifications:
        """Return the held buffer if statistics are wanted now."""
        held, queue = self._held, self._stats_queue
        if held is None or queue is None or not self.is_live or not self._stats.should_ask(now_ns):
            return NO_NOTIFICATIONS
        self._held = None
        self._stats.asked()
        return self.complete(queue, held) | Notifications(deadline=True)

    # -- batches in slices -----------------------------------------------------------------------------------------

    def _begin_slices(self, queue: Queue) -> SlicedBatch:
        """Take nothing more from `queue` until the batch that is put into the result is done."""
        queue.paused = True
        self.work_is_left()
        return self._sliced[self._page_queues.index(queue)]

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
        return told | self.complete(queue, chains)

    # -- the device's life -----------------------------------------------------------------------------------------

    def live(self, now_ns: int) -> Notifications:
        return self._ask_for_stats(now_ns)

    def queue_lost(self, queue: Queue) -> None:
        if queue is self._stats_queue:
            self._held = None

    def lost(self) -> None:
        self.actual = self._told_actual = 0
        self._pages.clear()
        self._held = None
        for batch in self._sliced:
            if batch.chains is not None:
                batch.clear()
        self._stats_came = False
        self._stats.driver_lost()

    def deadline_ns(self) -> int | None:
        polling = self._held is not None and self._stats.interval_ns > 0
        return self._stats.next_poll_ns if polling else None

    def deadline_reached(self, now_ns: int) -> Notifications:
        return self._ask_for_stats(now_ns)

    def write_config(self, offset: int, size: int, value: int, now_ns: int) -> Notifications:
        actual, end = self.config.find("actual"), offset + size
        if self.legacy and actual.offset < end < actual.offset + actual.size:
            self.config.write(self, offset, size, value)
            return NO_NOTIFICATIONS
        return super().write_config(offset, size, value, now_ns)

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
        if saved["held"] is not None:
            require_list(f"{where}.held", saved["held"], 1)
            self._check_in_flight(self._stats_queue, saved["held"], saved, f"{where}.held")
        for number, (queue, batch) in enumerate(zip(self._page_queues, saved["sliced"], strict=True)):
            if batch["chains"] is not None:
                self._check_in_flight(queue, batch["chains"], saved, f"{where}.sliced[{number}].chains")
                if saved["carry_on_ns"] is None:
                    raise refuse(f"{where}.carry_on_ns", "a time, since a batch is worked off in slices", None)

    @staticmethod
    def _check_in_flight(queue: Queue | None, chains: Any, saved: Any, where: str) -> None:
        """Each of the saved `chains` must be in flight in `queue`, once."""
        seen: set[int] = set()
        for chain in chains:
            flying = queue is not None and is_in_flight(saved["queues"][queue.index], chain)
            if not flying or chain["buffer_id"] in seen:
                name = "statsq" if queue is None else queue.name
                raise refuse(where, f"a chain in flight in {name}", f"the head {chain['head']}")
            seen.add(chain["buffer_id"])

    def restore_state(self, saved: Any) -> None:
        super().restore_state(saved)
        for queue, batch in zip(self._page_queues, self._sliced, strict=True):
            queue.paused = batch.chains is not None

    def settings(self) -> tuple[object, ...]:
        held = None if self._held is None else (self._held.head.tolist(), self._held.buffer_id.tolist())
        told = self._told_actual, self._stats_came
        return self.num_pages, self.actual, *told, self._pages, held, self._sliced, self._stats.settings()
