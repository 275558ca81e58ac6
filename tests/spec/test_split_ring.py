"""§2.7 split virtqueues: what the device does with descriptors, chains and the used ring.

The inflate queue is the vehicle: a buffer of page frame numbers whose pages read as zero once it was carried out.
"""

from __future__ import annotations

import pytest

from tests.support import SIZED_WAYS, BalloonMachine
from vmm.testing import Descriptor, RawQueue
from vmm.testing.balloon import INFLATEQ, pfn_bytes
from vmm.testing.driver import EVENT_IDX, INDIRECT_DESC, VERSION_1
from vmm.testing.raw import INDIRECT, NEXT, WRITE

pytestmark = pytest.mark.split_rings  # the rings written to here are split ones

RING_FEATURES = {
    "plain": VERSION_1,
    "event-idx": VERSION_1 | EVENT_IDX,
    "indirect": VERSION_1 | INDIRECT_DESC,
    "both": VERSION_1 | EVENT_IDX | INDIRECT_DESC,
}


@pytest.fixture(params=RING_FEATURES)
def ring(machine: BalloonMachine, request: pytest.FixtureRequest) -> BalloonMachine:
    """A started machine for each combination of the ring's features."""
    wanted = RING_FEATURES[request.param] | machine.driver.transport.read_device_features() & 0xFFFFFF
    machine.driver.start(wanted)
    machine.driver.take_interrupts()
    return machine


@pytest.fixture
def with_tables(machine: BalloonMachine) -> BalloonMachine:
    """A started machine that negotiated INDIRECT_DESC."""
    machine.driver.start(machine.driver.transport.read_device_features() & ~EVENT_IDX)
    return machine


def test_2_7_4_1_framing_does_not_matter(ring: BalloonMachine) -> None:
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


def test_2_7_5_1_a_readable_buffer_and_the_descriptor_table_are_not_written(ring: BalloonMachine) -> None:
    pfns = ring.filled_pfns(4)
    gpa = ring.pages.take()
    ring.memory.write(gpa, pfn_bytes(pfns))
    ring.driver.offer(INFLATEQ, readable=[(gpa, 8), (gpa + 8, 8)])
    queue = ring.driver.queues[INFLATEQ]
    queue.publish()
    before = ring.snapshot()
    ring.driver.transport.notify(INFLATEQ)
    assert len(ring.driver.collect(INFLATEQ)) == 1
    allowed = [(queue.layout.device_gpa, queue.layout.used_bytes), *((pfn * 4096, 4096) for pfn in pfns)]
    allowed.append((queue.layout.used_event, 2))  # the driver's own, written by collect
    assert before.changed(outside=allowed) == []


def test_2_7_5_1_nothing_is_written_into_a_writable_buffer_that_has_no_answer(ring: BalloonMachine) -> None:
    """Inflate requests have no answer: the used length is 0 and the writable part stays as it was."""
    (pfn,) = ring.filled_pfns(1)
    gpa = ring.pages.take()
    ring.memory.write(gpa, b"\xee" * 4096)
    (used,) = ring.driver.transfer(INFLATEQ, readable=[pfn_bytes([pfn])], writable=[(gpa, 4096)])
    assert used.length == 0
    assert ring.memory.read(gpa, 4096) == b"\xee" * 4096
    assert ring.are_zero([pfn])


def test_2_7_8_each_head_comes_back_once_in_the_used_ring(ring: BalloonMachine) -> None:
    offered = [ring.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])]) for pfn in ring.filled_pfns(5)]
    ring.driver.kick(INFLATEQ)
    assert sorted(used.head for used in ring.driver.collect(INFLATEQ)) == sorted(offered)
    assert ring.driver.queues[INFLATEQ].in_flight == ()


@pytest.mark.ways(*SIZED_WAYS)
def test_2_7_6_the_rings_wrap_around_many_times(machine: BalloonMachine) -> None:
    machine.driver.start(queue_sizes=4)
    pfns = machine.filled_pfns(37)
    for pfn in pfns:
        assert len(machine.driver.transfer(INFLATEQ, readable=[pfn_bytes([pfn])])) == 1
    assert machine.are_zero(pfns)
    assert machine.balloon.inflated_pages == 37


def test_2_7_6_the_16_bit_indices_wrap_around(machine: BalloonMachine) -> None:
    """More than 65536 buffers through one queue, a ring full at each kick."""
    machine.driver.start(queue_sizes=128)
    queue, payload = machine.driver.queues[INFLATEQ], pfn_bytes(machine.filled_pfns(1))
    gpa = machine.pages.take()
    machine.memory.write(gpa, payload)
    raw = RawQueue(machine.driver, INFLATEQ)
    for slot in range(128):
        raw.descriptor(slot, gpa, len(payload))
    for _ in range(2**16 // 128 + 1):
        raw.available(*range(128))
        raw.kick()
        raw.offered.clear()
    assert queue.size == 128
    assert raw.used_idx == raw.avail_idx == 128
    assert not machine.driver.needs_reset


@pytest.mark.ways(*SIZED_WAYS)
@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_2_7_a_smaller_power_of_two_is_taken_as_the_queue_size(machine: BalloonMachine, size: int) -> None:
    machine.driver.start(queue_sizes=size)
    pfns = machine.filled_pfns(size)
    for pfn in pfns:
        machine.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    machine.driver.kick(INFLATEQ)
    assert len(machine.driver.collect(INFLATEQ)) == size
    assert machine.are_zero(pfns)


def test_2_7_5_3_2_the_write_flag_of_a_descriptor_that_refers_to_a_table_is_ignored(
    with_tables: BalloonMachine,
) -> None:
    (pfn,) = with_tables.filled_pfns(1)
    raw = RawQueue(with_tables.driver, INFLATEQ)
    table = raw.table([Descriptor(raw.buffer(pfn_bytes([pfn])), 4)])
    raw.descriptor(0, table, 16, INDIRECT | WRITE)
    raw.available(0)
    raw.kick()
    assert raw.heads_returned() == [0]
    assert with_tables.are_zero([pfn])


def test_2_7_5_3_2_normal_descriptors_may_come_before_the_table(with_tables: BalloonMachine) -> None:
    first, second, third = with_tables.filled_pfns(3)
    raw = RawQueue(with_tables.driver, INFLATEQ)
    raw.descriptor(4, raw.buffer(pfn_bytes([first])), 4, NEXT, 2)
    raw.descriptor(2, raw.buffer(pfn_bytes([second])), 4, NEXT, 7)
    raw.descriptor(7, raw.table([Descriptor(raw.buffer(pfn_bytes([third])), 4)]), 16, INDIRECT)
    raw.available(4)
    raw.kick()
    assert raw.heads_returned() == [4]
    assert with_tables.are_zero([first, second, third])


def test_2_7_5_3_a_table_is_chained_by_next_and_not_by_position(with_tables: BalloonMachine) -> None:
    first, second, unused = with_tables.filled_pfns(3)
    raw = RawQueue(with_tables.driver, INFLATEQ)
    places = [raw.buffer(pfn_bytes([pfn])) for pfn in (first, second, unused)]
    entries = [Descriptor(places[0], 4, NEXT, 2), Descriptor(places[2], 4), Descriptor(places[1], 4)]
    raw.descriptor(0, raw.table(entries), 48, INDIRECT)
    raw.available(0)
    raw.kick()
    assert raw.heads_returned() == [0]
    assert with_tables.are_zero([first, second])
    assert with_tables.are_filled([unused])


def test_2_7_5_3_a_table_may_be_anywhere_in_memory(with_tables: BalloonMachine) -> None:
    """§2.7.5.3 asks for no alignment of the table, and it may lie above 4 GiB."""
    pfns = with_tables.filled_pfns(2)
    raw = RawQueue(with_tables.driver, INFLATEQ)
    for slot, (pfn, place) in enumerate(zip(pfns, (0x8001, (1 << 32) + 0x503), strict=True)):
        with_tables.memory.write(place, Descriptor(raw.buffer(pfn_bytes([pfn])), 4).pack())
        raw.descriptor(slot, place, 16, INDIRECT)
    raw.available(0, 1)
    raw.kick()
    assert sorted(raw.heads_returned()) == [0, 1]
    assert with_tables.are_zero(pfns)


@pytest.mark.ways(*SIZED_WAYS)
def test_2_7_5_3_1_a_table_as_long_as_the_queue_is_the_longest_chain(with_tables: BalloonMachine) -> None:
    with_tables.driver.start(with_tables.driver.features, queue_sizes=8)
    pfns = with_tables.filled_pfns(8)
    (used,) = with_tables.driver.transfer(INFLATEQ, readable=[pfn_bytes([pfn]) for pfn in pfns])
    assert used.length == 0
    assert with_tables.are_zero(pfns)


@pytest.mark.ways(*SIZED_WAYS)
def test_2_7_5_2_a_chain_through_every_descriptor_of_the_queue_is_carried_out(machine: BalloonMachine) -> None:
    machine.driver.start(machine.driver.transport.read_device_features() & ~INDIRECT_DESC, queue_sizes=16)
    pfns = machine.filled_pfns(16)
    (used,) = machine.driver.transfer(INFLATEQ, readable=[pfn_bytes([pfn]) for pfn in pfns])
    assert used.length == 0
    assert machine.are_zero(pfns)


def test_2_7_buffers_and_rings_may_lie_above_4_gib(machine: BalloonMachine) -> None:
    machine.driver.start()
    pfns = machine.filled_pfns(2)
    place = (1 << 32) + 0x1000
    machine.memory.write(place, pfn_bytes(pfns))
    machine.driver.transfer(INFLATEQ, readable=[(place, 8)])
    assert machine.are_zero(pfns)


def test_2_7_5_a_buffer_may_cross_from_one_page_into_the_next(ring: BalloonMachine) -> None:
    pfns = ring.filled_pfns(2)
    gpa = ring.pages.take(2)
    ring.memory.write(gpa + 4094, pfn_bytes(pfns))
    (used,) = ring.driver.transfer(INFLATEQ, readable=[(gpa + 4094, 8)])
    assert used.length == 0
    assert ring.are_zero(pfns)


def test_2_7_10_2_spurious_notifications_are_harmless(ring: BalloonMachine) -> None:
    for queue in ring.driver.queues:
        for _ in range(3):
            ring.driver.transport.notify(queue)
    assert not ring.driver.needs_reset
    assert ring.driver.take_interrupts() == ({}, 0)
    assert len(ring.driver.inflate(ring.filled_pfns(1))) == 1


def test_2_7_13_a_notification_serves_all_that_was_published(ring: BalloonMachine) -> None:
    """One kick for many buffers, and nothing left behind for the next."""
    pfns = ring.filled_pfns(9)
    for pfn in pfns:
        ring.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    ring.driver.kick(INFLATEQ)
    assert len(ring.driver.collect(INFLATEQ)) == 9
    assert ring.are_zero(pfns)


def test_2_7_13_3_what_is_not_published_is_not_consumed(ring: BalloonMachine) -> None:
    (pfn,) = ring.filled_pfns(1)
    ring.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    ring.driver.transport.notify(INFLATEQ)
    assert ring.driver.collect(INFLATEQ) == []
    assert ring.are_filled([pfn])
