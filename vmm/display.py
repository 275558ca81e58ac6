"""What a person sees of a run: the numbers worth watching, plain lines, and the summary.

A display is an observer of the machine.  It reads and never changes anything, so a run is the same with any display or
none.  This module owns the words and numbers and writes plain lines to a stream; the live view on a terminal, which
needs a drawing library, is in `vmm.live` and takes its words from here.  Nothing that a guest wrote reaches a terminal
unfiltered: control characters are shown as escapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from devices.errors import ConfigError
from devices.virtio import spec
from vmm.config import PAGE_BYTES, format_size

if TYPE_CHECKING:
    from devices.effects import Event
    from vmm.machine import Machine

COVERED_EVENTS = frozenset(("stats", "target"))  # told as statistics and as the host's new target
LONGEST_LINE = 500  # characters of one line of the guest's that are kept; the rest is another line
_UNIT_OF = {stat.name: stat.unit for stat in spec.BALLOON_STATS.values()}


class TextOut(Protocol):
    """Where lines go."""

    def write(self, text: str) -> object: ...


class Silent:
    """A display that shows nothing, and the base of those that show something.

    It is an observer of the machine that is told besides where the run begins and how it ended.
    """

    def begin(self) -> None:
        """The machine stands at its reset vector."""

    def on_event(self, now_ns: int, event: Event) -> None:
        """A device tells of something."""

    def on_console(self, data: bytes) -> None:
        """The guest wrote on its serial console."""

    def on_stats(self, now_ns: int) -> None:
        """The guest's statistics have come."""

    def on_target(self, now_ns: int) -> None:
        """The host set a new target."""

    def waiting(self, now_ns: int) -> None:
        """The run is held back so that it can be watched; guest time is shown as `now_ns`."""

    def end(self, report: Mapping[str, Any]) -> None:
        """The run is over; `report` is what `--json` prints."""

    def close(self) -> None:
        """Leave the terminal as it was found; also called when the run broke off."""


# -- numbers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gauges:
    """The numbers to watch at one moment.  Sizes in bytes, times in nanoseconds of guest time.

    A machine without a balloon has targets and sizes as if its balloon were empty, and the reason "no balloon".
    `backed_bytes` is the host memory behind the guest's RAM, None where the host cannot tell; `unknown` are statistics
    without a known name, as (tag, value).
    """

    now_ns: int
    memory_bytes: int
    target_bytes: int
    balloon_bytes: int
    backed_bytes: int | None
    reason: str
    age_ns: int | None
    values: dict[str, int]
    unknown: tuple[tuple[int, int], ...] = ()

    @property
    def ram_bytes(self) -> int:
        """The RAM that the balloon leaves to the guest."""
        return max(self.memory_bytes - self.balloon_bytes, 0)

    @property
    def target_ram_bytes(self) -> int:
        """The RAM that the balloon shall leave to the guest."""
        return max(self.memory_bytes - self.target_bytes, 0)


def read_gauges(machine: Machine) -> Gauges:
    """What the gauges of `machine` show now."""
    try:
        balloon, stats = machine.balloon, machine.stats.snapshot()
    except ConfigError:
        return Gauges(machine.now_ns, machine.config.memory_bytes, 0, 0, _backed(machine), "no balloon", None, {})
    return Gauges(
        machine.now_ns,
        machine.config.memory_bytes,
        balloon.target_pages * PAGE_BYTES,
        balloon.actual_pages * PAGE_BYTES,
        _backed(machine),
        stats.reason,
        stats.age_ns,
        dict(stats.values),
        tuple((tag, value) for tag, value in stats.raw if tag not in spec.BALLOON_STATS),
    )


def _backed(machine: Machine) -> int | None:
    try:
        return machine.memory.backed_bytes()
    except ConfigError:
        return None


# -- words ---------------------------------------------------------------------------------------------------------


def format_time(time_ns: int) -> str:
    """Seconds with as many decimals as a boot needs: "0.001234 s"."""
    return f"{time_ns // 10**9}.{time_ns % 10**9 // 1000:06} s"


def format_stat(name: str, value: int) -> str:
    """A statistic's value in its unit: a size for bytes, a plain number for a count."""
    return format_size(value) if _UNIT_OF.get(name) == "bytes" else f"{value:,}"


def named_stats(gauges: Gauges) -> list[tuple[str, str]]:
    """Every statistic as (name, value in its unit); one without a known name is called after its tag."""
    known = [(name, format_stat(name, value)) for name, value in gauges.values.items()]
    return known + [(f"tag {tag}", f"{value:,}") for tag, value in gauges.unknown]


def format_backed(backed_bytes: int | None) -> str:
    return "unknown" if backed_bytes is None else format_size(backed_bytes)


def is_worth_a_line(event: Event, gauges: Gauges) -> bool:
    """Whether `event` gets a line of its own; of the driver's many steps to a target only the last one does."""
    if event.kind == "actual":
        return gauges.balloon_bytes == gauges.target_bytes
    return event.kind not in COVERED_EVENTS


def both_sizes(ram_bytes: int, balloon_bytes: int) -> str:
    """A state of the balloon in both directions: the RAM left to the guest and the balloon's size."""
    return f"{format_size(ram_bytes)} left to the guest (balloon {format_size(balloon_bytes)})"


def stats_line(gauges: Gauges) -> str:
    """One report of statistics, beside the balloon and the host's memory, as one line."""
    values = ", ".join(f"{name.removeprefix('stat-')} {value}" for name, value in named_stats(gauges))
    return (
        f"target {format_size(gauges.target_ram_bytes)}, guest RAM {format_size(gauges.ram_bytes)}, "
        f"balloon {format_size(gauges.balloon_bytes)}, host memory {format_backed(gauges.backed_bytes)}; {values}"
    )


def summary(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The whole run on one screen, as (what, how much), from the report that `--json` prints."""
    memory, balloon = report["memory"], report["balloon"]
    rows = [
        ("outcome", f"{report['outcome']}: {report['detail']}"),
        (
            "time",
            f"{format_time(report['clock_ns'])} of guest time in {report['wall_s']:.2f} s, {report['blocks']:,} blocks",
        ),
    ]
    if balloon is not None:
        rows += _balloon_rows(balloon, memory["ram_bytes"]) + _stats_rows(report["stats"])
        names = [
            name.removeprefix("VIRTIO_BALLOON_F_").removeprefix("VIRTIO_F_")
            for name in report["features"]["negotiated"]
        ]
        rows.append(("features", ", ".join(names) or "none negotiated"))
    queues = ", ".join(f"{queue['name']} {queue['requests']}" for queue in report["queues"])
    rows += [("requests", queues)] if queues else []
    ram, end, peak = (format_size(memory[name]) for name in ("ram_bytes", "backed_bytes_end", "backed_bytes_peak"))
    rows.append(("host memory", f"{end} behind the guest's {ram} at the end, {peak} at most"))
    rows.append(("exit status", str(report["exit_code"])))
    return rows


def _balloon_rows(balloon: Mapping[str, int], memory_bytes: int) -> list[tuple[str, str]]:
    sizes = {name: balloon[f"{name}_pages"] * PAGE_BYTES for name in ("target", "actual")}
    moved = f"{balloon['inflated_pages']:,} pages in, {balloon['deflated_pages']:,} pages out"
    bad = f", {balloon['bad_pfns']:,} bad page numbers skipped" if balloon["bad_pfns"] else ""
    return [
        ("target", both_sizes(memory_bytes - sizes["target"], sizes["target"])),
        ("reached", both_sizes(memory_bytes - sizes["actual"], sizes["actual"])),
        ("moved", f"{moved}, {format_size(balloon['discarded_bytes'])} given back to the host{bad}"),
    ]


def _stats_rows(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    age = "" if stats["age_ns"] is None else f", {format_time(stats['age_ns'])} old"
    return [("statistics", f"{stats['reason']}{age}, {len(stats['raw'])} values")]


class ConsoleLines:
    """Cuts the guest's console output into lines that are safe to print."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        # Latin-1 never fails and keeps one character a byte; real UTF-8 is put together again in _clean.
        self._rest += data.decode("latin-1").replace("\r", "")
        *lines, self._rest = self._rest.split("\n")
        while len(self._rest) > LONGEST_LINE:
            lines.append(self._rest[:LONGEST_LINE])
            self._rest = self._rest[LONGEST_LINE:]
        return [_clean(line) for line in lines]

    def flush(self) -> list[str]:
        """What is left without an end of line."""
        rest, self._rest = self._rest, ""
        return [_clean(rest)] if rest else []


def _clean(line: str) -> str:
    text = line.encode("latin-1").decode("utf-8", "backslashreplace").expandtabs()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


# -- plain lines ---------------------------------------------------------------------------------------------------


class PlainDisplay(Silent):
    """One line per happening on `out`; for pipes, files and terminals that cannot be drawn on.

    Errors of writing to `out` are the caller's to judge.
    """

    def __init__(self, machine: Machine, out: TextOut, *, show_console: bool = True) -> None:
        self._machine = machine
        self._out = out
        self._show_console = show_console
        self._lines = ConsoleLines()

    def begin(self) -> None:
        self._print(headline(self._machine))

    def on_event(self, now_ns: int, event: Event) -> None:
        if is_worth_a_line(event, read_gauges(self._machine)):
            self._print(f"{format_time(now_ns)}  {event.source}: {event.text}")

    def on_console(self, data: bytes) -> None:
        if self._show_console:
            for line in self._lines.feed(data):
                self._print(f"{format_time(self._machine.now_ns)}  | {line}")

    def on_stats(self, now_ns: int) -> None:
        self._print(f"{format_time(now_ns)}  statistics: {stats_line(read_gauges(self._machine))}")

    def on_target(self, now_ns: int) -> None:
        self._print(f"{format_time(now_ns)}  {target_line(read_gauges(self._machine))}")

    def end(self, report: Mapping[str, Any]) -> None:
        for line in self._lines.flush():
            self._print(f"{format_time(self._machine.now_ns)}  | {line}")
        for what, how_much in summary(report):
            self._print(f"{what:<12} {how_much}")

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")


def headline(machine: Machine) -> str:
    """The first line of a run."""
    config = machine.config
    devices = ", ".join(f"{device.id} at 00:{device.slot:02x}.0" for device in config.devices) or "no devices"
    return f"{config.name}: {format_size(config.memory_bytes)} of RAM, {config.clock} clock, {devices}"


def target_line(gauges: Gauges) -> str:
    """The sentence for a new target."""
    return f"the host's new target: {both_sizes(gauges.target_ram_bytes, gauges.target_bytes)}"
