"""§2.8 packed virtqueues: what the device does with descriptors, lists, tables and event suppression structures.

The inflate queue is the vehicle: a buffer of page frame numbers whose pages read as zero once it was carried out.
"""

from __future__ import annotations

import pytest

from devices.virtio import spec
from tests.support import BalloonMachine
from vmm.testing import PackedQueue, RawPackedQueue
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, pfn_bytes
from vmm.testing.driver import EVENT_IDX, INDIRECT_DESC, RING_PACKED, VERSION_1
from vmm.testing.layout import PackedDescriptor
from vmm.testing.packed_ring import AVAIL, USED
from vmm.testing.raw import INDIRECT, NEXT, WRITE

pytestmark = pytest.mark.ways("packed", "packed-pci")

RING_FEATURES = {
    "plain": VERSION_1 | RING_PACKED,
    "event-idx": VERSION_1 | RING_PACKED | EVENT_IDX,
    "indirect": VERSION_1 | RING_PACKED | INDIRECT_DESC,
    "both": VERSION_1 | RING_PACKED | EVENT_IDX | INDIRECT_DESC,
}
PAYLOAD = (0x8000, 4)
"""Four zero bytes: page frame number 0, which lies in RAM and matters to nobody here."""


@pytest.fixture(params=RING_FEATURES)
def ring(machine: BalloonMachine, request: pytest.FixtureRequest) -> BalloonMachine:
    """A started machine for each combination of the ring's features."""
    machine.driver.start(RING_FEATURES[request.param] | machine.driver.transport.read_device_features() & 0xFFFFFF)
    machine.driver.take_interrupts()
    return machine


def queue_of(machine: BalloonMachine, index: int = INFLATEQ) -> PackedQueue:
    queue = machine.driver.queues[index]
    assert isinstance(queue, PackedQueue)
    return queue


def test_2_8_5_framing_does_not_matter(ring: BalloonMachine) -> None:
    """The same six page frame numbers in one piece, in three, and cut in the middle of a number."""
    for cuts in ((24,), (8, 8, 8), (3, 6, 9, 6), (1,) * 24):
        pfns = ring.filled_pfns(6)
        payload, pieces = pfn_bytes(pfns), []
        for length in cuts:
            pieces.append(payload[:length])
            payload = payload[length:]
        (used,) = ring.driver.transfer(INFLATEQ, readable=pieces)
        assert used.length == 0
        assert ring.are_zero(pfns), cuts
    assert ring.balloon.bad_pfns == 0


def test_2_8_15_only_used_descriptors_and_its_own_structure_are_written(ring: BalloonMachine) -> None:
    pfns = ring.filled_pfns(4)
    gpa = ring.pages.take()
    ring.memory.write(gpa, pfn_bytes(pfns))
    ring.driver.offer(INFLATEQ, readable=[(gpa, 8), (gpa + 8, 8)], indirect=False)
    queue = queue_of(ring)
    queue.publish()
    before = ring.snapshot()
    ring.driver.transport.notify(INFLATEQ)
    allowed = [(queue.layout.descriptor(0) + 8, 8), (queue.layout.device_gpa, 4)]
    assert before.changed(outside=[*allowed, *((pfn * 4096, 4096) for pfn in pfns)]) == []
    assert len(ring.driver.collect(INFLATEQ)) == 1


def test_2_8_4_nothing_is_written_into_a_writable_buffer_that_has_no_answer(ring: BalloonMachine) -> None:
    """The used descriptor says so twice: without WRITE the length is reserved."""
    (pfn,) = ring.filled_pfns(1)
    gpa = ring.pages.take()
    ring.memory.write(gpa, b"\xee" * 4096)
    (used,) = ring.driver.transfer(INFLATEQ, readable=[pfn_bytes([pfn])], writable=[(gpa, 4096)])
    assert used.length == 0
    assert ring.memory.read(gpa, 4096) == b"\xee" * 4096
    flags = ring.memory.read_int(queue_of(ring).layout.flags(0), 2)
    assert flags == AVAIL | USED


def test_2_8_12_each_buffer_comes_back_once(ring: BalloonMachine) -> None:
    offered = [ring.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])]) for pfn in ring.filled_pfns(5)]
    ring.driver.kick(INFLATEQ)
    assert sorted(used.head for used in ring.driver.collect(INFLATEQ)) == sorted(offered)
    assert queue_of(ring).in_flight == ()


@pytest.mark.parametrize("size", [1, 2, 3, 37, 100, 128])
def test_2_8_10_1_the_size_is_any_number(machine: BalloonMachine, size: int) -> None:
    """And the ring goes round several times, a full one and in steps that do not fit into it."""
    machine.driver.start(queue_sizes=size)
    assert queue_of(machine).size == size
    for count in (size, size, max(size - 1, 1), 1, size, size):
        pfns = machine.filled_pfns(count)
        for pfn in pfns:
            machine.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
        machine.driver.kick(INFLATEQ)
        assert len(machine.driver.collect(INFLATEQ)) == count
        assert machine.are_zero(pfns)
        for pfn in pfns:
            machine.pages.give(pfn * 4096)
    assert not machine.driver.needs_reset


def test_a_size_above_what_is_offered_is_not_taken(machine: BalloonMachine) -> None:
    machine.driver.reset()
    machine.driver.acknowledge()
    machine.driver.negotiate()
    transport = machine.driver.transport
    transport.set_up_queue(INFLATEQ, 129, 0x110000, 0x114000, 0x114004)
    assert transport.queue_enabled(INFLATEQ)
    assert machine.balloon.queues[INFLATEQ].size == 128


def test_2_8_6_a_list_through_every_descriptor_of_the_queue_is_carried_out(machine: BalloonMachine) -> None:
    """And once more from the middle of the ring, over its end."""
    offered = machine.driver.transport.read_device_features()
    machine.driver.start(offered & ~INDIRECT_DESC, queue_sizes=12)
    for turn in range(3):
        pfns = machine.filled_pfns(12)
        (used,) = machine.driver.transfer(INFLATEQ, readable=[pfn_bytes([pfn]) for pfn in pfns])
        assert used.length == 0 and machine.are_zero(pfns), turn
        machine.driver.inflate(machine.filled_pfns(5), per_buffer=1)
    assert not machine.driver.needs_reset


def test_2_8_7_a_table_is_read_in_its_order_whatever_its_flags_say(machine: BalloonMachine) -> None:
    """NEXT, INDIRECT, ids and marks in a table are reserved and ignored."""
    machine.driver.start()
    pfns = machine.filled_pfns(4)
    raw = RawPackedQueue(machine.driver, INFLATEQ)
    flags = (0, NEXT, INDIRECT, NEXT | INDIRECT | AVAIL | USED)
    entries = [
        PackedDescriptor(raw.buffer(pfn_bytes([pfn])), 4, 9 - number, marks)
        for number, (pfn, marks) in enumerate(zip(pfns, flags, strict=True))
    ]
    raw.descriptor(raw.table(entries), 64, INDIRECT | WRITE, 3)
    raw.kick()
    assert raw.ids_returned() == [3]
    assert machine.are_zero(pfns)


def test_2_8_7_a_table_may_be_anywhere_in_memory(machine: BalloonMachine) -> None:
    machine.driver.start()
    pfns = machine.filled_pfns(2)
    raw = RawPackedQueue(machine.driver, INFLATEQ)
    for name, (pfn, place) in enumerate(zip(pfns, (0x8001, (1 << 32) + 0x503), strict=True)):
        machine.memory.write(place, PackedDescriptor(raw.buffer(pfn_bytes([pfn])), 4).pack())
        raw.descriptor(place, 16, INDIRECT, name)
    raw.kick()
    assert raw.ids_returned() == [0, 1]
    assert machine.are_zero(pfns)


def test_2_8_a_buffer_id_is_any_number(machine: BalloonMachine) -> None:
    machine.driver.start()
    pfns = machine.filled_pfns(3)
    raw = RawPackedQueue(machine.driver, INFLATEQ)
    for pfn, name in zip(pfns, (128, 0xFFFF, 0x8000), strict=True):
        raw.descriptor(raw.buffer(pfn_bytes([pfn])), 4, 0, name)
    raw.kick()
    assert raw.ids_returned() == [128, 0xFFFF, 0x8000]
    assert machine.are_zero(pfns)


def test_2_8_15_what_is_not_marked_available_is_not_used(ring: BalloonMachine) -> None:
    (pfn,) = ring.filled_pfns(1)
    ring.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    ring.driver.transport.notify(INFLATEQ)
    assert ring.driver.collect(INFLATEQ) == []
    assert ring.are_filled([pfn])
    ring.driver.kick(INFLATEQ)
    assert ring.are_zero([pfn])


def test_spurious_notifications_are_harmless(ring: BalloonMachine) -> None:
    for queue in ring.driver.queues:
        for _ in range(3):
            ring.driver.transport.notify(queue)
    assert not ring.driver.needs_reset
    assert ring.driver.take_interrupts() == ({}, 0)
    assert len(ring.driver.inflate(ring.filled_pfns(1))) == 1


# -- notifications (§2.8.10) -------------------------------------------------------------------------------------------


def send(machine: BalloonMachine, buffers: int = 1, queue: int = INFLATEQ) -> int:
    """Offer buffers, notify, take them back; how many used-buffer notifications that brought."""
    for _ in range(buffers):
        machine.driver.offer(queue, readable=[PAYLOAD])
    machine.driver.kick(queue, force=True)
    assert len(machine.driver.collect(queue)) == buffers
    return machine.driver.take_interrupts().for_queue(queue)


@pytest.fixture
def flags(machine: BalloonMachine) -> BalloonMachine:
    """A started machine without EVENT_IDX."""
    machine.driver.start(machine.driver.transport.read_device_features() & ~EVENT_IDX)
    machine.driver.take_interrupts()
    return machine


@pytest.fixture
def events(machine: BalloonMachine) -> BalloonMachine:
    """A started machine with EVENT_IDX."""
    machine.driver.start()
    assert machine.driver.features & EVENT_IDX
    machine.driver.take_interrupts()
    return machine


def test_2_8_10_enabled_a_used_buffer_is_notified_and_disabled_it_is_not(flags: BalloonMachine) -> None:
    assert send(flags) == 1
    queue_of(flags).suppress_notifications()
    assert send(flags) == 0
    assert send(flags, queue=DEFLATEQ) == 1
    queue_of(flags).want_notifications()
    assert send(flags) == 1


def test_2_8_10_with_event_idx_too(events: BalloonMachine) -> None:
    queue_of(events).suppress_notifications()
    assert [send(events) for _ in range(4)] == [0, 0, 0, 0]


def test_2_8_10_a_notification_comes_exactly_at_the_descriptor_that_was_named(events: BalloonMachine) -> None:
    """Two hundred times round the ring's end and its wrap counters."""
    events.driver.start(queue_sizes=5)
    events.driver.take_interrupts()
    for after in (3, 2, 1, 0, 4) * 40:
        queue_of(events).want_notifications(after=after)
        assert [send(events) for _ in range(1)] == [int(after == 0)]
        queue_of(events).want_notifications(after=2)
        assert send(events, buffers=2) == 0
        queue_of(events).want_notifications(after=2)
        assert send(events, buffers=3) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 128])
def test_2_8_10_a_driver_that_honours_the_structure_always_gets_its_buffers_back(
    machine: BalloonMachine, size: int
) -> None:
    offered = machine.driver.transport.read_device_features()
    for features in (offered, offered & ~EVENT_IDX):
        machine.driver.start(features, queue_sizes=size)
        for round_ in range(20):
            machine.driver.inflate(machine.filled_pfns(1 + round_ % 3), per_buffer=1)
            assert queue_of(machine).in_flight == ()


def test_2_8_10_without_event_idx_the_device_asks_for_nothing_special(flags: BalloonMachine) -> None:
    for _ in range(3):
        send(flags)
    assert flags.memory.read(queue_of(flags).layout.device_gpa, 4) == bytes(4)


def test_2_8_10_with_event_idx_the_device_names_the_next_descriptor(events: BalloonMachine) -> None:
    queue = queue_of(events)
    for _ in range(3 * queue.size + 5):
        send(events)
    off_wrap, kind = (events.memory.read_int(queue.layout.device_gpa + at, 2) for at in (0, 2))
    assert (off_wrap, kind) == (queue.next_free.off_wrap, spec.RING_EVENT_FLAGS_DESC)
