"""What both kinds of ring can do besides: in-order use, notification data, resetting one queue, legacy notification.

Split and packed rings pass the same tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.spec import Status
from tests.devices.virtio.rings import BUFFERS, LAYOUT, RawRing
from tests.fixtures import MakeMachine
from tests.support import BalloonMachine, Way, build_with
from vmm.testing import PciTransport
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, STATSQ, pfn_bytes
from vmm.testing.driver import (
    ANY_LAYOUT,
    EVENT_IDX,
    IN_ORDER,
    INDIRECT_DESC,
    NOTIFICATION_DATA,
    RING_PACKED,
    RING_RESET,
    FeaturesRefused,
)

pytestmark = pytest.mark.ways("direct", "pci", "packed", "packed-pci")

EVERYTHING = build_with(spec.VIRTIO_F_IN_ORDER, spec.VIRTIO_F_NOTIFICATION_DATA, spec.VIRTIO_BALLOON_F_PAGE_REPORTING)
NOTIFY_ON_EMPTY = 1 << spec.VIRTIO_F_NOTIFY_ON_EMPTY
NO_VECTOR = spec.VIRTIO_MSI_NO_VECTOR


@pytest.fixture
def machine(make_machine: MakeMachine, way: Way) -> BalloonMachine:
    """A started machine that offers every feature of its rings."""
    made = make_machine(way, build=EVERYTHING)
    made.driver.start()
    made.driver.take_interrupts()
    return made


def without(machine: BalloonMachine, features: int) -> BalloonMachine:
    machine.driver.start(machine.driver.transport.read_device_features() & ~features)
    machine.driver.take_interrupts()
    machine.events.clear()
    return machine


def kinds(machine: BalloonMachine, kind: str) -> list[str]:
    return [event.text for event in machine.events if event.kind == kind]


def test_everything_is_negotiated_together(machine: BalloonMachine, way: Way) -> None:
    features = machine.driver.features
    assert features & (IN_ORDER | NOTIFICATION_DATA | RING_RESET) == IN_ORDER | NOTIFICATION_DATA | RING_RESET
    assert bool(features & RING_PACKED) == way.startswith("packed")


# -- IN_ORDER (§2.7.9, §2.8.8) -----------------------------------------------------------------------------------------


def test_in_order_buffers_come_back_in_the_order_offered(machine: BalloonMachine) -> None:
    """A kick with many buffers of several descriptors; the driver library refuses any other order."""
    without(machine, INDIRECT_DESC)
    pfns = machine.filled_pfns(60)
    offered = []
    for start in range(0, 60, 6):
        pieces = [pfn_bytes([pfn]) for pfn in pfns[start : start + 6]]
        offered.append(machine.driver.offer(INFLATEQ, readable=pieces[: 1 + start % 4]))
        offered.append(machine.driver.offer(INFLATEQ, readable=pieces[1 + start % 4 :]))
    machine.driver.kick(INFLATEQ)
    assert [used.head for used in machine.driver.collect(INFLATEQ)] == offered
    assert machine.are_zero(pfns)


def test_in_order_holds_with_statistics_that_are_held(machine: BalloonMachine) -> None:
    first = machine.driver.post_stats({4: 1})
    second = machine.driver.post_stats({4: 2})  # one too many: the older goes back
    assert [used.head for used in machine.driver.collect(STATSQ)] == [first]
    machine.request_stats()
    assert [used.head for used in machine.driver.collect(STATSQ)] == [second]


def test_in_order_a_batch_is_told_of_once_and_many_rounds_long(machine: BalloonMachine) -> None:
    for count in (128, 1, 127, 64, 64, 3):
        pfns = machine.filled_pfns(count)
        for pfn in pfns:
            machine.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
        machine.driver.kick(INFLATEQ)
        assert len(machine.driver.collect(INFLATEQ)) == count
        assert machine.driver.take_interrupts().for_queue(INFLATEQ) == 1
        assert machine.are_zero(pfns)
        for pfn in pfns:
            machine.pages.give(pfn * 4096)


def test_in_order_reports_are_not_skipped(machine: BalloonMachine) -> None:
    """A skipped buffer would count as wholly written, and nothing was written to these."""
    pfns = machine.filled_pfns(40)
    for pfn in pfns:
        machine.driver.offer(machine.driver.reporting_vq, writable=[(pfn * 4096, 4096)])
        machine.driver.queues[machine.driver.reporting_vq].publish()
        if machine.driver.queues[machine.driver.reporting_vq].free_descriptors == 0:
            break
    machine.driver.notify(machine.driver.reporting_vq)
    used = machine.driver.collect(machine.driver.reporting_vq)
    assert [each.length for each in used] == [0] * len(used) and len(used) >= 32


# -- NOTIFICATION_DATA (§2.9) ------------------------------------------------------------------------------------------


def test_2_9_a_driver_that_says_where_it_stands_is_believed_and_nothing_is_said(machine: BalloonMachine) -> None:
    for count in (1, 100, 128, 64, 3):
        machine.driver.inflate(machine.filled_pfns(count), per_buffer=1)
    assert machine.balloon.inflated_pages == 296
    assert kinds(machine, "notification-data") == []


def test_2_9_an_old_notification_is_no_disagreement(machine: BalloonMachine) -> None:
    """Another processor may have offered more before the device came to look."""
    old = machine.driver.queues[INFLATEQ].notification_data()
    machine.driver.inflate(machine.filled_pfns(3), per_buffer=1)
    machine.driver.transport.notify(INFLATEQ, INFLATEQ | old << 16)
    assert kinds(machine, "notification-data") == []


def test_2_9_what_is_announced_and_not_there_is_told_of_and_harms_nobody(machine: BalloonMachine) -> None:
    (pfn,) = machine.filled_pfns(1)
    machine.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    queue = machine.driver.queues[INFLATEQ]
    queue.publish()
    data = queue.notification_data() + 3  # three further on than the ring
    machine.driver.transport.notify(INFLATEQ, INFLATEQ | data << 16)
    assert len(machine.driver.collect(INFLATEQ)) == 1 and machine.are_zero([pfn])
    (told,) = kinds(machine, "notification-data")
    assert "queue 0 (inflateq) announces" in told
    assert not machine.driver.needs_reset


def test_2_9_a_notification_that_names_another_queue_is_told_of(machine: BalloonMachine) -> None:
    """The address names the queue, and both ways have one here."""
    (pfn,) = machine.filled_pfns(1)
    machine.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    queue = machine.driver.queues[INFLATEQ]
    queue.publish()
    machine.driver.transport.notify(INFLATEQ, DEFLATEQ | queue.notification_data() << 16)
    assert machine.are_zero([pfn])
    assert kinds(machine, "notification-data") == ["a notification of queue 0 (inflateq) names queue 1"]


def test_2_9_a_notification_without_data_is_told_of(machine: BalloonMachine) -> None:
    machine.driver.transport.notify(INFLATEQ)
    (told,) = kinds(machine, "notification-data")
    assert "has no data" in told


def test_2_9_without_the_feature_data_mean_nothing(machine: BalloonMachine) -> None:
    without(machine, NOTIFICATION_DATA)
    machine.driver.transport.notify(INFLATEQ, 0xFFFF_FFFF)
    assert kinds(machine, "notification-data") == []
    assert len(machine.driver.inflate(machine.filled_pfns(1))) == 1


# -- RING_RESET (§2.6.1) -----------------------------------------------------------------------------------------------


def test_2_6_1_a_queue_that_was_reset_is_disabled_and_can_be_set_up_anew(machine: BalloonMachine) -> None:
    """With another size, elsewhere in memory, while the device and its other queues go on."""
    machine.driver.inflate(machine.filled_pfns(3), per_buffer=1)
    machine.driver.reset_queue(INFLATEQ)
    state = machine.balloon.queues[INFLATEQ]
    assert (state.enabled, state.size, state.desc_gpa) == (False, 128, 0)
    assert len(machine.driver.deflate(machine.driver.held_pfns[:1])) == 1
    machine.driver.set_up_queue(INFLATEQ, 16)
    pfns = machine.filled_pfns(20)
    machine.driver.inflate(pfns, per_buffer=1)
    assert machine.are_zero(pfns)
    assert machine.driver.status & Status.DRIVER_OK and not machine.driver.needs_reset


def test_2_6_1_what_is_in_flight_is_never_returned_after_the_reset(machine: BalloonMachine) -> None:
    """The device holds a statistics buffer; afterwards it has none, and its old ring is memory like any other."""
    machine.driver.post_stats({4: 1})
    old = machine.driver.queues[STATSQ]
    machine.driver.reset_queue(STATSQ)
    before = machine.snapshot()
    machine.request_stats()
    machine.set_polling_interval(1000)
    machine.bench.advance(10_000)
    assert before.changed() == []
    assert machine.driver.take_interrupts().for_queue(STATSQ) == 0
    assert old.in_flight == ()
    machine.driver.set_up_queue(STATSQ, 8)
    machine.driver.post_stats({4: 2})  # the request that waited is answered with it
    assert machine.driver.stats_wanted()
    assert machine.statistics().values == {"stat-free-memory": 2}


def test_2_6_1_what_was_offered_and_not_taken_is_forgotten(machine: BalloonMachine) -> None:
    (pfn,) = machine.filled_pfns(1)
    machine.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    machine.driver.queues[INFLATEQ].publish()
    machine.driver.reset_queue(INFLATEQ)
    machine.driver.transport.notify(INFLATEQ)
    machine.driver.set_up_queue(INFLATEQ, 4)
    assert machine.are_filled([pfn])
    assert machine.driver.collect(INFLATEQ) == []


def test_2_6_1_a_queue_set_up_again_is_looked_at(machine: BalloonMachine) -> None:
    """What its new ring holds already is served without another notification."""
    pfns = machine.filled_pfns(2)
    before = machine.driver.queues[INFLATEQ]
    machine.driver.reset_queue(INFLATEQ)
    queue = type(before)(machine.memory, machine.pages, INFLATEQ, 4, event_idx=True, indirect=True, in_order=True)
    for pfn in pfns:
        queue.offer(readable=[pfn_bytes([pfn])])
    queue.publish()
    place = queue.layout
    machine.driver.transport.set_up_queue(INFLATEQ, 4, place.desc_gpa, place.driver_gpa, place.device_gpa)
    assert machine.are_zero(pfns)
    assert len(queue.collect()) == 2


def test_2_6_1_a_queue_can_be_reset_again_and_again(machine: BalloonMachine) -> None:
    for size in (1, 2, 128, 4):
        machine.driver.reset_queue(INFLATEQ)
        machine.driver.set_up_queue(INFLATEQ, size)
        assert len(machine.driver.inflate(machine.filled_pfns(2), per_buffer=1)) == 2
    assert len(kinds(machine, "queue-reset")) == 4


def test_2_6_1_without_the_feature_the_register_does_nothing(machine: BalloonMachine) -> None:
    without(machine, RING_RESET)
    machine.driver.transport.reset_queue(INFLATEQ)
    assert machine.driver.transport.queue_enabled(INFLATEQ)
    assert len(machine.driver.inflate(machine.filled_pfns(1))) == 1


def test_2_6_1_a_queue_that_is_not_enabled_is_not_reset(machine: BalloonMachine) -> None:
    machine.driver.reset_queue(INFLATEQ)
    machine.events.clear()
    machine.driver.transport.reset_queue(INFLATEQ)
    assert kinds(machine, "queue-reset") == []


def test_4_1_4_3_1_queue_reset_reads_0_before_and_after(pci_everything: BalloonMachine) -> None:
    pci = pci_everything.pci
    pci.write_common("queue_select", INFLATEQ)
    assert (pci.read_common("queue_reset"), pci.read_common("queue_enable")) == (0, 1)
    pci.write_common("queue_reset", 0)
    pci.write_common("queue_reset", 2)
    assert pci.read_common("queue_enable") == 1  # only 1 means anything
    pci.write_common("queue_reset", 1)
    assert (pci.read_common("queue_reset"), pci.read_common("queue_enable")) == (0, 0)
    assert pci.read_common("queue_size") == 128
    assert pci.read_common("queue_msix_vector") == NO_VECTOR
    pci.write_common("queue_select", DEFLATEQ)
    assert pci.read_common("queue_enable") == 1 and pci.read_common("queue_msix_vector") != NO_VECTOR


@pytest.fixture
def pci_everything(make_machine: MakeMachine) -> BalloonMachine:
    made = make_machine("pci", build=EVERYTHING)
    made.driver.start()
    assert isinstance(made.driver.transport, PciTransport)
    return made


# -- NOTIFY_ON_EMPTY (§6.3, legacy) ------------------------------------------------------------------------------------


@pytest.fixture
def legacy_ring() -> Iterator[RawRing]:
    with GuestMemory(LAYOUT) as memory:
        made = RawRing(8, memory)
        for index in range(8):
            made.set_descriptor(index, BUFFERS + 16 * index, 4)
        yield made


@pytest.mark.parametrize("event_idx", [False, True])
def test_6_3_a_device_that_runs_out_of_descriptors_notifies_though_it_was_told_not_to(
    legacy_ring: RawRing, event_idx: bool
) -> None:
    queue = legacy_ring.queue(event_idx=event_idx, notify_on_empty=True)
    legacy_ring.set_avail_flags(1)
    legacy_ring.set_used_event(100)
    assert not queue.needs_notification()  # nothing was used
    legacy_ring.offer(0, 1)
    chains = queue.take_available()
    assert chains is not None
    queue.put_used(chains.only(0))
    assert queue.needs_notification()
    legacy_ring.offer(2)
    queue.put_used(chains.only(1))
    assert not queue.needs_notification()  # there is one left


def test_6_3_without_the_feature_it_does_not(legacy_ring: RawRing) -> None:
    queue = legacy_ring.queue()
    legacy_ring.set_avail_flags(1)
    legacy_ring.offer(0)
    chains = queue.take_available()
    assert chains is not None
    queue.put_used(chains)
    assert not queue.needs_notification()


# -- sizes (§2.7, §2.8) ------------------------------------------------------------------------------------------------


@pytest.mark.ways("direct", "packed")
@pytest.mark.parametrize("size", [1, 1024, 32768])
def test_2_6_a_queue_has_any_size_up_to_32768(make_machine: MakeMachine, way: Way, size: int) -> None:
    """As large as the device offers it: filled to the last descriptor, emptied, and filled once more."""
    machine = make_machine(way, build=build_with(spec.VIRTIO_F_IN_ORDER, queue_size=size))
    driver = machine.driver
    driver.start(queue_sizes={DEFLATEQ: 1, STATSQ: 1})
    queue = driver.queues[INFLATEQ]
    assert queue.size == size == machine.balloon.queues[INFLATEQ].max_size
    (pfn,) = machine.filled_pfns(1)
    gpa = machine.pages.take()
    machine.memory.write(gpa, pfn_bytes([pfn]))
    for _ in range(2):
        for _ in range(size):
            queue.offer([(gpa, 4)])
        assert queue.free_descriptors == 0
        driver.kick(INFLATEQ)
        machine.bench.advance(1_000_000)  # so many requests may take the device more than one turn
        assert len(driver.collect(INFLATEQ)) == size
    assert machine.balloon.queues[INFLATEQ].requests == 2 * size
    assert machine.are_zero([pfn]) and not driver.needs_reset


@pytest.mark.ways("direct", "pci", "transitional", "mmio")
def test_6_3_a_modern_driver_is_not_offered_it_and_cannot_have_it(make_machine: MakeMachine, way: Way) -> None:
    """The bit is reserved for legacy interfaces."""
    machine = make_machine(way, build=build_with(spec.VIRTIO_F_NOTIFY_ON_EMPTY, spec.VIRTIO_F_ANY_LAYOUT))
    offered = machine.driver.transport.read_device_features()
    assert offered & (NOTIFY_ON_EMPTY | ANY_LAYOUT) == 0
    with pytest.raises(FeaturesRefused):
        machine.driver.start(offered | NOTIFY_ON_EMPTY)
    machine.driver.start(offered)
    machine.driver.queues[INFLATEQ].suppress_notifications()
    machine.driver.inflate(machine.filled_pfns(2), per_buffer=1)
    assert machine.driver.take_interrupts().for_queue(INFLATEQ) == 0


@pytest.mark.ways("legacy", "transitional-legacy", "mmio-legacy")
@pytest.mark.parametrize("event_idx", [0, EVENT_IDX])
def test_6_3_a_legacy_driver_that_took_it_is_notified_of_an_empty_queue(
    make_machine: MakeMachine, way: Way, event_idx: int
) -> None:
    machine = make_machine(way, build=build_with(spec.VIRTIO_F_NOTIFY_ON_EMPTY))
    driver = machine.driver
    everything = driver.transport.read_device_features() & ~EVENT_IDX | event_idx
    assert everything & NOTIFY_ON_EMPTY
    for features, notified in ((everything, 1), (everything & ~NOTIFY_ON_EMPTY, 0)):
        driver.start(features)
        driver.take_interrupts()
        driver.queues[INFLATEQ].suppress_notifications()
        driver.inflate(machine.filled_pfns(2), per_buffer=1)
        assert driver.take_interrupts().for_queue(INFLATEQ) == notified, f"{features:#x}"
