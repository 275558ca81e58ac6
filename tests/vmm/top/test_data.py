"""What `vmm top` knows of the machines: samples, rates, histories, news.  No socket, no terminal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vmm.top.fakes import MIB, status
from vmm.top.data import (
    ABSENT,
    COMING,
    ENDED,
    HUNG,
    KEPT_S,
    MOST_EVENTS,
    MOST_SAMPLES,
    Answered,
    Appeared,
    Fleet,
    Gone,
    Heard,
    Hung,
    Said,
    Watched,
    event_line,
    rates,
    read_sample,
)

S = 10**9


def watched(*moments: tuple[float, dict[str, Any]]) -> Watched:
    """A machine that was looked at at these times, with these changes to its status."""
    machine = Watched("fake")
    for time_s, changes in moments:
        machine.take(read_sample(status(**changes), time_s))
    return machine


def requests(count: int) -> list[dict[str, Any]]:
    return [{"device": "balloon0", "name": "inflateq", "requests": count}]


# -- rates ---------------------------------------------------------------------------------------------------------


def test_a_rate_is_growth_by_time() -> None:
    assert rates([10.0, 10.5, 12.5], [100, 150, 350]) == [100.0, 100.0]


@pytest.mark.parametrize(
    ("times", "counts"),
    [
        pytest.param([0.0, 1.0], [5, 4], id="a count that fell began anew"),
        pytest.param([1.0, 1.0], [5, 9], id="no time went by"),
        pytest.param([0.0, 1.0], [None, 9], id="nothing before"),
        pytest.param([0.0, 1.0], [9, None], id="nothing now"),
    ],
)
def test_there_is_no_rate_where_nothing_can_be_said(times: list[float], counts: list[float | None]) -> None:
    assert rates(times, counts) == [None]


@pytest.mark.parametrize("count", [0, 1])
def test_one_count_alone_has_no_rate(count: int) -> None:
    assert rates([1.0] * count, [3] * count) == []


@given(st.lists(st.tuples(st.floats(0, 1e6), st.none() | st.integers(0, 1 << 62)), max_size=20))
def test_rates_are_never_negative_and_one_fewer(pairs: list[tuple[float, int | None]]) -> None:
    found = rates([time for time, _ in pairs], [count for _, count in pairs])
    assert len(found) == max(len(pairs) - 1, 0)
    assert all(rate is None or rate >= 0 for rate in found)


def test_requests_are_counted_by_the_host_s_seconds() -> None:
    machine = watched(
        (10.0, {"queues": requests(0), "time-ns": 0}), (10.5, {"queues": requests(30), "time-ns": 60 * S})
    )
    assert machine.queue_rates("balloon0", "inflateq") == [60.0]
    assert machine.queue_rates("balloon0", "deflateq") == [None]


def test_the_statistics_rates_are_by_the_guest_s_time_between_reports() -> None:
    """They came 0.5 s before each look; looks between two reports add nothing."""
    machine = watched(
        (0.0, {"time-ns": 1 * S, "stats-reports": 1, "stats": {"stat-major-faults": 10}}),
        (0.1, {"time-ns": 2 * S, "stats-reports": 1, "stats": {"stat-major-faults": 10}}),
        (0.2, {"time-ns": 5 * S, "stats-reports": 2, "stats": {"stat-major-faults": 50}}),
    )
    assert machine.stat_rates("stat-major-faults") == [10.0]
    assert machine.stat_series("stat-major-faults") == [10, 50]
    assert machine.stat_series("stat-swap-in") == [None, None]


def test_a_guest_that_never_reported_has_no_statistics() -> None:
    changes = status()
    del changes["balloon"]["stats-age-ns"]
    machine = Watched("fake")
    machine.take(read_sample(changes, 0.0))
    assert machine.stat_series("stat-free-memory") == []


def test_a_machine_without_a_balloon_is_shown_too() -> None:
    found = status()
    del found["balloon"]
    sample = read_sample(found, 0.0)
    assert sample.balloon is None
    assert (sample.ram, sample.host) == (64 * MIB, 40 * MIB)


@pytest.mark.parametrize("changes", [{"ram": "much"}, {"queues": [{}]}, {"balloon": {}}, {"queues": None}])
def test_an_answer_of_another_kind_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        read_sample(status() | changes, 0.0)


# -- histories -----------------------------------------------------------------------------------------------------


def test_histories_are_bounded() -> None:
    machine = watched(*((float(n), {"time-ns": n * S, "stats-reports": n}) for n in range(MOST_SAMPLES + 50)))
    assert (len(machine.samples), len(machine.reports)) == (MOST_SAMPLES, MOST_SAMPLES)
    assert machine.now is not None and machine.now.guest_ns == (MOST_SAMPLES + 49) * S
    fleet = Fleet()
    fleet.apply(Appeared("fake"))
    for n in range(MOST_EVENTS + 5):
        fleet.apply(Said("fake", f"line {n}", 0))
    lines = list(fleet.machines["fake"].events)
    assert len(lines) == MOST_EVENTS
    assert lines[-1].endswith(f"line {MOST_EVENTS + 4}")


@pytest.mark.parametrize("changes", [{"pid": 4712, "time-ns": 9 * S}, {"time-ns": 1}], ids=["another", "restored"])
def test_the_history_of_another_run_is_not_continued(changes: dict[str, Any]) -> None:
    machine = watched((0.0, {"queues": requests(5)}), (1.0, {"queues": requests(900)} | changes))
    assert len(machine.samples) == 1
    assert machine.queue_rates("balloon0", "inflateq") == []
    assert len(machine.reports) == 1


# -- news ----------------------------------------------------------------------------------------------------------


def test_a_machine_comes_hangs_answers_and_goes() -> None:
    fleet, states = Fleet(), []
    news = (
        Appeared("vm"),
        Answered("vm", read_sample(status(), 1.0)),
        Hung("vm", "vm does not answer."),
        Answered("vm", read_sample(status(status="paused"), 2.0)),
        Gone("vm", 3.0),
    )
    for each in news:
        fleet.apply(each)
        states.append((fleet.machines["vm"].state, fleet.machines["vm"].why))
    assert states == [(COMING, ""), ("running", ""), (HUNG, "vm does not answer."), ("paused", ""), (ENDED, "")]
    assert not fleet.forget(3.0 + KEPT_S)
    assert fleet.forget(3.1 + KEPT_S)
    assert fleet.machines == {}


def test_only_those_that_were_asked_for_are_there_and_they_stay() -> None:
    fleet = Fleet(["a", "b"])
    assert [each.state for each in fleet.machines.values()] == [ABSENT, ABSENT]
    for each in (Appeared("b"), Appeared("other"), Gone("b", 1.0)):
        fleet.apply(each)
    assert fleet.machines["b"].state == ENDED
    fleet.forget(100.0)
    assert {name: each.state for name, each in fleet.machines.items()} == {"a": ABSENT, "b": ABSENT}


def test_machines_are_in_the_order_of_their_names() -> None:
    fleet = Fleet()
    for name in ("c", "a", "b"):
        fleet.apply(Appeared(name))
    assert list(fleet.machines) == ["a", "b", "c"]


def test_news_of_nobody_are_no_error() -> None:
    fleet = Fleet()
    fleet.apply(Gone("nobody", 1.0))
    fleet.apply(Heard("nobody", {"event": "STOP"}))
    assert fleet.machines == {}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "BALLOON_CHANGE", "data": {"actual": 32 * MIB}}, "BALLOON_CHANGE 32 MiB left to the guest"),
        ({"event": "STOP"}, "STOP"),
        (
            {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-reset"}},
            "SHUTDOWN guest yes, reason guest-reset",
        ),
    ],
)
def test_events_are_lines(event: dict[str, Any], line: str) -> None:
    stamped = event_line(event | {"timestamp": {"seconds": 1000, "microseconds": 0}})
    assert stamped[2] == stamped[5] == ":"
    assert stamped[9:] == line
