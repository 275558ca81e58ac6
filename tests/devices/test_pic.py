"""The 8259A pair, from the data sheet: initialisation, priorities, ends of interrupts, modes, polling, the cascade."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.bus import AddressSpace
from devices.irq.pic import PicPair

MASTER, SLAVE, ELCR = 0x20, 0xA0, 0x4D0
NON_SPECIFIC_EOI, ROTATE_ON_EOI, SPECIFIC_EOI, ROTATE_ON_SPECIFIC_EOI = 0x20, 0xA0, 0x60, 0xE0
SET_PRIORITY, ROTATE_IN_AUTO_EOI, NO_ROTATE_IN_AUTO_EOI = 0xC0, 0x80, 0x00
READ_IRR, READ_ISR, POLL, SPECIAL_MASK_ON, SPECIAL_MASK_OFF = 0x0A, 0x0B, 0x0C, 0x68, 0x48


class Pics:
    """A pair behind its ports, set up as a PC's firmware does unless told otherwise."""

    def __init__(self, icw4: int = 0x01, slave_icw4: int = 0x01) -> None:
        self.pair = PicPair()
        self.ports = AddressSpace("port", 16)
        self.ports.add(MASTER, 2, self.pair.handler(0), "master")
        self.ports.add(SLAVE, 2, self.pair.handler(1), "slave")
        self.ports.add(ELCR, 2, self.pair.elcr, "elcr")
        self.initialise(MASTER, 0x11, 0x08, 0x04, icw4)
        self.initialise(SLAVE, 0x11, 0x70, 0x02, slave_icw4)

    def initialise(self, port: int, *words: int) -> None:
        self.out(port, words[0])
        for word in words[1:]:
            self.out(port + 1, word)

    def out(self, port: int, value: int) -> None:
        self.ports.write(port, 1, value, 0)

    def inp(self, port: int) -> int:
        return self.ports.read(port, 1, 0)[0]

    def raise_lines(self, *numbers: int) -> None:
        for number in numbers:
            self.pair.set_line(number, True)

    def lower_lines(self, *numbers: int) -> None:
        for number in numbers:
            self.pair.set_line(number, False)

    def isr(self, port: int = MASTER) -> int:
        self.out(port, READ_ISR)
        return self.inp(port)

    def irr(self, port: int = MASTER) -> int:
        self.out(port, READ_IRR)
        return self.inp(port)

    def vectors(self) -> list[int]:
        """Everything that can be acknowledged without an end of interrupt in between."""
        taken: list[int] = []
        while self.pair.intr and len(taken) < 20:
            taken.append(self.pair.acknowledge())
        return taken


# -- initialisation --------------------------------------------------------------------------------------------------


def test_the_vector_is_the_base_of_icw2_and_the_input() -> None:
    pics = Pics()
    pics.raise_lines(5)
    assert pics.pair.acknowledge() == 0x0D
    pics.initialise(MASTER, 0x11, 0x25, 0x04, 0x01)  # the low three bits of ICW2 do not count
    pics.lower_lines(5)
    pics.raise_lines(5)
    assert pics.pair.acknowledge() == 0x25


def test_icw1_clears_the_mask_and_what_is_in_service_and_forgets_edges() -> None:
    pics = Pics()
    pics.out(MASTER + 1, 0xFF)
    pics.raise_lines(3)
    pics.out(MASTER + 1, 0x00)
    pics.pair.acknowledge()
    pics.raise_lines(1)
    pics.initialise(MASTER, 0x11, 0x08, 0x04, 0x01)
    assert (pics.inp(MASTER + 1), pics.isr(), pics.irr()) == (0, 0, 0)
    assert not pics.pair.intr


def test_without_icw4_the_word_after_icw3_is_a_mask() -> None:
    pics = Pics()
    pics.initialise(MASTER, 0x10, 0x08, 0x04, 0xA5)
    assert pics.inp(MASTER + 1) == 0xA5


def test_a_single_chip_takes_no_icw3() -> None:
    pics = Pics()
    pics.initialise(MASTER, 0x13, 0x08, 0x01, 0x5A)
    assert pics.inp(MASTER + 1) == 0x5A


def test_a_read_after_icw1_gives_the_request_register() -> None:
    pics = Pics()
    pics.out(MASTER, READ_ISR)
    pics.initialise(MASTER, 0x11, 0x08, 0x04, 0x01)
    pics.raise_lines(6)
    assert pics.inp(MASTER) == 0x40


# -- priorities and ends -----------------------------------------------------------------------------------------------


def test_input_0_has_the_highest_priority() -> None:
    pics = Pics()
    pics.raise_lines(7, 3, 0)
    assert pics.pair.acknowledge() == 0x08


def test_what_is_in_service_holds_back_equal_and_lower_requests_only() -> None:
    pics = Pics()
    pics.raise_lines(4)
    pics.pair.acknowledge()
    pics.raise_lines(5)
    assert not pics.pair.intr
    pics.raise_lines(1)
    assert pics.pair.acknowledge() == 0x09
    assert pics.isr() == 0x12


def test_a_non_specific_end_ends_the_highest_in_service() -> None:
    pics = Pics()
    pics.raise_lines(4)
    pics.pair.acknowledge()
    pics.raise_lines(1)
    pics.pair.acknowledge()
    pics.out(MASTER, NON_SPECIFIC_EOI)
    assert pics.isr() == 0x10


def test_a_specific_end_ends_that_level() -> None:
    pics = Pics()
    pics.raise_lines(4)
    pics.pair.acknowledge()
    pics.raise_lines(1)
    pics.pair.acknowledge()
    pics.out(MASTER, SPECIFIC_EOI | 4)
    assert pics.isr() == 0x02


def test_a_masked_request_waits_and_can_be_read() -> None:
    pics = Pics()
    pics.out(MASTER + 1, 0x10)
    pics.raise_lines(4)
    assert not pics.pair.intr
    assert pics.irr() == 0x10
    pics.out(MASTER + 1, 0)
    assert pics.pair.acknowledge() == 0x0C


def test_rotation_on_a_non_specific_end_makes_the_ended_level_the_lowest() -> None:
    pics = Pics()
    pics.raise_lines(3)
    pics.pair.acknowledge()
    pics.out(MASTER, ROTATE_ON_EOI)
    pics.lower_lines(3)
    pics.raise_lines(3, 4, 0)
    order = []
    while pics.pair.intr:
        order.append(pics.pair.acknowledge() - 8)
        pics.out(MASTER, SPECIFIC_EOI | order[-1])
    assert order == [4, 0, 3]


def test_rotation_on_a_specific_end() -> None:
    pics = Pics()
    pics.raise_lines(5)
    pics.pair.acknowledge()
    pics.out(MASTER, ROTATE_ON_SPECIFIC_EOI | 5)
    assert pics.isr() == 0
    pics.raise_lines(6, 0)
    assert pics.pair.acknowledge() == 0x0E


def test_set_priority_names_the_lowest_level() -> None:
    pics = Pics()
    pics.out(MASTER, SET_PRIORITY | 3)
    pics.raise_lines(0, 3, 4)
    assert pics.pair.acknowledge() == 0x0C


def test_automatic_ends_leave_nothing_in_service() -> None:
    pics = Pics(icw4=0x03)
    pics.raise_lines(6, 1)
    assert pics.vectors() == [0x09, 0x0E]
    assert pics.isr() == 0


def test_rotation_in_automatic_ends_can_be_switched() -> None:
    pics = Pics(icw4=0x03)
    pics.out(MASTER, ROTATE_IN_AUTO_EOI)
    pics.raise_lines(1)
    pics.pair.acknowledge()
    pics.lower_lines(1)
    pics.raise_lines(1, 3)
    assert pics.pair.acknowledge() == 0x0B
    pics.out(MASTER, NO_ROTATE_IN_AUTO_EOI)
    pics.lower_lines(3)
    pics.raise_lines(3)
    assert pics.pair.acknowledge() == 0x09  # 3 is still the lowest, and stays it


def test_special_mask_mode_lets_lower_levels_through_a_masked_one_in_service() -> None:
    pics = Pics()
    pics.raise_lines(2 + 1)
    pics.pair.acknowledge()
    pics.raise_lines(6)
    pics.out(MASTER + 1, 1 << 3)
    assert not pics.pair.intr
    pics.out(MASTER, SPECIAL_MASK_ON)
    assert pics.pair.intr
    pics.out(MASTER, SPECIAL_MASK_OFF)
    assert not pics.pair.intr


# -- edges, levels, spurious requests ----------------------------------------------------------------------------------


def test_an_edge_is_one_request_however_long_the_line_is_high() -> None:
    pics = Pics()
    pics.raise_lines(4)
    pics.pair.acknowledge()
    pics.out(MASTER, NON_SPECIFIC_EOI)
    assert not pics.pair.intr
    pics.lower_lines(4)
    pics.raise_lines(4)
    assert pics.pair.intr


def test_a_level_requests_again_after_its_end_until_it_goes_low() -> None:
    pics = Pics()
    pics.out(ELCR, 0x20)
    pics.raise_lines(5)
    pics.pair.acknowledge()
    assert not pics.pair.intr
    pics.out(MASTER, NON_SPECIFIC_EOI)
    assert pics.pair.intr
    pics.lower_lines(5)
    assert not pics.pair.intr


def test_a_request_that_goes_away_before_the_acknowledge_is_spurious() -> None:
    pics = Pics()
    pics.raise_lines(4)
    pics.lower_lines(4)
    assert not pics.pair.intr
    assert pics.pair.acknowledge() == 0x0F
    assert pics.isr() == 0


def test_the_slave_s_spurious_request_is_its_input_7_and_the_master_serves_the_cascade() -> None:
    pics = Pics()
    pics.raise_lines(12)
    pics.pair.slave.set_line(4, False)  # taken back after the master has seen the cascade
    assert pics.pair.acknowledge() == 0x77
    assert (pics.isr(MASTER), pics.isr(SLAVE)) == (0x04, 0)


def test_the_trigger_mode_of_the_fixed_inputs_cannot_be_changed() -> None:
    pics = Pics()
    pics.ports.write(ELCR, 2, 0xFFFF, 0)
    assert pics.ports.read(ELCR, 2, 0)[0] == 0xDEF8


# -- the cascade -------------------------------------------------------------------------------------------------------


def test_the_slave_s_inputs_come_between_1_and_3() -> None:
    pics = Pics()
    pics.raise_lines(3, 8, 15)
    assert pics.pair.acknowledge() == 0x70
    assert (pics.isr(MASTER), pics.isr(SLAVE)) == (0x04, 0x01)
    assert not pics.pair.intr


def test_both_chips_need_an_end() -> None:
    pics = Pics()
    pics.raise_lines(10, 11)
    pics.pair.acknowledge()
    pics.out(MASTER, NON_SPECIFIC_EOI)
    assert not pics.pair.intr
    pics.out(SLAVE, NON_SPECIFIC_EOI)
    assert pics.pair.acknowledge() == 0x73


def test_a_higher_slave_request_waits_for_the_master_unless_specially_fully_nested() -> None:
    for icw4, comes_through in ((0x01, False), (0x11, True)):
        pics = Pics(icw4=icw4)
        pics.raise_lines(14)
        pics.pair.acknowledge()
        pics.raise_lines(8)
        assert pics.pair.intr is comes_through


def test_requests_of_a_slave_with_automatic_ends_are_not_lost() -> None:
    pics = Pics(slave_icw4=0x03)
    pics.raise_lines(9, 13)
    assert pics.pair.acknowledge() == 0x71
    pics.out(MASTER, NON_SPECIFIC_EOI)
    assert pics.pair.acknowledge() == 0x75


# -- polling and port accesses -----------------------------------------------------------------------------------------


def test_a_poll_acknowledges_and_names_the_level() -> None:
    pics = Pics()
    pics.raise_lines(6)
    pics.out(MASTER, POLL)
    assert pics.inp(MASTER) == 0x86
    assert pics.isr() == 0x40
    pics.out(MASTER, POLL)
    assert pics.inp(MASTER) == 0


def test_after_a_poll_the_register_read_is_the_one_chosen_before() -> None:
    pics = Pics()
    pics.out(MASTER, READ_ISR)
    pics.raise_lines(6)
    pics.out(MASTER, POLL)
    pics.inp(MASTER)
    assert pics.inp(MASTER) == 0x40


def test_a_word_at_the_command_port_is_two_bytes() -> None:
    pics = Pics()
    pics.ports.write(MASTER, 2, 0xA5_20, 0)
    assert pics.inp(MASTER + 1) == 0xA5
    pics.raise_lines(1)
    pics.out(MASTER, READ_IRR)
    assert pics.ports.read(MASTER, 2, 0)[0] == 0xA5_02


@pytest.mark.parametrize("size", [4, 8])
def test_what_lies_beyond_the_two_ports_reads_as_ones(size: int) -> None:
    value, _ = PicPair().handler(0).read(0, size, 0)
    assert value == (1 << 8 * size) - 1 & ~0xFFFF


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(("line", "write", "acknowledge", "read")), st.integers(0, 15), st.integers(0, 0x1FF)),
    max_size=60,
)


def carry_out(pics: Pics, operations: Sequence[tuple[str, int, int]]) -> None:
    for what, where, value in operations:
        port = (MASTER, MASTER + 1, SLAVE, SLAVE + 1, ELCR, ELCR + 1)[where % 6]
        if what == "line" and where != 2:
            pics.pair.set_line(where, bool(value & 1))
        elif what == "write":
            pics.out(port, value & 0xFF)
        elif what == "acknowledge":
            assert 0 <= pics.pair.acknowledge() <= 0xFF
        else:
            assert 0 <= pics.inp(port) <= 0xFF


@given(OPERATIONS)
def test_whatever_was_done_a_reset_pair_equals_a_new_one(operations: Sequence[tuple[str, int, int]]) -> None:
    pics = Pics()
    carry_out(pics, operations)
    for number in (*range(2), *range(3, 16)):
        pics.pair.set_line(number, False)
    pics.pair.reset()
    assert pics.pair == PicPair()


@given(OPERATIONS)
def test_the_cascade_is_always_the_slave_s_output(operations: Sequence[tuple[str, int, int]]) -> None:
    pics = Pics()
    carry_out(pics, operations)
    assert bool(pics.pair.master.lines >> 2 & 1) == pics.pair.slave.intr
