"""The guest's memory statistics (virtio 1.3 §5.5.6.3): what a buffer says, and when to ask for the next.

Owns the state of the conversation; what the bytes of a buffer mean is `stats_formats`'.  Refuses to know the queue: the
device gives it what a buffer said and asks whether to return the one it holds.

The conversation runs in reverse.  The driver posts one buffer with fresh figures and the device keeps it; returning it
asks for the next.  So a request can be *wanted* (nothing is held to be returned yet), or *under way* (returned, and the
reply has not come).  There is never silence without a reason: see `Statistics.reason`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from devices.state import COUNTER, FLAG, TEXT, TIME_NS, Many, Maybe, Record, Stateful, Table, Tuple, uint
from devices.virtio.balloon.stats_formats import FINAL, MAX_ENTRIES, Report, StatsFormat, report_of

Reason = Literal["ok", "not negotiated", "never posted", "malformed", "stale"]

STALE_AFTER_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of the guest's memory.

    `reason` is "ok", or why there is nothing or nothing fresh: "not negotiated", "never posted", "malformed" (certainly
    laid out otherwise than this device reads it; it says nothing), "stale" (older than three polling intervals, or
    from a driver that has reset the device since).  `age_ns` is None if nothing was ever
    reported.  `values` maps names (QEMU's if it has one) to numbers, `raw` is every (tag, value) in the order sent."""

    reason: Reason
    age_ns: int | None = None
    values: dict[str, int] = field(default_factory=dict)
    raw: tuple[tuple[int, int], ...] = ()


_RAW = Many(Tuple(uint(16), uint(64)), longest=MAX_ENTRIES)


class StatsConversation(Stateful):
    """When to ask.  `interval_ns` is the polling interval, 0 for none; `reports` counts the reports ever received.

    `next_poll_ns` is when the next poll is due; 0 means at once."""

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("interval_ns", "next_poll_ns", "_last_ns"), TIME_NS),
        "reports": COUNTER,
        "_last": Maybe(Record(report_of, raw=_RAW, ignored_bytes=COUNTER, format=TEXT, misfit=TEXT)),
        **dict.fromkeys(("wanted", "under_way", "_outdated"), FLAG),
    }

    def __init__(self, layout: StatsFormat = FINAL) -> None:
        self.layout = layout
        self.interval_ns = 0
        self.reports = 0
        self._last: Report | None = None
        self._last_ns = 0
        self._outdated = False
        self.driver_lost()

    def driver_lost(self) -> None:
        """The driver is gone; its last report stays, as a stale one."""
        self.next_poll_ns = 0
        self.wanted = False
        self.under_way = False
        self._outdated = self._last is not None

    def set_interval(self, interval_ns: int) -> None:
        """Poll every `interval_ns` from now on, the first time at once; 0 stops."""
        self.interval_ns = interval_ns
        self.next_poll_ns = 0

    def received(self, report: Report, now_ns: int) -> None:
        """A buffer arrived.  A reply re-arms the poll; the first buffer of all is nobody's reply."""
        if self.under_way:
            self.next_poll_ns = now_ns + self.interval_ns
        self.under_way = False
        self.reports += 1
        self._last, self._last_ns, self._outdated = report, now_ns, False

    @property
    def misfit(self) -> str:
        """That of this driver's last report; "" where there is neither."""
        return self._last.misfit if self._last is not None and not self._outdated else ""

    def should_ask(self, now_ns: int) -> bool:
        """Whether a held buffer is to be returned now."""
        return self.wanted or (self.interval_ns > 0 and self.next_poll_ns <= now_ns)

    def asked(self) -> None:
        """The held buffer was returned."""
        self.wanted = False
        self.under_way = True

    def settings(self) -> tuple[object, ...]:
        """What decides how it goes on."""
        return self.interval_ns, self.next_poll_ns, self.wanted, self.under_way

    def statistics(self, exists: bool, driver_ready: bool, now_ns: int) -> Statistics:
        """What is known now.  `exists` tells whether the driver negotiated the queue, `driver_ready` whether it has set
        DRIVER_OK: from then on only its own reports count."""
        if self._last is None or (driver_ready and (self._outdated or not exists)):
            return Statistics("never posted" if exists else "not negotiated")
        age_ns = now_ns - self._last_ns
        too_old = 0 < self.interval_ns * STALE_AFTER_INTERVALS < age_ns
        reason: Reason = "stale" if self._outdated or too_old else "malformed" if self._last.misfit else "ok"
        return Statistics(reason, age_ns, dict(self._last.values), self._last.raw)
