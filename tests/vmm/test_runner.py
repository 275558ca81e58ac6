"""Pacing: guest time against a clock that the test moves; and what a second Ctrl-C may hit."""

from __future__ import annotations

import ctypes
import re

import pytest

from vmm.config import make_config
from vmm.machine import Machine
from vmm.runner import LONGEST_WAIT_S, Pacer, Request, _interrupting, run

SECOND = 1_000_000_000


class Watch:
    """A clock that only moves when somebody sleeps, or the test says so; it notes every sleep and what was shown."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []
        self.shown_ns: list[int] = []

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds

    def pacer(self, *, hold: bool = True) -> Pacer:
        return Pacer(self.shown_ns.append, hold=hold, clock=lambda: self.now_s, sleep=self.sleep)


def test_a_guest_second_takes_a_second() -> None:
    watch = Watch()
    pace = watch.pacer()
    pace(0)
    pace(2 * SECOND)
    assert abs(watch.now_s - 102) < 1e-6
    pace(2 * SECOND + SECOND // 2)
    assert abs(watch.now_s - 102.5) < 1e-6


def test_while_the_guest_is_ahead_the_shown_time_grows_smoothly() -> None:
    watch = Watch()
    pace = watch.pacer()
    pace(0)
    pace(SECOND)
    assert watch.shown_ns == sorted(watch.shown_ns)
    assert watch.shown_ns[-1] == SECOND
    steps = [later - earlier for earlier, later in zip(watch.shown_ns, watch.shown_ns[1:], strict=False)]
    assert max(steps) <= LONGEST_WAIT_S * SECOND + 1000
    assert max(watch.slept_s) <= LONGEST_WAIT_S


def test_a_guest_that_is_behind_is_not_held() -> None:
    watch = Watch()
    pace = watch.pacer()
    pace(0)
    watch.now_s += 10
    pace(3 * SECOND)
    assert watch.slept_s == []
    assert watch.shown_ns == [0, 3 * SECOND]


def test_without_holding_the_display_is_still_told_the_time() -> None:
    watch = Watch()
    pace = watch.pacer(hold=False)
    pace(5 * SECOND)
    pace(9 * SECOND)
    assert (watch.slept_s, watch.shown_ns) == ([], [5 * SECOND, 9 * SECOND])


def test_a_stop_from_a_signal_ends_the_wait_at_once() -> None:
    watch = Watch()
    pace = watch.pacer()
    pace(0)
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        pace.stop()

    pace._sleep = sleep
    pace(3600 * SECOND)
    assert len(asked) == 1


@pytest.mark.parametrize(("error", "told"), [(KeyboardInterrupt, False), (RuntimeError, True)])
def test_a_second_ctrl_c_in_a_callback_of_the_cpu_is_silent(
    error: type[BaseException], told: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """ctypes cannot raise there and reports it instead; other errors must be seen."""

    def fail() -> None:
        raise error

    callback = ctypes.CFUNCTYPE(None)(fail)
    with Machine(make_config("hello")) as machine, _interrupting(machine, None):
        callback()
    assert ("Traceback" in capfd.readouterr().err) is told


def test_no_line_of_a_run_is_earlier_than_the_one_before_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(Request(make_config("stats", targets="32M@0.1s", duration="0.2s"))) == 0
    stamps = [float(line.split()[0]) for line in capfd.readouterr().out.splitlines() if re.match(r"[0-9.]+ s  ", line)]
    assert len(stamps) > 10 and stamps == sorted(stamps)


@pytest.mark.parametrize("json", [False, True])
def test_what_the_host_side_tells_while_the_run_is_shown_is_a_line(
    json: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    request = Request(make_config("hello"), json=json, on_display=lambda tell: tell("2.0 MiB have come"))
    assert run(request) == 0
    shown = capfd.readouterr()
    assert re.search(r"^2.0 MiB have come$" if json else r"^[0-9.]+ s  2.0 MiB have come$", shown.err + shown.out, re.M)
    assert ("MiB have come" in shown.out) is not json
