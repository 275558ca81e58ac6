"""The drivers' page allocator: no page is handed out twice, none is lost."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.testing import OutOfPages, PageAllocator


def test_the_lowest_run_that_fits_is_taken() -> None:
    pages = PageAllocator(0x10000, 0x8000)
    assert [pages.take(), pages.take(2), pages.take()] == [0x10000, 0x11000, 0x13000]
    pages.give(0x11000, 2)
    assert pages.take(3) == 0x14000
    assert pages.take(2) == 0x11000


def test_what_does_not_fit_is_refused_and_nothing_changes() -> None:
    pages = PageAllocator(0, 0x4000)
    with pytest.raises(OutOfPages, match="no 5 consecutive pages are free"):
        pages.take(5)
    assert pages.take(4) == 0


@pytest.mark.parametrize(("gpa", "count"), [(0x1000, 1), (0, 1), (0, 3)])
def test_only_what_was_taken_can_be_given_back(gpa: int, count: int) -> None:
    pages = PageAllocator(0, 0x4000)
    pages.take(2)
    with pytest.raises(ValueError, match="were not taken together"):
        pages.give(gpa, count)


@pytest.mark.parametrize(("base", "size"), [(1, 0x1000), (0, 0), (0, 0x1001)])
def test_a_range_must_be_whole_pages(base: int, size: int) -> None:
    with pytest.raises(ValueError, match="must be whole pages"):
        PageAllocator(base, size)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=60))
def test_runs_never_overlap_and_all_come_back(steps: list[tuple[bool, int]]) -> None:
    pages = PageAllocator(0x100000, 32 * 4096)
    taken: list[tuple[int, int]] = []
    for take, number in steps:
        if take:
            try:
                taken.append((pages.take(number), number))
            except OutOfPages:
                continue
        elif taken:
            pages.give(*taken.pop(number % len(taken)))
        spans = sorted((gpa, gpa + 4096 * count) for gpa, count in taken)
        assert all(first[1] <= second[0] for first, second in pairwise(spans))
        assert pages.free_pages == 32 - sum(count for _, count in taken)
    for gpa, count in taken:
        pages.give(gpa, count)
    assert pages.take(32) == 0x100000
