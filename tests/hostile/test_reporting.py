"""A driver that reports what it may not: the ring's rules hold here too, wrong ranges cost only those who sent them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from devices.memory import GuestMemory
from devices.virtio.spec import Status
from tests.fixtures import MakeMachine
from tests.support import MIB, BalloonMachine, CountingMemory, Way, build_reporting
from vmm.testing import Descriptor, RawQueue
from vmm.testing.driver import EVENT_IDX
from vmm.testing.mistakes import RANGE_MISTAKES, RING_MISTAKES, Mistake
from vmm.testing.raw import INDIRECT, NEXT, WRITE

pytestmark = pytest.mark.split_rings  # the rings written to here are split ones

GIB = 1 << 30
PAGE = 4096

EVERY_MISTAKE = pytest.mark.parametrize("mistake", [*RING_MISTAKES, *RANGE_MISTAKES], ids=lambda mistake: mistake.name)


def start(make_machine: MakeMachine, way: Way, without: int) -> BalloonMachine:
    machine = make_machine(way, build=build_reporting)
    machine.driver.start(machine.driver.transport.read_device_features() & ~without)
    machine.driver.take_interrupts()
    machine.events.clear()
    return machine


def check_alive_after_reset(machine: BalloonMachine) -> None:
    machine.driver.start()
    (pfn,) = machine.filled_pfns(1)
    (used,) = machine.driver.report([(pfn * PAGE, PAGE)])
    assert used.length == 0
    assert machine.are_zero([pfn])


@EVERY_MISTAKE
@pytest.mark.parametrize("without", [0, EVENT_IDX], ids=["event-idx", "no-event-idx"])
def test_a_mistake_costs_the_driver_its_device_and_nothing_else(
    make_machine: MakeMachine, way: Way, mistake: Mistake, without: int
) -> None:
    machine = start(make_machine, way, without | mistake.without)
    driver = machine.driver
    raw = RawQueue(driver, driver.reporting_vq)
    head = mistake.make(raw)
    before = machine.snapshot()
    raw.kick()
    assert driver.status & Status.DEVICE_NEEDS_RESET
    assert driver.take_interrupts().config == 1
    (event,) = [event for event in machine.events if event.kind == "needs-reset"]
    assert f"queue {driver.reporting_vq}" in event.text
    assert re.search(rf"§{re.escape(mistake.section)}\b", event.text), event.text
    assert head is None or f"head {head}" in event.text
    layout = driver.queues[driver.reporting_vq].layout
    assert before.changed(outside=[(layout.device_gpa, layout.used_bytes)]) == []
    assert machine.balloon.reported_pages == 0
    check_alive_after_reset(machine)


@EVERY_MISTAKE
def test_good_reports_of_the_same_kick_are_done_or_not_done_but_never_half(
    make_machine: MakeMachine, way: Way, mistake: Mistake
) -> None:
    machine = start(make_machine, way, mistake.without)
    raw = RawQueue(machine.driver, machine.driver.reporting_vq)
    pfns = machine.filled_pfns(20)
    heads = list(range(20, 40))
    for head, pfn in zip(heads, pfns, strict=True):
        raw.descriptor(head, pfn * PAGE, PAGE, WRITE)
    raw.available(*heads)
    mistake.make(raw)
    raw.kick()
    assert machine.driver.needs_reset
    returned = raw.heads_returned()
    assert len(set(returned)) == len(returned)
    for head, pfn in zip(heads, pfns, strict=True):
        assert machine.are_zero([pfn]) if head in returned else machine.are_filled([pfn])
    check_alive_after_reset(machine)


# -- ranges that are allowed by the ring and foolish all the same ------------------------------------------------------


def test_a_readable_buffer_is_not_discarded(reporting: BalloonMachine) -> None:
    """It is ignored, counted and told of, and the request is completed: no ring rule forbids it."""
    driver = reporting.driver
    first, second = reporting.filled_pfns(2)
    driver.offer(driver.reporting_vq, readable=[(first * PAGE, PAGE)], writable=[(second * PAGE, PAGE)])
    driver.offer(driver.reporting_vq, readable=[(first * PAGE, PAGE)])
    driver.kick(driver.reporting_vq)
    assert [used.length for used in driver.collect(driver.reporting_vq)] == [0, 0]
    assert reporting.are_filled([first])
    assert reporting.are_zero([second])
    assert reporting.balloon.ignored_bytes == 2 * PAGE
    assert [event.kind for event in reporting.events if event.kind == "ignored-bytes"] == ["ignored-bytes"]
    assert not driver.needs_reset


def test_a_report_of_its_own_ring_hurts_only_the_driver(reporting: BalloonMachine) -> None:
    """The rings read as zeros afterwards: what follows is an available index that went back, at the worst."""
    driver = reporting.driver
    pfns = reporting.filled_pfns(2)
    queue = driver.queues[driver.reporting_vq]
    raw = RawQueue(driver, driver.reporting_vq)
    whole = queue.ring_gpa, queue.ring_pages * PAGE
    raw.descriptor(0, *whole, WRITE)
    raw.descriptor(1, pfns[0] * PAGE, PAGE, WRITE)
    raw.available(0, 1)
    before = reporting.snapshot()
    raw.kick()
    assert before.changed(outside=[whole, (pfns[0] * PAGE, PAGE)]) == []
    assert reporting.are_filled(pfns[1:])
    assert driver.needs_reset
    check_alive_after_reset(reporting)


def test_a_report_of_another_queues_ring_hurts_only_the_driver(reporting: BalloonMachine) -> None:
    driver = reporting.driver
    pfns = reporting.filled_pfns(2)
    driver.inflate(pfns[:1])
    other = driver.queues[0]
    driver.report([(other.ring_gpa, other.ring_pages * PAGE)])
    driver.transport.notify(0)
    assert driver.needs_reset, "the available index went back to 0"
    assert reporting.are_filled(pfns[1:])
    check_alive_after_reset(reporting)


def test_a_table_that_reports_itself_is_read_once(reporting: BalloonMachine) -> None:
    """The second entry still counts although the first discards the table that both stand in."""
    driver = reporting.driver
    raw = RawQueue(driver, driver.reporting_vq)
    (pfn,) = reporting.filled_pfns(1)
    gpa = raw.table([Descriptor(0, 0)])
    entries = [Descriptor(gpa, PAGE, WRITE | NEXT, 1), Descriptor(pfn * PAGE, PAGE, WRITE)]
    reporting.memory.write(gpa, b"".join(entry.pack() for entry in entries))
    raw.descriptor(0, gpa, 32, INDIRECT)
    raw.available(0)
    raw.kick()
    assert raw.heads_returned() == [0]
    assert reporting.are_zero([gpa // PAGE, pfn])


def test_all_of_ram_may_be_reported(reporting: BalloonMachine) -> None:
    """Every page the guest has, its rings, tables and all: contained, and the device lives on."""
    driver = reporting.driver
    regions = [(region.gpa, region.size) for region in reporting.memory.regions]
    raw = RawQueue(driver, driver.reporting_vq)
    for index, (gpa, size) in enumerate(regions):
        more = index + 1 < len(regions)
        raw.descriptor(index, gpa, size, WRITE | (NEXT if more else 0), index + 1)
    raw.available(0)
    raw.kick()
    assert reporting.balloon.reported_pages == sum(size for _, size in regions) // PAGE
    assert reporting.memory.backed_bytes() <= 4 * PAGE, "only what was written to return the chain"
    check_alive_after_reset(reporting)


# -- bounded work ------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(way: Way) -> Iterator[BalloonMachine]:
    """A started machine whose RAM counts what the device does to it."""
    memory = CountingMemory()
    machine = BalloonMachine(way, memory=memory, build=build_reporting)
    machine.driver.start()
    memory.restart()
    yield machine
    machine.close()


def counts(machine: BalloonMachine) -> CountingMemory:
    assert isinstance(machine.memory, CountingMemory)
    return machine.memory


def test_the_same_range_over_and_over_is_discarded_once_a_batch(counted: BalloonMachine) -> None:
    driver = counted.driver
    raw = RawQueue(driver, driver.reporting_vq)
    entries = [Descriptor(0x200000, MIB, WRITE | (NEXT if i < 127 else 0), i + 1) for i in range(128)]
    raw.descriptor(0, raw.table(entries), 16 * 128, INDIRECT)
    raw.available(0)
    counts(counted).restart()
    raw.kick()
    assert raw.heads_returned() == [0]
    assert (counts(counted).discarded_runs, counts(counted).discarded_pages) == (1, MIB // PAGE)


def test_nothing_that_is_reported_is_read(counted: BalloonMachine) -> None:
    driver = counted.driver
    driver.offer(driver.reporting_vq, writable=[(0x200000, MIB), (1 << 32, MIB)])
    driver.queues[driver.reporting_vq].publish()
    counts(counted).restart()
    driver.transport.notify(driver.reporting_vq)
    assert counts(counted).copied_bytes <= 2 * 16
    assert len(driver.collect(driver.reporting_vq)) == 1


def test_one_kick_does_not_discard_all_of_a_large_ram_for_every_head() -> None:
    """Eight chains of 4 GiB less a page: after a small part of one of them the CPU has its turn."""
    memory = GuestMemory(((0, 0xA0000), (0x100000, 8 * GIB - 0x100000)))
    machine = BalloonMachine("direct", memory=memory, build=build_reporting)
    driver = machine.driver
    driver.start()
    raw = RawQueue(driver, driver.reporting_vq)
    share = (4 * GIB - PAGE) // 128 // PAGE * PAGE
    entries = [Descriptor(GIB + i * share, share, WRITE | (NEXT if i < 127 else 0), i + 1) for i in range(128)]
    table = raw.table(entries)
    for slot in range(8):
        raw.descriptor(slot, table, 16 * 128, INDIRECT)
    raw.available(*range(8))
    raw.kick()
    assert raw.heads_returned() == []
    assert machine.balloon.next_deadline_ns() == machine.now_ns
    machine.bench.advance(1_000_000)
    assert raw.heads_returned() == list(range(8))
    assert not driver.needs_reset
    machine.close()
