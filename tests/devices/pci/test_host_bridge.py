"""Configuration mechanism #1 (PCI 3.0 §3.2.2.3.2) and the reset control register, through the ports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Stop, StopKind
from devices.errors import ConfigError
from devices.memory import GuestMemory
from tests.devices.pci.board import ABSENT, Board, Echo


def test_the_bridge_itself_is_at_00_00_0(bus: Board) -> None:
    assert bus.read(0, 0, 4) == 0x1237_8086
    assert bus.read(0, 8, 4) >> 8 == 0x060000
    assert bus.read(0, 0x0E, 1) == 0


def test_functions_answer_in_their_slots_and_nobody_else_does(bus: Board) -> None:
    found = {slot: bus.read(slot, 0, 4) for slot in range(32)}
    assert {slot: ids for slot, ids in found.items() if ids != ABSENT} == {
        0: 0x1237_8086,
        3: 0x5678_1234,
        4: 0x5678_1234,
    }


def test_other_functions_and_other_buses_are_absent(bus: Board) -> None:
    for where in ({"function": 1}, {"function": 7}, {"bus": 1}, {"bus": 255}):
        bus.select(3, 0, **where)
        assert bus.inp(0xCFC, 4) == ABSENT
        bus.out(0xCFC + 2, 2, 0)
    assert bus.read(3, 0, 4) == 0x5678_1234


def test_an_absent_function_reads_all_ones_in_every_width(bus: Board) -> None:
    bus.select(9, 0)
    assert (bus.inp(0xCFC, 1), bus.inp(0xCFE, 2), bus.inp(0xCFC, 4)) == (0xFF, 0xFFFF, ABSENT)
    assert bus.out(0xCFC, 4, 0) == NOTHING


def test_without_the_enable_bit_nobody_answers(bus: Board) -> None:
    bus.select(3, 0x3C, enable=0)
    assert bus.inp(0xCFC, 4) == ABSENT
    bus.out(0xCFC, 1, 0x55)
    assert bus.read(3, 0x3C, 1) == 0


def test_the_address_register_keeps_its_defined_bits(bus: Board) -> None:
    bus.out(0xCF8, 4, 0xFFFFFFFF)
    assert bus.inp(0xCF8, 4) == 0x80FFFFFC


@pytest.mark.parametrize(("port", "size"), [(0xCF8, 1), (0xCF8, 2), (0xCFA, 1), (0xCFA, 2), (0xCF9, 2)])
def test_the_address_register_takes_no_narrower_access(bus: Board, port: int, size: int) -> None:
    bus.select(3, 0x10)
    before = bus.inp(0xCF8, 4)
    assert bus.inp(port, size) == (1 << 8 * size) - 1
    assert bus.out(port, size, 0x0606) == NOTHING
    assert bus.inp(0xCF8, 4) == before


def test_data_can_be_reached_in_every_width(bus: Board) -> None:
    bus.select(3, 0)
    assert [bus.inp(0xCFC + i, 1) for i in range(4)] == [0x34, 0x12, 0x78, 0x56]
    assert [bus.inp(0xCFC + i, 2) for i in range(3)] == [0x1234, 0x7812, 0x5678]
    assert bus.inp(0xCFC, 4) == 0x5678_1234


def test_an_access_across_address_and_data_reaches_only_the_data(bus: Board) -> None:
    bus.select(3, 0x3C)
    bus.out(0xCFA, 4, 0x0144_AAAA)
    assert bus.read(3, 0x3C, 1) == 0x44
    assert bus.inp(0xCFA, 4) == 0x0144_FFFF


def test_an_access_across_the_end_of_the_data_stays_inside(bus: Board) -> None:
    bus.select(3, 0x3C)
    assert bus.inp(0xCFF, 2) == 0xFF00
    assert bus.inp(0xCFE, 4) == 0xFFFF_0000


def test_the_register_offset_is_taken_from_bits_7_to_2(bus: Board) -> None:
    assert bus.read(3, 0xFC, 4) == 0
    bus.out(0xCF8, 4, 0x80000000 | 3 << 11 | 0x3F)
    assert bus.inp(0xCFC, 2) == 0x0100  # interrupt line and pin at 3Ch


@given(st.lists(st.tuples(st.integers(0xCF0, 0xD08), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1))))
def test_no_port_access_ever_raises(memory: GuestMemory, accesses: list[tuple[int, int, int]]) -> None:
    bus = Board(memory)
    for port, size, value in accesses:
        bus.out(port, size, value & (1 << 8 * size) - 1)
        assert 0 <= bus.inp(port, size) < 1 << 8 * size


def test_a_slot_holds_one_function(bus: Board) -> None:
    with pytest.raises(ConfigError, match=r"^third cannot be at 00:03\.0: first is there already$"):
        bus.bridge.plug(Echo(3, "third"))


def test_cf9_asks_for_a_reset_as_bit_2_rises(bus: Board) -> None:
    reset = Effects(stop=Stop(StopKind.RESET))
    assert bus.out(0xCF9, 1, 0x02) == NOTHING
    assert bus.inp(0xCF9, 1) == 0x02
    assert bus.out(0xCF9, 1, 0x06) == reset
    assert bus.inp(0xCF9, 1) == 0x06
    assert bus.out(0xCF9, 1, 0x06) == NOTHING
    assert bus.out(0xCF9, 1, 0x00) == NOTHING
    assert bus.out(0xCF9, 1, 0xFF) == reset
    assert bus.inp(0xCF9, 1) == 0x06
