"""One function for each statement, registered under its id: all of them, by part of the specification.

A check gets `Rigs`, drives a rig as a driver would, and raises `Violation` when the device breaks the statement.  The
first sentence of its docstring is what the report says was done.
"""

from vmm.conformance import (
    check_balloon,
    check_general,
    check_legacy,
    check_mmio,
    check_packed,
    check_packed_events,
    check_pci,
    check_pci_msix,
    check_pci_structures,
    check_queues,
    check_split,
    check_split_events,
)
from vmm.conformance.registry import CHECKS, Check, how

__all__ = [
    "CHECKS",
    "Check",
    "check_balloon",
    "check_general",
    "check_legacy",
    "check_mmio",
    "check_packed",
    "check_packed_events",
    "check_pci",
    "check_pci_msix",
    "check_pci_structures",
    "check_queues",
    "check_split",
    "check_split_events",
    "how",
]
