"""The machines that these tests drive."""

from tests.fixtures import machine, make_machine, pci, reporting, started, way

__all__ = ["machine", "make_machine", "pci", "reporting", "started", "way"]
