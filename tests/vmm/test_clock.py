"""Time as a function of executed blocks, and the host's time."""

from __future__ import annotations

import time

from vmm.clock import BLOCK_NS, LONGEST_SLEEP_S, REALTIME_SLICE_BLOCKS, SLICE_BLOCKS, RealtimeClock, VirtualClock


def test_virtual_time_is_the_blocks_that_were_executed() -> None:
    clock = VirtualClock()
    assert clock.now_ns(0) == 0
    assert clock.now_ns(123) == 123 * BLOCK_NS


def test_an_idle_guest_jumps_to_its_deadline() -> None:
    clock = VirtualClock()
    clock.idle_until(100, 5_000_000)
    assert clock.now_ns(100) == 5_000_000
    assert clock.now_ns(101) == 5_000_000 + BLOCK_NS


def test_virtual_time_never_goes_back() -> None:
    clock = VirtualClock()
    clock.idle_until(1000, 500)
    assert clock.now_ns(1000) == 1000 * BLOCK_NS


def test_the_budget_reaches_the_deadline_and_passes_it_by_less_than_a_block() -> None:
    clock = VirtualClock()
    for deadline_ns in (1, 9, 10, 11, 12345):
        blocks = clock.budget(0, deadline_ns)
        assert deadline_ns <= clock.now_ns(blocks) < deadline_ns + BLOCK_NS


def test_the_budget_is_at_least_one_block_and_at_most_a_slice() -> None:
    for clock, slice_blocks in ((VirtualClock(), SLICE_BLOCKS), (RealtimeClock(), REALTIME_SLICE_BLOCKS)):
        assert clock.budget(100, 0) == 1
        assert clock.budget(100, 1 << 62) == slice_blocks
        assert clock.budget(100, None) == slice_blocks


def test_real_time_passes_with_the_host() -> None:
    clock = RealtimeClock()
    before_ns = clock.now_ns(0)
    time.sleep(0.002)
    assert clock.now_ns(0) >= before_ns + 2_000_000


def test_an_idle_guest_sleeps_in_short_pieces_in_real_time() -> None:
    clock = RealtimeClock()
    start_ns = clock.now_ns(0)
    clock.idle_until(0, start_ns + 10**15)
    assert LONGEST_SLEEP_S * 1e9 <= clock.now_ns(0) - start_ns < 10**15


def test_real_time_stands_still_for_as_long_as_it_is_held_and_then_goes_on() -> None:
    clock = RealtimeClock()
    with clock.standing_still():
        then_ns = clock.now_ns(0)
        with clock.standing_still():
            time.sleep(0.02)
        assert clock.now_ns(0) == then_ns, "who holds it first lets it go"
        time.sleep(0.02)
        assert clock.now_ns(0) == then_ns
    time.sleep(0.002)
    assert clock.now_ns(0) >= then_ns + 2_000_000
