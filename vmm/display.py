"""What a person sees of a run: the numbers worth watching, plain lines, and the summary.

A display is an observer of the machine.  It reads and never changes anything, so a run is the same with any display or
none.  This module owns the words and numbers and writes plain lines to a stream; the live view on a terminal, which
needs a drawing library, is in `vmm.live` and takes its words from here.  Nothing that a guest wrote reaches a terminal
unfiltered: control characters are shown as escapes.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from devices.errors import ConfigError
from devices.virtio import spec
from vmm.config import PAGE_BYTES, format_size

if TYPE_CHECKING:
    from devices.effects import Event
    from vmm.loader import Payload
    from vmm.machine import Machine

COVERED_EVENTS = frozenset(("stats", "target", "reported"))  # told as statistics, as the new target, and in sums
LONGEST_LINE = 500  # characters of one line of the guest's that are kept; the rest is another line
REPEAT_NS = 1_000_000  # equal statistics that come sooner than this after those shown last are not shown again
STATS_COLUMNS, SUMMARY_COLUMNS = 120, 80  # of plain lines; the live view is as wide as its terminal
BALLOON_QUEUES = frozenset(("inflateq", "deflateq", "statsq", "free_page_vq", "reporting_vq"))
ESSENTIAL_REGISTERS = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
    *("rflags", "cr0", "cr2", "cr3", "cr4"),
)
KERNELS, CONSOLES = ("Linux", "PVH"), ("console=", "earlyprintk", "earlycon")
_UNIT_OF = {"stat-anonymous-memory": "bytes"} | {stat.name: stat.unit for stat in spec.BALLOON_STATS.values()}


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

    def tell(self, text: str) -> None:
        """The host's side has a line of its own to say, whoever watches."""
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)

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
    without a known name, as (tag, value).  `reported_bytes` is what the driver ever reported free, None where it never
    did.
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
    reported_bytes: int | None = None

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
        balloon.reported_bytes or None,
    )


def _backed(machine: Machine) -> int | None:
    try:
        return machine.memory.backed_bytes()
    except ConfigError:
        return None


# -- words ---------------------------------------------------------------------------------------------------------


def format_time(time_ns: int) -> str:
    """The time of an event, to the microsecond, which tells a boot's steps apart: "0.001234 s"."""
    return f"{time_ns // 10**9}.{time_ns % 10**9 // 1000:06} s"


def format_span(span_ns: int) -> str:
    """How long something took, in the unit that suits it and never rounded up: "8.02 s", "478 ms", "389 us"."""
    if span_ns < 1_000_000:
        return f"{span_ns // 1000} us"
    if span_ns < 10**9:
        return f"{span_ns // 1_000_000} ms"
    return f"{span_ns // 10**9}.{span_ns % 10**9 // 1_000_000:03}".rstrip("0").rstrip(".") + " s"


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
    if event.kind == "actual":  # the gauges are of now, and the event may be one of several that came since
        reached = str(gauges.balloon_bytes // PAGE_BYTES)
        return gauges.balloon_bytes == gauges.target_bytes and reached in event.text.split()
    return event.kind not in COVERED_EVENTS


def both_sizes(ram_bytes: int, balloon_bytes: int) -> str:
    """A state of the balloon in both directions: the RAM left to the guest and the balloon's size."""
    return f"{format_size(ram_bytes)} left to the guest (balloon {format_size(balloon_bytes)})"


def image_note(payload: Payload | None, parameter: str = "") -> str:
    """What should be said about the guest's file: that it was taken for machine code, what speaks against it, or that
    a kernel will be silent, since its command line names no console; "" otherwise."""
    if payload is None:
        return ""
    if payload.kind == "flat":
        return f"{payload.name} is no kernel or ELF file: run as a flat image at {payload.entry:x}h"
    notes = [payload.doubt] if payload.doubt else []
    if payload.kind.startswith(KERNELS) and not any(word.startswith(CONSOLES) for word in parameter.split()):
        notes.append(f"no console in the kernel's command line {parameter!r}: Linux says nothing without console=ttyS0")
    return "; ".join(notes)


def stats_lines(gauges: Gauges) -> list[str]:
    """One report of statistics: a line with the balloon and the host's memory, and the guest's values under it."""
    first = (
        f"statistics: target {format_size(gauges.target_ram_bytes)}, guest RAM {format_size(gauges.ram_bytes)}, "
        f"balloon {format_size(gauges.balloon_bytes)}, host memory {format_backed(gauges.backed_bytes)}"
    )
    if gauges.reported_bytes is not None:
        first += f", reported free {format_size(gauges.reported_bytes)}"
    values = [f"{name.removeprefix('stat-')} {value}" for name, value in named_stats(gauges)]
    return [first, *_join_lines(values, STATS_COLUMNS, " " * 14)]


def _join_lines(items: Iterable[str], columns: int, indent: str) -> list[str]:
    """`items` with commas between them, in lines of at most `columns` characters; no item is broken."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(f", {item},") <= columns:
            lines[-1] += f", {item}"
        else:
            lines.append(indent + item)
    return [f"{line}," for line in lines[:-1]] + lines[-1:]


def summary(report: Mapping[str, Any], note: str = "") -> list[tuple[str, str]]:
    """The whole run on one screen, as (what, how much), from the report that `--json` prints.

    `note` is `image_note`'s.
    """
    memory, rows = report["memory"], _outcome_rows(report)
    rows += [("guest", note)] if note else []
    guest_s = format_span(report["clock_ns"])
    rows.append(("time", f"{guest_s} of guest time in {report['wall_s']:.2f} s, {report['blocks']:,} blocks"))
    is_used = _uses_balloon(report)
    if is_used:
        rows += _balloon_rows(report["balloon"], memory["ram_bytes"]) + _stats_rows(report["stats"])
        rows.append(("features", _feature_names(report["features"]["negotiated"])))
    elif report["balloon"] is not None:
        rows.append(("balloon", _unused_balloon(report["balloon"], memory["ram_bytes"])))
    counts = [(queue["name"], queue["requests"]) for queue in report["queues"]]
    queues = ", ".join(f"{name} {count}" for name, count in counts if is_used or name not in BALLOON_QUEUES)
    rows += [("requests", queues)] if queues else []
    ram, end, peak = (format_size(memory[name]) for name in ("ram_bytes", "backed_bytes_end", "backed_bytes_peak"))
    if report.get("breaches") is not None:
        rows.append(("driver", _breaches(report["breaches"])))
    behind = _in_what(memory, report["balloon"])
    rows.append(("host memory", f"{end} behind the guest's {ram} at the end, {peak} at most{behind}"))
    rows.append(("exit status", str(report["exit_code"])))
    return rows


def _in_what(memory: Mapping[str, Any], balloon: Mapping[str, Any] | None) -> str:
    """What is behind RAM where it is not the usual memory file, and what of the balloon it cannot give back yet."""
    size, held = format_size(memory["host_page_bytes"]), 0 if balloon is None else balloon["held_pages"]
    text = {"hugepages": f"; huge pages of {size}", "anonymous": "; anonymous memory"}.get(memory["backing"], "")
    waiting = f", {format_size(held * PAGE_BYTES)} of the balloon in pages that are not all in it" if held else ""
    return text + waiting


def _breaches(breaches: Sequence[Mapping[str, Any]]) -> str:
    """What a watched driver did wrong: the sentences were told when it happened."""
    found = ", ".join(f"{each['id']} (§{each['section']}, {each['count']} times)" for each in breaches)
    return f"broke {found.replace(', 1 times)', ')')}" if found else "broke none of the rules that are watched"


def _outcome_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How it ended; of a triple fault's sixty registers those that are looked at first."""
    sentence, _, values = str(report["detail"]).partition("; ")
    if report["outcome"] != "triple-fault" or not values:
        return [("outcome", f"{report['outcome']}: {report['detail']}")]
    found = dict(word.split("=", 1) for word in values.split() if "=" in word)
    registers = " ".join(f"{name}={found[name]}" for name in ESSENTIAL_REGISTERS if name in found)
    return [("outcome", f"triple-fault: {sentence}"), ("registers", f"{registers} (all of them are in --json)")]


def _uses_balloon(report: Mapping[str, Any]) -> bool:
    """Whether there is a balloon and a driver ever did something with it; requests are counted across resets."""
    if report["balloon"] is None:
        return False
    requests = sum(queue["requests"] for queue in report["queues"] if queue["name"] in BALLOON_QUEUES)
    return bool(requests or report["features"]["negotiated"] or report["balloon"]["actual_pages"])


def _unused_balloon(balloon: Mapping[str, int], memory_bytes: int) -> str:
    target_bytes = balloon["target_pages"] * PAGE_BYTES
    wish = f"; the target was {both_sizes(memory_bytes - target_bytes, target_bytes)}" if target_bytes else ""
    return f"not used by the guest{wish}"


def _feature_names(negotiated: Iterable[str]) -> str:
    names = [name.removeprefix("VIRTIO_BALLOON_F_").removeprefix("VIRTIO_F_") for name in negotiated]
    return ", ".join(names) or "none negotiated at the end"  # as after the reset with which Linux shuts down


def _balloon_rows(balloon: Mapping[str, int], memory_bytes: int) -> list[tuple[str, str]]:
    sizes = {name: balloon[f"{name}_pages"] * PAGE_BYTES for name in ("target", "actual")}
    moved = f"{balloon['inflated_pages']:,} pages in, {balloon['deflated_pages']:,} pages out"
    if balloon["oom_deflated_pages"]:
        moved += f" ({balloon['oom_deflated_pages']:,} below the target)"
    if balloon["reported_pages"]:
        moved += f", {balloon['reported_pages']:,} reported free"
    if balloon["hinted_pages"]:
        moved += f", {balloon['hint_discarded_pages']:,} of {balloon['hinted_pages']:,} hinted ones given back"
    bad = f", {balloon['bad_pfns']:,} bad page numbers skipped" if balloon["bad_pfns"] else ""
    return [
        ("target", both_sizes(memory_bytes - sizes["target"], sizes["target"])),
        ("reached", both_sizes(memory_bytes - sizes["actual"], sizes["actual"])),
        ("moved", f"{moved}, {format_size(balloon['discarded_bytes'])} given back to the host{bad}"),
    ]


def _stats_rows(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    age = "" if stats["age_ns"] is None else f", {format_span(stats['age_ns'])} old"
    values = f", {len(stats['raw'])} values" if stats["raw"] else ""
    return [("statistics", f"{stats['reason']}{age}{values}")]


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
        self._note = image_note(machine.board.payload, machine.config.parameter)
        self._shown: Gauges | None = None  # the statistics that were printed last

    def begin(self) -> None:
        self._print(headline(self._machine))
        if self._note:
            self._print(self._note)

    def on_event(self, now_ns: int, event: Event) -> None:
        if is_worth_a_line(event, read_gauges(self._machine)):
            self._print(f"{format_time(now_ns)}  {event.source}: {event.text}")

    def on_console(self, data: bytes) -> None:
        if self._show_console:
            for line in self._lines.feed(data):
                self._print(f"{format_time(self._machine.now_ns)}  | {line}")

    def on_stats(self, now_ns: int) -> None:
        gauges = replace(read_gauges(self._machine), now_ns=now_ns, age_ns=None)
        if self._is_repeated(gauges):
            return
        self._shown = gauges
        first, *others = stats_lines(gauges)
        self._print("\n".join((f"{format_time(now_ns)}  {first}", *others)))

    def _is_repeated(self, gauges: Gauges) -> bool:
        """Whether the same numbers were printed just before, as when a first poll follows the driver's first buffer."""
        last = self._shown
        return (
            last is not None
            and gauges.now_ns - last.now_ns < REPEAT_NS
            and gauges == replace(last, now_ns=gauges.now_ns)
        )

    def on_target(self, now_ns: int) -> None:
        self._print(f"{format_time(now_ns)}  {target_line(read_gauges(self._machine))}")

    def tell(self, text: str) -> None:
        self._print(f"{format_time(self._machine.now_ns)}  {text}")

    def end(self, report: Mapping[str, Any]) -> None:
        for line in self._lines.flush():
            self._print(f"{format_time(self._machine.now_ns)}  | {line}")
        for what, how_much in summary(report, self._note):
            self._print(_summary_row(what, how_much))

    def _print(self, text: str) -> None:
        self._out.write(text + "\n")


def _summary_row(what: str, how_much: str) -> str:
    return textwrap.fill(
        how_much,
        SUMMARY_COLUMNS,
        initial_indent=f"{what:<12} ",
        subsequent_indent=" " * 13,
        break_long_words=False,
        break_on_hyphens=False,
    )


def headline(machine: Machine) -> str:
    """The first line of a run."""
    config = machine.config
    devices = ", ".join(f"{device.id} at {device.place}" for device in config.devices) or "no devices"
    return f"{config.name}: {format_size(config.memory_bytes)} of RAM, {config.clock} clock, {devices}"


def target_line(gauges: Gauges) -> str:
    """The sentence for a new target."""
    return f"the host's new target: {both_sizes(gauges.target_ram_bytes, gauges.target_bytes)}"
