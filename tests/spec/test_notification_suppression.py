"""§2.7.7 and §2.7.10: when the device sends a used-buffer notification, and when it asks the driver for one."""

from __future__ import annotations

import pytest

from tests.support import BalloonMachine
from vmm.testing import RawQueue, SplitQueue
from vmm.testing.balloon import DEFLATEQ, INFLATEQ
from vmm.testing.driver import EVENT_IDX

pytestmark = pytest.mark.split_rings  # the rings written to here are split ones

PAYLOAD = (0x8000, 4)
"""Four zero bytes: page frame number 0, which lies in RAM and matters to nobody here."""


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


def send(machine: BalloonMachine, buffers: int = 1, queue: int = INFLATEQ) -> int:
    """Offer buffers, notify, take them back; how many used-buffer notifications that brought."""
    for _ in range(buffers):
        machine.driver.offer(queue, readable=[PAYLOAD])
    machine.driver.kick(queue, force=True)
    assert len(machine.driver.collect(queue)) == buffers
    return machine.driver.take_interrupts().for_queue(queue)


def split_queue(machine: BalloonMachine) -> SplitQueue:
    queue = machine.driver.queues[INFLATEQ]
    assert isinstance(queue, SplitQueue)
    return queue


def test_2_7_7_2_with_flags_0_a_used_buffer_is_notified(flags: BalloonMachine) -> None:
    assert send(flags) == 1
    assert send(flags, queue=DEFLATEQ) == 1


def test_2_7_7_2_with_flags_1_it_is_not(flags: BalloonMachine) -> None:
    flags.driver.queues[INFLATEQ].suppress_notifications()
    assert send(flags) == 0
    flags.driver.queues[INFLATEQ].want_notifications()
    assert send(flags) == 1


def test_2_7_7_2_flags_of_one_queue_do_not_silence_another(flags: BalloonMachine) -> None:
    flags.driver.queues[INFLATEQ].suppress_notifications()
    assert send(flags, queue=DEFLATEQ) == 1


def test_2_7_7_2_without_event_idx_used_event_is_ignored(flags: BalloonMachine) -> None:
    queue = flags.driver.queues[INFLATEQ]
    for value in (0, 1, 0x7FFF, 0xFFFF):
        flags.memory.write_int(queue.layout.used_event, 2, value)
        assert send(flags) == 1


def test_2_7_7_2_with_event_idx_a_notification_comes_exactly_at_used_event(events: BalloonMachine) -> None:
    queue = events.driver.queues[INFLATEQ]
    queue.want_notifications(after=3)
    assert send(events) == 0  # and collect() then asks for the very next one
    queue.want_notifications(after=2)
    assert send(events, buffers=2) == 0
    queue.want_notifications(after=2)
    assert send(events, buffers=3) == 1


def test_2_7_7_2_with_event_idx_a_batch_that_passes_used_event_is_notified_once(events: BalloonMachine) -> None:
    events.driver.queues[INFLATEQ].want_notifications(after=1)
    assert send(events, buffers=5) == 1


def test_2_7_7_2_with_event_idx_flags_bit_0_is_ignored(events: BalloonMachine) -> None:
    events.memory.write_int(events.driver.queues[INFLATEQ].layout.avail_flags, 2, 1)
    assert send(events) == 1


def test_2_7_7_2_with_event_idx_a_driver_that_asks_for_none_gets_none(events: BalloonMachine) -> None:
    events.driver.queues[INFLATEQ].suppress_notifications()
    assert [send(events) for _ in range(4)] == [0, 0, 0, 0]


def test_2_7_7_2_with_event_idx_used_event_works_across_the_wrap_of_the_index(events: BalloonMachine) -> None:
    """Drive the index to 65535 and ask for the buffer just before and just behind the wrap."""
    queue = split_queue(events)
    raw = RawQueue(events.driver, INFLATEQ)
    for slot in range(queue.size):
        raw.descriptor(slot, *PAYLOAD)
    while raw.avail_idx < 0xFFFE:
        raw.available(*range(min(queue.size, 0xFFFE - raw.avail_idx)))
        raw.kick()
    queue.avail_idx = queue.published_idx = queue.kicked_idx = queue.last_used_idx = raw.used_idx
    events.driver.take_interrupts()
    queue.want_notifications()
    assert send(events) == 1  # entry 65534
    assert queue.last_used_idx == 0xFFFF
    queue.want_notifications(after=1)  # entry 0 of the next round
    assert send(events) == 0
    assert queue.last_used_idx == 0
    assert send(events) == 1


def test_2_7_10_2_the_device_never_asks_for_silence_it_could_miss_work_by(machine: BalloonMachine) -> None:
    """A driver that honours flags and avail_event always gets its buffers back."""
    offered = machine.driver.transport.read_device_features()
    for features in (offered, offered & ~EVENT_IDX):
        machine.driver.start(features)
        for round_ in range(40):
            machine.driver.inflate(machine.filled_pfns(1 + round_ % 3), per_buffer=1)
            assert machine.driver.queues[INFLATEQ].in_flight == ()


def test_2_7_10_2_with_event_idx_flags_stay_0_and_avail_event_follows(events: BalloonMachine) -> None:
    queue = split_queue(events)
    for _ in range(3 * queue.size):
        events.driver.offer(INFLATEQ, readable=[PAYLOAD])
        events.driver.kick(INFLATEQ)  # only if avail_event asks for it
        assert len(events.driver.collect(INFLATEQ)) == 1
        assert events.memory.read_int(queue.layout.used_flags, 2) == 0
    assert events.memory.read_int(queue.layout.avail_event, 2) == queue.avail_idx


def test_2_7_10_2_without_event_idx_avail_event_is_not_written(flags: BalloonMachine) -> None:
    """Without the feature the field does not exist: what lies there is not the device's."""
    queue = flags.driver.queues[INFLATEQ]
    flags.memory.write(queue.layout.avail_event, b"\xab\xcd")
    send(flags, buffers=3)
    assert flags.memory.read(queue.layout.avail_event, 2) == b"\xab\xcd"
