"""The CMOS clock against the MC146818 data sheet, and the memory sizes against what PC firmware reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Line
from devices.rtc import Rtc

S = 1_000_000_000
MIB = 1 << 20
START = datetime(2024, 2, 28, 23, 59, 58, tzinfo=UTC)  # a Wednesday, and a leap year
START_S = int(START.timestamp())
SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR, A, B, C, D = range(14)
CENTURY = 0x32
SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
RUNS, DIVIDER_RESET = 0x20, 0x60
RISE, FALL = (Line("isa8", True),), (Line("isa8", False),)


@pytest.fixture
def rtc() -> Rtc:
    rtc = Rtc(START_S, 64 * MIB)
    rtc.advance(0)
    return rtc


def get(rtc: Rtc, index: int, now_ns: int = 0) -> int:
    rtc.write(0, 1, index, now_ns)
    return rtc.read(1, 1, now_ns)[0]


def put(rtc: Rtc, index: int, value: int, now_ns: int = 0) -> Effects:
    effects = rtc.write(0, 1, index, now_ns)
    return effects | rtc.write(1, 1, value, now_ns)


def time_of(rtc: Rtc, now_ns: int) -> list[int]:
    """Century, year, month, day, hour, minute, second as they read."""
    return [get(rtc, index, now_ns) for index in (CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS)]


class TestTime:
    def test_it_is_the_start_plus_guest_time_in_bcd_and_24_hours(self, rtc: Rtc) -> None:
        assert time_of(rtc, 0) == [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58]
        assert get(rtc, WEEKDAY) == 4
        assert time_of(rtc, 2 * S - 1) == [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x59]
        assert time_of(rtc, 2 * S) == [0x20, 0x24, 0x02, 0x29, 0x00, 0x00, 0x00]
        assert get(rtc, WEEKDAY, 2 * S) == 5

    def test_binary_format(self, rtc: Rtc) -> None:
        put(rtc, B, BINARY | H24)
        assert time_of(rtc, 0) == [20, 24, 2, 28, 23, 59, 58]

    @pytest.mark.parametrize(
        ("hours_later", "bcd", "binary"),
        [(0, 0x91, 0x8B), (1, 0x12, 0x0C), (2, 0x01, 0x01), (12, 0x11, 0x0B), (13, 0x92, 0x8C), (14, 0x81, 0x81)],
    )
    def test_12_hour_format_counts_from_12_and_marks_the_afternoon(
        self, rtc: Rtc, hours_later: int, bcd: int, binary: int
    ) -> None:
        put(rtc, B, 0)
        assert get(rtc, HOURS, hours_later * 3600 * S) == bcd
        put(rtc, B, BINARY, hours_later * 3600 * S)
        assert get(rtc, HOURS, hours_later * 3600 * S) == binary

    @given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)), st.sampled_from([0, BINARY, H24, BINARY | H24]))
    def test_setting_and_reading_agree_in_every_format(self, moment: datetime, register_b: int) -> None:
        rtc = Rtc(START_S, 64 * MIB)
        put(rtc, B, SET | register_b, 5)
        hour = moment.hour if register_b & H24 else moment.hour % 12 or 12
        values = [moment.year // 100, moment.year % 100, moment.month, moment.day, hour, moment.minute, moment.second]
        raw = values if register_b & BINARY else [int(str(value), 16) for value in values]
        if not register_b & H24 and moment.hour >= 12:
            raw[4] |= 0x80
        for index, value in zip((CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS), raw, strict=True):
            put(rtc, index, value, 5)
        put(rtc, B, register_b, 5)
        assert time_of(rtc, 5) == raw
        assert get(rtc, WEEKDAY, 5) == moment.isoweekday() % 7 + 1

    def test_the_clock_stands_still_while_set_and_goes_on_from_there(self, rtc: Rtc) -> None:
        put(rtc, B, SET | H24, S)
        assert get(rtc, SECONDS, 5 * S) == 0x59
        put(rtc, B, H24, 10 * S)
        assert get(rtc, SECONDS, 10 * S) == 0x59
        assert get(rtc, SECONDS, 11 * S) == 0x00

    def test_what_is_written_while_set_reads_back_whatever_it_is(self, rtc: Rtc) -> None:
        put(rtc, B, SET | H24)
        for index in (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY):
            put(rtc, index, 0xEE)
            assert get(rtc, index) == 0xEE

    def test_a_running_clock_can_be_changed_field_by_field(self, rtc: Rtc) -> None:
        put(rtc, MINUTES, 0x30, 500_000_000)
        assert time_of(rtc, S) == [0x20, 0x24, 0x02, 0x28, 0x23, 0x30, 0x59]
        assert get(rtc, SECONDS, S - 1) == 0x58

    def test_changing_the_format_does_not_change_the_time(self, rtc: Rtc) -> None:
        for register_b in (0, BINARY, BINARY | H24, H24):
            put(rtc, B, register_b)
        assert time_of(rtc, 0) == [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x58]

    def test_the_first_update_comes_half_a_second_after_the_divider_starts(self, rtc: Rtc) -> None:
        put(rtc, B, SET | H24)
        put(rtc, A, DIVIDER_RESET)
        put(rtc, SECONDS, 0x10)
        put(rtc, B, H24, 300)
        assert get(rtc, SECONDS, 7 * S) == 0x10
        put(rtc, A, RUNS, 7 * S + 5)
        assert get(rtc, SECONDS, 7 * S + 4 + S // 2) == 0x10
        assert get(rtc, SECONDS, 7 * S + 5 + S // 2) == 0x11

    def test_impossible_dates_become_possible_ones(self, rtc: Rtc) -> None:
        put(rtc, B, SET | BINARY | H24)
        for index, value in ((CENTURY, 20), (YEAR, 23), (MONTH, 13), (DAY, 32), (HOURS, 25), (MINUTES, 61)):
            put(rtc, index, value)
        put(rtc, SECONDS, 60)
        put(rtc, B, BINARY | H24)
        assert time_of(rtc, 0) == [20, 24, 1, 2, 2, 2, 0]

    def test_the_year_zero_becomes_the_year_one(self, rtc: Rtc) -> None:
        put(rtc, B, SET | H24)
        put(rtc, CENTURY, 0)
        put(rtc, YEAR, 0)
        put(rtc, B, H24)
        assert time_of(rtc, 0)[:2] == [0, 1]

    def test_a_new_rate_does_not_disturb_the_running_divider(self, rtc: Rtc) -> None:
        put(rtc, A, RUNS | 10, 300_000_000)
        assert get(rtc, SECONDS, S - 1) == 0x58
        assert get(rtc, SECONDS, S) == 0x59

    def test_the_year_after_9999_does_not_stop_it(self) -> None:
        rtc = Rtc(int(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()), MIB)
        assert time_of(rtc, S) == [0, 0x01, 0x01, 0x01, 0, 0, 0]


class TestUpdateInProgress:
    def test_it_announces_the_update_and_covers_it(self, rtc: Rtc) -> None:
        rises = next(t for t in range(S - 3_000_000, S, 1000) if get(rtc, A, t) & 0x80)
        assert 244_000 <= S - rises <= 244_000 + 1_984_000 + 1000
        assert get(rtc, A, S - 1) & 0x80
        assert not get(rtc, A, S) & 0x80

    def test_a_clock_that_is_held_never_updates(self, rtc: Rtc) -> None:
        put(rtc, B, SET | H24)
        assert not get(rtc, A, S - 1) & 0x80


class TestRegisters:
    def test_the_control_registers_after_power_on(self, rtc: Rtc) -> None:
        assert [get(rtc, index) for index in (A, B, C, D)] == [0x26, 0x02, 0x00, 0x80]

    def test_c_and_d_are_read_only_and_the_update_bit_is_too(self, rtc: Rtc) -> None:
        put(rtc, C, 0xFF)
        put(rtc, D, 0x00)
        put(rtc, A, 0xA6)
        assert [get(rtc, index) for index in (A, C, D)] == [0x26, 0x00, 0x80]

    def test_the_rest_is_memory(self, rtc: Rtc) -> None:
        for index in range(0x0E, 0x80):
            if index != CENTURY:
                put(rtc, index, index ^ 0x5A)
        for index in range(0x0E, 0x80):
            if index != CENTURY:
                assert get(rtc, index) == index ^ 0x5A

    def test_bit_7_of_the_index_is_the_nmi_mask_and_no_part_of_it(self, rtc: Rtc) -> None:
        rtc.write(0, 1, 0x80 | D, 0)
        assert rtc.nmi_masked
        assert rtc.read(1, 1, 0)[0] == 0x80
        rtc.write(0, 1, D, 0)
        assert not rtc.nmi_masked

    def test_the_index_port_reads_as_all_ones(self, rtc: Rtc) -> None:
        assert rtc.read(0, 1, 0) == (0xFF, NOTHING)

    def test_wide_accesses_are_bytes_in_ascending_order(self, rtc: Rtc) -> None:
        rtc.write(0, 2, 0x5A_40, 0)  # index 40h, data 5Ah
        assert get(rtc, 0x40) == 0x5A
        assert rtc.read(0, 2, 0)[0] == 0x5AFF
        assert rtc.read(0, 4, 0)[0] == 0xFFFF_5AFF
        rtc.write(1, 4, 0x1234_56A5, 0)
        assert rtc.read(1, 1, 0)[0] == 0xA5


class TestMemorySizes:
    @pytest.mark.parametrize(
        ("below", "above", "base", "extended", "above_16m", "above_4g"),
        [
            (1 * MIB, 0, 640, 0, 0, 0),
            (8 * MIB, 0, 640, 7 * 1024, 0, 0),
            (64 * MIB, 0, 640, 63 * 1024, 48 * 16, 0),
            (128 * MIB, 0, 640, 0xFFFF, 112 * 16, 0),
            (3072 * MIB, 5120 * MIB, 640, 0xFFFF, (3072 - 16) * 16, 5120 * 16),
            (512 << 10, 0, 512, 0, 0, 0),
            (8192 * MIB, 1 << 50, 640, 0xFFFF, 0xFFFF, 0xFF_FFFF),
        ],
    )
    def test_they_stand_where_firmware_looks(
        self, below: int, above: int, base: int, extended: int, above_16m: int, above_4g: int
    ) -> None:
        rtc = Rtc(START_S, below, above)

        def number(index: int, count: int = 2) -> int:
            return sum(get(rtc, index + i) << 8 * i for i in range(count))

        assert number(0x15) == base
        assert number(0x17) == number(0x30) == extended
        assert number(0x34) == above_16m
        assert number(0x5B, 3) == above_4g


class TestUpdateInterrupt:
    def test_it_comes_each_second_after_c_is_read(self, rtc: Rtc) -> None:
        put(rtc, B, UIE | H24, 100)
        assert rtc.next_deadline_ns() == S
        assert rtc.advance(S).lines == RISE
        assert rtc.next_deadline_ns() is None
        rtc.write(0, 1, C, S + 7)
        assert rtc.read(1, 1, S + 7) == (0x80 | UIE | PIE, Effects(lines=FALL, deadline=True))  # a period ended too
        assert rtc.next_deadline_ns() == 2 * S

    def test_the_flag_is_set_without_the_enable_but_no_interrupt(self, rtc: Rtc) -> None:
        assert rtc.next_deadline_ns() is None
        assert rtc.advance(S) is NOTHING
        assert get(rtc, C, S) & 0x90 == 0x10
        assert get(rtc, C, S) == 0

    def test_enabling_it_with_the_flag_set_interrupts_at_once(self, rtc: Rtc) -> None:
        rtc.advance(S)
        assert put(rtc, B, UIE | H24, S).lines == RISE

    def test_holding_the_clock_disables_it(self, rtc: Rtc) -> None:
        put(rtc, B, SET | UIE | H24)
        assert get(rtc, B) == SET | H24
        assert rtc.next_deadline_ns() is None
        assert get(rtc, C, 10 * S) & 0x10 == 0


class TestPeriodicInterrupt:
    @pytest.mark.parametrize(("rate", "hz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (10, 64), (15, 2)])
    def test_the_rates_of_the_data_sheet(self, rtc: Rtc, rate: int, hz: int) -> None:
        put(rtc, A, RUNS | rate)
        put(rtc, B, PIE | H24)
        get(rtc, C)
        for period in range(1, 4):
            deadline_ns = rtc.next_deadline_ns()
            assert deadline_ns == -(-period * S // hz)
            rtc.advance(deadline_ns)
            assert get(rtc, C, deadline_ns) & 0xC0 == 0xC0

    def test_rate_zero_never_interrupts(self, rtc: Rtc) -> None:
        put(rtc, A, RUNS)
        put(rtc, B, PIE | H24)
        assert rtc.next_deadline_ns() is None
        assert get(rtc, C, 10 * S) & 0x40 == 0

    def test_a_jump_over_a_million_periods_is_one_interrupt(self, rtc: Rtc) -> None:
        put(rtc, B, PIE | H24)
        assert rtc.advance(1000 * S).lines == RISE
        assert get(rtc, C, 1000 * S) & 0xC0 == 0xC0
        assert rtc.next_deadline_ns() == -(-(1000 * 1024 + 1) * S // 1024)

    def test_it_does_not_stop_while_the_clock_is_held_but_does_with_the_divider(self, rtc: Rtc) -> None:
        put(rtc, B, SET | PIE | H24)
        assert rtc.next_deadline_ns() is not None
        put(rtc, A, DIVIDER_RESET | 6)
        assert rtc.next_deadline_ns() is None


class TestAlarm:
    def test_it_comes_at_its_time(self, rtc: Rtc) -> None:
        for index, value in ((HOURS_ALARM, 0x00), (MINUTES_ALARM, 0x01), (SECONDS_ALARM, 0x30)):
            put(rtc, index, value)
        put(rtc, B, AIE | H24)
        assert rtc.next_deadline_ns() == (2 + 90) * S
        assert rtc.advance((2 + 90) * S).lines == RISE
        assert get(rtc, C, (2 + 90) * S) & 0xA0 == 0xA0
        assert rtc.next_deadline_ns() == (2 + 90 + 86_400) * S

    def test_a_field_with_both_upper_bits_set_matches_everything(self, rtc: Rtc) -> None:
        for index in (HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM):
            put(rtc, index, 0xC0)
        put(rtc, B, AIE | H24)
        assert rtc.next_deadline_ns() == S

    @pytest.mark.parametrize(("index", "value"), [(HOURS_ALARM, 0x24), (MINUTES_ALARM, 0x60), (SECONDS_ALARM, 0x7A)])
    def test_a_time_that_does_not_exist_never_comes(self, rtc: Rtc, index: int, value: int) -> None:
        put(rtc, index, value)
        put(rtc, B, AIE | H24)
        assert rtc.next_deadline_ns() is None
        assert get(rtc, C, 100_000 * S) & 0x20 == 0

    fields = st.one_of(st.none(), st.integers(0, 59))

    @given(st.one_of(st.none(), st.integers(0, 23)), fields, fields, st.integers(0, 2 * 86_400))
    def test_it_is_the_first_second_that_matches(
        self, hour: int | None, minute: int | None, second: int | None, start: int
    ) -> None:
        rtc = Rtc(START_S + start, 64 * MIB)
        put(rtc, B, AIE | BINARY | H24)
        for index, value in ((HOURS_ALARM, hour), (MINUTES_ALARM, minute), (SECONDS_ALARM, second)):
            put(rtc, index, 0xFF if value is None else value)
        now = START + timedelta(seconds=start)
        candidates = (
            now.replace(hour=h, minute=m, second=s) + timedelta(days=days)
            for days in (0, 1)
            for h in (range(24) if hour is None else [hour])
            for m in (range(60) if minute is None else [minute])
            for s in (range(60) if second is None else [second])
        )
        expected = next(moment for moment in candidates if moment > now)
        assert rtc.next_deadline_ns() == int((expected - now).total_seconds()) * S


def test_reset_equals_freshly_built_and_lets_the_line_go(rtc: Rtc) -> None:
    put(rtc, 0x40, 0x99)
    put(rtc, HOURS, 0x01)
    put(rtc, B, UIE | H24)
    rtc.advance(S)
    assert rtc != Rtc(START_S, 64 * MIB)
    assert rtc.reset() == Effects(lines=FALL, deadline=True)
    assert rtc == Rtc(START_S, 64 * MIB)


def test_the_line_keeps_the_boards_name() -> None:
    rtc = Rtc(START_S, 64 * MIB, line="gsi8")
    put(rtc, B, UIE | H24)
    assert rtc.advance(S).lines == (Line("gsi8", True),)


accesses = st.tuples(
    st.sampled_from(["read", "write", "advance"]),
    st.integers(0, 2),
    st.one_of(st.integers(0, 0x0D), st.integers(0, 0xFF), st.just(CENTURY)),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 2**64 - 1),
    st.one_of(st.integers(0, 2 * S), st.integers(0, 2**62)),
)


@given(st.lists(accesses, max_size=40))
def test_no_sequence_of_accesses_breaks_it(sequence: list[tuple[str, int, int, int, int, int]]) -> None:
    rtc, now_ns, level = Rtc(START_S, 64 * MIB), 0, False
    for kind, offset, index, size, value, step_ns in sequence:
        now_ns += step_ns
        effects = rtc.write(0, 1, index, now_ns)
        if kind == "read":
            read, more = rtc.read(offset, size, now_ns)
            assert 0 <= read < 1 << 8 * size
        elif kind == "write":
            more = rtc.write(offset, size, value & (1 << 8 * size) - 1, now_ns)
        else:
            more = rtc.advance(now_ns)
        deadline_ns = rtc.next_deadline_ns()
        assert deadline_ns is None or deadline_ns > now_ns
        for line in (effects | more).lines:
            assert line.level != level, "a line is reported only when it changes"
            level = line.level
        assert level == rtc.level
    rtc.reset()
    assert rtc == Rtc(START_S, 64 * MIB)
