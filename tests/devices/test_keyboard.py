"""The keyboard controller without a keyboard, and port 92h."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Stop, StopKind
from devices.keyboard import KeyboardController, SystemControlA

RESET = Effects(stop=Stop(StopKind.RESET))


def status(controller: KeyboardController) -> int:
    return controller.command.read(0, 1, 0)[0]


def command(controller: KeyboardController, value: int) -> Effects:
    return controller.command.write(0, 1, value, 0)


def data(controller: KeyboardController) -> int:
    return controller.data.read(0, 1, 0)[0]


def test_it_is_always_ready_for_input_and_has_nothing_to_say() -> None:
    assert status(KeyboardController()) & 0x03 == 0


@pytest.mark.parametrize(("word", "answer"), [(0xAA, 0x55), (0xAB, 0x02), (0xA9, 0x02), (0xD0, 0x03)])
def test_a_command_is_answered_once(word: int, answer: int) -> None:
    controller = KeyboardController()
    command(controller, word)
    assert status(controller) & 1 == 1
    assert data(controller) == answer
    assert status(controller) & 1 == 0


def test_the_command_byte_reads_back_and_follows_the_switches() -> None:
    controller = KeyboardController()
    command(controller, 0x60)
    controller.data.write(0, 1, 0x45, 0)
    for word, expected in ((0xAD, 0x55), (0xA7, 0x75), (0xAE, 0x65), (0xA8, 0x45)):
        command(controller, word)
        command(controller, 0x20)
        assert data(controller) == expected


@pytest.mark.parametrize(("word", "status"), [(0xD2, 0x1), (0xD3, 0x21)])
def test_a_byte_is_looped_back_as_if_the_keyboard_or_the_mouse_had_sent_it(word: int, status: int) -> None:
    controller = KeyboardController()

    command(controller, word)
    controller.data.write(0, 1, 0x5A, 0)

    assert controller.command.read(0, 1, 0)[0] & 0x21 == status
    assert data(controller) == 0x5A
    assert not controller.command.read(0, 1, 0)[0] & 0x21
    command(controller, 0xD0)
    assert controller.command.read(0, 1, 0)[0] & 0x21 == 0x01  # the controller's own answers are not the mouse's


def test_a_byte_for_the_keyboard_gets_no_answer() -> None:
    controller = KeyboardController()
    controller.data.write(0, 1, 0xFF, 0)
    command(controller, 0xD4)
    controller.data.write(0, 1, 0xFF, 0)
    assert status(controller) & 1 == 0


@pytest.mark.parametrize("word", range(0xF0, 0x100))
def test_a_pulse_of_the_lowest_line_resets(word: int) -> None:
    assert command(KeyboardController(), word) == (NOTHING if word & 1 else RESET)


def test_the_output_port_s_lowest_bit_resets_too_and_a20_stays_as_written() -> None:
    controller = KeyboardController()
    command(controller, 0xD1)
    assert controller.data.write(0, 1, 0xDD, 0) == NOTHING
    command(controller, 0xD0)
    assert data(controller) == 0xDD
    command(controller, 0xD1)
    assert controller.data.write(0, 1, 0xFE, 0) == RESET


def test_port_92h_resets_as_its_lowest_bit_rises() -> None:
    port = SystemControlA()
    assert port.read(0, 1, 0)[0] == 0x02
    assert port.write(0, 1, 0x00, 0) == NOTHING
    assert port.read(0, 1, 0)[0] == 0x00
    assert port.write(0, 1, 0x03, 0) == RESET
    assert port.write(0, 1, 0x03, 0) == NOTHING


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_ports_are_a_byte_wide(size: int) -> None:
    ones = (1 << 8 * size) - 1 & ~0xFF
    controller, port = KeyboardController(), SystemControlA()
    for handler in (controller.data, controller.command, port):
        assert handler.read(0, size, 0)[0] & ~0xFF == ones
        assert handler.read(1, size, 0)[0] == (1 << 8 * size) - 1
        assert handler.write(1, size, 0, 0) == NOTHING
    assert controller.command.write(0, size, 0x1111_1100 & (1 << 8 * size) - 1 | 0xFE, 0) == RESET


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.booleans()), max_size=40))
def test_whatever_was_done_a_reset_controller_equals_a_new_one(steps: list[tuple[bool, int, bool]]) -> None:
    controller, port = KeyboardController(), SystemControlA()
    for is_command, value, reads in steps:
        (controller.command if is_command else controller.data).write(0, 1, value, 0)
        port.write(0, 1, value, 0)
        if reads:
            data(controller)
    controller.reset()
    port.reset()
    assert (controller, port) == (KeyboardController(), SystemControlA())
