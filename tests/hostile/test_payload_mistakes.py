"""A driver whose requests say wrong things: skipped, counted, reported, and the request is completed all the same.

A payload error is no ring error.  Resetting the device for it would leave a driver waiting that never learns why.
"""

from __future__ import annotations

import pytest

from tests.support import MIB, BalloonMachine
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, STATSQ, pfn_bytes, stats_bytes

HOLE_FIRST, HOLE_LAST = 0xA0, 0xFF
LOW_END = (1 * MIB + 3 * MIB) // 4096
HIGH_FIRST, HIGH_END = (1 << 32) // 4096, ((1 << 32) + MIB) // 4096

NOT_RAM = [HOLE_FIRST, HOLE_LAST, LOW_END, HIGH_FIRST - 1, HIGH_END, 0x7FFFFFFF, 0xFFFFFFFF]
LAST_PAGES = [HOLE_FIRST - 1, LOW_END - 1, HIGH_FIRST, HIGH_END - 1]

BOTH_QUEUES = pytest.mark.parametrize("queue", [INFLATEQ, DEFLATEQ], ids=["inflateq", "deflateq"])


def complaints(machine: BalloonMachine) -> list[str]:
    """The kinds of events that tell of something wrong."""
    usual = {"stats", "actual", "target", "reset", "features", "driver-ok", "queue-enabled"}
    return [event.kind for event in machine.events if event.kind not in usual]


def check_completed(machine: BalloonMachine, queue: int, *payloads: bytes) -> None:
    """Every request comes back once, with nothing written, and the device does not ask for a reset."""
    heads = [machine.driver.offer(queue, readable=[payload]) for payload in payloads]
    machine.driver.kick(queue)
    used = machine.driver.collect(queue)
    assert sorted(entry.head for entry in used) == sorted(heads)
    assert {entry.length for entry in used} == {0}
    assert not machine.driver.needs_reset


@BOTH_QUEUES
@pytest.mark.parametrize("pfn", NOT_RAM, ids=hex)
def test_a_page_that_is_not_ram_is_skipped_counted_and_reported(started: BalloonMachine, queue: int, pfn: int) -> None:
    good = started.filled_pfns(2)
    before = started.snapshot()
    check_completed(started, queue, pfn_bytes([good[0], pfn, good[1]]))
    assert started.balloon.bad_pfns == 1
    assert complaints(started) == ["bad-pfns"]
    rings = [(q.ring_gpa, 4096 * q.ring_pages) for q in started.driver.queues.values()]
    allowed = [(page * 4096, 4096) for page in good]
    fresh = [(started.pages.take(), 4096)]  # the request's own page, free again
    assert before.changed(outside=[*rings, *allowed, *fresh]) == []
    if queue == INFLATEQ:
        assert started.are_zero(good)
        assert started.balloon.inflated_pages == 2


def test_regression_last_page_of_ram_off_by_one(started: BalloonMachine) -> None:
    """The first and last pages of every part of RAM are pages like any other.  Seed: last page of RAM off by one."""
    for pfn in LAST_PAGES:
        started.memory.write(pfn * 4096, b"\x5a" * 4096)
    check_completed(started, INFLATEQ, pfn_bytes(LAST_PAGES))
    assert started.are_zero(LAST_PAGES)
    assert started.balloon.bad_pfns == 0


def test_regression_pfn_shifted_in_32_bits(started: BalloonMachine) -> None:
    """A page frame number above 2^20 is an address above 4 GiB; cut to 32 bits it would be a page of low RAM.

    Seed: pfn << 12 in 32 bits."""
    low = LOW_END - 1
    high = HIGH_FIRST + 7
    for pfn in (7, low, high):
        started.memory.write(pfn * 4096, b"\x5a" * 4096)
    check_completed(started, INFLATEQ, pfn_bytes([high]))
    assert started.are_zero([high])
    assert started.are_filled([7, low])
    check_completed(started, INFLATEQ, pfn_bytes([0x100000 * 3 + low]))
    assert started.are_filled([7, low])


def test_regression_punching_past_the_end_of_a_region(started: BalloonMachine) -> None:
    """A run of pages that starts in RAM and goes on into the hole: what is RAM goes, what is not is skipped.

    Seed: punching past a region."""
    run = list(range(HOLE_FIRST - 4, HOLE_FIRST + 4))
    for pfn in run[:4]:
        started.memory.write(pfn * 4096, b"\x5a" * 4096)
    check_completed(started, INFLATEQ, pfn_bytes(run))
    assert started.are_zero(run[:4])
    assert started.balloon.bad_pfns == 4
    assert started.balloon.discarded_bytes == 4 * 4096


@BOTH_QUEUES
@pytest.mark.parametrize("extra", [1, 2, 3])
def test_an_array_that_ends_within_an_entry_is_used_up_to_there(
    started: BalloonMachine, queue: int, extra: int
) -> None:
    good = started.filled_pfns(2)
    check_completed(started, queue, pfn_bytes(good) + bytes(extra))
    assert started.balloon.ignored_bytes == extra
    assert complaints(started) == ["ignored-bytes"]
    if queue == INFLATEQ:
        assert started.balloon.inflated_pages == 2


@BOTH_QUEUES
def test_an_odd_array_does_not_shift_those_of_other_requests(started: BalloonMachine, queue: int) -> None:
    first, second, third = started.filled_pfns(3)
    if queue == DEFLATEQ:
        started.driver.inflate([first, second, third])
    check_completed(started, queue, pfn_bytes([first]) + b"\x01", pfn_bytes([second]), b"\x02", pfn_bytes([third]))
    count = started.balloon.inflated_pages if queue == INFLATEQ else started.balloon.deflated_pages
    assert count == 3
    assert started.balloon.bad_pfns == 0


@BOTH_QUEUES
def test_a_request_with_no_readable_byte_is_completed(started: BalloonMachine, queue: int) -> None:
    (used,) = started.driver.transfer(queue, writable=[64])
    assert used.length == 0
    assert not started.driver.needs_reset


def test_the_same_page_many_times_counts_once(started: BalloonMachine) -> None:
    (pfn,) = started.filled_pfns(1)
    check_completed(started, INFLATEQ, pfn_bytes([pfn] * 100), pfn_bytes([pfn]))
    assert started.balloon.inflated_pages == 1
    assert started.are_zero([pfn])
    check_completed(started, DEFLATEQ, pfn_bytes([pfn] * 100))
    assert started.balloon.deflated_pages == 1


def test_deflating_what_is_not_in_the_balloon_is_harmless(started: BalloonMachine) -> None:
    pfns = started.filled_pfns(3)
    check_completed(started, DEFLATEQ, pfn_bytes(pfns))
    assert started.are_filled(pfns)
    assert started.balloon.deflated_pages == 0
    assert started.balloon.balloon_pages == 0


def test_a_driver_may_balloon_the_page_of_its_own_request(started: BalloonMachine) -> None:
    """The request is gathered once: that the page under it goes away changes nothing about it."""
    gpa = started.pages.take()
    started.memory.write(gpa, pfn_bytes([gpa // 4096, started.filled_pfns(1)[0]]))
    (used,) = started.driver.transfer(INFLATEQ, readable=[(gpa, 8)])
    assert used.length == 0
    assert started.balloon.inflated_pages == 2
    assert started.are_zero([gpa // 4096])


def test_a_driver_may_balloon_its_own_rings(started: BalloonMachine) -> None:
    """It asked for it: the rings read as zero, the device stays up, and a reset makes everything good."""
    queue = started.driver.queues[INFLATEQ]
    started.driver.offer(INFLATEQ, readable=[pfn_bytes([queue.ring_gpa // 4096])])
    queue.publish()
    for _ in range(3):
        started.driver.transport.notify(INFLATEQ)
    started.driver.start()
    pfns = started.filled_pfns(1)
    started.driver.inflate(pfns)
    assert started.are_zero(pfns)


# -- statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.modern
@pytest.mark.parametrize("extra", range(1, 10))
def test_statistics_that_end_within_an_entry_are_used_up_to_there(started: BalloonMachine, extra: int) -> None:
    started.driver.post_stats(stats_bytes({4: 10, 5: 11}) + b"\xff" * extra)
    assert started.statistics().values == {"stat-free-memory": 10, "stat-total-memory": 11}
    assert not started.driver.needs_reset


def test_statistics_without_one_whole_entry_say_nothing(started: BalloonMachine) -> None:
    started.driver.post_stats(b"\x04\x00\x01")
    assert started.statistics().values == {}
    assert not started.driver.needs_reset


@pytest.mark.modern
def test_a_tag_that_comes_twice_has_one_value_and_both_are_in_the_raw_list(started: BalloonMachine) -> None:
    started.driver.post_stats([(4, 1), (4, 2)])
    statistics = started.statistics()
    assert statistics.values["stat-free-memory"] in (1, 2)
    assert list(statistics.raw) == [(4, 1), (4, 2)]


@pytest.mark.modern
def test_oversize_statistics_are_bounded_and_the_buffer_is_held_like_any_other(started: BalloonMachine) -> None:
    """A mebibyte of statistics: the known ones at its start are read, the rest costs nothing."""
    gpa = 0x200000
    started.memory.write(gpa, stats_bytes({4: 3}) + stats_bytes({60000: 0}) * 5000)
    started.driver.offer(STATSQ, readable=[(gpa, MIB)])
    started.driver.kick(STATSQ)
    assert started.statistics().values["stat-free-memory"] == 3
    assert len(started.statistics().raw) <= 5001
    started.request_stats()
    assert started.driver.stats_wanted()


def test_regression_duplicate_stats_buffer_loses_no_head(started: BalloonMachine) -> None:
    """§5.5.6.3.1 allows one buffer at a time.  Of two the device keeps one and returns one; it forgets neither.

    Seed: duplicate stats buffer."""
    first = started.driver.post_stats({4: 1})
    second = started.driver.post_stats({4: 2})
    returned = [used.head for used in started.driver.collect(STATSQ)]
    assert len(returned) == 1
    assert started.statistics().values == {"stat-free-memory": 2}
    started.request_stats()
    returned += [used.head for used in started.driver.collect(STATSQ)]
    assert sorted(returned) == sorted([first, second])


def test_regression_many_stats_buffers_behind_one_kick(started: BalloonMachine) -> None:
    heads = [started.driver.offer(STATSQ, readable=[stats_bytes({4: value})]) for value in range(20)]
    started.driver.kick(STATSQ)
    returned = [used.head for used in started.driver.collect(STATSQ)]
    assert len(returned) == 19
    assert started.statistics().values == {"stat-free-memory": 19}
    started.request_stats()
    returned += [used.head for used in started.driver.collect(STATSQ)]
    assert sorted(returned) == sorted(heads)


def test_a_writable_stats_buffer_says_nothing_and_is_not_written(started: BalloonMachine) -> None:
    gpa = started.pages.take()
    started.memory.write(gpa, b"\xcc" * 100)
    started.driver.offer(STATSQ, writable=[(gpa, 100)])
    started.driver.kick(STATSQ)
    started.request_stats()
    (used,) = started.driver.collect(STATSQ)
    assert used.length == 0
    assert started.memory.read(gpa, 100) == b"\xcc" * 100
    assert started.statistics().values == {}


def test_regression_actual_underflow(started: BalloonMachine) -> None:
    """The driver may claim any number of pages: it is reported as said, and no arithmetic breaks over it.

    Seed: actual underflow."""
    for claimed in (0xFFFFFFFF, 0, 1, 0x80000000):
        started.driver.actual = claimed
        assert started.balloon.actual_pages == claimed
        started.set_target(0)
        started.set_target(5)
    check_completed(started, DEFLATEQ, pfn_bytes(started.filled_pfns(1)))
    assert not started.driver.needs_reset
