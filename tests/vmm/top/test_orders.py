"""How large a step is, and where steps end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.config import PAGE_BYTES
from vmm.top.orders import PauseOrContinue, Step, joined, step_bytes, stepped

MIB = 1 << 20
RAM = st.integers(256, 1 << 22).map(lambda pages: pages * PAGE_BYTES)


@pytest.mark.parametrize(("ram", "step"), [(64 * MIB, 4 * MIB), (256 * MIB, 16 * MIB), (8192 * MIB, 16 * MIB)])
def test_a_step_is_a_sixteenth_of_the_ram_and_at_most_16_mib(ram: int, step: int) -> None:
    assert step_bytes(ram) == step


def test_steps_are_taken_from_the_target() -> None:
    assert stepped(64 * MIB, 48 * MIB, 2) == 40 * MIB
    assert stepped(64 * MIB, 48 * MIB, -1) == 52 * MIB


def test_the_guest_keeps_a_step_and_never_gets_more_than_there_is() -> None:
    assert stepped(64 * MIB, 48 * MIB, 1000) == 4 * MIB
    assert stepped(64 * MIB, 48 * MIB, -1000) == 64 * MIB
    assert stepped(64 * MIB, 3 * MIB, 1) == 3 * MIB


@given(RAM, st.integers(1, 1 << 34), st.integers(-40, 40))
def test_steps_go_where_they_shall_and_stay_in_the_ram(ram: int, target: int, count: int) -> None:
    target = min(target, ram)
    found = stepped(ram, target, count)
    assert 0 < found <= ram
    assert found <= target if count > 0 else found >= target


def test_several_steps_in_a_row_are_one() -> None:
    pause = PauseOrContinue()
    assert joined([Step(1), Step(1), Step(-1), pause, Step(2)]) == [Step(1), pause, Step(2)]
