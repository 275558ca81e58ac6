"""A driver that breaks the structure of a ring: the device needs reset, says why, touches nothing, and lives on."""

from __future__ import annotations

import re

import pytest

from devices.virtio.spec import Status
from tests.fixtures import MakeMachine
from tests.support import BalloonMachine, Way
from vmm.testing import RawQueue
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, STATSQ, pfn_bytes
from vmm.testing.driver import EVENT_IDX
from vmm.testing.mistakes import HEAD, RING_MISTAKES, Mistake

pytestmark = pytest.mark.split_rings  # the rings written to here are split ones

EVERY_MISTAKE = pytest.mark.parametrize("mistake", RING_MISTAKES, ids=lambda mistake: mistake.name)


def start(machine: BalloonMachine, mistake: Mistake, *, without: int = 0) -> None:
    offered = machine.driver.transport.read_device_features()
    machine.driver.start(offered & ~(without | mistake.without))
    assert machine.driver.features & mistake.needs == mistake.needs
    machine.driver.take_interrupts()
    machine.events.clear()


def used_ring(machine: BalloonMachine, queue: int) -> tuple[int, int]:
    """Where the device may write in a queue, avail_event included."""
    layout = machine.driver.queues[queue].layout
    return layout.device_gpa, layout.used_bytes


def check_blame(machine: BalloonMachine, mistake: Mistake, queue: int, head: int | None) -> None:
    """Exactly one event says that the device needs reset, in which queue, at which head, and by which section."""
    (event,) = [event for event in machine.events if event.kind == "needs-reset"]
    assert event.source == machine.balloon.name
    assert f"queue {queue}" in event.text
    assert re.search(rf"§{re.escape(mistake.section)}\b", event.text), event.text
    if head is not None:
        assert f"head {head}" in event.text


@EVERY_MISTAKE
@pytest.mark.parametrize("queue", [INFLATEQ, DEFLATEQ, STATSQ], ids=["inflateq", "deflateq", "statsq"])
def test_a_mistake_costs_the_driver_its_device_and_nothing_else(
    machine: BalloonMachine, mistake: Mistake, queue: int
) -> None:
    start(machine, mistake)
    raw = RawQueue(machine.driver, queue)
    head = mistake.make(raw)
    before = machine.snapshot()
    raw.kick()
    assert machine.driver.status & Status.DEVICE_NEEDS_RESET
    assert machine.driver.take_interrupts().config == 1
    check_blame(machine, mistake, queue, head)
    assert before.changed(outside=[used_ring(machine, queue)]) == []
    check_dead_until_reset(machine, raw)
    check_alive_after_reset(machine)


def check_dead_until_reset(machine: BalloonMachine, raw: RawQueue) -> None:
    """Nothing is consumed or written any more, the configuration can still be read, and no call raises."""
    before = machine.snapshot()
    used = raw.used_idx
    for queue in (INFLATEQ, DEFLATEQ, STATSQ):
        machine.driver.transport.notify(queue)
    machine.set_target(machine.balloon.target_pages + 1)
    machine.request_stats()
    machine.set_polling_interval(1000)
    machine.bench.advance(10_000)
    machine.set_polling_interval(0)
    assert before.changed() == []
    assert raw.used_idx == used
    assert machine.driver.num_pages == machine.balloon.target_pages
    assert machine.driver.take_interrupts().used == {}


def check_alive_after_reset(machine: BalloonMachine) -> None:
    machine.driver.start()
    pfns = machine.filled_pfns(3)
    assert len(machine.driver.inflate(pfns)) == 1
    assert machine.are_zero(pfns)
    machine.hear_stats({4: 17})
    assert machine.statistics().values == {"stat-free-memory": 17}
    assert not machine.driver.needs_reset


@EVERY_MISTAKE
def test_a_mistake_without_event_idx(machine: BalloonMachine, mistake: Mistake) -> None:
    start(machine, mistake, without=EVENT_IDX)
    raw = RawQueue(machine.driver, INFLATEQ)
    head = mistake.make(raw)
    raw.kick()
    assert machine.driver.needs_reset
    check_blame(machine, mistake, INFLATEQ, head)


@EVERY_MISTAKE
def test_what_was_returned_before_the_mistake_stays_returned(machine: BalloonMachine, mistake: Mistake) -> None:
    start(machine, mistake)
    pfns = machine.filled_pfns(2)
    machine.driver.inflate(pfns, per_buffer=1)
    raw = RawQueue(machine.driver, INFLATEQ)
    mistake.make(raw)
    raw.kick()
    assert machine.driver.needs_reset
    assert machine.are_zero(pfns)
    assert raw.heads_returned() in ([], [HEAD])


@EVERY_MISTAKE
@pytest.mark.parametrize("neighbours", [1, 40])
def test_a_mistake_behind_good_chains_loses_no_head_silently(
    machine: BalloonMachine, mistake: Mistake, neighbours: int
) -> None:
    """Each good chain of the same kick came back once, or did not and the device needs reset; never half done."""
    start(machine, mistake)
    raw = RawQueue(machine.driver, INFLATEQ)
    pfns = machine.filled_pfns(neighbours)
    heads = list(range(20, 20 + neighbours))
    for head, pfn in zip(heads, pfns, strict=True):
        raw.descriptor(head, raw.buffer(pfn_bytes([pfn])), 4)
    raw.available(*heads)
    mistake.make(raw)
    raw.kick()
    assert machine.driver.needs_reset
    returned = raw.heads_returned()
    assert len(set(returned)) == len(returned)
    assert set(returned) <= {*heads, HEAD}
    for head, pfn in zip(heads, pfns, strict=True):
        assert machine.are_zero([pfn]) if head in returned else machine.are_filled([pfn])


@pytest.mark.modern
@EVERY_MISTAKE
def test_a_mistake_before_driver_ok_is_found_at_driver_ok(machine: BalloonMachine, mistake: Mistake) -> None:
    """Nothing is looked at before DRIVER_OK; then the driver hears what it did."""
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.negotiate(driver.transport.read_device_features() & ~mistake.without)
    driver.set_up_queues()
    driver.take_interrupts()
    raw = RawQueue(driver, INFLATEQ)
    mistake.make(raw)
    raw.kick()
    assert not driver.needs_reset
    driver.driver_ok()
    assert driver.needs_reset
    assert driver.take_interrupts().config == 1
    check_alive_after_reset(machine)


@pytest.mark.modern
@pytest.mark.parametrize(
    ("field", "gpa", "section"),
    [
        ("desc", 0x7F00_0000_0000, "2.6"),
        ("driver", 0x7F00_0000_0000, "2.6"),
        ("device", 0x7F00_0000_0000, "2.6"),
        ("desc", 0x9FFF0, "2.6"),  # the table begins in RAM and ends in the hole
        ("device", 2**64 - 16, "2.6"),  # wraps around
        ("desc", 0x100008, "2.7.1"),
        ("driver", 0x100001, "2.7.1"),
        ("device", 0x100002, "2.7.1"),
    ],
)
def test_a_ring_that_is_misaligned_or_not_ram_needs_reset(
    machine: BalloonMachine, field: str, gpa: int, section: str
) -> None:
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.negotiate()
    places = {"desc": 0x110000, "driver": 0x112000, "device": 0x114000} | {field: gpa}
    before = machine.snapshot()
    driver.transport.set_up_queue(INFLATEQ, 128, places["desc"], places["driver"], places["device"])
    driver.driver_ok()
    driver.transport.notify(INFLATEQ)
    assert driver.needs_reset
    assert before.changed() == []
    (event,) = [event for event in machine.events if event.kind == "needs-reset"]
    assert f"§{section}" in event.text
    check_alive_after_reset(machine)


@pytest.mark.modern
def test_rings_may_overlap_each_other_without_harm(make_machine: MakeMachine, way: Way) -> None:
    """A driver that lays all three parts over one another breaks only itself: no byte outside is written."""
    machine = make_machine(way)
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.negotiate()
    gpa = machine.pages.take()
    driver.transport.set_up_queue(INFLATEQ, 8, gpa, gpa, gpa)
    driver.driver_ok()
    before = machine.snapshot()
    machine.memory.write(gpa, bytes(range(16)) * 256)
    for _ in range(4):
        driver.transport.notify(INFLATEQ)
    named = [(page * 4096, 4096) for page in range(256)]  # whatever the overlapping bytes may have named
    assert before.changed(outside=[(gpa, 4096), *named]) == []
    check_alive_after_reset(machine)
