"""The legacy interface, whichever transport has it: §2.2.3, §2.7.2, §3.1.2 and the balloon's own notes in §5.5.

L1 to L8 are the device's normative statements about a legacy balloon; L7 and L9, byte order, have tests of their own.
"""

from __future__ import annotations

import pytest

from devices.virtio import spec
from devices.virtio.spec import Status
from tests.fixtures import MakeMachine
from tests.support import LEGACY_WAYS, BalloonMachine, Way, build_with
from vmm.testing import SplitQueue
from vmm.testing.balloon import ACTUAL, DEFLATEQ, INFLATEQ, MUST_TELL_HOST, NUM_PAGES, STATS_VQ, STATSQ, pfn_bytes
from vmm.testing.driver import ANY_LAYOUT, EVENT_IDX, INDIRECT_DESC

pytestmark = pytest.mark.ways(*LEGACY_WAYS)


# -- negotiation (§2.2.3, §3.1.2, §6.3) --------------------------------------------------------------------------------


def test_2_2_3_version_1_is_not_offered_and_any_layout_is(machine: BalloonMachine) -> None:
    offered = machine.driver.transport.read_device_features()
    assert offered < 1 << 32
    assert offered & ANY_LAYOUT, "§6.3: transitional devices MUST offer it"
    assert offered & (MUST_TELL_HOST | STATS_VQ | EVENT_IDX | INDIRECT_DESC)


def test_3_1_2_there_is_no_features_ok(machine: BalloonMachine) -> None:
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.add_status(Status.FEATURES_OK)
    assert driver.status == Status.ACKNOWLEDGE | Status.DRIVER
    driver.start()
    assert driver.status == Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK


def test_3_1_2_the_device_may_be_used_before_driver_ok(machine: BalloonMachine) -> None:
    """The device MUST support the driver using it before DRIVER_OK."""
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.negotiate()
    driver.set_up_queues()
    pfns = machine.filled_pfns(3)
    assert len(driver.inflate(pfns)) == 1
    assert machine.are_zero(pfns)
    assert driver.take_interrupts().for_queue(INFLATEQ) == 1
    driver.driver_ok()
    assert len(driver.deflate(pfns)) == 1


def test_3_1_2_configuration_may_be_written_before_the_features_are(machine: BalloonMachine) -> None:
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.actual = 0x01020304
    assert driver.actual == 0x01020304
    driver.negotiate()
    driver.set_up_queues()
    driver.driver_ok()
    assert machine.balloon.actual_pages == 0x01020304


def test_3_1_2_features_may_come_after_the_queues_and_count_at_driver_ok(machine: BalloonMachine) -> None:
    """Linux before 2.6.28 wrote them when its driver had set everything up."""
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.features = driver.transport.read_device_features() & (EVENT_IDX | MUST_TELL_HOST)
    driver.set_up_queue(INFLATEQ, driver.transport.queue_max_size(INFLATEQ))
    driver.transport.write_driver_features(driver.features)
    driver.driver_ok()
    assert machine.balloon.negotiated_features == EVENT_IDX | MUST_TELL_HOST
    driver.queues[INFLATEQ].suppress_notifications()
    (pfn,) = machine.filled_pfns(1)
    driver.inflate([pfn])
    assert driver.take_interrupts().used == {}, "used_event counts"


def test_3_1_2_the_first_use_ends_negotiation(machine: BalloonMachine) -> None:
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.negotiate(MUST_TELL_HOST)
    driver.set_up_queue(INFLATEQ, driver.transport.queue_max_size(INFLATEQ))
    assert machine.balloon.negotiated_features == 0
    driver.inflate(machine.filled_pfns(1))
    assert machine.balloon.negotiated_features == MUST_TELL_HOST
    driver.transport.write_driver_features(STATS_VQ)
    driver.driver_ok()
    assert machine.balloon.negotiated_features == MUST_TELL_HOST


def test_2_2_3_what_was_not_offered_is_left_out_without_a_word(machine: BalloonMachine) -> None:
    """There is no way to refuse it (§3.1.2): bit 5, page reporting, is not offered here, nor is bit 24."""
    machine.driver.start(MUST_TELL_HOST | 1 << spec.VIRTIO_BALLOON_F_PAGE_REPORTING | 1 << 24)
    assert machine.balloon.negotiated_features == MUST_TELL_HOST
    assert not machine.driver.needs_reset


def test_4_1_4_10_bits_from_32_on_are_not_acknowledged_whatever_is_written(machine: BalloonMachine) -> None:
    machine.driver.start(machine.driver.transport.read_device_features() | 1 << spec.VIRTIO_F_VERSION_1)
    assert machine.balloon.negotiated_features < 1 << 32
    assert len(machine.driver.inflate(machine.filled_pfns(1))) == 1


def test_l1_5_5_3_1_a_driver_without_must_tell_host_is_served(machine: BalloonMachine) -> None:
    machine.driver.start(machine.driver.transport.read_device_features() & ~MUST_TELL_HOST)
    pfns = machine.filled_pfns(4)
    assert len(machine.driver.inflate(pfns)) == 1
    assert machine.are_zero(pfns)


def test_l2_5_5_3_1_without_must_tell_host_pages_may_be_used_before_the_device_is_told(machine: BalloonMachine) -> None:
    driver = machine.driver
    driver.start(driver.transport.read_device_features() & ~MUST_TELL_HOST)
    pfns = machine.filled_pfns(4)
    driver.inflate(pfns)
    for pfn in pfns:
        machine.memory.write(pfn * 4096, b"\x66" * 4096)
    driver.inflate(machine.filled_pfns(2))
    driver.deflate(pfns)
    assert machine.are_filled(pfns, 0x66)


# -- queues (§2.7.2) ---------------------------------------------------------------------------------------------------


def test_2_7_2_a_queue_is_found_by_its_first_page_alone(started: BalloonMachine) -> None:
    for queue in started.driver.queues.values():
        layout = queue.layout
        assert layout.desc_gpa % 4096 == layout.device_gpa % 4096 == 0
        assert layout.driver_gpa == layout.desc_gpa + 16 * queue.size
        assert layout.device_gpa - layout.driver_gpa >= 6 + 2 * queue.size
    assert len(started.driver.inflate(started.filled_pfns(1))) == 1
    started.hear_stats({4: 9})
    assert started.statistics().values == {"stat-free-memory": 9}


@pytest.mark.parametrize("queue_size", [1, 2, 64, 256, 1024])
def test_2_7_2_the_used_ring_is_found_for_every_size(make_machine: MakeMachine, way: Way, queue_size: int) -> None:
    machine = make_machine(way, build=build_with(queue_size=queue_size))
    machine.driver.start()
    pfns = machine.filled_pfns(3)
    assert len(machine.driver.inflate(pfns, per_buffer=1)) == 3
    assert machine.are_zero(pfns)


def test_page_0_takes_a_queue_out_of_use_and_another_page_puts_it_back(started: BalloonMachine) -> None:
    driver, old = started.driver, started.driver.queues[INFLATEQ]
    driver.transport.set_up_queue(INFLATEQ, old.size, 0, 0, 0)
    assert not driver.transport.queue_enabled(INFLATEQ)
    (pfn,) = started.filled_pfns(1)
    old.offer([pfn_bytes([pfn])])
    old.publish()
    driver.transport.notify(INFLATEQ)
    assert old.collect() == [] and started.are_filled([pfn])
    driver.set_up_queue(INFLATEQ, old.size)
    assert len(driver.inflate([pfn])) == 1
    assert started.are_zero([pfn])
    assert len(driver.deflate([pfn])) == 1, "the others went on"


def test_a_statistics_buffer_is_forgotten_with_its_queue(started: BalloonMachine) -> None:
    driver, queue = started.driver, started.driver.queues[STATSQ]
    driver.post_stats({4: 1})
    driver.transport.set_up_queue(STATSQ, queue.size, 0, 0, 0)
    before = started.snapshot()
    started.request_stats()
    assert before.changed() == []
    assert not driver.needs_reset


def test_a_queue_outside_ram_needs_a_reset_when_it_is_first_used(machine: BalloonMachine) -> None:
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.negotiate()
    size = driver.transport.queue_max_size(INFLATEQ)
    driver.transport.set_up_queue(INFLATEQ, size, 0xFFFF_F000, 0, 0)
    assert not driver.needs_reset
    driver.driver_ok()
    assert driver.needs_reset
    driver.start()
    assert len(driver.inflate(machine.filled_pfns(1))) == 1


def test_2_1_2_nothing_is_used_before_driver_is_set(machine: BalloonMachine) -> None:
    driver = machine.driver
    driver.reset()
    size = driver.transport.queue_max_size(INFLATEQ)
    queue = SplitQueue(machine.memory, machine.pages, INFLATEQ, size, legacy_align=driver.transport.legacy_align)
    place = queue.layout
    driver.transport.set_up_queue(INFLATEQ, size, place.desc_gpa, place.driver_gpa, place.device_gpa)
    (pfn,) = machine.filled_pfns(1)
    queue.offer([pfn_bytes([pfn])])
    queue.publish()
    driver.transport.notify(INFLATEQ)
    assert queue.collect() == [] and machine.are_filled([pfn])


# -- the balloon -------------------------------------------------------------------------------------------------------


def test_l3_5_5_4_the_configuration_is_little_endian(started: BalloonMachine) -> None:
    started.set_target(0x0304)
    assert [started.driver.transport.read_config(NUM_PAGES + i, 1) for i in range(4)] == [4, 3, 0, 0]


def test_l4_5_5_6_the_used_length_says_nothing_and_is_zero(started: BalloonMachine) -> None:
    (used,) = started.driver.inflate(started.filled_pfns(2))
    assert used.length == 0


def test_l5_l6_5_5_6_actual_counts_when_its_most_significant_byte_is_written(started: BalloonMachine) -> None:
    write = started.driver.transport.write_config
    started.events.clear()
    for i, byte in enumerate((0x44, 0x33, 0x22)):
        write(ACTUAL + i, 1, byte)
        assert started.balloon.actual_pages == 0
    assert [event.kind for event in started.events] == []
    write(ACTUAL + 3, 1, 0x11)
    assert started.balloon.actual_pages == 0x11223344
    assert [event.kind for event in started.events] == ["actual"]


def test_l6_5_5_6_the_last_byte_alone_is_enough(started: BalloonMachine) -> None:
    started.driver.actual = 5
    started.driver.transport.write_config(ACTUAL + 3, 1, 1)
    assert started.balloon.actual_pages == 0x0100_0005


def test_l8_5_5_6_3_the_first_statistics_buffer_is_ignored_and_returned_like_any_other(started: BalloonMachine) -> None:
    driver = started.driver
    head = driver.post_stats({4: 0xBAD})
    assert (started.statistics().reason, started.statistics().values) == ("never posted", {})
    started.request_stats()
    assert [used.head for used in driver.collect(STATSQ)] == [head]
    driver.post_stats({4: 7})
    assert started.statistics().values == {"stat-free-memory": 7}


def test_l8_5_5_6_3_a_request_that_waits_gets_the_first_buffer_back_at_once(started: BalloonMachine) -> None:
    started.request_stats()
    started.driver.post_stats({4: 0xBAD})
    assert started.driver.stats_wanted()


def test_l8_5_5_6_3_after_a_reset_there_is_a_first_buffer_again(started: BalloonMachine) -> None:
    started.hear_stats({4: 7})
    started.driver.start()
    started.driver.post_stats({4: 0xBAD})
    assert 0xBAD not in started.statistics().values.values()


def test_polling_comes_to_statistics_of_a_legacy_driver_too(started: BalloonMachine) -> None:
    started.set_polling_interval(10**9)
    started.driver.post_stats({4: 0xBAD})
    assert started.driver.stats_wanted(), "the first poll is at once"
    started.driver.post_stats({4: 1})
    assert started.statistics().values == {"stat-free-memory": 1}
    started.bench.advance(10**9)
    assert started.driver.stats_wanted()


def test_2_1_2_a_broken_ring_shows_needs_reset_in_the_status(started: BalloonMachine) -> None:
    queue = started.driver.queues[DEFLATEQ]
    started.memory.write_int(queue.layout.avail_idx, 2, queue.size + 1)
    started.driver.transport.notify(DEFLATEQ)
    assert started.driver.needs_reset
    assert started.driver.take_interrupts().config == 1
