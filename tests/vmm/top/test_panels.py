"""The text of the panels: what it says, and that it fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from tests.vmm.top.fakes import MIB, status
from vmm.top import panels
from vmm.top.data import Appeared, Fleet, Said, Watched, read_sample

NUMBERS = st.none() | st.floats(0, 1e12)


def machine() -> Watched:
    found = Watched("a-name-that-is-longer-than-what-a-narrow-list-has-room-for")
    for n in range(40):
        stats = {"stat-free-memory": n * MIB, "stat-swap-in": 4096 * n, "stat-major-faults": n * n}
        times: dict[str, Any] = {"time-ns": n * 10**9, "stats-reports": n, "stats": stats}
        found.take(read_sample(status(**times), n / 2))
    found.events.append("12:00:00 " + "a long line " * 20)
    return found


PANELS: dict[str, Callable[[Watched, int], Text]] = {
    "head": panels.head,
    "memory": panels.memory,
    "statistics": panels.statistics,
    "queues": panels.queues,
    "events": lambda machine, columns: panels.events(machine, columns, 5),
    "keys": panels.keys,
}


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("name", PANELS)
def test_no_line_is_longer_than_the_screen(name: str, columns: int) -> None:
    for line in PANELS[name](machine(), columns).split("\n"):
        assert line.cell_len <= columns


@pytest.mark.parametrize(
    ("values", "columns", "bars"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([0, 0, 0], 5, "  ▁▁▁"),
        ([1, 1_000_000], 2, "▂█"),
        ([5, None, 10], 3, "▅ █"),
        ([9, 9, 1, 2], 2, "▅█"),
        ([1, 2], 0, ""),
        ([], 3, "   "),
    ],
)
def test_sparklines(values: list[float | None], columns: int, bars: str) -> None:
    assert panels.spark(values, columns) == bars


@given(st.lists(NUMBERS, max_size=50), st.integers(-1, 60))
def test_a_sparkline_is_as_wide_as_it_shall_be(values: list[float | None], columns: int) -> None:
    assert len(panels.spark(values, columns)) == max(columns, 0)


@pytest.mark.parametrize(("part", "filled"), [(0, 0), (1, 1), (32, 5), (63.9, 9), (64, 10), (99, 10), (-1, 0)], ids=str)
def test_a_bar_is_empty_or_full_only_where_it_is(part: float, filled: int) -> None:
    assert panels.bar(part, 64, 10) == ("█" * filled, "░" * (10 - filled))


def test_the_memory_panel_names_every_size() -> None:
    rows = [line.plain.split("  ") for line in panels.memory(machine(), 80).split("\n")]
    shown = {row[0]: next(cell.strip() for cell in row[1:] if cell) for row in rows}
    assert shown == {
        "target: RAM left": "48 MiB",
        "target: balloon": "16 MiB",
        "guest RAM": "48 MiB",
        "balloon": "16 MiB",
        "host memory": "40 MiB",
    }


def test_statistics_that_were_not_sent_have_no_line() -> None:
    text = panels.statistics(machine(), 80).plain
    assert "free" in text and "major faults" in text
    assert "swap out" not in text and "available" not in text


def test_rates_are_those_of_the_last_interval() -> None:
    text = panels.statistics(machine(), 80).plain
    assert "77.0/s" in text  # 39² - 38²
    assert "4 KiB/s" in text


def test_nobody_is_told_how_to_begin() -> None:
    assert "vmm boot" in panels.waiting(Fleet(), None)
    fleet = Fleet(["mine"])
    assert "'mine'" in panels.waiting(fleet, fleet.machines["mine"])


def test_the_newest_events_are_shown() -> None:
    fleet = Fleet()
    fleet.apply(Appeared("vm"))
    for n in range(20):
        fleet.apply(Said("vm", f"line {n}", 0))
    text = panels.events(fleet.machines["vm"], 60, 4).plain
    assert [line.split()[-1] for line in text.splitlines()[1:]] == ["17", "18", "19"]
