"""§2.1 device status, §2.2 feature bits, §2.4 reset, §6 reserved feature bits: the device's obligations."""

from __future__ import annotations

import pytest

from devices.virtio import spec
from devices.virtio.spec import Status
from tests.fixtures import MakeMachine
from tests.support import ONE_LINE_WAYS, SIZED_WAYS, BalloonMachine, Way
from vmm.testing import ANY_QUEUE, FeaturesRefused, SplitQueue
from vmm.testing.balloon import INFLATEQ, MUST_TELL_HOST, PAGE_POISON, STATS_VQ, STATSQ, pfn_bytes, stats_bytes
from vmm.testing.driver import ANY_LAYOUT, EVENT_IDX, INDIRECT_DESC, RING_PACKED, RING_RESET, VERSION_1

DRIVER_ALIVE = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


def alive(machine: BalloonMachine) -> int:
    """The status of a machine whose driver is at work; a legacy one knows no FEATURES_OK (§3.1.2)."""
    return DRIVER_ALIVE & ~Status.FEATURES_OK if machine.driver.is_legacy else DRIVER_ALIVE


def prepare(machine: BalloonMachine) -> None:
    """Everything of §3.1.1 but the last step."""
    machine.driver.reset()
    machine.driver.acknowledge()
    machine.driver.negotiate()
    machine.driver.set_up_queues()


def test_2_1_status_is_zero_at_power_on_and_shows_each_step(machine: BalloonMachine) -> None:
    driver = machine.driver
    assert driver.status == 0
    driver.add_status(Status.ACKNOWLEDGE)
    assert driver.status == Status.ACKNOWLEDGE
    driver.add_status(Status.DRIVER)
    assert driver.status == Status.ACKNOWLEDGE | Status.DRIVER
    driver.negotiate()
    driver.set_up_queues()
    driver.driver_ok()
    assert driver.status == alive(machine)


def test_2_1_status_bits_may_be_set_together(machine: BalloonMachine) -> None:
    machine.driver.transport.write_status(Status.ACKNOWLEDGE | Status.DRIVER)
    assert machine.driver.status == Status.ACKNOWLEDGE | Status.DRIVER


@pytest.mark.modern
def test_2_1_2_no_buffer_is_consumed_before_driver_ok(machine: BalloonMachine) -> None:
    prepare(machine)
    (pfn,) = machine.filled_pfns(1)
    machine.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    machine.driver.kick(INFLATEQ, force=True)
    assert machine.driver.collect(INFLATEQ) == []
    assert machine.are_filled([pfn])
    assert machine.driver.take_interrupts().used == {}


@pytest.mark.modern
def test_2_1_2_what_was_kicked_before_driver_ok_is_served_at_driver_ok(machine: BalloonMachine) -> None:
    prepare(machine)
    (pfn,) = machine.filled_pfns(1)
    head = machine.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    machine.driver.kick(INFLATEQ, force=True)
    machine.driver.driver_ok()
    assert [used.head for used in machine.driver.collect(INFLATEQ)] == [head]
    assert machine.are_zero([pfn])
    told = ANY_QUEUE if machine.way in ONE_LINE_WAYS else INFLATEQ  # a line does not say which queue it is about
    assert machine.driver.take_interrupts().used == {told: 1}


@pytest.mark.modern
def test_2_1_2_what_was_offered_without_a_kick_is_found_at_driver_ok(machine: BalloonMachine) -> None:
    prepare(machine)
    machine.driver.post_stats({"stat-free-memory": 77})
    machine.driver.driver_ok()
    assert machine.statistics().values == {"stat-free-memory": 77}


@pytest.mark.split_rings
def test_2_1_2_needs_reset_comes_with_a_configuration_notification(started: BalloonMachine) -> None:
    queue = started.driver.queues[INFLATEQ]
    started.memory.write_int(queue.layout.avail_idx, 2, queue.size + 1)
    started.driver.transport.notify(INFLATEQ)
    assert started.driver.needs_reset
    assert started.driver.take_interrupts().config == 1


@pytest.mark.modern
@pytest.mark.split_rings
def test_2_1_2_needs_reset_before_driver_ok_sends_no_notification(machine: BalloonMachine) -> None:
    """The notification is due only if DRIVER_OK is set, and nothing is even looked at before."""
    prepare(machine)
    queue = machine.driver.queues[INFLATEQ]
    machine.memory.write_int(queue.layout.avail_idx, 2, queue.size + 1)
    machine.driver.transport.notify(INFLATEQ)
    assert not machine.driver.needs_reset
    assert machine.driver.take_interrupts().config == 0


def test_2_2_2_no_feature_is_offered_without_those_it_requires(machine: BalloonMachine) -> None:
    """Of the features offered here none requires another; those that would (§2.2.1) are not offered."""
    modern = (VERSION_1, RING_PACKED, RING_RESET)
    known = (
        EVENT_IDX,
        INDIRECT_DESC,
        *((ANY_LAYOUT,) if machine.driver.is_legacy else modern),
        MUST_TELL_HOST,
        STATS_VQ,
        PAGE_POISON,
    )
    offered = machine.driver.transport.read_device_features()
    assert offered & ~sum(known) == 0


@pytest.mark.parametrize("without", [0, EVENT_IDX, INDIRECT_DESC, STATS_VQ, EVENT_IDX | INDIRECT_DESC | STATS_VQ])
def test_2_2_2_any_valid_subset_is_accepted(machine: BalloonMachine, without: int) -> None:
    wanted = machine.driver.transport.read_device_features() & ~without
    machine.driver.start(wanted)
    assert machine.driver.status == alive(machine)
    assert machine.driver.transport.read_driver_features() == wanted


@pytest.mark.modern
def test_2_2_2_a_feature_that_was_not_offered_is_refused(machine: BalloonMachine) -> None:
    offered = machine.driver.transport.read_device_features()
    with pytest.raises(FeaturesRefused):
        machine.driver.start(offered | 1 << spec.VIRTIO_F_SR_IOV)
    assert Status.FEATURES_OK not in machine.driver.status


@pytest.mark.modern
def test_2_2_2_after_a_refusal_a_smaller_set_is_accepted(machine: BalloonMachine) -> None:
    offered = machine.driver.transport.read_device_features()
    with pytest.raises(FeaturesRefused):
        machine.driver.start(offered | 1 << 63)
    machine.driver.start(offered)
    assert machine.driver.status == alive(machine)


def test_2_2_2_the_same_set_is_accepted_again_after_a_reset(machine: BalloonMachine) -> None:
    machine.driver.start()
    accepted = machine.driver.features
    machine.driver.start(accepted)
    assert machine.driver.features == accepted


@pytest.mark.ways("direct", "pci", "transitional", "legacy", "transitional-legacy")  # virtio-mmio does not read back
def test_3_1_1_features_are_fixed_once_features_ok_is_set(machine: BalloonMachine) -> None:
    """§2.2.1: the driver negotiates before FEATURES_OK; a later write changes nothing."""
    machine.driver.start()
    machine.driver.transport.write_driver_features(0)
    assert machine.driver.transport.read_driver_features() == machine.driver.features


@pytest.mark.modern
def test_6_2_version_1_is_offered(machine: BalloonMachine) -> None:
    assert machine.driver.transport.read_device_features() & VERSION_1


@pytest.mark.modern
def test_6_2_a_driver_without_version_1_is_refused(machine: BalloonMachine) -> None:
    """A device MAY fail without VERSION_1; this one knows no legacy layout, so it must."""
    offered = machine.driver.transport.read_device_features()
    with pytest.raises(FeaturesRefused):
        machine.driver.start(offered & ~VERSION_1)


def test_2_4_1_status_is_zero_after_a_reset(started: BalloonMachine) -> None:
    started.driver.transport.write_status(0)
    assert started.driver.transport.read_status() == 0


def test_2_4_1_queues_are_left_alone_after_a_reset(started: BalloonMachine) -> None:
    driver = started.driver
    (pfn,) = started.filled_pfns(1)
    driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    driver.queues[INFLATEQ].publish()
    driver.transport.write_status(0)
    before = started.snapshot()
    driver.transport.notify(INFLATEQ)
    started.set_target(5)
    started.request_stats()
    assert before.changed() == []
    assert driver.take_interrupts() == ({}, 0)


def test_2_4_1_a_held_statistics_buffer_is_not_returned_after_a_reset(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 1})
    started.driver.transport.write_status(0)
    before = started.snapshot()
    started.request_stats()
    started.set_polling_interval(1_000_000)
    started.bench.advance(5_000_000)
    assert before.changed() == []
    assert started.driver.take_interrupts() == ({}, 0)


def test_2_4_1_a_reset_device_works_like_a_new_one(started: BalloonMachine) -> None:
    started.driver.inflate(started.filled_pfns(3))
    started.driver.start()
    pfns = started.filled_pfns(2)
    assert len(started.driver.inflate(pfns)) == 1
    assert started.are_zero(pfns)


def test_2_4_1_writing_zero_again_is_harmless(machine: BalloonMachine) -> None:
    for _ in range(3):
        machine.driver.transport.write_status(0)
    machine.driver.start()
    assert machine.driver.status == alive(machine)


@pytest.mark.modern
def test_3_1_1_driver_ok_without_features_ok_makes_no_device_live(machine: BalloonMachine) -> None:
    """§3.1.1: a driver that skips FEATURES_OK cannot start operation."""
    driver, queue = machine.driver, SplitQueue(machine.memory, machine.pages, INFLATEQ, 8)
    place = queue.layout
    driver.reset()
    driver.acknowledge()
    driver.transport.set_up_queue(INFLATEQ, 8, place.desc_gpa, place.driver_gpa, place.device_gpa)
    driver.driver_ok()
    (pfn,) = machine.filled_pfns(1)
    queue.offer([pfn_bytes([pfn])])
    queue.publish()
    driver.transport.notify(INFLATEQ)
    assert queue.collect() == []
    assert machine.are_filled([pfn])


@pytest.mark.ways(*SIZED_WAYS)
def test_5_5_2_statsq_does_not_exist_without_its_feature(machine: BalloonMachine) -> None:
    """A driver that sets it up all the same gets nothing by it and breaks nothing."""
    driver, queue = machine.driver, SplitQueue(machine.memory, machine.pages, STATSQ, 8)
    driver.start(driver.transport.read_device_features() & ~STATS_VQ)
    place = queue.layout
    driver.transport.set_up_queue(STATSQ, 8, place.desc_gpa, place.driver_gpa, place.device_gpa)
    queue.offer([stats_bytes({4: 1})])
    queue.publish()
    driver.transport.notify(STATSQ)
    assert queue.collect() == []
    assert machine.statistics().reason == "not negotiated"
    assert not driver.needs_reset


def test_several_machines_do_not_share_state(make_machine: MakeMachine, way: Way) -> None:
    first, second = make_machine(way), make_machine(way)
    first.driver.start()
    first.set_target(9)
    assert second.driver.status == 0
    assert second.driver.num_pages == 0
