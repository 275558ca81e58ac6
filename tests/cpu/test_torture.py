"""The torture guest on a whole machine: what it checks holds, and stopping at any interval ends in the same state."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import pytest

import vmm

INTERVALS_NS = [370 + 30 * step for step in range(40)] + [1610 + 510 * step for step in range(60)]


class End(NamedTuple):
    """All that two runs are compared by."""

    exit_code: int
    blocks: int
    console: bytes
    registers: dict[str, int]
    ram: str


def run(until: str) -> End:
    """Boot the guest and run it in pieces of `until` of guest time."""
    with vmm.boot("torture", memory="1M", devices=()) as machine:
        while machine.run(until=until) is None:
            pass
        assert machine.outcome is not None
        ram = hashlib.sha256(b"".join(machine.memory.peek(r.gpa, r.size) for r in machine.memory.regions)).hexdigest()
        return End(machine.outcome.exit_code, machine.blocks, machine.console, machine.registers(), ram)


@pytest.fixture(scope="module")
def uninterrupted() -> End:
    return run("1s")


def test_the_processor_does_what_its_manual_says(uninterrupted: End) -> None:
    assert b"WRONG" not in uninterrupted.console
    assert uninterrupted.console.rstrip().endswith(b", 0 wrong")
    assert uninterrupted.exit_code == 0


def test_a_hundred_intervals_are_tried() -> None:
    assert len(set(INTERVALS_NS)) == 100


@pytest.mark.parametrize("interval_ns", INTERVALS_NS)
def test_stopping_at_any_interval_gives_the_same_end(interval_ns: int, uninterrupted: End) -> None:
    assert run(f"{interval_ns}ns") == uninterrupted
