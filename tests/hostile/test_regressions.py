"""What went wrong in other balloons and transports once, each as a test named after its symptom.

`SEEDS` is the whole list.  A test of one begins with `test_regression_` and its docstring says "Seed: " and which.
They stand beside the tests of the same part; here are those that fit nowhere else, and the proof that none is missing.
"""

from __future__ import annotations

import ast

import pytest

from devices.memory import PAGE_BYTES
from tests.fixtures import MakeMachine
from tests.layers import ROOT, tree
from tests.support import MIB, BalloonMachine, CountingMemory, Way
from vmm.testing import Descriptor, RawQueue
from vmm.testing.balloon import INFLATEQ, STATSQ, pfn_bytes
from vmm.testing.raw import INDIRECT, NEXT, WRITE

pytestmark = pytest.mark.split_rings  # the rings written to here are split ones

SEEDS = (
    "CVE-2011-2212",
    "CVE-2016-5403",
    "CVE-2016-6490",
    "CVE-2016-7422",
    "CVE-2020-13754",
    "CVE-2024-4693",
    "CVE-2026-5747",
    "QEMU #2576",
    "QEMU #3968",
    "duplicate stats buffer",
    "inflate endless loop",
    "config offset overflow",
    "stats dead after restore",
    "last page of RAM off by one",
    "pfn << 12 in 32 bits",
    "actual underflow",
    "MSI-X vector bounds",
    "punching past a region",
)


def regression_tests() -> dict[str, str]:
    """Every test of that name in the whole suite, and its docstring."""
    return {
        f"{path.relative_to(ROOT)}::{node.name}": ast.get_docstring(node) or ""
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_regression_")
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_every_seed_has_its_test(seed: str) -> None:
    assert [name for name, text in regression_tests().items() if f"Seed: {seed}." in text]


def test_every_seed_that_a_test_names_is_in_the_list() -> None:
    named = [text.partition("Seed: ")[2].partition(".")[0] for text in regression_tests().values() if "Seed: " in text]
    assert set(named) == set(SEEDS)


@pytest.fixture
def counted(way: Way, make_machine: MakeMachine) -> BalloonMachine:
    """A started machine whose RAM counts what the device does to it."""
    machine = make_machine(way, memory=CountingMemory())
    machine.driver.start()
    machine.driver.take_interrupts()
    return machine


def copied_bytes(machine: BalloonMachine) -> int:
    assert isinstance(machine.memory, CountingMemory)
    return machine.memory.copied_bytes


def test_regression_requests_without_end_while_one_is_held(started: BalloonMachine) -> None:
    """The device holds a statistics buffer; a driver that offers it again and again gets no second entry for it.

    Seed: CVE-2016-5403.  There every pop took host memory, and nothing counted what was in flight."""
    raw = RawQueue(started.driver, STATSQ)
    raw.descriptor(0, raw.buffer(bytes(10)), 10)
    raw.available(0)
    raw.kick()
    for _ in range(3 * raw.size):
        raw.available(0)
        raw.kick()
    assert started.driver.needs_reset
    assert started.balloon.queues[STATSQ].requests == 1
    assert raw.heads_returned() == []


def test_regression_more_requests_than_the_queue_has(started: BalloonMachine) -> None:
    """An available index further ahead than the queue is long: not one of the entries is taken.

    Seed: CVE-2016-5403."""
    (pfn,) = started.filled_pfns(1)
    raw = RawQueue(started.driver, INFLATEQ)
    gpa = raw.buffer(pfn_bytes([pfn]))
    for slot in range(raw.size):
        raw.descriptor(slot, gpa, 4)
    raw.available(*range(raw.size), 0)
    raw.kick()
    assert started.driver.needs_reset
    assert started.balloon.queues[INFLATEQ].requests == 0
    assert started.are_filled([pfn])


@pytest.mark.parametrize("length", [0x7FFF_FFFF, 0x8000_0000, 0xFFFF_F000, 0xFFFF_FFFF], ids=hex)
@pytest.mark.parametrize("flags", [0, WRITE], ids=["readable", "writable"])
def test_regression_huge_descriptor_length(counted: BalloonMachine, length: int, flags: int) -> None:
    """A buffer that begins in RAM and is longer than all of it: refused without looking at a byte of it.

    Seed: CVE-2016-7422.  There the mapping of so long a buffer came back empty and was used."""
    raw = RawQueue(counted.driver, INFLATEQ)
    raw.descriptor(0, 0x100000, length, flags)
    raw.available(0)
    before = copied_bytes(counted)
    raw.kick()
    assert counted.driver.needs_reset
    assert copied_bytes(counted) - before < PAGE_BYTES
    assert raw.heads_returned() == []


@pytest.mark.parametrize("place", ["alone", "first", "last", "all", "table"])
def test_regression_zero_length_descriptor_loop(counted: BalloonMachine, place: str) -> None:
    """A descriptor without a byte, wherever it stands: the chain is refused at once.

    Seed: CVE-2016-6490.  There the loop that mapped a buffer piece by piece never came to its end."""
    raw = RawQueue(counted.driver, INFLATEQ)
    gpa = raw.buffer(bytes(4))
    lengths = {"alone": [0], "first": [0, 4], "last": [4, 0], "all": [0] * raw.size, "table": [4, 0, 4]}[place]
    last = len(lengths) - 1
    entries = [Descriptor(gpa, length, NEXT * (i < last), i + 1) for i, length in enumerate(lengths)]
    if place == "table":
        raw.descriptor(0, raw.table(entries), 16 * len(entries), INDIRECT)
    else:
        for slot, entry in enumerate(entries):
            raw.descriptor(slot, *entry)
    raw.available(0)
    before = copied_bytes(counted)
    raw.kick()
    assert counted.driver.needs_reset
    assert copied_bytes(counted) - before < PAGE_BYTES
    assert raw.heads_returned() == []


@pytest.mark.parametrize("count", [129, 1025, 4096])
def test_regression_indirect_table_longer_than_the_queue(counted: BalloonMachine, count: int) -> None:
    """An indirect table with more buffers than any array of the device's has room for: refused after as many
    descriptors as the queue has.

    Seed: CVE-2011-2212.  There they were written behind the end of an array of 1024."""
    raw = RawQueue(counted.driver, INFLATEQ)
    gpa = raw.buffer(bytes(4))
    entries = [Descriptor(gpa, 4, NEXT * (i + 1 < count) | WRITE, i + 1) for i in range(count)]
    raw.descriptor(0, raw.table(entries), 16 * count, INDIRECT)
    raw.available(0)
    before = copied_bytes(counted)
    raw.kick()
    assert counted.driver.needs_reset
    assert copied_bytes(counted) - before <= 16 * count
    assert raw.heads_returned() == []


@pytest.mark.parametrize("start", [0, 3], ids=["a ring", "a ring with a way in"])
def test_regression_inflate_chain_that_never_ends(counted: BalloonMachine, start: int) -> None:
    """An inflate request whose last descriptor leads back into it is left after as many descriptors as the queue has,
    and none of its pages is taken.

    Seed: inflate endless loop."""
    pfns = counted.filled_pfns(8)
    raw = RawQueue(counted.driver, INFLATEQ)
    for slot, pfn in enumerate(pfns):
        raw.descriptor(slot, raw.buffer(pfn_bytes([pfn])), 4, NEXT, slot + 1 if slot < 7 else start)
    raw.available(0)
    before = copied_bytes(counted)
    raw.kick()
    assert counted.driver.needs_reset
    assert copied_bytes(counted) - before < PAGE_BYTES
    assert counted.are_filled(pfns)


@pytest.mark.parametrize("spare", range(4))
def test_regression_inflate_array_that_ends_within_an_entry_ends(counted: BalloonMachine, spare: int) -> None:
    """A request is taken four bytes at a time, and its end is found though no entry ends there.

    Seed: inflate endless loop."""
    pfns = counted.filled_pfns(3)
    (used,) = counted.driver.transfer(INFLATEQ, readable=[pfn_bytes(pfns) + bytes(spare)])
    assert used.length == 0
    assert counted.are_zero(pfns)
    assert copied_bytes(counted) < MIB
