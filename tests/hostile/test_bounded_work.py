"""How much work a driver can make a device do with one kick, counted in bytes, descriptors and runs, not in time."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from devices.memory import GuestMemory
from tests.support import MIB, BalloonMachine, CountingMemory, Way
from vmm.testing import Descriptor, RawQueue
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, STATSQ
from vmm.testing.raw import INDIRECT, NEXT

pytestmark = pytest.mark.split_rings  # the rings written to here are split ones

GIB = 1 << 30
RAM_PAGES = 0x4A0  # what RAM_LAYOUT has
ENOUGH_PFNS = 65536 + RAM_PAGES
"""No device of this size needs to read more page frame numbers than this at once, however often they repeat."""


@pytest.fixture
def counted(way: Way) -> Iterator[BalloonMachine]:
    """A started machine whose RAM counts what the device does to it."""
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
def huge() -> Iterator[BalloonMachine]:
    """A started machine with 8 GiB of RAM, none of it touched."""
    memory = GuestMemory(((0, 0xA0000), (0x100000, 8 * GIB - 0x100000)))
    machine = BalloonMachine("direct", memory=memory)
    machine.driver.start()
    yield machine
    machine.close()


def test_one_descriptor_of_all_ram_is_read_once_at_most(counted: BalloonMachine) -> None:
    counted.driver.offer(INFLATEQ, readable=[(0x100000, 3 * MIB)])
    counted.driver.queues[INFLATEQ].publish()
    counts(counted).restart()
    counted.driver.transport.notify(INFLATEQ)
    counted.bench.advance(1_000_000)
    assert counts(counted).copied_bytes <= 3 * MIB
    assert len(counted.driver.collect(INFLATEQ)) == 1


@pytest.mark.parametrize("queue", [INFLATEQ, DEFLATEQ], ids=["inflateq", "deflateq"])
def test_pieces_that_name_the_same_memory_over_and_over_are_not_all_read(counted: BalloonMachine, queue: int) -> None:
    """A chain of 128 descriptors of 3 MiB each, all the same memory: 384 MiB asked for in 2 KiB of table."""
    raw = RawQueue(counted.driver, queue)
    entries = [Descriptor(0x100000, 3 * MIB, NEXT if i < 127 else 0, i + 1) for i in range(128)]
    raw.descriptor(0, raw.table(entries), 16 * 128, INDIRECT)
    raw.available(0)
    counts(counted).restart()
    raw.kick()
    assert counts(counted).copied_bytes <= 4 * ENOUGH_PFNS + 16 * 128
    assert raw.heads_returned() == [0] or counted.driver.needs_reset


def test_a_descriptor_of_4_gib_of_real_ram_is_not_read_through(huge: BalloonMachine) -> None:
    """A length of all ones where the RAM is really there: the host must not end up backing 4 GiB of holes."""
    before = huge.memory.backed_bytes()
    raw = RawQueue(huge.driver, INFLATEQ)
    raw.descriptor(0, GIB, 0xFFFF_FFFF)
    raw.available(0)
    raw.kick()
    assert raw.heads_returned() == [0] or huge.driver.needs_reset
    assert huge.memory.backed_bytes() - before < 64 * MIB


def test_a_chain_of_more_than_4_gib_is_refused(huge: BalloonMachine) -> None:
    """§2.7.5.2: no chain is longer than 2^32 bytes in total, however much RAM there is."""
    raw = RawQueue(huge.driver, INFLATEQ)
    raw.descriptor(0, GIB, 0xC000_0000, NEXT, 1)
    raw.descriptor(1, GIB, 0x8000_0000)
    raw.available(0)
    raw.kick()
    assert huge.driver.needs_reset
    assert raw.heads_returned() == []


def test_a_statistics_buffer_of_4_gib_is_not_read_through(huge: BalloonMachine) -> None:
    before = huge.memory.backed_bytes()
    raw = RawQueue(huge.driver, STATSQ)
    raw.descriptor(0, GIB, 0xFFFF_FFFF)
    raw.available(0)
    raw.kick()
    assert huge.memory.backed_bytes() - before < MIB
    assert not huge.driver.needs_reset


def test_repeated_pages_are_discarded_once_a_batch(counted: BalloonMachine) -> None:
    """65536 times the same page: one run for the host to punch."""
    pfn = counted.filled_pfns(1)[0]
    counted.memory.write(0x200000, pfn.to_bytes(4, "little") * 65536)
    counted.driver.offer(INFLATEQ, readable=[(0x200000, 4 * 65536)])
    counted.driver.kick(INFLATEQ)
    counted.bench.advance(1_000_000)
    assert len(counted.driver.collect(INFLATEQ)) == 1
    assert (counts(counted).discarded_runs, counts(counted).discarded_pages) == (1, 1)


SLICE_PAGES, SLICE_RUNS = 4096, 1024
"""No call gives more back than that, of a batch that is worked off in slices."""
LARGEST_BATCH = 16384
"""So many page frame numbers are dealt with at once."""
LARGE_LAYOUT = ((0, 0xA0000), (0x100000, 255 * MIB))


@pytest.fixture
def large() -> Iterator[BalloonMachine]:
    machine = BalloonMachine("direct", memory=CountingMemory(LARGE_LAYOUT))
    machine.driver.start()
    yield machine
    machine.close()


def work_of_each_call(machine: BalloonMachine) -> Iterator[tuple[int, int, int]]:
    """Pages and runs given back and bytes copied by each call for the deadline that has come."""
    memory = counts(machine)
    while (due := machine.balloon.next_deadline_ns()) is not None:
        memory.restart()
        machine.host(machine.balloon.advance(due))
        yield memory.discarded_pages, memory.discarded_runs, memory.copied_bytes


PATTERNS = {
    "every other page, shuffled": lambda: random.Random(1).sample(range(0x1000, 0xFF00, 2), 30_000),
    "descending": lambda: list(range(0xFF00, 0x1000, -1)),
    "anything, repeated": lambda: random.Random(2).choices(range(0x1000, 0x14000), k=65536),
    "ends of RAM": lambda: [0x9F, 0x100, 0xFFFF] * 10_000,
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("queue", [INFLATEQ, DEFLATEQ], ids=["inflateq", "deflateq"])
def test_a_request_of_very_many_pages_is_worked_off_a_few_at_a_time(
    large: BalloonMachine, queue: int, pattern: str
) -> None:
    pfns = PATTERNS[pattern]()
    payload = np.array(pfns, "<u4").tobytes()
    large.memory.write(0x200000, payload)
    large.driver.offer(queue, readable=[(0x200000, len(payload))])
    counts(large).restart()
    large.driver.kick(queue)
    assert counts(large).discarded_pages == 0
    assert counts(large).copied_bytes <= len(payload) + 16, "once; the driver looks at the ring's flags"
    calls = list(work_of_each_call(large))
    assert all(pages <= SLICE_PAGES and runs <= SLICE_RUNS and not copied for pages, runs, copied in calls)
    pages = {pfn for pfn in pfns if pfn < 0x10000}
    assert sum(each[0] for each in calls) == (len(pages) if queue == INFLATEQ else 0)
    assert len(large.driver.collect(queue)) == 1
    assert large.balloon.bad_pfns == sum(pfn >= 0x10000 for pfn in pfns)


def test_batches_just_below_that_do_not_follow_each_other_in_one_call(large: BalloonMachine) -> None:
    """Sixteen chains, each a table of 128 buffers with all that is dealt with at once."""
    raw = RawQueue(large.driver, INFLATEQ)
    array = np.arange(0x1000, 0x1000 + 2 * LARGEST_BATCH, 2).astype("<u4").tobytes()
    large.memory.write(0x200000, array)
    piece = len(array) // 128
    entries = [Descriptor(0x200000 + i * piece, piece, NEXT if i < 127 else 0, i + 1) for i in range(128)]
    table = raw.table(entries)
    for slot in range(16):
        raw.descriptor(slot, table, 16 * 128, INDIRECT)
    raw.available(*range(16))
    counts(large).restart()
    raw.kick()
    calls = [(counts(large).discarded_pages, 0, 0), *work_of_each_call(large)]
    assert all(pages <= 2 * LARGEST_BATCH for pages, _, _ in calls)
    assert sum(pages for pages, _, _ in calls) == 16 * LARGEST_BATCH
    assert raw.heads_returned() == list(range(16))


def test_neighbouring_pages_are_one_run(counted: BalloonMachine) -> None:
    pfns = counted.filled_pfns(64)
    counts(counted).restart()
    counted.driver.inflate([*pfns[32:], *pfns[:32]])
    assert (counts(counted).discarded_runs, counts(counted).discarded_pages) == (1, 64)


def test_pages_far_apart_cost_one_run_each_and_never_more_than_ram_has(counted: BalloonMachine) -> None:
    pfns = counted.filled_pfns(100)
    counts(counted).restart()
    counted.driver.inflate(pfns[::2])
    assert (counts(counted).discarded_runs, counts(counted).discarded_pages) == (50, 50)


def test_bad_page_numbers_cost_no_system_call(counted: BalloonMachine) -> None:
    counted.driver.inflate(range(0xA0, 0x100))
    assert counts(counted).discarded_runs == 0
    assert counted.balloon.bad_pfns == 96


@pytest.mark.parametrize("loops", [True, False])
def test_a_loop_is_left_after_as_many_descriptors_as_the_queue_has(counted: BalloonMachine, loops: bool) -> None:
    """A table that may be followed for 65536 entries of 3 MiB: nothing of it is read as payload."""
    raw = RawQueue(counted.driver, INFLATEQ)
    count = 4096
    last = 0 if loops else count  # back to the start, or out of the table
    entries = [Descriptor(0x100000, 3 * MIB, NEXT, i + 1 if i + 1 < count else last) for i in range(count)]
    raw.descriptor(0, raw.table(entries), 16 * count, INDIRECT)
    raw.available(0)
    counts(counted).restart()
    raw.kick()
    assert counted.driver.needs_reset
    assert counts(counted).copied_bytes <= 16 * count


def test_a_kick_serves_at_most_what_was_published(counted: BalloonMachine) -> None:
    """128 chains, each a table as long as the queue: all are served, and each descriptor is looked at once."""
    raw = RawQueue(counted.driver, INFLATEQ)
    gpa = raw.buffer(bytes(4))
    table = raw.table([Descriptor(gpa, 4, NEXT if i < 127 else 0, i + 1) for i in range(128)])
    for slot in range(128):
        raw.descriptor(slot, table, 16 * 128, INDIRECT)
    raw.available(*range(128))
    counts(counted).restart()
    raw.kick()
    counted.bench.advance(1_000_000_000)
    assert sorted(raw.heads_returned()) == list(range(128))
    assert counts(counted).copied_bytes <= 128 * 128 * (16 + 4)
    assert counts(counted).discarded_pages <= 128 * 128


def test_one_kick_does_not_read_an_array_of_all_ram_for_every_head(counted: BalloonMachine) -> None:
    """128 chains of as many page frame numbers as the device reads at all: after a part of them the CPU has its turn
    again, and the rest is carried on with at a deadline that has come."""
    raw = RawQueue(counted.driver, INFLATEQ)
    piece = 4 * 65536 // 128
    entries = [Descriptor(0x200000 + i * piece, piece, NEXT if i < 127 else 0, i + 1) for i in range(128)]
    table = raw.table(entries)
    for slot in range(128):
        raw.descriptor(slot, table, 16 * 128, INDIRECT)
    raw.available(*range(128))
    counts(counted).restart()
    raw.kick()
    assert counts(counted).copied_bytes <= 8 * MIB
    assert len(raw.heads_returned()) < 128
    counted.bench.advance(1_000_000)
    assert sorted(raw.heads_returned()) == list(range(128))
    assert not counted.driver.needs_reset
