"""ACPI's fixed events and timer (ACPI §4.8.3)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.acpi import PmEvents, PmTimer
from devices.effects import NOTHING, Line

HALF_NS = (2**23 * 10**9 + 3_579_544) // 3_579_545  # when bit 23 of the counter changes for the first time
STATUS, ENABLE = 0, 2
TIMER, GLOBAL_LOCK, BUTTON, CLOCK = 0x0001, 0x0020, 0x0100, 0x0400


def word(events: PmEvents, offset: int, now_ns: int = 0) -> int:
    return events.read(offset, 2, now_ns)[0]


@pytest.mark.parametrize(("now_ns", "count"), [(0, 0), (279, 0), (280, 1), (10**9, 3_579_545), (2 * HALF_NS + 500, 1)])
def test_the_timer_counts_3579545_a_second_in_24_bits(now_ns: int, count: int) -> None:
    assert PmTimer().read(0, 4, now_ns) == (count, NOTHING)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_timer_ignores_writes_and_answers_every_width(size: int) -> None:
    timer = PmTimer()
    assert timer.write(0, size, 0, 10**9) == NOTHING
    assert timer.read(0, size, 10**9)[0] == 3_579_545 & (1 << 8 * size) - 1
    assert timer.read(2, size, 10**9)[0] == 3_579_545 >> 16 & (1 << 8 * size) - 1


def test_the_timer_s_status_is_set_when_the_highest_bit_changes() -> None:
    events = PmEvents()
    assert word(events, STATUS, HALF_NS - 1) == 0
    assert word(events, STATUS, HALF_NS) == TIMER
    events.write(STATUS, 2, TIMER, HALF_NS)
    assert word(events, STATUS, HALF_NS + 1) == 0
    assert word(events, STATUS, 2 * HALF_NS) == TIMER


def test_a_status_bit_is_cleared_by_writing_a_one_and_no_other_byte_is_touched() -> None:
    events = PmEvents()
    events.press_power_button(HALF_NS)
    events.write(STATUS, 1, 0xFF, HALF_NS)
    assert word(events, STATUS, HALF_NS) == BUTTON
    events.write(STATUS, 2, 0, HALF_NS)
    assert word(events, STATUS, HALF_NS) == BUTTON
    events.write(STATUS, 4, BUTTON, HALF_NS)
    assert word(events, STATUS, HALF_NS) == 0


def test_an_enabled_event_asserts_the_sci_until_it_is_cleared() -> None:
    events = PmEvents()
    events.write(ENABLE, 2, 0xFFFF, 0)
    assert events.press_power_button(0).lines == (Line("isa9", True),)
    assert events.press_power_button(0).lines == ()
    assert events.write(STATUS, 2, BUTTON, 0).lines == (Line("isa9", False),)


def test_all_fixed_events_can_be_enabled_but_the_sleep_button_s() -> None:
    """Linux reads an enable back, and complains of the hardware if it is clear."""
    events = PmEvents()
    assert events.write(ENABLE, 2, 0xFFFF, 0).lines == ()
    assert word(events, ENABLE) == TIMER | GLOBAL_LOCK | BUTTON | CLOCK


def test_enabling_an_event_that_has_happened_asserts_the_sci() -> None:
    events = PmEvents()
    assert events.press_power_button(0).lines == ()
    assert word(events, STATUS) == BUTTON
    assert events.write(ENABLE + 1, 1, BUTTON >> 8, 0).lines == (Line("isa9", True),)


def test_a_press_is_an_event_that_says_whether_the_guest_listens() -> None:
    events = PmEvents()
    (unheard,) = events.press_power_button(0).events
    events.write(ENABLE, 2, BUTTON, 0)
    (heard,) = events.press_power_button(0).events
    assert unheard == ("power button", "power-button", "it is pressed; the guest has not enabled its interrupt")
    assert heard == ("power button", "power-button", "it is pressed")


def test_the_only_deadline_is_an_enabled_timer_event() -> None:
    events = PmEvents()
    assert events.next_deadline_ns() is None
    events.write(ENABLE, 2, TIMER, 0)
    assert events.next_deadline_ns() == HALF_NS
    assert events.advance(HALF_NS - 1) == NOTHING
    assert events.advance(HALF_NS).lines == (Line("isa9", True),)
    assert events.next_deadline_ns() is None
    events.write(STATUS, 2, TIMER, HALF_NS)
    assert events.next_deadline_ns() == (2**24 * 10**9 + 3_579_544) // 3_579_545


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from((1, 2, 4, 8)), st.integers(0, 2**64 - 1), st.integers(0, 10**10)),
        max_size=20,
    )
)
def test_every_access_is_answered_and_a_reset_equals_a_new_one(steps: list[tuple[int, int, int, int]]) -> None:
    events, now_ns = PmEvents(), 0
    for offset, size, value, later_ns in steps:
        now_ns += later_ns
        events.write(offset, size, value & (1 << 8 * size) - 1, now_ns)
        assert 0 <= events.read(offset, size, now_ns)[0] < 1 << 32
        assert events.enable & ~(TIMER | GLOBAL_LOCK | BUTTON | CLOCK) == 0
        assert events.level == bool(events.status & events.enable)
    events.reset()
    assert events == PmEvents()
