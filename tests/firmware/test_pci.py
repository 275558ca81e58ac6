"""PCI enumeration: sizes are measured, addresses given, decoding switched on (PCI 3.0 §6.2.5.1)."""

from __future__ import annotations

import re

import pytest

from devices.pci.config import COMMAND_BUS_MASTER, COMMAND_IO, COMMAND_MEMORY, Bar, BarKind, Identity
from devices.pci.function import BarRegion, PciFunction
from tests.firmware.lab import MIB, Lab

MEMORY_WINDOW = (0xE0000000, 0xFEC00000)
IO_WINDOW = (0xC000, 0x10000)
IDENTITY = Identity(vendor_id=0x1234, device_id=0x5678, revision=1, class_code=0x00FF00)


def function(slot: int, *bars: Bar) -> PciFunction:
    return PciFunction(slot, f"device{slot}", IDENTITY, bars=bars)


def memory(index: int, size: int) -> Bar:
    return Bar(index, size, BarKind.MEMORY32)


def memory64(index: int, size: int) -> Bar:
    return Bar(index, size, BarKind.MEMORY64)


def io(index: int, size: int) -> Bar:
    return Bar(index, size, BarKind.IO)


def placed(*functions: PciFunction) -> tuple[list[BarRegion], Lab]:
    with Lab(functions=functions) as lab:
        lab.run()
    return [region for function in functions for region in function.bar_regions()], lab


MIXED = (
    (memory64(0, 16), memory(2, 0x1000), memory64(4, 0x4000)),
    (io(0, 4), memory(1, MIB), io(2, 256), memory(5, 16)),
    (memory64(0, 64 * MIB), io(5, 4096)),
    (io(0, 128), memory64(2, 2 * MIB)),
)


def test_every_register_gets_an_aligned_range_of_its_own() -> None:
    regions, _ = placed(*(function(slot, *bars) for slot, bars in enumerate(MIXED, start=3)))
    assert len(regions) == sum(map(len, MIXED))
    for space, (start, end) in (("memory", MEMORY_WINDOW), ("port", IO_WINDOW)):
        ranges = sorted((r.base, r.base + r.length) for r in regions if r.space == space)
        assert ranges[0][0] == start
        assert ranges[-1][1] <= end
        assert all(base % (limit - base) == 0 for base, limit in ranges)
        assert all(later >= limit for (later, _), (_, limit) in zip(ranges[1:], ranges, strict=False))


def test_decoding_is_on_where_it_is_needed_and_bus_mastering_is_left_off() -> None:
    both, only_memory, only_io, none = (
        function(1, io(0, 16), memory(1, 16)),
        function(2, memory(0, 16)),
        function(3, io(0, 16)),
        function(4),
    )
    placed(both, only_memory, only_io, none)
    commands = [f.config["command"] & (COMMAND_IO | COMMAND_MEMORY) for f in (both, only_memory, only_io, none)]
    assert commands == [COMMAND_IO | COMMAND_MEMORY, COMMAND_MEMORY, COMMAND_IO, 0]
    assert not any(f.config["command"] & COMMAND_BUS_MASTER for f in (both, only_memory, only_io, none))


def test_each_function_is_a_line_with_its_ranges() -> None:
    _, lab = placed(function(0x1F, memory64(0, 0x4000), io(3, 32)))
    assert "pci 00:1f.0 1234:5678 bar0 mem e0000000h+4000h bar3 io c000h+20h" in lab.lines


def test_a_range_that_does_not_fit_is_named_and_stays_off() -> None:
    regions, lab = placed(function(3, memory64(0, 1 << 30), io(2, 64)))
    assert [r.space for r in regions] == ["port"]
    assert re.search(r"bar0 40000000h does not fit", lab.console)


@pytest.mark.parametrize("size", [1 << 32, 1 << 40])
def test_a_range_of_more_than_4_gib_is_measured_right(size: int) -> None:
    regions, lab = placed(function(3, memory64(0, size)))
    assert not regions
    assert f"bar0 {size:x}h does not fit" in lab.console


def test_all_functions_are_counted() -> None:
    with Lab(functions=[function(slot, memory(0, 4096)) for slot in range(1, 32)]) as lab:
        lab.run()
        assert lab.boot_info().pci_functions == 32
