"""A driver that breaks the structure of a packed ring: the device needs reset, says why, touches nothing, lives on."""

from __future__ import annotations

import re

import pytest

from devices.virtio import device
from devices.virtio.spec import Status
from tests.fixtures import MakeMachine
from tests.support import BalloonMachine, Way
from vmm.testing import PackedQueue, RawPackedQueue, RawQueue
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, STATSQ, pfn_bytes
from vmm.testing.driver import EVENT_IDX
from vmm.testing.packed_mistakes import PACKED_MISTAKES, PackedMistake

pytestmark = pytest.mark.ways("packed", "packed-pci")

EVERY_MISTAKE = pytest.mark.parametrize("mistake", PACKED_MISTAKES, ids=lambda mistake: mistake.name)


def start(machine: BalloonMachine, mistake: PackedMistake, *, without: int = 0) -> None:
    machine.driver.start(machine.driver.transport.read_device_features() & ~(without | mistake.without))
    assert machine.driver.features & mistake.needs == mistake.needs
    machine.driver.take_interrupts()
    machine.events.clear()


def check_blame(machine: BalloonMachine, section: str, queue: int, head: int) -> None:
    """Exactly one event says that the device needs reset, in which queue, at which place, and by which section."""
    (event,) = [event for event in machine.events if event.kind == "needs-reset"]
    assert event.source == machine.balloon.name
    assert f"queue {queue}, head {head}:" in event.text
    assert re.search(rf"§{re.escape(section)}\b", event.text), event.text


def check_dead_until_reset(machine: BalloonMachine) -> None:
    """Nothing is consumed or written any more, and no call raises."""
    before = machine.snapshot()
    for queue in (INFLATEQ, DEFLATEQ, STATSQ):
        machine.driver.transport.notify(queue)
    machine.set_target(machine.balloon.target_pages + 1)
    machine.request_stats()
    machine.set_polling_interval(1000)
    machine.bench.advance(10_000)
    machine.set_polling_interval(0)
    assert before.changed() == []
    assert machine.driver.take_interrupts().used == {}


def check_alive_after_reset(machine: BalloonMachine) -> None:
    machine.driver.start()
    pfns = machine.filled_pfns(3)
    assert len(machine.driver.inflate(pfns)) == 1
    assert machine.are_zero(pfns)
    machine.driver.post_stats({4: 17})
    assert machine.statistics().values == {"stat-free-memory": 17}
    assert not machine.driver.needs_reset


@EVERY_MISTAKE
@pytest.mark.parametrize("queue", [INFLATEQ, STATSQ], ids=["inflateq", "statsq"])
def test_a_mistake_costs_the_driver_its_device_and_nothing_else(
    machine: BalloonMachine, mistake: PackedMistake, queue: int
) -> None:
    start(machine, mistake)
    raw = RawPackedQueue(machine.driver, queue)
    head = mistake.make(raw)
    before = machine.snapshot()
    raw.kick()
    assert machine.driver.status & Status.DEVICE_NEEDS_RESET
    assert machine.driver.take_interrupts().config == 1
    check_blame(machine, mistake.section, queue, head)
    assert before.changed() == []  # nothing was taken: no used descriptor, and nothing asked for
    check_dead_until_reset(machine)
    check_alive_after_reset(machine)


@EVERY_MISTAKE
def test_a_mistake_in_the_middle_of_a_ring_that_has_gone_round(machine: BalloonMachine, mistake: PackedMistake) -> None:
    """Without EVENT_IDX, in a small ring of an odd size, with the wrap counter at 0."""
    start(machine, mistake)
    machine.driver.start(machine.driver.features & ~EVENT_IDX, queue_sizes=7)
    machine.events.clear()
    machine.driver.inflate(machine.filled_pfns(10), per_buffer=1)
    pfns = machine.filled_pfns(2)
    raw = RawPackedQueue(machine.driver, INFLATEQ)
    assert (raw.next.index, raw.next.wrap) == (3, 0)
    head = mistake.make(raw)
    raw.kick()
    assert machine.driver.needs_reset
    check_blame(machine, mistake.section, INFLATEQ, head)
    assert machine.are_filled(pfns)
    check_alive_after_reset(machine)


@EVERY_MISTAKE
@pytest.mark.parametrize("neighbours", [1, 100])
def test_a_mistake_behind_good_chains_loses_none_silently(
    machine: BalloonMachine, mistake: PackedMistake, neighbours: int
) -> None:
    """Each good chain of the same kick came back once, or did not and the device needs reset; never half done."""
    start(machine, mistake)
    raw = RawPackedQueue(machine.driver, INFLATEQ)
    pfns = machine.filled_pfns(neighbours)
    for name, pfn in enumerate(pfns, 200):
        raw.descriptor(raw.buffer(pfn_bytes([pfn])), 4, 0, name)
    if mistake.name == "loop_over_the_whole_ring":
        raw.size -= neighbours  # no further than the good ones
    mistake.make(raw)
    raw.kick()
    assert machine.driver.needs_reset
    returned = raw.ids_returned()
    assert len(set(returned)) == len(returned) and set(returned) <= {1, *range(200, 200 + neighbours)}
    for name, pfn in enumerate(pfns, 200):
        assert machine.are_zero([pfn]) if name in returned else machine.are_filled([pfn])


@EVERY_MISTAKE
def test_a_mistake_before_driver_ok_is_found_at_driver_ok(machine: BalloonMachine, mistake: PackedMistake) -> None:
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.negotiate(driver.transport.read_device_features() & ~mistake.without)
    driver.set_up_queues()
    driver.take_interrupts()
    raw = RawPackedQueue(driver, INFLATEQ)
    mistake.make(raw)
    raw.kick()
    assert not driver.needs_reset
    driver.driver_ok()
    assert driver.needs_reset
    assert driver.take_interrupts().config == 1
    check_alive_after_reset(machine)


def test_a_descriptor_that_the_device_holds_is_not_made_available_again(machine: BalloonMachine) -> None:
    """statsq has one descriptor, the device keeps it, and the driver marks it for the next round."""
    machine.driver.start(queue_sizes={STATSQ: 1})
    machine.driver.take_interrupts()
    machine.driver.post_stats({4: 1})
    raw = RawPackedQueue(machine.driver, STATSQ)
    raw.descriptor(raw.buffer(bytes(10)), 10, 0, 7)
    raw.kick()
    assert machine.driver.needs_reset
    check_blame(machine, "2.8.16", STATSQ, 0)
    assert machine.balloon.queues[STATSQ].requests == 1


def test_a_buffer_id_that_the_device_holds_is_not_used_again(machine: BalloonMachine) -> None:
    machine.driver.start()
    held = machine.driver.post_stats({4: 1})
    raw = RawPackedQueue(machine.driver, STATSQ)
    raw.descriptor(raw.buffer(bytes(10)), 10, 0, held)
    raw.kick()
    assert machine.driver.needs_reset
    check_blame(machine, "2.8.21.1", STATSQ, 1)
    assert machine.balloon.queues[STATSQ].requests == 1


@pytest.mark.parametrize(
    ("field", "gpa", "section"),
    [
        ("desc", 0x7F00_0000_0000, "2.6"),
        ("driver", 0x7F00_0000_0000, "2.6"),
        ("device", 0x7F00_0000_0000, "2.6"),
        ("desc", 0x9FFF0, "2.6"),  # the ring begins in RAM and ends in the hole
        ("device", 2**64 - 16, "2.6"),
        ("desc", 0x100008, "2.8.11"),
        ("driver", 0x100002, "2.8.11"),
        ("device", 0x100001, "2.8.11"),
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


def test_parts_may_overlap_each_other_without_harm(machine: BalloonMachine) -> None:
    """The structure that the device writes lies over descriptors, at each place that it can, their flags included."""
    driver = machine.driver
    for offset in (0, 4, 8, 12, 28, 124):
        driver.reset()
        driver.acknowledge()
        driver.negotiate()
        gpa = machine.pages.take()
        machine.memory.write(gpa, bytes(4096))
        driver.transport.set_up_queue(INFLATEQ, 8, gpa, gpa + offset, gpa + offset)
        driver.driver_ok()
        before = machine.snapshot()
        for wrap_marks in (0x80, 0x8000, 0x8080, 0):
            entry = (0x8000).to_bytes(8, "little") + b"\x04\0\0\0\x01\0" + wrap_marks.to_bytes(2, "little")
            machine.memory.write(gpa, entry * 8)
            driver.transport.notify(INFLATEQ)
            machine.bench.advance(0)
        named = [(page * 4096, 4096) for page in range(256)]  # whatever the overlapping bytes may have named
        assert before.changed(outside=[(gpa, 4096), *named]) == []
    check_alive_after_reset(machine)


# -- availability that never ends --------------------------------------------------------------------------------------


@pytest.mark.ways("direct", "packed")
def test_regression_a_ring_that_is_never_empty(
    make_machine: MakeMachine, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver on another processor offers more whenever the device looks: the call ends all the same, the processor
    has its turn, and what was offered is carried on with.

    Seed: QEMU #3968.  There the loop over a packed ring that always had one more chain never ended."""
    machine = make_machine(way)
    driver = machine.driver
    driver.start()
    assert isinstance(driver.queues[INFLATEQ], PackedQueue) == (way == "packed")
    raw = RawPackedQueue(driver, INFLATEQ) if way == "packed" else RawQueue(driver, INFLATEQ)
    queue, gpa, offered = machine.balloon.queues[INFLATEQ], raw.buffer(bytes(4)), [0]

    def one_more() -> None:
        if offered[0] - queue.requests > raw.size // 2:
            return
        name = offered[0] % raw.size
        offered[0] += 1
        if isinstance(raw, RawPackedQueue):
            raw.descriptor(gpa, 4, 0, name)
        else:
            raw.descriptor(name, gpa, 4)
            raw.available(name)

    monkeypatch.setattr(device, "WORK_LIMIT", 5000)
    monkeypatch.setattr(machine.memory, "fence", one_more)
    one_more()
    raw.kick()
    assert 1000 <= queue.requests < 5000 + raw.size  # what the chains bring counts too
    assert machine.balloon.next_deadline_ns() is not None
    monkeypatch.undo()
    machine.bench.advance(0)
    assert queue.requests == offered[0]
    assert not driver.needs_reset
