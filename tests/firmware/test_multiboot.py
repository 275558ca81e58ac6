"""A Multiboot kernel's memory map does not offer the pages of the ACPI tables (Multiboot 0.6.96 §3.3)."""

from __future__ import annotations

import struct

import pytest

from tests.firmware.acpi.board import files
from tests.firmware.lab import EXECUTABLE, HLT, KIB, MIB, READABLE, WRITABLE, Lab, Segment, describe

INFORMATION, MAP = 0x20000, 0x20080
PAYLOAD = "opt/balloon-vmm/payload"
LOW, HIGH = (0, 640 * KIB), (MIB, 15 * MIB)
CLAIMED = 0x1000  # of the segment with the boot information


def information(flags: int, map_gpa: int, ranges: list[tuple[int, int, int]]) -> bytes:
    entries = b"".join(struct.pack("<IQQI", 20, *entry) for entry in ranges)
    head = struct.pack("<III", flags, 640, 15 * 1024).ljust(44, b"\0") + struct.pack("<II", len(entries), map_gpa)
    return head.ljust(MAP - INFORMATION, b"\0") + entries


def boot(data: bytes, tables: bool = True, layout: tuple[tuple[int, int], ...] = (LOW, HIGH)) -> bytes:
    """The boot information as the kernel finds it."""
    entry = MIB if len(layout) > 1 else 0x30000
    segments = (
        Segment(INFORMATION, CLAIMED, READABLE | WRITABLE, data),
        Segment(entry, 4096, READABLE | WRITABLE | EXECUTABLE, HLT),
    )
    payload = describe(entry, segments, flags=1) + struct.pack("<Q", INFORMATION)
    with Lab(layout, segments, files={PAYLOAD: payload, **(files() if tables else {})}) as lab:
        lab.run()
        assert lab.cpu.registers()["rbx"] == INFORMATION, lab.console
        return lab.memory.read(INFORMATION, len(data))


def ranges_in(data: bytes) -> list[tuple[int, int, int]]:
    return [entry[1:] for entry in struct.iter_unpack("<IQQI", data[MAP - INFORMATION :])]


def totals(data: bytes) -> tuple[int, int]:
    lower, upper = struct.unpack_from("<II", data, 4)
    return lower, upper


MAP_OF_16_MIB = [(*LOW, 1), (0xF0000, 0x10000, 2), (*HIGH, 1), (0xC0000000, 0x10000000, 2)]


def test_usable_memory_ends_where_the_tables_begin() -> None:
    before = information(0x41, MAP, MAP_OF_16_MIB)
    assert boot(before, tables=False) == before
    after = boot(before)
    (base, length, _) = ranges_in(after)[2]
    end = base + length
    assert base == MIB and 14 * MIB < end <= 16 * MIB - 2 * 4096 and end % 4096 == 0
    assert totals(after) == (640, (end - MIB) // KIB)
    assert [entry for n, entry in enumerate(ranges_in(after)) if n != 2] == [MAP_OF_16_MIB[n] for n in (0, 1, 3)]


def test_conventional_memory_alone_ends_there_too() -> None:
    after = boot(information(0x41, MAP, [(*LOW, 1)]), layout=(LOW,))
    ((base, length, _),) = ranges_in(after)
    assert base == 0 and 0x31000 < length <= 640 * KIB - 2 * 4096
    assert totals(after) == (length // KIB, 15 * 1024)


@pytest.mark.parametrize("map_gpa", [0x4000, 0x20FF0, 0xFFFFFFF0, 0x200000])
def test_a_map_outside_the_boot_information_s_segment_is_left_alone(map_gpa: int) -> None:
    after = boot(information(0x41, map_gpa, MAP_OF_16_MIB))
    assert ranges_in(after) == MAP_OF_16_MIB


def test_what_the_flags_do_not_promise_is_left_alone() -> None:
    before = information(0, MAP, MAP_OF_16_MIB)
    assert boot(before) == before
