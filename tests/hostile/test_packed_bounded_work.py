"""The work that one kick of a packed ring can bring about is bounded, counted and never timed, as with a split ring."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import MIB, PACKED_WAYS, BalloonMachine, CountingMemory, Way
from vmm.testing import RawPackedQueue
from vmm.testing.balloon import INFLATEQ
from vmm.testing.layout import PackedDescriptor
from vmm.testing.raw import INDIRECT, NEXT, WRITE

ENOUGH_PFNS = 65536
QUEUE_SIZE = 128


@pytest.fixture(params=PACKED_WAYS)
def counted(request: pytest.FixtureRequest) -> Iterator[BalloonMachine]:
    """A started machine with packed rings whose RAM counts what the device does to it."""
    way: Way = request.param
    memory = CountingMemory()
    machine = BalloonMachine(way, memory=memory)
    machine.driver.start()
    memory.restart()
    yield machine
    machine.close()


def counts(machine: BalloonMachine) -> CountingMemory:
    assert isinstance(machine.memory, CountingMemory)
    return machine.memory


@pytest.fixture
def raw(counted: BalloonMachine) -> RawPackedQueue:
    return RawPackedQueue(counted.driver, INFLATEQ)


def test_a_list_that_names_the_same_memory_over_and_over_is_not_all_read(
    counted: BalloonMachine, raw: RawPackedQueue
) -> None:
    """128 descriptors of 3 MiB each, all the same memory: 384 MiB asked for in 2 KiB of ring."""
    for number in range(QUEUE_SIZE):
        raw.descriptor(0x100000, 3 * MIB, NEXT if number + 1 < QUEUE_SIZE else 0, 1)
    counts(counted).restart()
    raw.kick()
    assert counts(counted).copied_bytes <= 4 * ENOUGH_PFNS
    assert not counted.driver.needs_reset


@pytest.mark.parametrize("count", [QUEUE_SIZE + 1, 4096, 65536])
def test_a_table_longer_than_the_queue_is_not_read(counted: BalloonMachine, raw: RawPackedQueue, count: int) -> None:
    raw.descriptor(0x200000, 16 * count, INDIRECT, 1)
    counts(counted).restart()
    raw.kick()
    assert counted.driver.needs_reset
    assert counts(counted).copied_bytes == 0


def test_a_kick_serves_all_that_is_available_each_table_once(counted: BalloonMachine, raw: RawPackedQueue) -> None:
    """128 chains, each a table as long as the queue; one that does not fit into a call is read again in the next."""
    gpa = raw.buffer(bytes(4))
    table = raw.table([PackedDescriptor(gpa, 4)] * QUEUE_SIZE)
    for name in range(QUEUE_SIZE):
        raw.descriptor(table, 16 * QUEUE_SIZE, INDIRECT, name)
    counts(counted).restart()
    raw.kick()
    counted.bench.advance(1_000_000_000)
    assert raw.ids_returned() == list(range(QUEUE_SIZE))
    assert counts(counted).copied_bytes <= 2 * QUEUE_SIZE * QUEUE_SIZE * (16 + 4)


@pytest.mark.parametrize("length", [0x7FFF_FFFF, 0x8000_0000, 0xFFFF_F000, 0xFFFF_FFFF], ids=hex)
@pytest.mark.parametrize("flags", [0, WRITE], ids=["readable", "writable"])
def test_a_huge_descriptor_is_not_looked_at(
    counted: BalloonMachine, raw: RawPackedQueue, length: int, flags: int
) -> None:
    raw.descriptor(0x100000, length, flags, 1)
    raw.kick()
    assert counted.driver.needs_reset
    assert counts(counted).copied_bytes == 0


def test_one_kick_does_not_read_an_array_of_all_ram_for_every_chain(
    counted: BalloonMachine, raw: RawPackedQueue
) -> None:
    """After a part of them the CPU has its turn, and the rest is carried on with at deadlines that come at once."""
    piece = 4 * ENOUGH_PFNS // QUEUE_SIZE
    table = raw.table([PackedDescriptor(0x200000 + number * piece, piece) for number in range(QUEUE_SIZE)])
    for name in range(QUEUE_SIZE):
        raw.descriptor(table, 16 * QUEUE_SIZE, INDIRECT, name)
    counts(counted).restart()
    raw.kick()
    assert counts(counted).copied_bytes <= 8 * MIB
    assert len(raw.ids_returned()) < QUEUE_SIZE
    counted.bench.advance(1_000_000)
    assert raw.ids_returned() == list(range(QUEUE_SIZE))
    assert not counted.driver.needs_reset
