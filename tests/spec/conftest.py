"""The machines that these tests drive."""

import pytest

from tests.fixtures import machine, make_machine, parametrize_ways, pci, reporting, started, way
from tests.support import LEGACY_WAYS, MODERN_WAYS

__all__ = ["machine", "make_machine", "pci", "reporting", "started", "way"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_ways(metafunc, MODERN_WAYS + LEGACY_WAYS)
