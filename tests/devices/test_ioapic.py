"""The I/O APIC, from Intel's 82093AA data sheet: the indexed registers, edges, levels, masks and remote IRR."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Message
from devices.irq.ioapic import IoApic

PINS = 24
MASKED, LEVEL, REMOTE_IRR, LOGICAL = 1 << 16, 1 << 15, 1 << 14, 1 << 11


def select(chip: IoApic, index: int) -> None:
    chip.write(0x00, 4, index, 0)


def read(chip: IoApic, index: int) -> int:
    select(chip, index)
    return chip.read(0x10, 4, 0)[0]


def write(chip: IoApic, index: int, value: int) -> Effects:
    select(chip, index)
    return chip.write(0x10, 4, value, 0)


def program(chip: IoApic, pin: int, low: int, destination: int = 0) -> Effects:
    write(chip, 0x11 + 2 * pin, destination << 24)
    return write(chip, 0x10 + 2 * pin, low)


def message(vector: int, *, destination: int = 0, level: bool = False, logical: bool = False) -> Effects:
    address = 0xFEE00000 | destination << 12 | (4 if logical else 0)
    return Effects(messages=(Message(address, vector | (0xC000 if level else 0)),))


def test_it_has_24_pins_and_version_11h() -> None:
    assert read(IoApic(), 1) == 0x00170011


def test_the_id_reads_back_in_both_its_registers() -> None:
    chip = IoApic()
    write(chip, 0, 0xFFFFFFFF)
    assert (read(chip, 0), read(chip, 2)) == (0x0F000000, 0x0F000000)


@pytest.mark.parametrize("pin", range(PINS))
def test_after_reset_every_entry_is_masked_and_nothing_comes_out(pin: int) -> None:
    chip = IoApic()
    assert (read(chip, 0x10 + 2 * pin), read(chip, 0x11 + 2 * pin)) == (MASKED, 0)
    assert chip.set_pin(pin, True) == NOTHING


@pytest.mark.parametrize("pin", [0, 7, 23])
def test_an_entry_keeps_what_is_defined_of_it(pin: int) -> None:
    chip = IoApic()
    program(chip, pin, 0xFFFFFFFF, 0xFF)
    assert read(chip, 0x10 + 2 * pin) == 0x1AFFF  # neither delivery status nor remote IRR
    assert read(chip, 0x11 + 2 * pin) == 0xFF000000


@pytest.mark.parametrize("index", [3, 0xF, 0x40, 0xFF])
def test_registers_that_do_not_exist_read_as_zero(index: int) -> None:
    chip = IoApic()
    assert write(chip, index, 0xFFFFFFFF) == NOTHING
    assert read(chip, index) == 0


def test_an_edge_is_one_message_to_the_entry_s_destination() -> None:
    chip = IoApic()
    program(chip, 4, 0x34, destination=3)
    assert chip.set_pin(4, True) == message(0x34, destination=3)
    assert chip.set_pin(4, True) == NOTHING
    assert chip.set_pin(4, False) == NOTHING
    assert chip.set_pin(4, True) == message(0x34, destination=3)


def test_a_logical_destination_and_the_delivery_mode_are_in_the_message() -> None:
    chip = IoApic()
    program(chip, 4, LOGICAL | 0x100 | 0x40, destination=0x81)
    assert chip.set_pin(4, True) == message(0x140, destination=0x81, logical=True)


def test_an_edge_on_a_masked_pin_is_not_remembered() -> None:
    chip = IoApic()
    program(chip, 4, MASKED | 0x34)
    chip.set_pin(4, True)
    assert program(chip, 4, 0x34) == NOTHING


def test_a_level_is_sent_once_until_its_end_and_again_if_it_is_still_there() -> None:
    chip = IoApic()
    program(chip, 16, LEVEL | 0x50)
    assert chip.set_pin(16, True) == message(0x50, level=True)
    assert read(chip, 0x10 + 32) == LEVEL | REMOTE_IRR | 0x50
    assert chip.set_pin(16, False) == NOTHING
    assert chip.set_pin(16, True) == NOTHING  # the first has not ended
    assert chip.end_of_interrupt(0x51) == NOTHING
    assert chip.end_of_interrupt(0x50) == message(0x50, level=True)
    chip.set_pin(16, False)
    assert chip.end_of_interrupt(0x50) == NOTHING
    assert read(chip, 0x10 + 32) == LEVEL | 0x50


def test_a_level_on_a_masked_pin_comes_with_the_unmasking() -> None:
    chip = IoApic()
    program(chip, 16, MASKED | LEVEL | 0x50)
    assert chip.set_pin(16, True) == NOTHING
    assert program(chip, 16, LEVEL | 0x50) == message(0x50, level=True)


def test_an_end_does_not_bring_a_masked_level_back() -> None:
    chip = IoApic()
    program(chip, 16, LEVEL | 0x50)
    chip.set_pin(16, True)
    program(chip, 16, MASKED | LEVEL | 0x50)
    assert chip.end_of_interrupt(0x50) == NOTHING
    assert program(chip, 16, LEVEL | 0x50) == message(0x50, level=True)


def test_one_end_serves_every_pin_with_that_vector() -> None:
    chip = IoApic()
    for pin in (16, 17):
        program(chip, pin, LEVEL | 0x50)
        chip.set_pin(pin, True)
    assert chip.end_of_interrupt(0x50) == message(0x50, level=True) | message(0x50, level=True)


def test_making_an_entry_an_edge_forgets_its_remote_irr() -> None:
    chip = IoApic()
    program(chip, 16, LEVEL | 0x50)
    chip.set_pin(16, True)
    program(chip, 16, 0x50)
    assert read(chip, 0x10 + 32) == 0x50
    assert program(chip, 16, LEVEL | 0x50) == message(0x50, level=True)


@given(st.integers(0, 0x27), st.sampled_from((1, 2, 4, 8)), st.integers(0, 2**64 - 1))
def test_every_access_is_answered_and_only_covered_bytes_change(offset: int, size: int, value: int) -> None:
    chip = IoApic()
    chip.write(offset, size, value & (1 << 8 * size) - 1, 0)
    read_value, effects = chip.read(offset, size, 0)
    assert 0 <= read_value < 1 << 8 * size
    assert effects == NOTHING
    covered = range(offset, offset + size)
    if not covered.start <= 0:
        assert chip.index == 0


def test_the_low_byte_alone_selects() -> None:
    chip = IoApic()
    chip.write(0, 1, 1, 0)
    assert chip.read(0x10, 4, 0)[0] == 0x00170011
    assert chip.read(0x12, 1, 0)[0] == 0x17


@given(st.lists(st.tuples(st.integers(0, 0x41), st.integers(0, 2**32 - 1), st.integers(0, 23)), max_size=40))
def test_whatever_was_done_a_reset_chip_equals_a_new_one(steps: list[tuple[int, int, int]]) -> None:
    chip = IoApic()
    for index, value, pin in steps:
        write(chip, index, value)
        chip.set_pin(pin, bool(value & 1))
        chip.end_of_interrupt(value & 0xFF)
    for pin in range(PINS):
        chip.set_pin(pin, False)
    chip.reset()
    assert chip == IoApic()
