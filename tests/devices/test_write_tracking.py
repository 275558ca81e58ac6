"""Which pages nobody has written: proved by the host's page tables, or not claimed at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from devices import hostcalls
from devices.errors import ConfigError
from devices.memory import GuestMemory, Run
from devices.write_tracking import WriteTracking

PAGE = 4096
LAYOUT = ((0, 8 * PAGE), (0x100000, 64 * PAGE))
MADV_PAGEOUT = 21


def kernel_tracks_writes() -> bool:
    try:
        os.close(hostcalls.open_write_watch())
    except OSError:
        return False
    return True


needs_tracking = pytest.mark.skipif(not kernel_tracks_writes(), reason="this kernel does not track writes")


@pytest.fixture(params=["memfd", "anonymous"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[GuestMemory]:
    """RAM of both kinds; every page of it holds something but the last ten."""
    if request.param == "anonymous":
        monkeypatch.setattr(hostcalls, "create_memory_file", lambda name, size: None)
    with GuestMemory(LAYOUT) as made:
        made.write(0, b"\x5a" * (8 * PAGE))
        made.write(0x100000, b"\x5a" * (54 * PAGE))
        yield made


@pytest.fixture
def tracking(memory: GuestMemory) -> Iterator[WriteTracking]:
    made = memory.track_writes()
    assert made.start() == ""
    yield made
    made.stop()


def open_files() -> list[str]:
    """What this process has open of the two kinds that the tracking uses, and of the stand-in for an older kernel."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing itself is one of them
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(name for name in found if name.endswith(("[userfaultfd]", "/pagemap", "/dev/null")))


EVERYTHING = {*range(8), *range(0x100, 0x140)}


def unwritten(tracking: WriteTracking, *runs: tuple[int, int]) -> set[int]:
    """The pages of the runs (of all RAM) that are proved to be unwritten."""
    asked = runs or ((0, 8), (0x100, 64))
    starts, counts = tracking.unwritten(*(np.array(column, np.uint64) for column in zip(*asked, strict=True)))
    assert starts.dtype == counts.dtype == np.uint64
    ends = starts + counts
    assert (starts[1:] >= ends[:-1]).all(), "ascending"
    return {pfn for first, last in zip(starts.tolist(), ends.tolist(), strict=True) for pfn in range(first, last)}


@needs_tracking
def test_at_first_no_page_was_written_whether_it_was_there_or_not(tracking: WriteTracking) -> None:
    assert tracking.active
    assert unwritten(tracking) == EVERYTHING
    assert unwritten(tracking, (2, 3), (0x13F, 1)) == {2, 3, 4, 0x13F}


@needs_tracking
def test_every_way_of_writing_shows(memory: GuestMemory, tracking: WriteTracking) -> None:
    memory.write(0x1FFF, b"\1\1")  # across a border
    memory.write_int(0x100FFE, 2, 1)
    memory.view(0x105000, 1)[0] = 1
    memory.scatter([0x110000, 0x120000], [1, 1], b"ab")
    memory.region_of(0x130000, 1).mapping[0x30000:0x30001] = b"x"  # type: ignore[union-attr]
    reader, writer = os.pipe()
    os.write(writer, b"by the kernel")
    os.readv(reader, [memory.view(0x13F000, 13).data])
    os.close(reader)
    os.close(writer)
    assert EVERYTHING - unwritten(tracking) == {1, 2, 0x100, 0x105, 0x110, 0x120, 0x130, 0x13F}


@needs_tracking
def test_reading_is_no_writing(memory: GuestMemory, tracking: WriteTracking) -> None:
    for gpa, size in LAYOUT:
        assert memory.read(gpa, size).count(b"\x5a") in (8 * PAGE, 54 * PAGE)
        memory.peek(gpa, size)
    assert unwritten(tracking) == EVERYTHING


@needs_tracking
def test_a_page_that_was_given_back_and_written_again_counts_as_written(
    memory: GuestMemory, tracking: WriteTracking
) -> None:
    memory.discard([Run(0x100, 4)])
    memory.write(0x101000, b"1")
    assert unwritten(tracking) & {0x101} == set()
    assert EVERYTHING - unwritten(tracking) <= {0x100, 0x101, 0x102, 0x103}, "unknown counts as written, others stay"


@needs_tracking
def test_regression_a_written_page_that_was_paged_out_is_not_taken_for_unwritten(
    memory: GuestMemory, tracking: WriteTracking
) -> None:
    """Its page table entry is empty then; the kernel's "written" is not set in an empty entry."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for pfn in range(0x100, 0x120):
        memory.write(pfn * PAGE, b"\x77")
    region = memory.region_of(0x100000, 1)
    assert region is not None
    libc.madvise(region.address, region.size, MADV_PAGEOUT)  # does nothing on a host without swap
    assert unwritten(tracking) & set(range(0x100, 0x120)) == set()
    memory.read(0x100000, region.size)
    assert unwritten(tracking) & set(range(0x100, 0x120)) == set()


@needs_tracking
def test_starting_again_forgets_and_stopping_knows_nothing(memory: GuestMemory, tracking: WriteTracking) -> None:
    memory.write(0x100000, b"1")
    assert tracking.start() == ""
    assert unwritten(tracking) == EVERYTHING
    tracking.stop()
    tracking.stop()
    assert not tracking.active
    assert unwritten(tracking) == set()
    assert memory.read(0x100000, 1) == b"1"


@needs_tracking
def test_a_second_watcher_of_the_same_memory_is_told_so(memory: GuestMemory, tracking: WriteTracking) -> None:
    other = memory.track_writes()
    assert "the host does not tell which pages of guest RAM are written" in other.start()
    assert not other.active
    memory.write(0x100000, b"1")
    assert EVERYTHING - unwritten(tracking) == {0x100}, "the first one goes on"


@needs_tracking
def test_more_runs_than_one_call_of_the_host_gives() -> None:
    with GuestMemory([(0, 4096 * PAGE)]) as large:
        tracking = large.track_writes()
        assert tracking.start() == ""
        large.view(0, 4096 * PAGE)[:: 2 * PAGE] = 1
        starts, counts = tracking.unwritten(np.array([0], np.uint64), np.array([4096], np.uint64))
        assert starts.tolist() == list(range(1, 4096, 2)) and set(counts.tolist()) == {1}
        tracking.stop()


@needs_tracking
def test_nothing_of_it_is_left_open(memory: GuestMemory) -> None:
    gc.collect()
    before = open_files()
    tracking = memory.track_writes()
    tracking.start()
    tracking.start()
    assert len(open_files()) == len(before) + 2
    del tracking
    assert open_files() == before


# -- hosts that cannot -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EINVAL])
def test_a_host_without_it_says_why_and_proves_nothing(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse() -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hostcalls, "open_write_watch", refuse)
    tracking = memory.track_writes()
    reason = tracking.start()
    assert os.strerror(number) in reason and "Linux 6.7" in reason
    assert not tracking.active
    assert unwritten(tracking) == set()
    assert tracking.save_state() == {"unwritten": None}


def test_a_kernel_that_answers_the_system_call_with_an_error_is_one_without_it(
    monkeypatch: pytest.MonkeyPatch, memory: GuestMemory
) -> None:
    """At the boundary itself: userfaultfd is refused, as in a container without it."""

    class Refusing:
        @staticmethod
        def syscall(*_arguments: int) -> int:
            ctypes.set_errno(errno.ENOSYS)
            return -1

    monkeypatch.setattr(hostcalls, "_libc", Refusing)
    assert "Function not implemented" in memory.track_writes().start()


def test_a_kernel_that_knows_userfaultfd_but_not_this_use_of_it_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, memory: GuestMemory
) -> None:
    class Older:
        @staticmethod
        def syscall(*_arguments: int) -> int:
            return os.open("/dev/null", os.O_RDONLY)  # its ioctls answer with an error

    gc.collect()
    before = open_files()
    monkeypatch.setattr(hostcalls, "_libc", Older)
    assert memory.track_writes().start() != ""
    assert open_files() == before


# -- its state ---------------------------------------------------------------------------------------------------------


@needs_tracking
def test_what_was_written_before_a_state_was_saved_is_known_after_it_is_put_back(
    memory: GuestMemory, tracking: WriteTracking
) -> None:
    memory.write(0x101000, b"1")
    state = tracking.save_state()
    tracking.stop()
    tracking.check_state(state, "tracking")
    tracking.restore_state(state)
    assert tracking.save_state() == state
    memory.write(0x103000, b"1")
    assert EVERYTHING - unwritten(tracking) == {0x101, 0x103}
    tracking.restore_state({"unwritten": None})
    assert not tracking.active


@needs_tracking
def test_a_host_that_cannot_go_on_watching_proves_nothing(
    memory: GuestMemory, tracking: WriteTracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tracking.save_state()

    def refuse() -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(hostcalls, "open_write_watch", refuse)
    tracking.restore_state(state)
    assert unwritten(tracking) == set()


@pytest.mark.parametrize(
    ("runs", "sentence"),
    [
        ([[0, 0]], "tracking.unwritten[0] must be behind the run before it, not [0, 0]."),
        ([[0, 2], [1, 1]], "tracking.unwritten[1] must be behind the run before it, not [1, 1]."),
        ([[0, 0x141]], "tracking.unwritten[0] must be inside RAM, not [0, 321]."),
        ([[0]], "tracking.unwritten[0] must be a list of 2 entries, not [0]."),
        ("all", "tracking.unwritten must be a list, not 'all'."),
    ],
)
def test_a_state_that_does_not_fit_is_refused(memory: GuestMemory, runs: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        memory.track_writes().check_state({"unwritten": runs}, "tracking")
    assert str(refused.value).endswith(sentence)


def test_the_page_size_of_these_tests_is_the_host_s() -> None:
    assert mmap.PAGESIZE == PAGE
