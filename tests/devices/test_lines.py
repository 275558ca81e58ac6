"""The PowerPC board's interrupt controller, over its registers."""

from __future__ import annotations

import pytest

from devices.effects import NOTHING
from devices.irq.lines import LineController

PENDING, ENABLED = 0, 4


def controller() -> LineController:
    return LineController(("timer", "uart", "virtio"))


def test_the_processor_is_asked_for_while_a_line_is_high_and_enabled() -> None:
    lines = controller()
    assert lines.set_line("uart", True) is NOTHING
    assert not lines.is_pending()
    lines.write(ENABLED, 4, 0b010, 0)
    assert lines.is_pending()
    lines.set_line("uart", False)
    assert not lines.is_pending()


def test_each_line_has_a_bit_in_the_order_of_the_names() -> None:
    lines = controller()
    for number, name in enumerate(("timer", "uart", "virtio")):
        lines.set_line(name, True)
        assert lines.read(PENDING, 4, 0) == ((1 << number + 1) - 1, NOTHING)


def test_levels_are_the_drivers_own() -> None:
    lines = controller()
    lines.set_line("timer", True)
    lines.write(PENDING, 4, 0, 0)
    lines.set_line("timer", True)
    assert lines.read(PENDING, 4, 0)[0] == 1
    lines.set_line("timer", False)
    assert lines.read(PENDING, 4, 0)[0] == 0


def test_the_mask_reads_back_and_a_reset_clears_it() -> None:
    lines = controller()
    lines.write(ENABLED, 4, 0xFFFFFFFF, 0)
    assert lines.read(ENABLED, 4, 0)[0] == 0xFFFFFFFF
    lines.write(ENABLED + 1, 1, 0, 0)
    assert lines.read(ENABLED, 4, 0)[0] == 0xFFFF00FF
    lines.reset()
    assert lines == controller()


def test_a_state_goes_to_another_controller() -> None:
    lines, other = controller(), controller()
    lines.write(ENABLED, 4, 5, 0)
    lines.set_line("virtio", True)
    other.check_state(lines.save_state(), "lines")
    other.restore_state(lines.save_state())
    assert other == lines and other.is_pending()


@pytest.mark.parametrize("names", [[f"line {n}" for n in range(33)], ["a", "a"]])
def test_lines_must_be_few_and_have_names_of_their_own(names: list[str]) -> None:
    with pytest.raises(ValueError, match="at most 32 lines with names of their own"):
        LineController(names)


def test_an_unknown_line_is_a_mistake_of_the_board() -> None:
    with pytest.raises(KeyError):
        controller().set_line("other", True)
