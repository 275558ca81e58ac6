"""The list of what the host's side wrote: complete, bounded, and not much longer than it has to be."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devices.writes import MAX_RANGES, WriteLog


def covered(ranges: list[tuple[int, int]]) -> set[int]:
    return {address for gpa, length in ranges for address in range(gpa, gpa + length)}


RANGES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=30)


@given(RANGES)
def test_one_by_one_nothing_is_lost_and_nothing_invented(ranges: list[tuple[int, int]]) -> None:
    log = WriteLog()
    for gpa, length in ranges:
        log.add(gpa, length)
    assert covered(log.take()) == covered(ranges)
    assert log.take() == []


@given(RANGES, RANGES)
def test_many_at_once_nothing_is_lost_and_nothing_invented(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    log = WriteLog()
    log.add_many(first)
    log.add_many(second)
    assert covered(log.take()) == covered(first) | covered(second)


@given(RANGES, RANGES, st.sampled_from((0, MAX_RANGES)))
def test_arrays_are_remembered_like_lists(
    first: list[tuple[int, int]], second: list[tuple[int, int]], far_away: int
) -> None:
    """With few ranges and with more than are ever kept."""
    log = WriteLog()
    log.add_many([(1 << 40 | i << 13, 8) for i in range(far_away)])
    for ranges in (first, second):
        pairs = np.array(ranges, np.uint64).reshape(-1, 2)
        log.add_arrays(pairs[:, 0], pairs[:, 1])
    taken = log.take()
    assert len(taken) <= MAX_RANGES
    low = [entry for entry in taken if entry[0] < 1 << 40]
    assert covered(low) == covered(first) | covered(second) or far_away
    assert covered(low) >= covered(first) | covered(second)


def test_what_touches_the_last_range_is_joined_with_it() -> None:
    log = WriteLog()
    for gpa in range(0x1000, 0x2000, 16):
        log.add(gpa, 16)
    log.add(0x1100, 8)
    assert log.take() == [(0x1000, 0x1000)]


def test_writing_nothing_leaves_no_trace() -> None:
    log = WriteLog()
    log.add(5, 0)
    log.add_many([(7, 0), (9, 0)])
    log.add_many([])
    assert log.take() == []


def test_a_log_that_nobody_reads_stays_bounded_and_complete() -> None:
    log = WriteLog()
    for i in range(10 * MAX_RANGES):
        log.add((i * 7919) % 65536 * 4096, 64)
    ranges = log.take()
    assert 1 < len(ranges) <= MAX_RANGES
    named = {page for gpa, length in ranges for page in range(-(-gpa // 4096), (gpa + length - 64) // 4096 + 1)}
    assert {(i * 7919) % 65536 for i in range(10 * MAX_RANGES)} <= named


def test_one_long_list_stays_bounded_too() -> None:
    log = WriteLog()
    log.add_many([(i * 4096, 1) for i in range(20 * MAX_RANGES)])
    ranges = log.take()
    assert len(ranges) <= MAX_RANGES
    assert ranges[0][0] == 0
    assert sum(ranges[-1]) == (20 * MAX_RANGES - 1) * 4096 + 1


def test_the_widest_gaps_are_kept_when_ranges_must_be_joined() -> None:
    log = WriteLog()
    high = 1 << 32
    log.add_many([(i * 64, 8) for i in range(MAX_RANGES)] + [(high + i * 64, 8) for i in range(MAX_RANGES)])
    ranges = log.take()
    assert all(gpa + length <= MAX_RANGES * 64 or gpa >= high for gpa, length in ranges)
