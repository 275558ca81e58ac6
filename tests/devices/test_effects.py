"""Effects and errors as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects, Event, Line, Message, Stop, StopKind
from devices.errors import ConfigError, DriverError, OutsideRam

EFFECTS = st.builds(
    Effects,
    messages=st.lists(st.builds(Message, st.integers(0, 9), st.integers(0, 9)), max_size=2).map(tuple),
    lines=st.lists(st.builds(Line, st.sampled_from("ab"), st.booleans()), max_size=2).map(tuple),
    deadline=st.booleans(),
    stop=st.none() | st.builds(Stop, st.sampled_from(StopKind), st.integers(0, 3)),
    events=st.lists(st.builds(Event, st.sampled_from("ab"), st.just("k"), st.just("t")), max_size=2).map(tuple),
)


@given(EFFECTS)
def test_nothing_is_neutral(effects: Effects) -> None:
    assert effects | NOTHING == NOTHING | effects == effects | Effects() == effects
    assert bool(effects) == (effects != Effects())


@given(EFFECTS, EFFECTS, EFFECTS)
def test_joining_keeps_everything_in_order_however_it_is_grouped(a: Effects, b: Effects, c: Effects) -> None:
    joined = a | b
    assert joined.messages == a.messages + b.messages
    assert joined.lines == a.lines + b.lines
    assert joined.events == a.events + b.events
    assert joined.deadline == (a.deadline or b.deadline)
    assert (a | b) | c == a | (b | c)


def test_the_first_request_to_stop_wins() -> None:
    first, second = Stop(StopKind.QUIT, 0), Stop(StopKind.RESET)
    assert (Effects(stop=first) | Effects(stop=second)).stop == first
    assert (Effects(deadline=True) | Effects(stop=second)).stop == second


def test_effects_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        NOTHING.deadline = True  # type: ignore[misc]


def test_a_driver_s_error_names_the_rule_and_the_place() -> None:
    error = DriverError("2.7.13", "the chain has 300 descriptors, the queue 256", queue=1, head=7)
    assert str(error) == "the chain has 300 descriptors, the queue 256 (virtio §2.7.13)"
    assert (error.section, error.queue, error.head) == ("2.7.13", 1, 7)
    assert (DriverError("2.1", "x").queue, DriverError("2.1", "x").head) == (-1, -1)


def test_an_address_outside_ram_is_a_driver_s_error_with_the_place() -> None:
    error = OutsideRam(0xFFFF_FFFF_FFFF_FFFF, 16, "2.7.5")
    assert str(error) == "the 16 bytes at 0xffffffffffffffff are not all in guest RAM (virtio §2.7.5)"
    assert isinstance(error, DriverError)
    assert not isinstance(error, ConfigError)
