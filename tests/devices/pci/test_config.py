"""Configuration space (PCI 3.0 chapter 6) as software sees it, through one small function."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.pci.config import Bar, BarKind, Capability, ConfigSpace, Field, Identity, header_fields
from devices.pci.function import PciFunction
from devices.pci.msix import MsixTable

IDENTITY = Identity(0x1234, 0x5678, 0x9A, 0x0C0330, 0xABCD, 0xEF01)
BARS = (
    Bar(0, 0x1000, BarKind.MEMORY32),
    Bar(1, 0x20, BarKind.IO),
    Bar(2, 0x4000, BarKind.MEMORY64),
)
VENDOR = Capability("vendor", 0x09, 7, (Field(2, 1, "length", 7), Field(3, 4, "scratch", 0, 0x00FF00FF)))


def function() -> PciFunction:
    return PciFunction(5, "thing", IDENTITY, bars=BARS, capabilities=[VENDOR], msix=MsixTable(3, 4), interrupt_pin=1)


def read(f: PciFunction, offset: int, size: int) -> int:
    return f.read_config(offset, size, 0)[0]


def write(f: PciFunction, offset: int, size: int, value: int) -> None:
    f.write_config(offset, size, value, 0)


def test_the_header_says_who_the_function_is() -> None:
    f = function()
    assert read(f, 0x00, 4) == 0x5678_1234
    assert read(f, 0x08, 4) == 0x0C0330_9A
    assert read(f, 0x0E, 1) == 0  # type 0, one function
    assert read(f, 0x2C, 4) == 0xEF01_ABCD
    assert read(f, 0x3D, 1) == 1  # INTA


@pytest.mark.parametrize("offset", [0x00, 0x08, 0x2C, 0x34])
def test_what_the_header_says_cannot_be_written(offset: int) -> None:
    f = function()
    before = read(f, offset, 4)
    write(f, offset, 4, ~before & 0xFFFFFFFF)
    assert read(f, offset, 4) == before


def test_6_2_2_the_command_register_holds_four_bits() -> None:
    f = function()
    assert read(f, 0x04, 2) == 0
    write(f, 0x04, 2, 0xFFFF)
    assert read(f, 0x04, 2) == 0x0407


def test_6_2_3_the_status_register_announces_the_capability_list_and_ignores_writes() -> None:
    f = function()
    write(f, 0x06, 2, 0xFFFF)
    assert read(f, 0x06, 2) == 0x0010
    assert read(PciFunction(1, "bare", IDENTITY), 0x06, 2) == 0


def test_6_2_4_the_interrupt_line_is_scratch_and_the_pin_is_fixed() -> None:
    f = function()
    write(f, 0x3C, 2, 0x550B)
    assert read(f, 0x3C, 2) == 0x010B


def test_6_2_5_2_there_is_no_expansion_rom() -> None:
    f = function()
    write(f, 0x30, 4, 0xFFFFFFFF)
    assert read(f, 0x30, 4) == 0


def test_6_2_5_1_all_ones_read_back_the_size_and_the_kind() -> None:
    f = function()
    for offset in range(0x10, 0x28, 4):
        write(f, offset, 4, 0xFFFFFFFF)
    assert [read(f, offset, 4) for offset in range(0x10, 0x28, 4)] == [
        0xFFFFF000,  # 4 KiB, 32-bit memory
        0xFFFFFFE1,  # 32 ports
        0xFFFFC004,  # 16 KiB, 64-bit memory
        0xFFFFFFFF,
        0xFFFFF000,  # 4 KiB: MSI-X
        0,  # not there
    ]


@pytest.mark.parametrize("size", [1, 2])
def test_6_2_5_1_a_size_can_be_asked_for_in_pieces(size: int) -> None:
    whole, pieces = function(), function()
    for offset in range(0x10, 0x28, 4):
        write(whole, offset, 4, 0xFFFFFFFF)
    for offset in range(0x10, 0x28, size):
        write(pieces, offset, size, 0xFFFFFFFF)
    assert read(pieces, 0x10, 24) == read(whole, 0x10, 24)


def test_a_base_address_keeps_its_kind_and_is_aligned_to_its_size() -> None:
    f = function()
    write(f, 0x18, 4, 0xE0001239)
    write(f, 0x1C, 4, 0x12)
    write(f, 0x14, 4, 0xC03F)
    assert read(f, 0x18, 8) == 0x12_E0000004
    assert read(f, 0x14, 4) == 0xC021


def test_6_7_the_capability_list_is_linked_aligned_and_ends() -> None:
    f = function()
    found = {}
    pointer = read(f, 0x34, 1)
    while pointer:
        assert pointer % 4 == 0 and pointer >= 0x40
        assert pointer not in found
        found[pointer] = read(f, pointer, 1)
        pointer = read(f, pointer + 1, 1)
    assert list(found.values()) == [0x11, 0x09]


def test_a_capability_opens_only_the_bits_it_means_to() -> None:
    f = function()
    vendor = read(f, read(f, 0x34, 1) + 1, 1)
    write(f, vendor, 4, 0xFFFFFFFF)
    write(f, vendor + 3, 4, 0xFFFFFFFF)
    assert read(f, vendor, 7) == 0x00FF00FF_07_00_09


def test_nothing_is_behind_the_256_bytes() -> None:
    f = function()
    before = f.config.read(0, 256)
    for offset in (0xFE, 0x100, 0xFFC):
        write(f, offset, 4, 0xFFFFFFFF)
        assert read(f, offset, 4) == 0
    assert f.config.read(0, 256) == before


ACCESS = st.tuples(st.integers(0, 0x104), st.integers(1, 8), st.integers(0, (1 << 64) - 1))


@given(st.lists(ACCESS, max_size=8))
def test_any_access_is_the_same_as_its_bytes_one_by_one(accesses: list[tuple[int, int, int]]) -> None:
    whole, pieces = function(), function()
    for offset, size, value in accesses:
        write(whole, offset, size, value)
        for i in range(size):
            write(pieces, offset + i, 1, value >> 8 * i & 0xFF)
        expected = sum(read(pieces, offset + i, 1) << 8 * i for i in range(size))
        assert read(whole, offset, size) == expected
    assert whole.config == pieces.config


@given(st.lists(ACCESS, max_size=8))
def test_a_reset_function_equals_a_fresh_one(accesses: list[tuple[int, int, int]]) -> None:
    f = function()
    for offset, size, value in accesses:
        write(f, offset, size, value)
    f.reset()
    assert f == function()


def test_functions_in_different_states_are_not_equal() -> None:
    f = function()
    write(f, 0x3C, 1, 9)
    assert f != function()


def test_fields_that_overlap_are_our_own_bug() -> None:
    with pytest.raises(ValueError, match="config field b at 0x1 overlaps another or leaves the space"):
        ConfigSpace([Field(0, 2, "a"), Field(1, 1, "b")])
    with pytest.raises(ValueError, match="config field a at 0xfe overlaps another or leaves the space"):
        ConfigSpace([Field(0xFE, 4, "a")])


@pytest.mark.parametrize(
    "bar",
    [
        Bar(0, 0x1800, BarKind.MEMORY32),
        Bar(0, 8, BarKind.MEMORY32),
        Bar(0, 2, BarKind.IO),
        Bar(5, 0x1000, BarKind.MEMORY64),
        Bar(6, 0x1000, BarKind.MEMORY32),
    ],
)
def test_a_bar_that_no_register_can_hold_is_our_own_bug(bar: Bar) -> None:
    with pytest.raises(ValueError, match="cannot be expressed"):
        header_fields(IDENTITY, [bar], [], 0)


def test_a_slot_beyond_the_bus_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="the slot of thing must be 0 to 31, not 32"):
        PciFunction(32, "thing", IDENTITY)
