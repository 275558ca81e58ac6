"""What is known of the machines that are watched: their figures over time, what happened, and how it goes with each.

A value that `Fleet.apply` is fed with news; it asks nobody and knows no clock and no terminal.  Times end with `_s` on
the host's monotonic clock and with `_ns` on the guest's; sizes are bytes.  Histories have bounded lengths.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmm.config import format_size

MOST_SAMPLES = 240
MOST_EVENTS = 100
KEPT_S = 15.0
"""A machine that has ended is shown so long."""
ABSENT, COMING, HUNG, ENDED = "not running", "connecting", "not answering", "ended"
"""What stands for a machine's state while it does not say one itself."""


# -- one moment ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queue:
    """A virtqueue, and how many requests were ever taken from it."""

    device: str
    name: str
    requests: int


@dataclass(frozen=True, slots=True)
class Balloon:
    """The balloon and the statistics that came last, by QEMU's names; `age_ns` is None where none ever came."""

    target: int
    actual: int
    guest_ram: int
    target_ram: int
    ready: bool
    interval_ns: int
    reason: str
    reports: int
    age_ns: int | None
    stats: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One machine at one moment; `balloon` is None where it has none."""

    time_s: float
    pid: int
    guest: str
    arch: str
    clock: str
    state: str
    guest_ns: int
    ram: int
    host: int
    balloon: Balloon | None
    queues: tuple[Queue, ...]


def read_sample(status: Mapping[str, Any], time_s: float) -> Sample:
    """The sample in what x-vmm-status answers.  KeyError, TypeError or ValueError where it answers something else."""
    queues = (Queue(str(each["device"]), str(each["name"]), int(each["requests"])) for each in status["queues"])
    return Sample(
        time_s=time_s,
        pid=int(status["pid"]),
        guest=str(status["guest"]),
        arch=str(status["arch"]),
        clock=str(status["clock"]),
        state=str(status["status"]),
        guest_ns=int(status["time-ns"]),
        ram=int(status["ram"]),
        host=int(status["host-memory"]),
        balloon=_read_balloon(status["balloon"]) if "balloon" in status else None,
        queues=tuple(queues),
    )


def _read_balloon(found: Mapping[str, Any]) -> Balloon:
    return Balloon(
        target=int(found["target"]),
        actual=int(found["actual"]),
        guest_ram=int(found["guest-ram"]),
        target_ram=int(found["target-guest-ram"]),
        ready=bool(found["driver-ready"]),
        interval_ns=int(found["polling-interval-ns"]),
        reason=str(found["stats-reason"]),
        reports=int(found["stats-reports"]),
        age_ns=int(found["stats-age-ns"]) if "stats-age-ns" in found else None,
        stats={str(name): int(value) for name, value in found["stats"].items()},
    )


# -- one machine over time -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """Statistics, and the guest's time at which they came."""

    guest_ns: int
    stats: Mapping[str, int]


@dataclass(slots=True)
class Watched:
    """A machine.  `events` are lines of text, the newest last; `why` says more where it does not answer."""

    name: str
    state: str = ABSENT
    why: str = ""
    changed_s: float = 0.0
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=MOST_SAMPLES))
    reports: deque[Report] = field(default_factory=lambda: deque(maxlen=MOST_SAMPLES))
    events: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))

    @property
    def now(self) -> Sample | None:
        """The newest sample."""
        return self.samples[-1] if self.samples else None

    def take(self, sample: Sample) -> None:
        """The next sample; what is not the same machine any more begins anew."""
        before = self.now
        if before is not None and (before.pid != sample.pid or before.guest_ns > sample.guest_ns):
            self.samples.clear()
            self.reports.clear()
            before = None
        self.samples.append(sample)
        self.state, self.why, self.changed_s = sample.state, "", sample.time_s
        balloon = sample.balloon
        if balloon is None or balloon.age_ns is None:
            return
        if before is None or before.balloon is None or before.balloon.reports != balloon.reports:
            self.reports.append(Report(sample.guest_ns - balloon.age_ns, balloon.stats))

    def series(self, value: Callable[[Sample], float]) -> list[float]:
        """A figure in each sample, the oldest first."""
        return [value(sample) for sample in self.samples]

    def stat_series(self, name: str) -> list[float | None]:
        """A statistic in each report; None where it was not sent."""
        return [report.stats.get(name) for report in self.reports]

    def stat_rates(self, name: str) -> list[float | None]:
        """How much a count in the statistics grew in a second of guest time, from each report to the next."""
        times_s = [report.guest_ns / 1e9 for report in self.reports]
        return rates(times_s, self.stat_series(name))

    def queue_rates(self, device: str, name: str) -> list[float | None]:
        """Requests taken from a queue in a second of the host's time, from each sample to the next."""
        counts: list[float | None] = []
        for sample in self.samples:
            found = (queue.requests for queue in sample.queues if (queue.device, queue.name) == (device, name))
            counts.append(next(found, None))
        return rates([sample.time_s for sample in self.samples], counts)


def rates(times_s: Sequence[float], counts: Sequence[float | None]) -> list[float | None]:
    """Growth in a second between neighbours: one less than there are counts.  None where one is missing, where no time
    went by, and where a count fell, since it began anew."""
    found: list[float | None] = []
    for (start_s, start), (end_s, end) in zip(
        zip(times_s, counts, strict=True), list(zip(times_s, counts, strict=True))[1:], strict=False
    ):
        if start is None or end is None or end < start or end_s <= start_s:
            found.append(None)
        else:
            found.append((end - start) / (end_s - start_s))
    return found


# -- news ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Appeared:
    """Somebody serves under this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Answered:
    """It said how it is."""

    name: str
    sample: Sample


@dataclass(frozen=True, slots=True)
class Hung:
    """It does not answer, or not what can be understood."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Gone:
    """It has ended."""

    name: str
    time_s: float


@dataclass(frozen=True, slots=True)
class Heard:
    """An event of QMP's."""

    name: str
    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """What came of something that the user did; `unix_s` is the host's time of day."""

    name: str
    text: str
    unix_s: float


News = Appeared | Answered | Hung | Gone | Heard | Said


class Fleet:
    """All machines by name: those called `wanted`, whether or not they run, or all that are met where none is named."""

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        self.wanted = tuple(wanted)
        self.machines: dict[str, Watched] = {name: Watched(name) for name in self.wanted}

    def apply(self, news: News) -> None:
        """Take one piece of news."""
        if isinstance(news, Appeared):
            self._begin(news.name)
            return
        machine = self.machines.get(news.name)
        if machine is None:
            return
        match news:
            case Answered(sample=sample):
                machine.take(sample)
            case Hung(why=why):
                machine.state, machine.why = HUNG, why
            case Gone(time_s=time_s):
                machine.state, machine.why, machine.changed_s = ENDED, "", time_s
            case Heard(event=event):
                machine.events.append(event_line(event))
            case Said(text=text, unix_s=unix_s):
                machine.events.append(f"{_clock(unix_s)} {text}")

    def _begin(self, name: str) -> None:
        if self.wanted and name not in self.wanted:
            return
        machine = self.machines.setdefault(name, Watched(name))
        if machine.state in (ABSENT, ENDED):
            machine.state = COMING
        self.machines = dict(sorted(self.machines.items()))

    def forget(self, now_s: float) -> bool:
        """Drop those that ended some time ago; returns whether there were any.  Who was asked for by name stays."""
        old = [each for each in self.machines.values() if each.state == ENDED and now_s - each.changed_s > KEPT_S]
        for machine in old:
            if machine.name in self.wanted:
                self.machines[machine.name] = Watched(machine.name)
            else:
                del self.machines[machine.name]
        return bool(old)


def event_line(event: Mapping[str, Any]) -> str:
    """An event of QMP's as a line: the time of day, its name, and what it tells."""
    name, data = str(event.get("event", "?")), event.get("data") or {}
    what = f"{format_size(data['actual'])} left to the guest" if name == "BALLOON_CHANGE" and "actual" in data else ""
    if not what:
        what = ", ".join(f"{key} {_word(value)}" for key, value in data.items())
    stamp = event.get("timestamp") or {}
    return f"{_clock(stamp.get('seconds', 0))} {name} {what}".rstrip()


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _clock(unix_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(unix_s))
