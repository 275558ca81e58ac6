"""The machines that these tests drive."""

import pytest

from tests.fixtures import machine, make_machine, parametrize_ways, pci, reporting, started, way
from tests.support import Way

WAYS: tuple[Way, ...] = ("direct", "pci", "pci-intx", "mmio", "legacy", "packed-pci")
"""A sample of the ways: rings and payloads go through the same device code over all of them."""

__all__ = ["machine", "make_machine", "pci", "reporting", "started", "way"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_ways(metafunc, WAYS)
