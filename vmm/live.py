"""The live view of a run on a terminal.

What happens scrolls by as lines; under them stays one table: the balloon's target, the guest's RAM and the host memory
behind it as bars on one scale, and the statistics that the guest reports by name and unit.  It is drawn by the thread
that runs the machine, a few times a second and only between two runs of the CPU: a second thread would slow the CPU's
callbacks a hundredfold.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vmm.display import (
    ConsoleLines,
    Gauges,
    Silent,
    format_backed,
    format_time,
    headline,
    image_note,
    is_worth_a_line,
    named_stats,
    read_gauges,
    summary,
    target_line,
)
from vmm.streams import GuardedText

if TYPE_CHECKING:
    from devices.effects import Event
    from vmm.machine import Machine

REDRAW_S = 0.1
BAR_COLUMNS = 24
LEAST_BAR_COLUMNS = 4
BESIDE_BAR_COLUMNS = 31  # the longest name, the longest size and the gaps
SIDE_BY_SIDE_COLUMNS = 92  # from this width on both tables fit beside each other


class LiveDisplay(Silent):
    """The live view on the terminal `out`."""

    def __init__(self, machine: Machine, out: TextIO, *, show_console: bool = True) -> None:
        self._machine = machine
        self._show_console = show_console
        self._note = image_note(machine.board.payload, machine.config.parameter)
        self._console = Console(file=cast(TextIO, GuardedText(out)), markup=False, highlight=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._lines = ConsoleLines()
        self._drawn_s = 0.0

    def begin(self) -> None:
        self._console.print(Text(headline(self._machine), "bold"))
        if self._note:
            self._console.print(Text(self._note, "yellow"))
        self._live.start()

    def on_event(self, now_ns: int, event: Event) -> None:
        if is_worth_a_line(event, read_gauges(self._machine)):
            self._say(now_ns, Text.assemble((event.source, "cyan"), f": {event.text}"))

    def on_console(self, data: bytes) -> None:
        if self._show_console:
            for line in self._lines.feed(data):
                self._say(self._machine.now_ns, Text(f"| {line}", "green"))

    def on_stats(self, now_ns: int) -> None:
        self._draw(now_ns)

    def on_target(self, now_ns: int) -> None:
        self._say(now_ns, Text(target_line(read_gauges(self._machine)), "yellow"))

    def tell(self, text: str) -> None:
        self._say(self._machine.now_ns, Text(text, "yellow"))

    def waiting(self, now_ns: int) -> None:
        self._draw(now_ns)

    def end(self, report: Mapping[str, Any]) -> None:
        for line in self._lines.flush():
            self._say(self._machine.now_ns, Text(f"| {line}", "green"))
        self._draw(self._machine.now_ns, at_once=True)
        self.close()
        self._console.print()
        self._console.print(summary_table(report, self._note))

    def close(self) -> None:
        self._live.stop()

    def _say(self, now_ns: int, text: Text) -> None:
        self._console.print(Text.assemble((f"{format_time(now_ns)}  ", "dim"), text))

    def _draw(self, now_ns: int, *, at_once: bool = False) -> None:
        now_s = time.monotonic()
        if at_once or now_s - self._drawn_s >= REDRAW_S:
            self._drawn_s = now_s
            self._live.update(view(read_gauges(self._machine), now_ns, self._console), refresh=True)


def view(gauges: Gauges, now_ns: int, console: Console) -> RenderableType:
    """The table under the lines, for a console as wide as `console`."""
    bars, values = _bars(gauges, console), _values(gauges)
    title = Text(f"guest time {now_ns / 1e9:.1f} s", "bold")
    if console.width < SIDE_BY_SIDE_COLUMNS:
        return Group(title, bars, values)
    both = Table.grid(padding=(0, 4))
    both.add_row(bars, values)
    return Group(title, both)


def _bars(gauges: Gauges, console: Console) -> Table:
    marks = "#-" if console.options.ascii_only else "█░"
    columns = min(BAR_COLUMNS, max(LEAST_BAR_COLUMNS, console.width - BESIDE_BAR_COLUMNS))
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    rows: list[tuple[str, int | None, str]] = [
        ("target: RAM left", gauges.target_ram_bytes, "yellow"),
        ("target: balloon", gauges.target_bytes, "yellow"),
        ("guest RAM", gauges.ram_bytes, "green"),
        ("balloon", gauges.balloon_bytes, "magenta"),
        ("host memory", gauges.backed_bytes, "cyan"),
    ]
    for name, size, style in rows:
        bar = Text(_bar(size or 0, gauges.memory_bytes, marks, columns), style)
        table.add_row(name, format_backed(size), bar)
    if gauges.reported_bytes is not None:  # a sum over time, which no bar on the scale of the RAM can show
        table.add_row("reported free", format_backed(gauges.reported_bytes), "in all")
    return table


def _bar(size: int, whole: int, marks: str, columns: int) -> str:
    filled = min(round(size / whole * columns), columns)
    return marks[0] * filled + marks[1] * (columns - filled)


def _values(gauges: Gauges) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    age = "" if gauges.age_ns is None else f", {gauges.age_ns / 1e9:.1f} s old"
    table.add_row(Text(f"statistics: {gauges.reason}{age}", "bold"), "")
    for name, value in named_stats(gauges):
        table.add_row(name, value)
    return table


def summary_table(report: Mapping[str, Any], note: str = "") -> Table:
    """The summary as a table of two columns; `note` is about the guest's file."""
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, how_much in summary(report, note):
        table.add_row(what, Text(how_much, "bold red" if what == "exit status" and how_much != "0" else ""))
    return table
