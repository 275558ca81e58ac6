"""Giving guest RAM back to the host, looking without taking it again, and hosts that cannot do what others can."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from devices import hostcalls
from devices.errors import ConfigError, OutsideRam
from devices.memory import GuestMemory, Run
from tests.devices.ram_cases import HIGH, LAYOUT, MIB, PAGE, fill, is_ram, no_memory_file, ram

__all__ = ["ram"]

# -- giving memory back ----------------------------------------------------------------------------------------------


def test_ram_is_backed_only_where_it_was_touched(ram: GuestMemory) -> None:
    assert ram.backed_bytes() == 0
    ram.view(HIGH, 1)[0] = 1
    ram.view(3 * PAGE + 5, 1)[0] = 1
    assert ram.backed_bytes() == 2 * hostcalls.PAGE_BYTES


def test_discarding_gives_memory_back_and_reads_as_zero(ram: GuestMemory) -> None:
    fill(ram)
    assert ram.backed_bytes() == ram.size_bytes == 12 * PAGE
    assert ram.discard([Run(1, 2), Run(HIGH // PAGE, 1)]) == 3 * PAGE
    assert ram.backed_bytes() == 9 * PAGE
    expected = b"\xaa" * PAGE + bytes(2 * PAGE) + b"\xaa" * PAGE
    assert ram.peek(0, 4 * PAGE) == expected
    assert ram.backed_bytes() == 9 * PAGE
    assert ram.view(0, 4 * PAGE).tobytes() == expected
    assert ram.view(HIGH, 2 * PAGE).tobytes() == bytes(PAGE) + b"\xaa" * PAGE


def test_a_run_may_cross_adjoining_regions(ram: GuestMemory) -> None:
    fill(ram)
    assert ram.discard([Run(3, 3)]) == 3 * PAGE
    assert ram.backed_bytes() == 9 * PAGE
    assert ram.peek(0, 6 * PAGE) == b"\xaa" * 3 * PAGE + bytes(3 * PAGE)


@pytest.mark.parametrize("bad", [Run(6, 1), Run(5, 2), Run(10, 1), Run(0, 1 << 52), Run(1 << 52, 1), Run(3, -1)])
def test_nothing_is_discarded_when_a_run_leaves_ram(ram: GuestMemory, bad: Run) -> None:
    fill(ram)
    with pytest.raises(OutsideRam):
        ram.discard([Run(0, 1), bad])
    assert ram.backed_bytes() == ram.size_bytes
    assert ram.take_writes() == []


def test_runs_may_be_two_arrays_and_of_any_number(ram: GuestMemory) -> None:
    fill(ram)
    pfns = np.array([0, 2, 4, 8, 9, HIGH // PAGE, HIGH // PAGE + 2, 5, 3, 1], np.uint64)
    assert ram.discard(pfns, np.ones(10, np.uint32)) == 10 * PAGE
    assert ram.backed_bytes() == 2 * PAGE
    assert ram.read(0, 6 * PAGE) == bytes(6 * PAGE)
    left = ram.peek(HIGH, 4 * PAGE)
    assert left == bytes(PAGE) + b"\xaa" * PAGE + bytes(PAGE) + b"\xaa" * PAGE
    with pytest.raises(ValueError):
        ram.discard(pfns, np.ones(9, np.uint32))


def test_discarding_a_hole_nothing_or_the_same_page_twice_is_no_error(ram: GuestMemory) -> None:
    assert ram.discard([]) == 0
    assert ram.discard([Run(1, 0)]) == 0
    ram.view(PAGE, 1)[0] = 1
    assert ram.discard([Run(1, 1), Run(1, 1)]) == 2 * PAGE
    assert ram.backed_bytes() == 0


def test_a_discarded_page_can_be_used_again(ram: GuestMemory) -> None:
    ram.write(PAGE, b"old")
    ram.discard([Run(1, 1)])
    ram.write(PAGE + 1, b"new")
    assert ram.read(PAGE, 5) == b"\0new\0"
    assert ram.backed_bytes() == hostcalls.PAGE_BYTES


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=14))
def test_exactly_the_pages_of_the_runs_are_gone(runs: list[tuple[int, int]]) -> None:
    gone = {page for pfn, count in runs for page in range(pfn, pfn + count)}
    fits = all(is_ram(pfn * PAGE, count * PAGE) for pfn, count in runs)
    with GuestMemory(LAYOUT) as memory:
        fill(memory)
        if fits:
            memory.discard([Run(*run) for run in runs])
        for page in (0, 1, 2, 3, 4, 5, 8, 9):
            expected = 0 if fits and page in gone else 0xAA
            assert memory.peek(page * PAGE, PAGE) == bytes([expected]) * PAGE


def test_looking_at_a_hole_brings_nothing_back(ram: GuestMemory) -> None:
    ram.write(2 * PAGE, b"here")
    assert ram.peek(PAGE - 1, 2 * PAGE + 1) == bytes(PAGE + 1) + b"here" + bytes(PAGE - 4)
    assert ram.backed_bytes() == hostcalls.PAGE_BYTES
    with pytest.raises(OutsideRam):
        ram.peek(6 * PAGE - 1, 2)


def test_a_hole_that_was_only_read_costs_an_anonymous_ram_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostcalls, "create_memory_file", no_memory_file)
    with GuestMemory(LAYOUT) as memory:
        assert int(memory.view(0, 4 * PAGE).sum()) == 0
        assert memory.backed_bytes() == 0


def test_the_host_s_own_figure_falls_by_what_was_discarded() -> None:
    with GuestMemory([(0, 8 * MIB)]) as memory:
        fill(memory)
        fd = memory.fd
        assert fd is not None, "this host gave no memory file (memfd_create)"
        before = os.fstat(fd).st_blocks
        memory.discard([Run(256, 512)])
        assert (before - os.fstat(fd).st_blocks) * 512 == 2 * MIB


# -- other hosts -----------------------------------------------------------------------------------------------------


def refused(*_arguments: object, **_options: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate"])
def test_a_host_that_refuses_the_memory_file_gets_anonymous_ram(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, call, refused)
    with GuestMemory(LAYOUT) as memory:
        assert memory.fd is None
        memory.write(HIGH, b"works")
        assert memory.read(HIGH, 5) == b"works"
        assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_host_without_memfd_create_gets_anonymous_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with GuestMemory(LAYOUT) as memory:
        assert memory.fd is None


@pytest.mark.parametrize("missing", [None, refused])
def test_a_host_that_cannot_punch_holes_gets_anonymous_ram(
    monkeypatch: pytest.MonkeyPatch, missing: object | None
) -> None:
    monkeypatch.setattr(hostcalls, "_fallocate", None if missing is None else lambda *_arguments: -1)
    with GuestMemory(LAYOUT) as memory:
        assert memory.fd is None
        memory.write(0, b"x")
        memory.discard([Run(0, 1)])
        assert memory.backed_bytes() == 0


def test_where_madvise_is_refused_the_hole_is_punched(monkeypatch: pytest.MonkeyPatch) -> None:
    with GuestMemory([(0, MIB), (2 * MIB, MIB)]) as memory:
        fill(memory)
        monkeypatch.setattr(mmap, "MADV_REMOVE", -1)
        memory.discard([Run(513, 2)])
        assert memory.backed_bytes() == 2 * MIB - 2 * PAGE
        assert memory.peek(2 * MIB, 4 * PAGE) == b"\xaa" * PAGE + bytes(2 * PAGE) + b"\xaa" * PAGE


def anonymous(monkeypatch: pytest.MonkeyPatch) -> GuestMemory:
    monkeypatch.setattr(hostcalls, "create_memory_file", no_memory_file)
    return GuestMemory(LAYOUT)


def test_where_process_madvise_is_refused_runs_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with anonymous(monkeypatch) as memory:
        fill(memory)
        monkeypatch.setattr(hostcalls, "discard_anonymous_ranges", lambda _addresses, _lengths: False)
        memory.discard(np.array([0, 1, 2, 3, 4, 5, 8, 9, HIGH // PAGE], np.uint64), np.ones(9, np.uint64))
        assert memory.backed_bytes() == 3 * PAGE


@pytest.fixture
def unprobed() -> Iterator[None]:
    """Whatever the probe says in a test is forgotten before and after it."""
    hostcalls.process_madvise_works.cache_clear()
    yield
    hostcalls.process_madvise_works.cache_clear()


@pytest.mark.usefixtures("unprobed")
def test_process_madvise_is_tried_once_and_never_again_where_the_kernel_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def refuses(vectors: NDArray[np.uint64]) -> bool:
        tried.append(len(vectors))
        return False

    monkeypatch.setattr(hostcalls, "_process_madvise", refuses)
    monkeypatch.setattr(hostcalls, "create_memory_file", no_memory_file)
    with GuestMemory([(0, MIB)]) as memory:
        assert tried == [1], "it is tried when there is anonymous RAM, and not when it is needed first"
        fill(memory)
        for _ in range(3):
            assert memory.discard(np.arange(0, 100, 2, dtype=np.uint64), np.ones(50, np.uint64)) == 50 * PAGE
        assert memory.backed_bytes() == MIB - 50 * PAGE
    assert tried == [1]


@pytest.mark.usefixtures("unprobed")
def test_a_kernel_that_only_pretends_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe looks whether its page is really gone."""
    monkeypatch.setattr(hostcalls, "_process_madvise", lambda _vectors: True)
    assert not hostcalls.process_madvise_works()


def test_where_one_run_of_many_is_refused_all_holes_are_punched(monkeypatch: pytest.MonkeyPatch) -> None:
    with GuestMemory([(0, MIB), (2 * MIB, MIB)]) as memory:
        fill(memory)
        monkeypatch.setattr(mmap, "MADV_REMOVE", -1)
        assert memory.discard(np.array([513, 2, 516], np.uint64), np.array([2, 1, 3], np.uint64)) == 6 * PAGE
        assert memory.backed_bytes() == 2 * MIB - 6 * PAGE
        assert memory.peek(2 * MIB, 4 * PAGE) == b"\xaa" * PAGE + bytes(2 * PAGE) + b"\xaa" * PAGE
        assert memory.take_writes() == [(513 * PAGE, 2 * PAGE), (2 * PAGE, PAGE), (516 * PAGE, 3 * PAGE)]


@pytest.mark.parametrize("bad", [(6, 1), (5, 2), (10, 1), (0, 1 << 52), (1 << 52, 1), (1 << 60, 1 << 60)])
def test_nothing_is_discarded_when_a_run_of_two_arrays_leaves_ram(ram: GuestMemory, bad: tuple[int, int]) -> None:
    fill(ram)
    with pytest.raises(OutsideRam):
        ram.discard(np.array([0, bad[0]], np.uint64), np.array([1, bad[1]], np.uint64))
    assert ram.backed_bytes() == ram.size_bytes
    assert ram.take_writes() == []


def test_a_run_of_two_arrays_may_cross_adjoining_regions(ram: GuestMemory) -> None:
    fill(ram)
    assert ram.discard(np.array([3, 8], np.uint64), np.array([3, 1], np.uint64)) == 4 * PAGE
    assert ram.backed_bytes() == 8 * PAGE


@pytest.mark.parametrize("fake", ["pidfd_open", "constant"])
def test_a_refused_process_madvise_says_so(monkeypatch: pytest.MonkeyPatch, fake: str) -> None:
    if fake == "pidfd_open":
        monkeypatch.setattr(os, "pidfd_open", refused)
    else:
        monkeypatch.setattr(hostcalls, "_SYS_PROCESS_MADVISE", -1)
    assert not hostcalls.discard_anonymous_ranges(np.zeros(1, np.uint64), np.full(1, PAGE, np.uint64))


def test_without_a_pagemap_residence_comes_from_mincore(monkeypatch: pytest.MonkeyPatch) -> None:
    with anonymous(monkeypatch) as memory:
        memory.write(PAGE, b"x")
        memory.write(HIGH + PAGE, b"y")
        monkeypatch.setattr(hostcalls, "open", refused, raising=False)
        assert memory.backed_bytes() == 2 * hostcalls.PAGE_BYTES
        assert memory.peek(PAGE, 1) == b"x"


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 65536), (4096, 65536), (4096, 8192), (61440, 8192), (4096, 3 * 65536), (65536, 65536)]
)
def test_on_a_host_with_larger_pages_a_discard_clears_exactly_its_range(
    monkeypatch: pytest.MonkeyPatch, offset: int, length: int
) -> None:
    monkeypatch.setattr(hostcalls, "PAGE_BYTES", 65536)
    for memory_file in (hostcalls.create_memory_file, no_memory_file):
        monkeypatch.setattr(hostcalls, "create_memory_file", memory_file)
        with GuestMemory([(0, 4 * 65536)]) as memory:
            fill(memory)
            memory.discard([Run(offset // PAGE, length // PAGE)])
            expected = bytearray(b"\xaa" * 4 * 65536)
            expected[offset : offset + length] = bytes(length)
            assert memory.read(0, 4 * 65536) == expected


def test_more_address_space_than_the_host_has_is_the_user_s_mistake() -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=r"^the host cannot map 1073741824 MiB of guest RAM: "):
        GuestMemory([(0, MIB), (HIGH, 1 << 50)])
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_large_ram_costs_nothing_until_it_is_touched() -> None:
    with GuestMemory([(0, 0xA0000), (MIB, 3 << 30), (HIGH, 60 << 30)]) as memory:
        memory.write(HIGH + (60 << 30) - 4, b"last")
        assert memory.peek(HIGH + (60 << 30) - 4, 4) == b"last"
        assert memory.backed_bytes() == hostcalls.PAGE_BYTES
        assert memory.size_bytes == 0xA0000 + (63 << 30)


def test_a_peek_of_the_memory_file_goes_on_after_a_short_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with GuestMemory(LAYOUT) as memory:
        memory.write(10, b"0123456789")
        whole = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, length, offset: whole(fd, min(length, 3), offset))
        assert memory.peek(10, 10) == b"0123456789"
        monkeypatch.setattr(os, "pread", lambda fd, length, offset: b"")
        with pytest.raises(OSError, match="the memory file ends before 0x14"):
            memory.peek(10, 10)
