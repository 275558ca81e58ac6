"""The fixtures of the tests in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import Way
from tests.vmm.watching import Bench, MakeBench


@pytest.fixture(params=("pci", "mmio-legacy"))
def reach(request: pytest.FixtureRequest) -> Way:
    """How a driver under watch reaches its device."""
    value: Way = request.param
    return value


@pytest.fixture
def bench(reach: Way) -> Iterator[MakeBench]:
    """Builds a `Bench` that offers the feature bits given."""
    made: list[Bench] = []

    def make(*bits: int, without: int = 0, **options: Any) -> Bench:
        made.append(Bench(reach, *bits, without=without, **options))
        return made[-1]

    yield make
    for each in made:
        each.machine.close()
