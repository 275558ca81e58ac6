"""Where machines of these tests are found, and one that runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vmm.control.running import Place, wait_until

STATS = ("stats", "--target", "", "--poll", "0.2", "--for", "10min", "--clock", "realtime")


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="vmm") as folder:  # a short path: a socket's has an end
        made = Place(Path(folder))
        yield made
        made.close()


@pytest.fixture
def running(place: Place) -> Place:
    """The same with a machine called vm, whose driver is at work and has sent statistics."""
    place.boot(*STATS)
    client = place.raw().negotiated()
    wait_until(lambda: client.ask("x-vmm-status")["balloon"]["stats"], "statistics")
    return place
