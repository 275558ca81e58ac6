"""A machine with the bundled guest `stats`, and somebody who talks to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import vmm
from tests.vmm.control.qmp.talk import Talk
from vmm.machine import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """64 MiB, not yet running; `run` it until the driver is ready."""
    with vmm.boot("stats", memory="64M", devices=["virtio-balloon-pci,id=balloon0", "virtio-rng-pci"]) as made:
        yield made


@pytest.fixture
def talk(machine: Machine) -> Talk:
    return Talk(machine)
