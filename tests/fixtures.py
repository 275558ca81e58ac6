"""Fixtures of the specification and the hostile tests: one machine for each test, its RAM given back after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import pytest

from tests.support import MODERN_WAYS, PACKED_WAYS, BalloonMachine, Way, build_reporting


class MakeMachine(Protocol):
    """Builds a machine with the arguments of `BalloonMachine`."""

    def __call__(self, way: Way = "direct", **options: Any) -> BalloonMachine: ...


def parametrize_ways(metafunc: pytest.Metafunc, usual: Sequence[Way]) -> None:
    """One test for each of the `usual` ways to the device, or for those that the mark `ways` names.

    With the mark `modern` the test is about what a legacy interface does not have; with `split_rings` it is about split
    rings, or writes into one."""
    if "way" not in metafunc.fixturenames:
        return
    named = metafunc.definition.get_closest_marker("ways")
    modern = metafunc.definition.get_closest_marker("modern")
    ways: Sequence[Way] = named.args if named is not None else usual
    ways = [way for way in ways if modern is None or way in MODERN_WAYS]
    split = metafunc.definition.get_closest_marker("split_rings")
    metafunc.parametrize("way", [way for way in ways if split is None or way not in PACKED_WAYS], indirect=True)


@pytest.fixture
def way(request: pytest.FixtureRequest) -> Way:
    """How the driver reaches its device: every way there is, but for what the marks `ways` and `modern` leave out."""
    value: Way = request.param
    return value


@pytest.fixture
def make_machine() -> Iterator[MakeMachine]:
    made: list[BalloonMachine] = []

    def make(way: Way = "direct", **options: Any) -> BalloonMachine:
        made.append(BalloonMachine(way, **options))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


@pytest.fixture
def machine(make_machine: MakeMachine, way: Way) -> BalloonMachine:
    """A machine whose driver has not touched the device yet."""
    return make_machine(way)


@pytest.fixture
def started(machine: BalloonMachine) -> BalloonMachine:
    """A machine whose driver has negotiated everything and is at work; interrupts so far are forgotten."""
    machine.driver.start()
    machine.driver.take_interrupts()
    return machine


@pytest.fixture
def reporting(make_machine: MakeMachine, way: Way) -> BalloonMachine:
    """A started machine whose balloon has free page reporting, and all its other features too."""
    made = make_machine(way, build=build_reporting)
    made.driver.start()
    made.driver.take_interrupts()
    return made


@pytest.fixture
def pci(make_machine: MakeMachine) -> BalloonMachine:
    """A machine on PCI with MSI-X, not started."""
    return make_machine("pci")
