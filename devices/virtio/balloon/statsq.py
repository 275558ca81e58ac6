"""The part of the balloon that speaks over statsq (virtio 1.3 §5.5.6.3): the host's requests, and the buffer held.

Owns the one buffer that the driver leaves with the device.  When to ask is `stats`', what the bytes of a buffer mean is
`stats_formats`'.
"""

from __future__ import annotations

from typing import Any, ClassVar

from devices.memory import GuestMemory
from devices.state import FLAG, PART, Maybe, Table, require_list
from devices.virtio import spec
from devices.virtio.balloon.hinted import HintedDevice
from devices.virtio.balloon.numbering import Numbering
from devices.virtio.balloon.stats import Statistics, StatsConversation
from devices.virtio.balloon.stats_formats import FORMATS, MAX_ENTRIES, UNKNOWN, Report, misfit, parse
from devices.virtio.chains import CHAINS, Chains
from devices.virtio.device import NO_NOTIFICATIONS, Notifications, Queue
from devices.virtio.policy import RESET, Policy


class StatsDevice(HintedDevice):
    """A device with a statsq whose buffers are laid out as `stats_format` says: "final" or "v2"; KeyError otherwise."""

    STATE: ClassVar[Table] = {
        **HintedDevice.STATE,
        "_stats": PART,
        "_held": Maybe(CHAINS),
        "_stats_came": FLAG,
    }

    def __init__(
        self,
        memory: GuestMemory,
        name: str,
        features: int,
        numbering: Numbering,
        queue_size: int,
        stats_format: str,
        policy: Policy = RESET,
    ) -> None:
        super().__init__(memory, name, features, numbering, queue_size, policy)
        self._stats = StatsConversation(FORMATS[stats_format])
        self._held: Chains | None = None
        self._stats_came = False
        self._stats_queue = next((queue for queue in self.queues if queue.name == "statsq"), None)

    # -- the host's side -------------------------------------------------------------------------------------------

    @property
    def stats_reports(self) -> int:
        """Statistics buffers ever received."""
        return self._stats.reports

    @property
    def polling_interval_ns(self) -> int:
        """0 when statistics are not polled."""
        return self._stats.interval_ns

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

    def _take_stats(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        """Keep the newest buffer, with its figures; any other is one too many (§5.5.6.3.1) and goes back."""
        told = NO_NOTIFICATIONS
        if self._held is not None:
            told |= self.complete(queue, self._held)
        for index in range(len(chains) - 1):
            told |= self.complete(queue, chains.only(index))
        self._held = chains.only(len(chains) - 1)
        primes = (self.legacy or self._stats.layout.primed) and not self._stats_came and len(chains) == 1
        self._stats_came = True
        told |= Notifications(deadline=True)
        if primes:
            told |= self.event("stats-ignored", "the driver's first statistics say nothing")
        else:
            told |= self._read_stats(self._held, now_ns)
        return told | self._ask_for_stats(now_ns)

    def _read_stats(self, buffer: Chains, now_ns: int) -> Notifications:
        layout = self._stats.layout
        orders = {each.name: self.driver_order if each.native else self.order for each in FORMATS.values()}
        payload = buffer.gather_readable(self.memory, MAX_ENTRIES * layout.entry_bytes)
        sent_bytes = buffer.readable_bytes()[0]
        report = parse(payload, sent_bytes, layout, orders[layout.name])
        if other := misfit(payload, sent_bytes, report, orders):
            report = report._replace(raw=(), values={}, misfit=other)
        self.ignored_bytes += report.ignored_bytes
        is_news = report.misfit not in ("", self._stats.misfit)
        self._stats.received(report, now_ns)
        told = self.event("stats", f"the driver reported {len(report.raw)} statistics")
        if is_news:
            told |= self.event("stats-malformed", self._describe_misfit(report))
        elif report.raw and report.ignored_bytes and not report.misfit:
            text = f"statsq: {report.ignored_bytes} bytes are no whole entry, or too many"
            told |= self.event("ignored-bytes", text)
        return told

    def _describe_misfit(self, report: Report) -> str:
        layout = self._stats.layout
        if report.misfit == UNKNOWN:
            return f"the driver's statistics are no whole entries of {layout.entry_bytes} bytes, and no tag is known"
        return (
            f"the driver's statistics are laid out as with stats-format={report.misfit}, and this device has "
            f"stats-format={layout.name}"
        )

    def _ask_for_stats(self, now_ns: int) -> Notifications:
        """Return the held buffer if statistics are wanted now."""
        held, queue = self._held, self._stats_queue
        if held is None or queue is None or not self.is_live or not self._stats.should_ask(now_ns):
            return NO_NOTIFICATIONS
        self._held = None
        self._stats.asked()
        return self.complete(queue, held) | Notifications(deadline=True)

    # -- the device's life -----------------------------------------------------------------------------------------

    def live(self, now_ns: int) -> Notifications:
        return self._ask_for_stats(now_ns)

    def queue_lost(self, queue: Queue) -> None:
        super().queue_lost(queue)
        if queue is self._stats_queue:
            self._held = None

    def lost(self) -> None:
        super().lost()
        self._held = None
        self._stats_came = False
        self._stats.driver_lost()

    def deadline_ns(self) -> int | None:
        polling = self._held is not None and self._stats.interval_ns > 0
        return self._stats.next_poll_ns if polling else None

    def deadline_reached(self, now_ns: int) -> Notifications:
        return self._ask_for_stats(now_ns)

    def check_state(self, saved: Any, where: str) -> None:
        super().check_state(saved, where)
        if saved["held"] is not None:
            require_list(f"{where}.held", saved["held"], 1)
            self.check_in_flight(self._stats_queue, saved["held"], saved, f"{where}.held")

    def settings(self) -> tuple[object, ...]:
        held = None if self._held is None else (self._held.head.tolist(), self._held.buffer_id.tolist())
        return *super().settings(), held, self._stats_came, self._stats.settings()
