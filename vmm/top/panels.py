"""What is shown, as text with styles: pure functions of what is known and of the width in columns.

Colours are the terminal's own sixteen, on its own background, and never all that tells two things apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text

from vmm.config import format_size
from vmm.top.data import ABSENT, COMING, ENDED, HUNG, Balloon, Fleet, Sample, Watched
from vmm.top.orders import step_bytes

NAME_COLUMNS, SIZE_COLUMNS = 17, 10
LIST_COLUMNS = 22
SPARKS = "▁▂▃▄▅▆▇█"
FULL, EMPTY = "█", "░"
BOLD, FAINT = "bold", "dim"
NOBODY = "No machine of yours is running.\nStart one with 'vmm boot': it will be shown here."
_STATES = {"running": ("▶", "green"), "paused": ("‖", "yellow"), "prelaunch": ("‖", "yellow"), HUNG: ("!", "red")}
_OVER = ("■", FAINT)

KEYS = (
    ("+", "inflate"),
    ("-", "deflate"),
    ("=", "target"),
    ("p", "pause"),
    ("s", "stats"),
    ("?", "help"),
    ("q", "quit"),
)
_FEW = (("+ -", "balloon"), *KEYS[2:])
HELP = """\
+ -        make the balloon larger, smaller, by a
           sixteenth of the RAM, at most 16 MiB
=          type a target: the RAM left to the
           guest, or balloon=SIZE
p          pause the machine, or let it go on
s          have statistics asked for every second
           of guest time, or no more
Up Down    another machine (or click on it)
PgUp PgDn  scroll
q Ctrl-C   quit; the machines go on

target: what the host wants. balloon, guest RAM:
what the driver has done about it. host memory:
what really backs the guest's RAM here.
Statistics are the guest's own; their rates are
by guest time, those of queues by the host's.
"""


def spark(values: Sequence[float | None], columns: int) -> str:
    """The newest `columns` values as bars of eight heights from 0 to the greatest of them, right-justified; a blank for
    None.  Only 0 has the lowest bar."""
    shown = list(values)[-columns:] if columns > 0 else []
    top = max((value for value in shown if value is not None), default=0)
    bars = (" " if value is None else _bar_of(value, top) for value in shown)
    return "".join(bars).rjust(max(columns, 0))


def _bar_of(value: float, top: float) -> str:
    if value <= 0 or top <= 0:
        return SPARKS[0]
    return SPARKS[max(1, min(len(SPARKS) - 1, round(value / top * (len(SPARKS) - 1))))]


def bar(part: float, whole: float, columns: int) -> tuple[str, str]:
    """The full and the empty part of a bar; what is not 0 has something of it, and what is not all lacks something."""
    if columns <= 0 or whole <= 0:
        return "", EMPTY * max(columns, 0)
    filled = round(min(max(part / whole, 0), 1) * columns)
    if part > 0:
        filled = max(filled, 1)
    if part < whole:
        filled = min(filled, columns - 1)
    return FULL * filled, EMPTY * (columns - filled)


# -- the panels ----------------------------------------------------------------------------------------------------


def head(machine: Watched | None, columns: int) -> Text:
    """One line: which machine, and how it goes with it."""
    if machine is None:
        return _fit(Text.assemble(("vmm top", BOLD)), columns)
    mark, style = _STATES.get(machine.state, _OVER)
    text = Text.assemble((machine.name, BOLD), "  ", (f"{mark} {machine.state}", style))
    now = machine.now
    if now is not None and machine.state != ABSENT:
        text.append(
            f"  {now.guest_ns / 1e9:.1f} s  {format_size(now.ram)}  {now.arch}, {now.clock} clock  pid {now.pid}"
        )
    return _fit(text, columns)


def listing(fleet: Fleet, selected: str, columns: int) -> Text:
    """A line for each machine."""
    lines = []
    for machine in fleet.machines.values():
        mark, style = _STATES.get(machine.state, _OVER)
        size = format_size(machine.now.balloon.guest_ram) if machine.now and machine.now.balloon else ""
        room = max(columns - 3 - len(size), 1)
        line = Text.assemble((f"{mark} ", style), _cut(machine.name, room).ljust(room), f" {size}")
        if machine.name == selected:
            line.stylize("reverse")
        lines.append(line)
    return Text("\n").join(lines)


def strip(fleet: Fleet, selected: str, columns: int) -> Text:
    """The same in one line where there is no room for a list."""
    names = list(fleet.machines)
    place = f"machine {names.index(selected) + 1} of {len(names)}" if selected in names else ""
    return _fit(Text(f"{place}; Up and Down show another", style=FAINT), columns)


def waiting(fleet: Fleet, machine: Watched | None) -> str:
    """Why there are no figures; "" where there are."""
    if machine is None:
        return NOBODY
    if machine.state == ABSENT:
        return f"No machine called {machine.name!r} is running.\nIt will be shown here as soon as it is."
    if machine.now is None:
        return {COMING: "It is asked how it is.", ENDED: "It has ended."}.get(machine.state, machine.why)
    return machine.why


def memory(machine: Watched, columns: int) -> Text:
    """Target, balloon, guest RAM and host memory with bars, each in its part of the RAM."""
    now = machine.now
    if now is None:
        return Text()
    rows: list[tuple[str, int, str]] = []
    if now.balloon is not None:
        sizes = now.balloon
        rows += [("target: RAM left", sizes.target_ram, "cyan"), ("target: balloon", sizes.target, "cyan")]
        rows += [("guest RAM", sizes.guest_ram, "green"), ("balloon", sizes.actual, "blue")]
    rows.append(("host memory", now.host, "magenta"))
    room = columns - NAME_COLUMNS - SIZE_COLUMNS - 2
    lines = []
    for name, size, style in rows:
        full, empty = bar(size, now.ram, room)
        lines.append(
            Text.assemble(
                name.ljust(NAME_COLUMNS), format_size(size).rjust(SIZE_COLUMNS), "  ", (full, style), (empty, FAINT)
            )
        )
    if now.balloon is None:
        lines.append(Text("This machine has no balloon.", style=FAINT))
    return Text("\n").join(_fit(line, columns) for line in lines)


_LEVELS = (
    ("free", "stat-free-memory"),
    ("available", "stat-available-memory"),
    ("disk caches", "stat-disk-caches"),
)
_COUNTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("swap in", "stat-swap-in", lambda rate: f"{format_size(round(rate))}/s"),
    ("swap out", "stat-swap-out", lambda rate: f"{format_size(round(rate))}/s"),
    ("major faults", "stat-major-faults", lambda rate: _rate(rate)),
    ("minor faults", "stat-minor-faults", lambda rate: _rate(rate)),
)
RATE_COLUMNS = 14


def statistics(machine: Watched, columns: int) -> Text:
    """The guest's statistics: the newest of each and how it went."""
    now = machine.now
    if now is None or now.balloon is None:
        return Text()
    lines = [_title(f"statistics: {_freshness(now.balloon)}", columns)]
    room = columns - NAME_COLUMNS - SIZE_COLUMNS - RATE_COLUMNS - 2
    for name, key in _LEVELS:
        if key in now.balloon.stats:
            value = format_size(now.balloon.stats[key])
            lines.append(_row(name, value, "", machine.stat_series(key), room, "green"))
    for name, key, unit in _COUNTS:
        if key in now.balloon.stats:
            count = now.balloon.stats[key]
            value = format_size(count) if key.startswith("stat-swap") else f"{count:,}"
            found = machine.stat_rates(key)
            rate = unit(found[-1]) if found and found[-1] is not None else "-"
            lines.append(_row(name, value, rate, found, room, "yellow"))
    return Text("\n").join(_fit(line, columns) for line in lines)


def _freshness(balloon: Balloon) -> str:
    age = f", {balloon.age_ns / 1e9:.1f} s old" if balloon.age_ns is not None else ""
    asked = f"every {balloon.interval_ns / 1e9:g} s" if balloon.interval_ns else "not asked for (key s)"
    return f"{balloon.reason}{age}, {asked}"


def queues(machine: Watched, columns: int) -> Text:
    """Requests on each queue, in all and a second."""
    now = machine.now
    if now is None:
        return Text()
    lines = [_title("queues: requests, and how many a second", columns)]
    room = columns - NAME_COLUMNS - SIZE_COLUMNS - RATE_COLUMNS - 2
    has_one = len({queue.device for queue in now.queues}) < 2
    for queue in now.queues:
        found = machine.queue_rates(queue.device, queue.name)
        rate = _rate(found[-1]) if found and found[-1] is not None else "-"
        name = queue.name if has_one else f"{queue.device} {queue.name}"
        lines.append(_row(_cut(name, NAME_COLUMNS - 1), f"{queue.requests:,}", rate, found, room, "cyan"))
    return Text("\n").join(_fit(line, columns) for line in lines)


def events(machine: Watched, columns: int, lines: int) -> Text:
    """The newest events that `lines` have room for, below their title."""
    shown = list(machine.events)[-max(lines - 1, 1) :]
    texts = [Text(_cut(line, columns)) for line in shown] or [Text("none yet", style=FAINT)]
    return Text("\n").join([_title("events", columns), *texts])


def keys(machine: Watched | None, columns: int) -> Text:
    """What the keys do."""
    now: Sample | None = machine.now if machine is not None else None
    step = f" {format_size(step_bytes(now.ram))}" if now is not None and now.balloon is not None else ""
    is_paused = machine is not None and machine.state in ("paused", "prelaunch")
    text = Text()
    for key, what in KEYS:
        text.append(f" {key} ", style="bold reverse")
        text.append(f" {_meaning(key, what, is_paused)}{step if what == 'inflate' else ''} ")
    if text.cell_len > columns:
        words = (Text.assemble((key, BOLD), f" {_meaning(key, what, is_paused)}") for key, what in _FEW)
        text = Text("  ").join(words)
    return _fit(text, columns)


def _meaning(key: str, what: str, is_paused: bool) -> str:
    return "go on" if key == "p" and is_paused else what


# -- lines ---------------------------------------------------------------------------------------------------------


def _row(name: str, value: str, rate: str, values: Sequence[float | None], room: int, style: str) -> Text:
    text = f"{name.ljust(NAME_COLUMNS)}{value.rjust(SIZE_COLUMNS)}{rate.rjust(RATE_COLUMNS)}"
    return Text.assemble(text, "  ", (spark(values, room), style))


def _title(text: str, columns: int) -> Text:
    line = Text.assemble((text, BOLD), " ")
    line.append("─" * max(columns - line.cell_len, 0), style=FAINT)
    return line


def _rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s"


def _cut(text: str, columns: int) -> str:
    return text if len(text) <= columns else text[: max(columns - 1, 0)] + "…"


def _fit(text: Text, columns: int) -> Text:
    text.truncate(max(columns, 1), overflow="ellipsis")
    return text
