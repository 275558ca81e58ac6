"""A machine with the bundled guest `stats`, and its monitor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vmm
from vmm.control.monitor import Monitor
from vmm.machine import Machine

DEVICES = ("virtio-balloon-pci,id=balloon0", "virtio-rng-pci")


@pytest.fixture
def machine() -> Iterator[Machine]:
    """64 MiB at the reset vector, in real mode; `run` it until the driver is ready."""
    with vmm.boot("stats", memory="64M", devices=DEVICES) as made:
        yield made


@pytest.fixture
def monitor(machine: Machine) -> Monitor:
    return Monitor(machine, "fred")
