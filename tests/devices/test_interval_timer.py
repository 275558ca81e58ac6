"""The PowerPC board's timer, over its registers."""

from __future__ import annotations

from devices.effects import NOTHING, Effects, Line
from devices.interval_timer import IntervalTimer

NOW_LOW, NOW_HIGH, INTERVAL, EXPIRED = 0, 4, 8, 12
MS = 1_000_000


def high(level: bool) -> Effects:
    return Effects(lines=(Line("timer", level),))


def started(interval_us: int = 1000, now_ns: int = 5 * MS) -> IntervalTimer:
    timer = IntervalTimer("timer")
    assert timer.write(INTERVAL, 4, interval_us, now_ns) == Effects(deadline=True)
    return timer


def test_an_interval_begins_when_it_is_written() -> None:
    timer = started()
    assert timer.next_deadline_ns() == 6 * MS
    assert timer.advance(6 * MS - 1) is NOTHING
    assert timer.advance(6 * MS) == high(True) | Effects(deadline=True)
    assert timer.read(EXPIRED, 4, 6 * MS) == (1, NOTHING)
    assert timer.next_deadline_ns() == 7 * MS


def test_the_line_stays_high_until_it_is_taken_back() -> None:
    timer = started()
    timer.advance(6 * MS)
    assert timer.advance(7 * MS) == Effects(deadline=True), "it is high already"
    assert timer.write(EXPIRED, 4, 0, 7 * MS) is NOTHING
    assert timer.write(EXPIRED, 4, 1, 7 * MS) == high(False)
    assert timer.write(EXPIRED, 4, 1, 7 * MS) is NOTHING
    assert timer.advance(8 * MS) == high(True) | Effects(deadline=True)


def test_intervals_that_were_missed_count_as_one_and_the_next_keeps_its_time() -> None:
    timer = started()
    timer.advance(9 * MS + 300_000)
    assert timer.next_deadline_ns() == 10 * MS


def test_no_interval_is_no_deadline() -> None:
    timer = started()
    timer.write(INTERVAL, 4, 0, 6 * MS)
    assert timer.next_deadline_ns() is None
    assert timer.advance(100 * MS) is NOTHING
    assert timer.read(INTERVAL, 4, 0)[0] == 0


def test_a_part_of_an_interval_is_none() -> None:
    timer = started()
    assert timer.write(INTERVAL, 2, 7, 6 * MS) is NOTHING
    assert timer.read(INTERVAL, 4, 0)[0] == 1000


def test_the_time_is_read_in_two_halves_that_belong_together() -> None:
    timer, now_ns = IntervalTimer("timer"), (3 << 32) - 1
    assert timer.read(NOW_LOW, 4, now_ns)[0] == 0xFFFFFFFF
    assert timer.read(NOW_HIGH, 4, now_ns + 10)[0] == 2, "kept with the low half"
    assert timer.read(NOW_LOW, 4, now_ns + 10)[0] == 9
    assert timer.read(NOW_HIGH, 4, now_ns + 20)[0] == 3
    timer.write(NOW_LOW, 4, 5, now_ns)
    assert timer.read(NOW_LOW, 4, now_ns)[0] == 0xFFFFFFFF


def test_a_reset_timer_is_a_new_one_and_lets_go_of_its_line() -> None:
    timer = started()
    timer.advance(6 * MS)
    timer.read(NOW_LOW, 4, 1 << 40)
    assert timer.reset() == high(False) | Effects(deadline=True)
    assert timer == IntervalTimer("timer")


def test_a_state_goes_to_another_timer() -> None:
    timer, other = started(), IntervalTimer("timer")
    timer.advance(6 * MS)
    other.check_state(timer.save_state(), "timer")
    other.restore_state(timer.save_state())
    assert other == timer and other.next_deadline_ns() == 7 * MS
