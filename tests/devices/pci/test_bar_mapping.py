"""What the host bridge maps where, and what it refuses to map."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Line
from devices.memory import GuestMemory
from devices.pci.config import Bar, BarKind
from devices.pci.function import PciFunction
from tests.devices.pci.board import ABSENT, FIXED, IDENTITY, IO, MEMORY, MIB, Board


def test_ranges_appear_and_vanish_with_the_command_register(bus: Board) -> None:
    bus.place(3)
    assert bus.owners() == set()
    bus.enable(3, MEMORY)
    assert bus.owners() == {"first BAR0", "first BAR2"}
    bus.enable(3, IO)
    assert bus.owners() == {"first BAR1"}
    bus.enable(3, 0)
    assert bus.owners() == set()


def test_accesses_reach_the_function_where_it_is_mapped(bus: Board) -> None:
    bus.place(3, bar2=0x12_0000_0000)
    bus.enable(3)
    assert bus.mmio.read(0xE0000FFC, 4, 0)[0] == 0x30
    assert bus.inp(0xC01F, 1) == 0x31
    assert bus.mmio.read(0x12_0000_3FF8, 8, 0)[0] == 0x32
    assert bus.mmio.read(0x12_0000_4000, 4, 0)[0] == ABSENT


def test_a_range_moves_while_it_is_decoded(bus: Board) -> None:
    bus.place(3)
    bus.enable(3)
    bus.write(3, 0x10, 4, 0xE0200000)
    assert bus.mmio.read(0xE0000000, 4, 0)[0] == ABSENT
    assert bus.mmio.read(0xE0200000, 4, 0)[0] == 0x30


def test_sizing_while_decoding_maps_nothing_and_complains_of_nothing(bus: Board) -> None:
    bus.place(3)
    bus.enable(3)
    assert bus.write(3, 0x10, 4, 0xFFFFFFFF) == NOTHING
    assert bus.owners() == {"first BAR1", "first BAR2"}
    bus.write(3, 0x10, 4, 0xE0000000)
    assert bus.owners() == {"first BAR0", "first BAR1", "first BAR2"}


def test_two_ranges_of_a_function_can_change_places(bus: Board) -> None:
    bus.place(3, bar0=0xE0000000, bar2=0xE0004000)
    bus.enable(3)
    bus.enable(3, 0)
    bus.place(3, bar0=0xE0004000, bar2=0xE0000000)
    assert bus.enable(3) == ()
    assert bus.mmio.read(0xE0000000, 1, 0)[0] == 0x32
    assert bus.mmio.read(0xE0004000, 1, 0)[0] == 0x30


@pytest.mark.parametrize("ram_page", [0, 0x9F000, MIB, 4 * MIB - 0x1000])
def test_a_range_over_ram_stays_out_and_the_event_names_both(bus: Board, ram_page: int) -> None:
    bus.place(3, bar0=ram_page)
    (event,) = bus.enable(3, MEMORY)
    assert event.source == "first" and event.kind == "bar-not-mapped"
    assert event.text.startswith(f"first BAR0 at {ram_page:#x}-{ram_page + 0xFFF:#x} overlaps guest-ram at ")
    assert bus.owners() == {"first BAR2"}


def test_a_range_over_ram_above_4_gib_stays_out(bus: Board) -> None:
    bus.place(3, bar2=(1 << 32) + MIB - 0x4000)
    (event,) = bus.enable(3, MEMORY)
    assert event.text == (
        "first BAR2 at 0x1000fc000-0x1000fffff overlaps guest-ram at 0x100000000-0x1000fffff in the memory space"
    )
    bus.place(3, bar2=(1 << 32) + MIB)
    assert bus.owners() == {"first BAR0", "first BAR2"}


def test_a_range_that_begins_below_ram_stays_out() -> None:
    with GuestMemory([(MIB, MIB)]) as memory:
        bus = Board(memory)
        bus.bridge.plug(PciFunction(5, "large", IDENTITY, bars=[Bar(0, 4 * MIB, BarKind.MEMORY32)]))
        (event,) = bus.enable(5, MEMORY)
        assert event.text == "large BAR0 at 0x0-0x3fffff overlaps guest-ram at 0x100000-0x1fffff in the memory space"
        assert bus.owners() == set()


def test_a_range_beside_ram_is_mapped(bus: Board) -> None:
    bus.place(3, bar0=0xA0000, bar2=4 * MIB)
    assert bus.enable(3, MEMORY) == ()
    assert bus.owners() == {"first BAR0", "first BAR2"}


def test_a_range_over_a_fixed_device_stays_out(bus: Board) -> None:
    bus.place(3, bar0=0xFEE00000, bar1=0x3E0)
    texts = {event.text for event in bus.enable(3)}
    assert texts == {
        "first BAR0 at 0xfee00000-0xfee00fff overlaps local APIC at 0xfee00000-0xfee00fff in the memory space",
        "first BAR1 at 0x3e0-0x3ff overlaps COM1 at 0x3f8-0x3ff in the port space",
    }
    assert bus.mmio.read(0xFEE00000, 4, 0)[0] == 0x77


def test_an_address_that_the_space_does_not_have_stays_out(bus: Board) -> None:
    bus.place(3, bar1=0x1_0000, bar2=1 << 52)
    texts = {event.text for event in bus.enable(3)}
    assert texts == {
        "first BAR1: the range 0x10000+0x20 is not inside the port space",
        "first BAR2: the range 0x10000000000000+0x4000 is not inside the memory space",
    }


def test_the_second_of_two_colliding_functions_waits_until_the_first_moves(bus: Board) -> None:
    bus.place(3)
    bus.place(4, bar1=0xC020, bar2=0xE0200000)
    bus.enable(3)
    (event,) = bus.enable(4)
    assert event.source == "second"
    assert event.text == (
        "second BAR0 at 0xe0000000-0xe0000fff overlaps first BAR0 at 0xe0000000-0xe0000fff in the memory space"
    )
    assert bus.mmio.read(0xE0000000, 1, 0)[0] == 0x30
    assert bus.write(3, 0x10, 4, 0xE0001000) == NOTHING
    assert bus.mmio.read(0xE0000000, 1, 0)[0] == 0x40
    assert bus.mmio.read(0xE0001000, 1, 0)[0] == 0x30


def test_a_collision_is_told_once_and_again_when_it_comes_back(bus: Board) -> None:
    bus.place(3, bar0=MIB)
    assert len(bus.enable(3, MEMORY)) == 1
    assert bus.write(3, 0x3C, 1, 5) == NOTHING
    assert bus.write(4, 0x3C, 1, 5) == NOTHING
    assert bus.enable(3, 0) == ()
    assert len(bus.enable(3, MEMORY)) == 1


def test_reset_unmaps_everything_and_equals_a_fresh_bridge(bus: Board, memory: GuestMemory) -> None:
    bus.place(3)
    bus.place(4, bar0=MIB, bar1=0xC020, bar2=0xE0200000)
    bus.enable(3)
    bus.enable(4)
    bus.out(0xCF9, 1, 6)
    bus.bridge.functions[3 << 3].request_interrupt(True)
    assert bus.bridge != Board(memory).bridge
    assert bus.bridge.reset() == Effects(lines=(Line("00:03.0 INTA", False),))
    assert bus.owners() == set()
    assert bus.bridge == Board(memory).bridge


HOSTILE_BASES = st.one_of(
    st.sampled_from(
        [0, 0x9C000, 0xA0000, MIB, 4 * MIB, 0xE0000000, 0xFEE00000, 0xFFFF0000, 0xFFFFC000, 1 << 32, (1 << 52) - 0x4000]
    ),
    st.sampled_from([1 << 52, (1 << 63), (1 << 64) - 0x4000, (1 << 64) - 0x8000, (1 << 64) - 1]),
    st.integers(0, (1 << 64) - 1),
)
CONFIG_WRITE = st.tuples(
    st.sampled_from([0, 3, 4]), st.integers(0, 0x3F), st.sampled_from([1, 2, 4]), st.integers(0, ABSENT)
)


def check_mapping(bus: Board, memory: GuestMemory) -> None:
    """What is mapped is decoded and free of RAM; what is decoded but not mapped has something in its way."""
    decoded = {(r.space, r.base, r.length, r.owner) for f in bus.bridge.functions.values() for r in f.bar_regions()}
    spaces = {"port": bus.ports, "memory": bus.mmio}
    present = {(name, r.base, r.length, r.owner) for name, space in spaces.items() for r in space.ranges}
    ram = {("memory", region.gpa, region.size, "RAM") for region in memory.regions}
    mapped = {region for region in present if region[3] not in FIXED}
    assert mapped <= decoded
    assert {owner for _, _, _, owner in present} >= FIXED
    assert not any(overlap(a, b) for a in mapped for b in ram)
    for region in decoded - mapped:
        in_the_way = any(overlap(region, other) for other in present | ram)
        assert in_the_way or region[1] + region[2] > spaces[region[0]].size


def overlap(a: tuple[str, int, int, str], b: tuple[str, int, int, str]) -> bool:
    return a[0] == b[0] and a[1] < b[1] + b[2] and b[1] < a[1] + a[2]


@given(st.lists(st.tuples(st.sampled_from([3, 4]), HOSTILE_BASES, HOSTILE_BASES), max_size=6))
def test_no_base_address_raises_or_covers_ram(memory: GuestMemory, places: list[tuple[int, int, int]]) -> None:
    bus = Board(memory)
    for slot, bar0, bar2 in places:
        bus.enable(slot)
        bus.place(slot, bar0=bar0 & ABSENT, bar1=bar0 >> 16 & 0xFFFF, bar2=bar2)
        check_mapping(bus, memory)


@given(st.lists(CONFIG_WRITE, max_size=20))
def test_no_configuration_write_raises_or_covers_ram(
    memory: GuestMemory, writes: list[tuple[int, int, int, int]]
) -> None:
    bus = Board(memory)
    for slot, offset, size, value in writes:
        bus.write(slot, offset, size, value & (1 << 8 * size) - 1)
        check_mapping(bus, memory)
    bus.bridge.reset()
    assert bus.bridge == Board(memory).bridge
