"""How a guest finds the machine: docs/architecture.md, "The board"."""

from __future__ import annotations

import pytest

import firmware
from tests.firmware.lab import (
    BOOT_INFO,
    EXECUTABLE,
    GIB,
    HLT,
    KIB,
    MIB,
    READABLE,
    WRITABLE,
    Lab,
    Segment,
    e820,
)
from vmm.cpu import ExitReason

MIB_1 = ((0, 640 * KIB),)
MIB_64 = ((0, 640 * KIB), (MIB, 63 * MIB))
GIB_5 = ((0, 640 * KIB), (MIB, 3 * GIB - MIB), (4 * GIB, 2 * GIB))
LOW_GUEST = (
    Segment(0x10000, 0x2000, READABLE | EXECUTABLE, HLT),
    Segment(0x12000, 0x1000, READABLE),
    Segment(0x13000, 0x5000, READABLE | WRITABLE),
)
MEMORIES = pytest.mark.parametrize("layout", [MIB_1, MIB_64, GIB_5], ids=["1M", "64M", "5G"])
USABLE, RESERVED, IMAGE, PAGE_TABLES = 1, 2, 3, 4

CR0_PG, CR0_WP, CR0_EM = 1 << 31, 1 << 16, 1 << 2
CR4_PAE, CR4_OSFXSR = 1 << 5, 1 << 9
EFER_LMA, EFER_NXE = 1 << 10, 1 << 11
FLAGS_IF = 1 << 9
RSP_AT_ENTRY_OF_A_FUNCTION = 8  # modulo 16, System V ABI


def low_guest(layout: tuple[tuple[int, int], ...] = MIB_64, power_on_pattern: bytes = b"\0") -> Lab:
    return Lab(layout, LOW_GUEST, entry=0x10000, cmdline=b"ticks=5\0", power_on_pattern=power_on_pattern)


@MEMORIES
def test_a_guest_is_entered_in_long_mode_with_interrupts_off(layout: tuple[tuple[int, int], ...]) -> None:
    with low_guest(layout) as lab:
        exit_ = lab.run()
        registers = lab.cpu.registers()
    assert exit_.reason is ExitReason.HALTED and not exit_.interrupts_enabled, lab.console
    assert registers["rip"] == 0x10001  # behind the HLT
    assert registers["efer"] & (EFER_LMA | EFER_NXE) == EFER_LMA | EFER_NXE
    assert registers["cr0"] & (CR0_PG | CR0_WP | CR0_EM) == CR0_PG | CR0_WP
    assert registers["cr4"] & (CR4_PAE | CR4_OSFXSR) == CR4_PAE | CR4_OSFXSR
    assert not registers["rflags"] & FLAGS_IF
    assert registers["rsp"] % 16 == RSP_AT_ENTRY_OF_A_FUNCTION
    assert registers["rsp"] < 0x10000


@MEMORIES
def test_the_boot_information_describes_all_memory(layout: tuple[tuple[int, int], ...]) -> None:
    with low_guest(layout) as lab:
        lab.run()
        info = lab.boot_info()
    assert (info.magic, info.version, info.size) == (b"BVMMBOOT", 1, BOOT_INFO.size)
    assert info.cmdline == b"ticks=5"
    assert info.image == (0x10000, 0x18000)
    assert info.pci_functions == 1
    assert info.ram_bytes == sum(size for _, size in layout)

    ends = [base + length for base, length, _ in info.memory_map]
    starts = [base for base, _, _ in info.memory_map]
    assert all(length for _, length, _ in info.memory_map)
    assert all(start >= end for start, end in zip(starts[1:], ends, strict=False)), "ascending, without overlap"
    for gpa, size in layout:
        inside = sum(length for base, length, _ in info.memory_map if gpa <= base < gpa + size)
        assert inside == size, f"the RAM at {gpa:#x} is told completely"


@MEMORIES
def test_memory_in_use_is_not_usable(layout: tuple[tuple[int, int], ...]) -> None:
    with low_guest(layout) as lab:
        lab.run()
        info = lab.boot_info()
        tables = lab.cpu.registers()["cr3"]
    low_end = max(gpa + size for gpa, size in layout if gpa < 4 * GIB)
    types = {kind: [(base, base + length) for base, length, k in info.memory_map if k == kind] for kind in range(1, 5)}
    assert (0, 0x10000) in types[RESERVED]
    assert types[IMAGE] == [(0x10000, 0x18000)]
    assert [end for _, end in types[PAGE_TABLES]] == [low_end]
    assert types[PAGE_TABLES][0][0] <= tables < low_end


@MEMORIES
def test_pages_have_their_segments_rights_and_the_rest_is_no_execute(layout: tuple[tuple[int, int], ...]) -> None:
    with low_guest(layout) as lab:
        lab.run()
        for segment in LOW_GUEST:
            for gpa in range(segment.base, segment.base + segment.length, 4096):
                rights = bool(segment.flags & WRITABLE), bool(segment.flags & EXECUTABLE)
                assert lab.page(gpa) == (gpa, *rights), hex(gpa)
        for start, size in layout:
            for gpa in (start, start + size // 2 & ~0xFFF, start + size - 4096):
                assert lab.page(gpa) == (gpa, True, False), hex(gpa)
        for gpa in (0xC0000000, 0xE0000000, 0xFEBFF000, 0xFEE00000):
            assert lab.page(gpa) == (gpa, True, False), hex(gpa)


def test_the_firmware_itself_can_be_executed_but_not_written() -> None:
    with low_guest() as lab:
        lab.run()
        assert lab.page(0xFFFF0000) == (0xFFFF0000, False, True)
        assert lab.page(0xFFFFF000) == (0xFFFFF000, False, True)
        assert lab.page(0xFFFEF000) == (0xFFFEF000, True, False)


def test_where_nothing_is_nothing_is_mapped() -> None:
    with low_guest() as lab:
        lab.run()
        assert lab.page(0x80000000) is None
        assert lab.page(4 * GIB) is None


def test_segments_that_share_a_page_share_their_rights() -> None:
    segments = (
        Segment(MIB, 0x1800, READABLE | EXECUTABLE, HLT),
        Segment(MIB + 0x1800, 0x1000, READABLE | WRITABLE),
    )
    with Lab(segments=segments) as lab:
        lab.run()
        assert lab.page(MIB) == (MIB, False, True)
        assert lab.page(MIB + 0x1000) == (MIB + 0x1000, True, True)
        assert lab.page(MIB + 0x2000) == (MIB + 0x2000, True, False)


def test_a_segment_of_many_megabytes_has_its_rights_everywhere() -> None:
    segments = (Segment(MIB, 4096, READABLE | EXECUTABLE, HLT), Segment(3 * MIB, 9 * MIB, READABLE))
    with Lab(layout=MIB_64, segments=segments) as lab:
        lab.run()
        for gpa in range(3 * MIB, 12 * MIB, 64 * KIB):
            assert lab.page(gpa) == (gpa, False, False), hex(gpa)
        assert lab.page(3 * MIB - 4096) == (3 * MIB - 4096, True, False)
        assert lab.page(12 * MIB) == (12 * MIB, True, False)


def test_what_ram_held_at_power_on_does_not_matter() -> None:
    with low_guest() as clean, low_guest(power_on_pattern=b"\xff") as dirty:
        clean.run()
        dirty.run()
        assert dirty.boot_info() == clean.boot_info()
        assert dirty.console == clean.console


def test_memory_the_host_reserves_is_reserved() -> None:
    ranges = e820((0, 640 * KIB, USABLE), (MIB, 7 * MIB, USABLE), (8 * MIB, 8 * MIB, RESERVED))
    with Lab(files={"etc/e820": ranges}) as lab:
        lab.run()
        info = lab.boot_info()
    assert (8 * MIB, 8 * MIB, RESERVED) in info.memory_map
    assert info.ram_bytes == 640 * KIB + 7 * MIB


def test_the_pc_hole_is_cut_out_of_a_map_that_ignores_it() -> None:
    """QEMU's etc/e820 has one entry from 0 on."""
    with Lab(files={"etc/e820": e820((0, 16 * MIB, USABLE))}) as lab:
        lab.run()
        info = lab.boot_info()
    assert (0xA0000, 0x60000, RESERVED) in info.memory_map
    assert info.ram_bytes == 16 * MIB - 0x60000


def test_ranges_may_come_in_any_order() -> None:
    with Lab(files={"etc/e820": e820((MIB, 15 * MIB, USABLE), (0, 640 * KIB, USABLE))}) as lab:
        lab.run()
        assert [base for base, _, _ in lab.boot_info().memory_map] == sorted(
            base for base, _, _ in lab.boot_info().memory_map
        )


def test_the_console_tells_the_way() -> None:
    with low_guest() as lab:
        lab.run()
    assert lab.lines == [
        f"balloon-vmm firmware {firmware.VERSION}: from the reset vector to long mode",
        "ram: 65152 KiB usable",
        "pci 00:00.0 8086:1237",
        "entering the guest at 10000h",
    ]
