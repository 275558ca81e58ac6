"""One piece of RAM for all tests of the bus: nothing here writes to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.memory import GuestMemory
from tests.devices.pci.board import RAM, Board


@pytest.fixture(scope="session")
def memory() -> Iterator[GuestMemory]:
    ram = GuestMemory(RAM)
    yield ram
    ram.close()


@pytest.fixture
def bus(memory: GuestMemory) -> Board:
    return Board(memory)
