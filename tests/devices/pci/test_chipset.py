"""The board's own functions: the i440FX's PAM registers, the PIIX3's routing, the PIIX4's ports, and ECAM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.bus import AddressSpace
from devices.effects import NOTHING, Effects, Shadow
from devices.memory import GuestMemory
from devices.pci.ecam import Ecam
from devices.pci.host_bridge import HostBridge
from devices.pci.i440fx import I440fx
from devices.pci.piix import IsaBridge, PowerManagement
from tests.devices.pci.board import RAM, Echo, Fixed

KIB = 1024
ISA, PM = 0x08, 0x0B  # device and function numbers of 00:01.0 and 00:01.3


class Board:
    """The chipset with one device in slot 3, and ECAM at 0 of a space of its own."""

    def __init__(self, memory: GuestMemory) -> None:
        self.ports, self.mmio = AddressSpace("port", 16), AddressSpace("memory", 52)
        self.bridge = HostBridge(self.ports, self.mmio, memory)
        self.isa, self.pm = IsaBridge(), PowerManagement(0x600, Fixed())
        for function in (self.isa, self.pm, Echo(3, "first")):
            self.bridge.plug(function)
        self.ecam = Ecam(self.bridge)

    def select(self, number: int, register: int) -> None:
        self.ports.write(0xCF8, 4, 1 << 31 | number << 8 | register & 0xFC, 0)

    def read(self, number: int, register: int, size: int) -> int:
        self.select(number, register)
        return self.ports.read(0xCFC + (register & 3), size, 0)[0]

    def write(self, number: int, register: int, size: int, value: int) -> Effects:
        self.select(number, register)
        return self.ports.write(0xCFC + (register & 3), size, value, 0)

    def owner_of_port(self, port: int) -> str | None:
        found = self.ports.find(port)
        return found.owner if found else None


@pytest.fixture
def board() -> Iterator[Board]:
    with GuestMemory(RAM) as memory:
        yield Board(memory)


# -- the i440FX --------------------------------------------------------------------------------------------------------


def test_the_host_bridge_is_the_one_that_firmware_knows(board: Board) -> None:
    assert board.read(0, 0x00, 4) == 0x12378086
    assert board.read(0, 0x2C, 4) == 0x11001AF4
    assert board.read(0, 0x0A, 2) == 0x0600


PAM = [
    (0x59, 4, 0xF0000, 64 * KIB),
    (0x5A, 0, 0xC0000, 16 * KIB),
    (0x5A, 4, 0xC4000, 16 * KIB),
    (0x5B, 0, 0xC8000, 16 * KIB),
    (0x5D, 4, 0xDC000, 16 * KIB),
    (0x5E, 0, 0xE0000, 16 * KIB),
    (0x5F, 4, 0xEC000, 16 * KIB),
]


@pytest.mark.parametrize(("register", "shift", "gpa", "length"), PAM)
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_two_bits_rule_each_range(board: Board, register: int, shift: int, gpa: int, length: int, bits: int) -> None:
    effects = board.write(0, register, 1, bits << shift)
    assert effects.shadows == (Shadow(gpa, length, reads_ram=bool(bits & 1), writes_ram=bool(bits & 2)),)
    assert board.read(0, register, 1) == bits << shift
    assert board.write(0, register, 1, bits << shift).shadows == ()


def test_one_write_can_change_several_ranges_and_none_twice(board: Board) -> None:
    effects = board.write(0, 0x5C, 4, 0x33333333)
    assert [shadow.gpa for shadow in effects.shadows] == [0xD0000 + 0x4000 * n for n in range(8)]


def test_reserved_bits_of_the_pam_registers_stay_zero(board: Board) -> None:
    board.write(0, 0x58, 4, 0xFFFFFFFF)
    board.write(0, 0x5C, 4, 0xFFFFFFFF)
    assert (board.read(0, 0x58, 4), board.read(0, 0x5C, 4)) == (0x33333000, 0x33333333)


def test_a_reset_goes_back_to_the_rom() -> None:
    bridge = I440fx()
    bridge.write_config(0x59, 1, 0x30, 0)
    assert bridge.reset().shadows == (Shadow(0xF0000, 0x10000, reads_ram=False, writes_ram=False),)
    assert bridge == I440fx()


# -- the PIIX ----------------------------------------------------------------------------------------------------------


def test_the_south_bridge_is_one_device_with_two_functions(board: Board) -> None:
    assert (board.read(ISA, 0, 4), board.read(PM, 0, 4)) == (0x70008086, 0x71138086)
    assert board.read(ISA, 0x0E, 1) == 0x80
    assert board.read(ISA + 1, 0, 4) == 0xFFFFFFFF


def test_after_reset_no_pirq_is_routed(board: Board) -> None:
    assert board.read(ISA, 0x60, 4) == 0x80808080
    assert board.isa.pirq_routes == (None, None, None, None)


@pytest.mark.parametrize(
    ("value", "route"), [(10, 10), (15, 15), (0x8A, None), (0, None), (2, None), (8, None), (13, None)]
)
def test_a_route_is_an_input_that_a_pirq_may_have(board: Board, value: int, route: int | None) -> None:
    effects = board.write(ISA, 0x61, 1, value)
    assert board.isa.pirq_routes == (None, route, None, None)
    assert effects.rewired == (route is not None)


def test_writing_the_same_routes_again_rewires_nothing(board: Board) -> None:
    assert board.write(ISA, 0x60, 4, 0x0B0B0A0A).rewired
    assert not board.write(ISA, 0x60, 4, 0x0B0B0A0A).rewired
    assert board.isa.reset().rewired
    assert board.isa == IsaBridge()


def test_the_power_management_ports_are_there_from_the_start_and_can_be_moved(board: Board) -> None:
    assert board.read(PM, 0x40, 4) == 0x601
    assert board.owner_of_port(0x63F) == "power management ports"
    board.write(PM, 0x40, 4, 0xFFFFB03F)
    assert board.read(PM, 0x40, 4) == 0xB001
    assert (board.owner_of_port(0x600), board.owner_of_port(0xB000)) == (None, "power management ports")
    board.write(PM, 0x80, 1, 0)
    assert board.owner_of_port(0xB000) is None


def test_ports_moved_onto_a_device_stay_away_and_one_event_says_so(board: Board) -> None:
    effects = board.write(PM, 0x40, 4, 0xCC0 | 1)
    assert [event.kind for event in effects.events] == ["bar-not-mapped"]
    assert board.owner_of_port(0xCF8) == "PCI configuration"


def test_firmware_finds_no_system_management_mode_to_set_up(board: Board) -> None:
    assert board.read(PM, 0x58, 4) >> 25 & 1
    assert board.read(0, 0x72, 1) == 0x02


# -- ECAM --------------------------------------------------------------------------------------------------------------


@given(st.data())
def test_both_mechanisms_read_the_same(data: st.DataObject) -> None:
    with GuestMemory(RAM) as memory:
        board = Board(memory)
        number = data.draw(st.sampled_from((0, ISA, PM, 3 << 3, 9 << 3)))
        size = data.draw(st.sampled_from((1, 2, 4)))
        register = data.draw(st.integers(0, 256 // size - 1)) * size
        assert board.ecam.read(number << 12 | register, size, 0)[0] == board.read(number, register, size)


def test_a_write_through_ecam_moves_a_range_as_any_other_does(board: Board) -> None:
    board.ecam.write(3 << 15 | 0x10, 4, 0xE0000000, 0)
    board.ecam.write(3 << 15 | 0x04, 2, 2, 0)
    assert board.read(3 << 3, 0x10, 4) == 0xE0000000
    found = board.mmio.find(0xE0000000)
    assert found is not None and found.owner == "first BAR0"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_extended_space_reads_as_zero_and_ignores_writes(board: Board, size: int) -> None:
    for register in (0x100, 0x7FD, 0xFF8):
        assert board.ecam.write(3 << 15 | register, size, (1 << 8 * size) - 1, 0) == NOTHING
        assert board.ecam.read(3 << 15 | register, size, 0) == (0, NOTHING)


@pytest.mark.parametrize("offset", [1 << 15 | 1 << 12, 9 << 15, 1 << 20, 0xFF << 20 | 0xFFFFC])
def test_where_no_function_is_there_are_ones(board: Board, offset: int) -> None:
    assert board.ecam.write(offset, 4, 0, 0) == NOTHING
    assert board.ecam.read(offset, 4, 0) == (0xFFFFFFFF, NOTHING)


def test_an_access_across_two_functions_is_cut_between_them(board: Board) -> None:
    assert board.ecam.read((ISA << 12) - 2, 4, 0)[0] == 0x8086FFFF  # nobody at 00:00.7, then the ISA bridge
    board.ecam.write((3 << 15) - 2 + 0, 4, 0, 0)  # changes nothing: the identity is read-only
    assert board.read(3 << 3, 0, 2) == 0x1234


@pytest.mark.parametrize("offset", [0xFD, 0xFE, 0xFF])
def test_an_access_across_the_256th_byte_reads_zeros_behind_it(board: Board, offset: int) -> None:
    inside = 0x100 - offset
    value, _ = board.ecam.read(3 << 15 | offset, 4, 0)
    assert value >> 8 * inside == 0
