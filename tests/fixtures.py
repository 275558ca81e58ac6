"""Fixtures of the specification and the hostile tests: one machine for each test, its RAM given back after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from tests.support import BalloonMachine, Way, build_reporting


class MakeMachine(Protocol):
    """Builds a machine with the arguments of `BalloonMachine`."""

    def __call__(self, way: Way = "direct", **options: Any) -> BalloonMachine: ...


SPLIT_WAYS: tuple[Way, ...] = ("direct", "pci", "pci-intx")
PACKED_WAYS: tuple[Way, ...] = ("packed", "packed-pci")
ON_SPLIT_RINGS = pytest.mark.parametrize("way", SPLIT_WAYS)
"""For a single test that is about split rings, or writes into one."""


@pytest.fixture(params=[*SPLIT_WAYS, "packed-pci"])
def way(request: pytest.FixtureRequest) -> Way:
    """How the driver reaches its device: by its contract methods, or over a PCI bus with MSI-X or with INTx; in the
    last with packed rings.  A module about one kind of ring has a fixture of that name of its own."""
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
