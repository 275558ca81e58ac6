"""The 8254 and port B against the Intel 8254 data sheet and the PC's wiring."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Line
from devices.timer import MIN_TICKS, PortB, Timer8254

HZ = 1_193_182
CONTROL = 3
LOW_HIGH = 0x30
RISE, FALL = Line("isa0", True), Line("isa0", False)


def ns(tick: int) -> int:
    """The first nanosecond of a tick, by the definition of the clock."""
    guess = tick * 1_000_000_000 // HZ
    return guess if guess * HZ // 1_000_000_000 == tick else guess + 1


def program(timer: Timer8254, counter: int, mode: int, count: int, tick: int = 0, *, bcd: bool = False) -> Effects:
    """A control word and both bytes of a count."""
    effects = timer.write(CONTROL, 1, counter << 6 | LOW_HIGH | mode << 1 | bcd, ns(tick))
    effects |= timer.write(counter, 1, count & 0xFF, ns(tick))
    return effects | timer.write(counter, 1, count >> 8, ns(tick))


def count_of(timer: Timer8254, counter: int, tick: int) -> int:
    """Latch the count and read both bytes."""
    timer.write(CONTROL, 1, counter << 6, ns(tick))
    low = timer.read(counter, 1, ns(tick))[0]
    return low | timer.read(counter, 1, ns(tick))[0] << 8


def status_of(timer: Timer8254, counter: int, tick: int) -> int:
    timer.write(CONTROL, 1, 0xE0 | 2 << counter, ns(tick))
    return timer.read(counter, 1, ns(tick))[0]


def output_of(timer: Timer8254, counter: int, tick: int) -> bool:
    return bool(status_of(timer, counter, tick) & 0x80)


def stepped(mode: int, count: int, ticks: int) -> list[tuple[bool, int]]:
    """(OUT, counting element) for each of the ticks after the count was written, the first of which loads it.

    Stepped one clock at a time through the data sheet's description of each mode."""
    out, element, result = mode != 0, count, [(mode != 0, count)]
    if mode == 3:
        element = count & ~1
        result = [(out, element)]
    for _ in range(ticks - 1):
        if mode == 0:
            element -= 1
            out = out or element == 0
        elif mode == 2:
            element = element - 1 or count
            out = element != 1
        elif mode == 3:
            element -= 2
            # With an odd count the high half lasts one clock longer: down to 0 instead of down to 2.
            if element < 0 or (element == 0 and not (out and count & 1)):
                element, out = count & ~1, not out
        else:
            element -= 1
            out = element != 0
        result.append((out, element % 0x1_0000))
    return result


class TestCounting:
    @given(st.sampled_from([0, 2, 3, 4]), st.integers(2, 40), st.integers(0, 1000))
    def test_output_and_count_follow_the_data_sheet_clock_by_clock(self, mode: int, count: int, start: int) -> None:
        timer = Timer8254()
        program(timer, 1, mode, count, start)
        for i, (out, element) in enumerate(stepped(mode, count, 3 * count)):
            tick = start + 1 + i
            assert output_of(timer, 1, tick) == out, i
            assert count_of(timer, 1, tick) == element, i

    def test_a_count_of_zero_is_the_largest(self) -> None:
        timer = Timer8254()
        program(timer, 0, 2, 0)
        assert count_of(timer, 0, 1) == 0
        assert count_of(timer, 0, 2) == 0xFFFF
        assert timer.next_deadline_ns() == ns(1 + 0x1_0000)

    def test_bcd_counts_in_decimal(self) -> None:
        timer = Timer8254()
        program(timer, 1, 2, 0x1234, bcd=True)
        assert count_of(timer, 1, 1) == 0x1234
        assert count_of(timer, 1, 1 + 35) == 0x1199
        program(timer, 1, 0, 0, 2000, bcd=True)
        assert count_of(timer, 1, 2002) == 0x9999
        assert not output_of(timer, 1, 2000 + 10_000)
        assert output_of(timer, 1, 2001 + 10_000)

    def test_time_is_exact_after_a_year(self) -> None:
        timer = Timer8254()
        program(timer, 0, 2, 1000)
        year_ticks = 365 * 24 * 3600 * HZ
        timer.advance(365 * 24 * 3600 * 1_000_000_000)
        assert count_of(timer, 0, year_ticks) == 1000 - (year_ticks - 1) % 1000

    def test_an_unprogrammed_counter_reads_zero_and_waits(self) -> None:
        timer = Timer8254()
        assert count_of(timer, 0, 1000) == 0
        assert status_of(timer, 0, 1000) & 0xC0 == 0x40
        assert timer.next_deadline_ns() is None

    def test_modes_6_and_7_are_2_and_3(self) -> None:
        for alias, mode in ((6, 2), (7, 3)):
            timer, other = Timer8254(), Timer8254()
            program(timer, 1, alias, 9)
            program(other, 1, mode, 9)
            assert [count_of(timer, 1, t) for t in range(1, 20)] == [count_of(other, 1, t) for t in range(1, 20)]


class TestNewCounts:
    @pytest.mark.parametrize("mode", [2, 3])
    @pytest.mark.parametrize("written", [1, 30])
    def test_a_running_period_ends_before_the_new_count_is_loaded(self, mode: int, written: int) -> None:
        timer = Timer8254()
        program(timer, 1, mode, 100)
        timer.write(1, 1, 40, ns(written))
        assert status_of(timer, 1, written) & 0x40 == 0
        timer.write(1, 1, 0, ns(written))
        assert status_of(timer, 1, written + 1) & 0x40
        assert count_of(timer, 1, 101) == 40
        assert status_of(timer, 1, 101) & 0x40 == 0
        assert count_of(timer, 1, 141) == 40

    def test_a_new_count_in_modes_0_and_4_starts_at_once(self) -> None:
        for mode in (0, 4):
            timer = Timer8254()
            program(timer, 1, mode, 100)
            timer.write(1, 1, 50, ns(30))
            timer.write(1, 1, 0, ns(30))
            assert count_of(timer, 1, 31) == 50

    def test_the_first_byte_stops_mode_0_and_lowers_the_output(self) -> None:
        timer = Timer8254()
        program(timer, 0, 0, 5)
        assert timer.advance(ns(6)).lines == (RISE,)
        assert timer.write(0, 1, 5, ns(10)).lines == (FALL,)
        assert timer.next_deadline_ns() is None
        timer.write(0, 1, 0, ns(20))
        assert timer.next_deadline_ns() == ns(26)


class TestAccess:
    def test_low_byte_access(self) -> None:
        timer = Timer8254()
        timer.write(CONTROL, 1, 0x40 | 0x10 | 2 << 1, 0)
        timer.write(1, 1, 0x80, 0)
        assert [timer.read(1, 1, ns(1))[0] for _ in range(2)] == [0x80, 0x80]

    def test_high_byte_access(self) -> None:
        timer = Timer8254()
        timer.write(CONTROL, 1, 0x40 | 0x20 | 2 << 1, 0)
        timer.write(1, 1, 0x80, 0)
        assert [timer.read(1, 1, ns(1))[0] for _ in range(2)] == [0x80, 0x80]
        assert timer.read(1, 1, ns(2))[0] == 0x7F

    def test_both_bytes_alternate_on_the_living_count(self) -> None:
        timer = Timer8254()
        program(timer, 1, 2, 0x1234)
        assert [timer.read(1, 1, ns(1))[0] for _ in range(4)] == [0x34, 0x12, 0x34, 0x12]
        assert timer.read(1, 1, ns(1 + 0x35))[0] == 0xFF
        assert timer.read(1, 1, ns(1 + 0x35))[0] == 0x11

    def test_a_latched_count_holds_until_it_is_read_and_is_not_latched_again(self) -> None:
        timer = Timer8254()
        program(timer, 1, 2, 1000)
        timer.write(CONTROL, 1, 0x40, ns(1))
        timer.write(CONTROL, 1, 0x40, ns(500))
        assert [timer.read(1, 1, ns(600))[0] for _ in range(2)] == [1000 & 0xFF, 1000 >> 8]
        assert timer.read(1, 1, ns(600))[0] == 401 & 0xFF

    def test_read_back_gives_the_status_before_the_count_and_serves_several_counters(self) -> None:
        timer = Timer8254()
        program(timer, 0, 2, 300)
        program(timer, 1, 3, 400)
        timer.write(CONTROL, 1, 0xC0 | 0x06, ns(11))
        assert [timer.read(0, 1, ns(99))[0] for _ in range(3)] == [0x80 | 0x34, 290 & 0xFF, 290 >> 8]
        assert [timer.read(1, 1, ns(99))[0] for _ in range(3)] == [0x80 | 0x36, 380 & 0xFF, 380 >> 8]
        assert status_of(timer, 2, 99) & 0x3F == 0x30  # was not asked for, and is as it was

    def test_the_null_count_flag_lasts_until_the_next_clock(self) -> None:
        timer = Timer8254()
        program(timer, 1, 2, 300, 7)
        assert status_of(timer, 1, 7) & 0x40
        assert not status_of(timer, 1, 8) & 0x40

    def test_a_control_word_forgets_a_half_written_count(self) -> None:
        timer = Timer8254()
        timer.write(CONTROL, 1, 0x40 | LOW_HIGH | 4, 0)
        timer.write(1, 1, 0x99, 0)
        program(timer, 1, 2, 0x1234)
        assert count_of(timer, 1, 1) == 0x1234

    def test_the_control_port_reads_as_all_ones(self) -> None:
        assert Timer8254().read(CONTROL, 1, 0) == (0xFF, NOTHING)
        assert Timer8254().read(CONTROL, 2, 0)[0] == 0xFFFF

    def test_wide_accesses_are_bytes_in_ascending_order(self) -> None:
        timer = Timer8254()
        timer.write(2, 2, (0x80 | 0x10) << 8 | 0x77, 0)  # a byte for counter 2, then its control word
        assert status_of(timer, 2, 0) & 0x3F == 0x10
        timer.write(0, 1, 1, 0)
        assert timer.read(0, 4, 0)[0] >> 24 == 0xFF


class TestInterruptLine:
    def test_mode_2_gives_one_edge_each_period(self) -> None:
        timer = Timer8254()
        assert program(timer, 0, 2, 1000).lines == (RISE,)  # the control word makes OUT high
        for period in range(1, 4):
            assert timer.next_deadline_ns() == ns(1 + 1000 * period)
            effects = timer.advance(ns(1 + 1000 * period))
            assert effects.lines == (FALL, RISE)
            assert effects.deadline

    def test_mode_3_gives_both_edges(self) -> None:
        timer = Timer8254()
        program(timer, 0, 3, 1000)
        assert timer.next_deadline_ns() == ns(501)
        assert timer.advance(ns(501)).lines == (FALL,)
        assert timer.next_deadline_ns() == ns(1001)
        assert timer.advance(ns(1001)).lines == (RISE,)

    def test_a_rising_edge_that_is_over_is_reported_with_its_end(self) -> None:
        timer = Timer8254()
        program(timer, 0, 3, 1000)
        timer.advance(ns(501))
        assert timer.advance(ns(1501)).lines == (RISE, FALL)

    def test_mode_0_rises_once(self) -> None:
        timer = Timer8254()
        assert program(timer, 0, 0, 100).lines == ()
        assert timer.next_deadline_ns() == ns(101)
        assert timer.advance(ns(101) - 1) is NOTHING
        assert timer.advance(ns(101)).lines == (RISE,)
        assert timer.next_deadline_ns() is None

    def test_mode_4_pulses_once(self) -> None:
        timer = Timer8254()
        program(timer, 0, 4, 100)
        assert timer.next_deadline_ns() == ns(102)
        assert timer.advance(ns(102)).lines == (FALL, RISE)
        assert timer.next_deadline_ns() is None

    def test_modes_1_and_5_wait_for_a_gate_that_counter_0_does_not_have(self) -> None:
        for mode in (1, 5):
            timer = Timer8254()
            program(timer, 0, mode, 100)
            assert timer.next_deadline_ns() is None
            assert output_of(timer, 0, 1000)

    def test_a_jump_over_a_million_periods_is_one_edge(self) -> None:
        timer = Timer8254()
        program(timer, 0, 2, 1000)
        assert timer.advance(ns(1_000_000_500)).lines == (FALL, RISE)
        assert timer.next_deadline_ns() == ns(1_000_001_001)

    def test_an_access_after_the_edge_reports_it(self) -> None:
        timer = Timer8254()
        program(timer, 0, 2, 1000)
        assert timer.read(0, 1, ns(1001))[1].lines == (FALL, RISE)
        assert timer.advance(ns(1001)) is NOTHING

    @pytest.mark.parametrize("mode", [2, 3])
    @pytest.mark.parametrize("count", [1, 2, 5, 11])
    def test_tiny_counts_interrupt_no_more_often_than_the_minimum(self, mode: int, count: int) -> None:
        timer = Timer8254()
        program(timer, 0, mode, count)
        deadlines = []
        for _ in range(6):
            deadline_ns = timer.next_deadline_ns()
            assert deadline_ns is not None
            deadlines.append(deadline_ns)
            assert RISE in timer.advance(deadline_ns).lines
        assert min(later - earlier for earlier, later in pairwise(deadlines)) >= ns(MIN_TICKS) - 1
        assert deadlines[-1] <= ns(7 * (MIN_TICKS + count))

    def test_the_line_keeps_the_boards_name(self) -> None:
        assert program(Timer8254("gsi2"), 0, 2, 9).lines == (Line("gsi2", True),)


class TestPortB:
    def test_its_low_bits_read_back(self) -> None:
        port_b = PortB(Timer8254())
        port_b.write(0, 1, 0xFF, 0)
        assert port_b.read(0, 1, 0)[0] & 0xCF == 0x0F

    def test_the_refresh_bit_toggles_about_every_15_microseconds(self) -> None:
        port_b = PortB(Timer8254())
        levels = [port_b.read(0, 1, now_ns)[0] >> 4 & 1 for now_ns in range(0, 1_000_000, 1000)]
        toggles = sum(before != after for before, after in pairwise(levels))
        assert 1_000_000 // 16_000 <= toggles <= 1_000_000 // 14_000

    def test_calibrating_by_out2_as_kernels_do_it(self) -> None:
        timer = Timer8254()
        port_b = PortB(timer)
        port_b.write(0, 1, 0x01, ns(10))
        program(timer, 2, 0, 11_932, 10)  # ten milliseconds
        assert not port_b.read(0, 1, ns(10 + 11_932))[0] & 0x20
        assert port_b.read(0, 1, ns(11 + 11_932))[0] & 0x20

    def test_a_closed_gate_holds_mode_0(self) -> None:
        timer = Timer8254()
        port_b = PortB(timer)
        program(timer, 2, 0, 100)
        assert count_of(timer, 2, 50) == 100
        port_b.write(0, 1, 1, ns(50))
        assert count_of(timer, 2, 60) == 90
        port_b.write(0, 1, 0, ns(60))
        assert count_of(timer, 2, 500) == 90
        port_b.write(0, 1, 1, ns(500))
        assert not port_b.read(0, 1, ns(589))[0] & 0x20
        assert port_b.read(0, 1, ns(590))[0] & 0x20

    @pytest.mark.parametrize("mode", [2, 3])
    def test_opening_the_gate_starts_a_period_and_closing_it_raises_the_output(self, mode: int) -> None:
        timer = Timer8254()
        port_b = PortB(timer)
        port_b.write(0, 1, 1, 0)
        program(timer, 2, mode, 10)
        low_tick = 1 + 9
        assert not port_b.read(0, 1, ns(low_tick))[0] & 0x20
        port_b.write(0, 1, 0, ns(low_tick))
        assert port_b.read(0, 1, ns(low_tick))[0] & 0x20
        port_b.write(0, 1, 1, ns(100))
        assert count_of(timer, 2, 101) == 10

    def test_mode_1_is_a_pulse_that_the_gate_triggers(self) -> None:
        timer = Timer8254()
        port_b = PortB(timer)
        program(timer, 2, 1, 20)
        assert output_of(timer, 2, 10)
        port_b.write(0, 1, 1, ns(10))
        assert [output_of(timer, 2, tick) for tick in (10, 11, 30, 31)] == [True, False, False, True]
        port_b.write(0, 1, 0, ns(40))
        port_b.write(0, 1, 1, ns(50))
        assert [output_of(timer, 2, tick) for tick in (50, 51, 70, 71)] == [True, False, False, True]

    def test_mode_5_is_a_strobe_that_the_gate_triggers(self) -> None:
        timer = Timer8254()
        port_b = PortB(timer)
        program(timer, 2, 5, 20)
        port_b.write(0, 1, 1, ns(10))
        port_b.write(0, 1, 0, ns(11))  # only the edge counts
        assert [output_of(timer, 2, tick) for tick in (11, 30, 31, 32)] == [True, True, False, True]

    def test_beyond_its_byte_it_reads_zero_and_ignores_writes(self) -> None:
        port_b = PortB(Timer8254())
        port_b.write(1, 1, 0xFF, 0)
        assert port_b.read(0, 4, 0)[0] == 0
        assert port_b.read(1, 1, 0)[0] == 0


def test_reset_equals_freshly_built_and_lets_the_line_go() -> None:
    timer = Timer8254()
    PortB(timer).write(0, 1, 1, 0)
    program(timer, 0, 2, 1000)
    timer.advance(ns(5001))
    assert timer != Timer8254()
    assert timer.reset() == Effects(lines=(FALL,), deadline=True)
    assert timer == Timer8254()


accesses = st.tuples(
    st.sampled_from(["read", "write", "port b", "advance"]),
    st.integers(0, 3),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 2**64 - 1),
    st.one_of(st.integers(0, 3000), st.integers(0, 2**40)),
)


@given(st.lists(accesses, max_size=60))
def test_no_sequence_of_accesses_breaks_it(sequence: list[tuple[str, int, int, int, int]]) -> None:
    timer, now_ns, level = Timer8254(), 0, False
    port_b = PortB(timer)
    for kind, offset, size, value, step_ns in sequence:
        now_ns += step_ns
        value &= (1 << 8 * size) - 1
        effects = NOTHING
        if kind == "read":
            read, effects = timer.read(offset, size, now_ns)
            assert 0 <= read < 1 << 8 * size
        elif kind == "write":
            effects = timer.write(offset, size, value, now_ns)
        elif kind == "port b":
            effects = port_b.write(offset, size, value, now_ns)
        else:
            effects = timer.advance(now_ns)
        deadline_ns = timer.next_deadline_ns()
        assert deadline_ns is None or deadline_ns > now_ns
        for line in effects.lines:
            assert line.level != level, "a line is reported only when it changes"
            level = line.level
        assert level == timer.counters[0].output(timer.seen_tick)
    timer.reset()
    assert timer == Timer8254()
