"""Guest RAM in huge pages, on a host that is played (`huge_host`): mapping it, giving it back, looking at it."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import hostcalls
from devices.backing import Backing
from devices.errors import ConfigError, OutsideRam
from devices.memory import GuestMemory, Run
from devices.memory_state import MemoryState
from tests.devices.huge_host import HugeHost
from vmm.inspect import GuestRam

PAGE, MIB, HIGH = 4096, 1 << 20, 1 << 32
HUGE = 2 * MIB
PC = [(0, 0xA0000), (MIB, 6 * MIB + 5 * PAGE)]  # the first huge page has the hole of a PC, the last one ends beyond RAM
HUGE_PAGES = Backing("hugepages")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HugeHost:
    return HugeHost(monkeypatch)


def fill(memory: GuestMemory) -> None:
    for region in memory.regions:
        region.array[:] = 0xAA


# -- mapping -----------------------------------------------------------------------------------------------------------


def test_the_guest_s_ram_is_what_was_asked_for_and_the_file_is_whole_huge_pages(host: HugeHost) -> None:
    with GuestMemory(PC, backing=HUGE_PAGES) as memory:
        assert (memory.backing, memory.host_page_bytes) == ("hugepages", HUGE)
        assert [(region.gpa, region.size) for region in memory.regions] == PC
        assert memory.fd is not None and os.fstat(memory.fd).st_size == 4 * HUGE
        assert host.pages - host.spare == 4, "all of them are set aside"
        for gpa in (0xA0000, MIB - 1, 7 * MIB + 5 * PAGE):
            with pytest.raises(OutsideRam):
                memory.view(gpa, 1)


def test_regions_that_share_a_huge_page_are_two_views_of_one_mapping(host: HugeHost) -> None:
    with GuestMemory(PC, backing=HUGE_PAGES) as memory:
        low, high = memory.regions
        assert high.address - low.address == MIB
        memory.write(MIB, b"begin")
        memory.write(0x9FFFC, b"tail")
        memory.write(7 * MIB + 5 * PAGE - 4, np.frombuffer(b"last", np.uint8))
        assert memory.read(MIB, 5) == memory.peek(MIB, 5) == memory.view(MIB, 5).tobytes() == b"begin"
        assert memory.read(0x9FFFC, 4) == memory.peek(0x9FFFC, 4) == b"tail"
        assert memory.gather([0x9FFFC, MIB], [4, 4]).tobytes() == b"tailbegi"
        assert memory.read(7 * MIB + 5 * PAGE - 4, 4) == b"last"


def test_a_ram_above_4_gib_has_a_mapping_of_its_own_and_costs_nothing_between(host: HugeHost) -> None:
    with GuestMemory([*PC, (HIGH, 4 * PAGE)], backing=HUGE_PAGES) as memory:
        memory.write(HIGH + PAGE, b"high")
        assert memory.peek(HIGH + PAGE, 4) == b"high"
        assert host.pages - host.spare == 5
        assert memory.backed_bytes() == HUGE


def test_a_host_with_too_few_pages_says_how_many_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    HugeHost(monkeypatch, pages=3)
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError) as caught:
        GuestMemory(PC, backing=HUGE_PAGES)
    assert str(caught.value) == (
        "guest RAM takes 4 huge pages of 2 MiB and the host has 3 to spare: as root, "
        "'echo 4 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages' sets more aside"
    )
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_what_others_were_promised_is_not_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    HugeHost(monkeypatch, pages=5)
    with (
        GuestMemory([(0, 4 * HUGE)], backing=HUGE_PAGES),
        pytest.raises(ConfigError, match=r"takes 3 huge pages of 2 MiB and the host has 1 to spare: .*'echo 7 > /sys/"),
    ):
        GuestMemory([(0, 3 * HUGE)], backing=HUGE_PAGES)


def test_a_size_that_the_host_does_not_have(host: HugeHost) -> None:
    with pytest.raises(ConfigError, match=r"^the host has no huge pages of 1 GiB for guest RAM, only of 2 MiB$"):
        GuestMemory(PC, backing=Backing("hugepages", 1 << 30))


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.EINVAL, "the host has no huge pages for guest RAM: its kernel does not know them"),
        (errno.EPERM, "the host refuses huge pages for guest RAM: Operation not permitted"),
    ],
)
def test_a_kernel_without_huge_pages(monkeypatch: pytest.MonkeyPatch, number: int, sentence: str) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(hostcalls, "_HUGE_POOLS", "/nowhere")
    with pytest.raises(ConfigError) as caught:
        GuestMemory(PC, backing=HUGE_PAGES)
    assert str(caught.value) == sentence


def test_the_pools_are_read_from_the_kernel(tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for kib, numbers in ((2048, (12, 7, 3)), (1048576, (1, 1, 0))):
        folder = os.path.join(tmp_path, f"hugepages-{kib}kB")
        os.mkdir(folder)
        for name, number in zip(("nr", "free", "resv"), numbers, strict=True):
            with open(os.path.join(folder, f"{name}_hugepages"), "w") as file:
                file.write(f"{number}\n")
    monkeypatch.setattr(hostcalls, "_HUGE_POOLS", str(tmp_path))
    assert hostcalls.huge_page_pools() == {2 << 20: (12, 4), 1 << 30: (1, 1)}


def test_the_kernel_is_asked_for_huge_pages_of_the_size_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """memfd_create(2): MFD_HUGETLB is 4, and the size's logarithm is from bit 26 on."""
    asked: list[int] = []

    def refuse(name: str, flags: int) -> int:
        asked.append(flags & ~os.MFD_CLOEXEC)
        raise OSError(errno.ENODEV, "no")

    monkeypatch.setattr(os, "memfd_create", refuse)
    for size in (0, 2 << 20, 1 << 30):
        with pytest.raises(ConfigError):
            GuestMemory(PC, backing=Backing("hugepages", size))
    assert asked == [4, 4 | 21 << 26, 4 | 30 << 26]


def test_anonymous_memory_may_be_asked_for() -> None:
    with GuestMemory(PC, backing=Backing("anonymous")) as memory:
        assert (memory.backing, memory.fd, memory.host_page_bytes) == ("anonymous", None, hostcalls.PAGE_BYTES)
        fill(memory)
        memory.discard([Run(0x100, 2)])
        assert memory.backed_bytes() == memory.size_bytes - 2 * PAGE


# -- giving back -------------------------------------------------------------------------------------------------------


def test_whole_pages_of_the_host_go_back_and_the_rest_is_cleared(host: HugeHost) -> None:
    with GuestMemory(PC, backing=HUGE_PAGES) as memory:
        fill(memory)
        assert memory.backed_bytes() == 4 * HUGE
        assert memory.discard([Run(0x1FF, 0x202)]) == HUGE
        assert host.holes == [1]
        assert memory.backed_bytes() == 3 * HUGE
        assert memory.peek(0x1FE * PAGE, PAGE) == memory.peek(0x401 * PAGE, PAGE) == b"\xaa" * PAGE
        assert memory.peek(0x1FF * PAGE, 0x202 * PAGE) == bytes(0x202 * PAGE)
        assert memory.take_writes() == [(0x1FF * PAGE, 0x202 * PAGE)]


def test_clearing_brings_no_page_into_being(host: HugeHost) -> None:
    with GuestMemory(PC, backing=HUGE_PAGES) as memory:
        assert memory.discard([Run(0x210, 4), Run(0x9F, 1), Run(0x100, 3)]) == 0
        assert memory.backed_bytes() == 0
        assert memory.peek(0, 0xA0000) == bytes(0xA0000)
        assert memory.backed_bytes() == 0


UNIT = 4
ODD = [(0, 0x7000), (0x9000, 0x2000), (0xD000, 0x16000)]
RAM = {pfn for gpa, size in ODD for pfn in range(gpa >> 12, gpa + size >> 12)}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(RAM)), st.integers(0, 14)), max_size=6),
    st.sets(st.sampled_from(sorted(RAM))),
    st.sampled_from(("runs", "arrays", "one by one")),
)
def test_exactly_the_pages_of_the_runs_are_zeros_and_exactly_the_whole_ones_are_gone(
    wanted: list[tuple[int, int]], written: set[int], how: str
) -> None:
    runs = [(pfn, count) for pfn, count in wanted if {*range(pfn, pfn + count)} <= RAM]
    gone = {pfn for pfn, count in runs for pfn in range(pfn, pfn + count)}
    numbers = {
        number
        for number in {pfn // UNIT for pfn in gone}
        if (parts := {*range(number * UNIT, (number + 1) * UNIT)} & RAM) <= gone
        and (len(parts) < UNIT or any(parts <= {*range(pfn, pfn + count)} for pfn, count in runs))
    }
    with pytest.MonkeyPatch.context() as patch:
        host = HugeHost(patch, UNIT * PAGE)
        with GuestMemory(ODD, backing=HUGE_PAGES) as memory:
            for pfn in written:
                memory.write(pfn * PAGE, b"\xaa" * PAGE)
            if how == "runs":
                memory.discard([Run(*run) for run in runs])
            elif how == "arrays":
                memory.discard([pfn for pfn, _ in runs], [count for _, count in runs])
            else:
                for pfn, count in runs:
                    memory.discard_run(pfn, count)
            assert memory.fd is not None
            assert host.backed(memory.fd) == {pfn // UNIT for pfn in written} - numbers
            assert set(host.holes) == numbers
            for pfn in RAM:
                expected = 0xAA if pfn in written - gone else 0
                assert memory.peek(pfn * PAGE, PAGE) == bytes([expected]) * PAGE


def test_on_a_host_whose_own_pages_are_larger_parts_of_them_are_cleared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory file there is no file in huge pages: the kernel clears parts of its pages, also of those paged out."""
    monkeypatch.setattr(hostcalls, "PAGE_BYTES", 65536)
    with GuestMemory([(0, 4 * 65536)]) as memory:
        assert memory.host_page_bytes == 65536
        fill(memory)
        assert memory.discard([0, 20], [20, 1]) == 65536
        assert memory.peek(0, 21 * PAGE) == bytes(21 * PAGE)
        assert memory.peek(21 * PAGE, 43 * PAGE) == b"\xaa" * 43 * PAGE


# -- looking -----------------------------------------------------------------------------------------------------------


def test_a_state_has_what_the_host_has_and_holes_stay_holes(host: HugeHost) -> None:
    with GuestMemory(PC, backing=HUGE_PAGES) as first, GuestMemory(PC, backing=HUGE_PAGES) as second:
        first.write(0x1000, b"low")
        first.write(5 * MIB, b"middle")
        state: Any = MemoryState(first).save_state()
        assert [(gpa, len(data)) for gpa, data in state["extents"]] == [(0, 0xA0000), (MIB, MIB), (4 * MIB, HUGE)]
        assert first.backed_bytes() == 2 * HUGE
        fill(second)
        MemoryState(second).check_state(state, "memory")
        MemoryState(second).restore_state(state)
        assert second.backed_bytes() == 2 * HUGE
        assert MemoryState(second).save_state()["extents"] == state["extents"]


@pytest.mark.parametrize("way", ["into huge pages", "out of huge pages"])
def test_a_state_may_go_to_ram_with_another_backing(host: HugeHost, way: str) -> None:
    with GuestMemory(PC, backing=HUGE_PAGES) as huge, GuestMemory(PC) as small:
        source, target = (small, huge) if way == "into huge pages" else (huge, small)
        source.write(3 * MIB + 7, b"here")
        fill(target)
        state: Any = MemoryState(source).save_state()
        MemoryState(target).check_state(state, "memory")
        MemoryState(target).restore_state(state)
        for gpa, size in PC:
            assert target.peek(gpa, size) == source.peek(gpa, size)
        assert target.backed_bytes() == (HUGE if target is huge else len(state["extents"][0][1]))


def test_another_process_finds_where_ram_is(host: HugeHost) -> None:
    """The memory map shows whole huge pages only."""
    with GuestMemory([*PC, (HIGH, HUGE)], name="huge-ram", backing=HUGE_PAGES) as memory:
        memory.write(MIB + 3, b"seen")
        memory.write(HIGH, b"high")
        with GuestRam.attach(os.getpid(), name="huge-ram") as ram:
            assert [(region.gpa, region.size) for region in ram.regions] == [*PC, (HIGH, HUGE)]
            assert [region.address for region in ram.regions] == [region.address for region in memory.regions]
            assert ram.peek(MIB + 3, 4) == ram.view(MIB + 3, 4).tobytes() == b"seen"
            assert ram.view(HIGH, 4).tobytes() == b"high"
            assert ram.backed_bytes() == memory.backed_bytes() == 2 * HUGE
            for gpa in (0xA0000, 7 * MIB + 5 * PAGE):
                with pytest.raises(OutsideRam):
                    ram.peek(gpa, 1)


def test_writes_are_tracked_by_whole_mappings(host: HugeHost) -> None:
    """Of real huge pages a written one counts as written in all its parts; here the kernel's own pages are 4 KiB."""
    with GuestMemory(PC, backing=HUGE_PAGES) as memory:
        fill(memory)
        tracking = memory.track_writes()
        if why := tracking.start():
            assert "does not tell" in why  # a kernel before 6.7: nothing counts as unwritten
        memory.write(0x300 * PAGE, b"1")
        starts, counts = tracking.unwritten(np.array([0x200], np.uint64), np.array([0x200], np.uint64))
        found = list(zip(starts.tolist(), counts.tolist(), strict=True))
        assert found == ([] if why else [(0x200, 0x100), (0x301, 0xFF)])
        tracking.stop()
