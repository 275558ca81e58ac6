"""§5.5 the balloon: features, inflate, deflate, the target.  D1 to D3 are the device's normative statements."""

from __future__ import annotations

import pytest

from devices.virtio import spec
from tests.fixtures import MakeMachine
from tests.support import BalloonMachine, Way, build_with
from vmm.testing import FeaturesRefused
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, MUST_TELL_HOST, STATS_VQ, pfn_bytes
from vmm.testing.driver import EVENT_IDX, INDIRECT_DESC

RING_FEATURES = {
    "plain": EVENT_IDX | INDIRECT_DESC,
    "event-idx": INDIRECT_DESC,
    "indirect": EVENT_IDX,
    "both": 0,
}
"""What each variant leaves out."""


@pytest.fixture(params=RING_FEATURES)
def balloon(machine: BalloonMachine, request: pytest.FixtureRequest) -> BalloonMachine:
    """A started machine for each combination of the ring's features."""
    machine.driver.start(machine.driver.transport.read_device_features() & ~RING_FEATURES[request.param])
    machine.driver.take_interrupts()
    return machine


# -- identity and features ---------------------------------------------------------------------------------------------


def test_5_5_1_the_device_id_is_5(machine: BalloonMachine) -> None:
    assert machine.driver.transport.device_id == 5


def test_5_5_2_inflateq_deflateq_and_statsq_are_queues_0_1_and_2(machine: BalloonMachine) -> None:
    assert machine.driver.transport.num_queues == 3
    assert all(machine.driver.transport.queue_max_size(index) for index in range(3))


def test_5_5_3_must_tell_host_and_stats_vq_are_offered(machine: BalloonMachine) -> None:
    offered = machine.driver.transport.read_device_features()
    assert offered & (MUST_TELL_HOST | STATS_VQ) == MUST_TELL_HOST | STATS_VQ


def test_d1_5_5_3_2_a_driver_without_must_tell_host_is_refused_or_served(machine: BalloonMachine) -> None:
    """The device MAY refuse FEATURES_OK without MUST_TELL_HOST.  If it does not, the balloon has to work."""
    offered = machine.driver.transport.read_device_features()
    try:
        machine.driver.start(offered & ~MUST_TELL_HOST)
    except FeaturesRefused:
        machine.driver.start(offered)
    pfns = machine.filled_pfns(2)
    assert len(machine.driver.inflate(pfns)) == 1
    assert machine.are_zero(pfns)


# -- inflate and deflate -----------------------------------------------------------------------------------------------


def test_5_5_6_one_scenario_up_and_down_again(balloon: BalloonMachine) -> None:
    """The target goes up, the driver follows, pages are given back; down, and the pages are the driver's again."""
    driver = balloon.driver
    balloon.set_target(300)
    assert driver.take_interrupts().config == 1
    assert driver.follow_target() == 300
    held = list(driver.held_pfns)
    assert balloon.balloon.actual_pages == 300
    assert balloon.balloon.inflated_pages == 300
    assert balloon.are_zero(held)
    balloon.set_target(100)
    assert driver.follow_target() == 100
    assert balloon.balloon.actual_pages == 100
    assert balloon.balloon.deflated_pages == 200
    returned = held[100:]
    for pfn in returned:
        balloon.memory.write(pfn * 4096, b"\x77" * 4096)
    assert balloon.are_filled(returned, 0x77)
    balloon.set_target(0)
    assert driver.follow_target() == 0
    assert balloon.balloon.deflated_pages == 300
    assert balloon.balloon.bad_pfns == 0
    assert not driver.needs_reset


def test_d2_5_5_6_2_an_inflated_page_is_given_back_to_the_host_before_the_acknowledgement(
    balloon: BalloonMachine,
) -> None:
    """The device MAY modify the page between inflate request and acknowledgement: when the buffer is back, it has."""
    pfns = balloon.filled_pfns(64)
    before = balloon.memory.backed_bytes()
    (used,) = balloon.driver.inflate(pfns)
    assert used.length == 0
    assert balloon.are_zero(pfns)
    assert balloon.memory.backed_bytes() <= before - 64 * 4096 + 16 * 4096  # rings and payload may be new


def test_d2_5_5_6_2_only_the_pages_named_are_modified(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(9)
    given, kept = pfns[1::2], pfns[0::2]
    balloon.driver.inflate(given)
    assert balloon.are_zero(given)
    assert balloon.are_filled(kept)


def test_d2_5_5_6_2_a_page_is_left_alone_once_its_inflate_was_acknowledged_and_deflated(
    balloon: BalloonMachine,
) -> None:
    """After the deflate request the page is the driver's: nothing that happens later touches it."""
    pfns = balloon.filled_pfns(4)
    balloon.driver.inflate(pfns)
    balloon.driver.deflate(pfns)
    for pfn in pfns:
        balloon.memory.write(pfn * 4096, b"\x33" * 4096)
    balloon.driver.inflate(balloon.filled_pfns(4))
    balloon.set_target(50)
    balloon.driver.deflate([])
    balloon.bench.advance(10**9)
    assert balloon.are_filled(pfns, 0x33)


def test_d3_5_5_6_2_a_deflate_request_itself_modifies_no_page(balloon: BalloonMachine) -> None:
    """The device MAY modify a page until it acknowledges the deflate; this one leaves even unballooned pages alone."""
    assert balloon.driver.features & MUST_TELL_HOST
    pfns = balloon.filled_pfns(4)
    (used,) = balloon.driver.deflate(pfns)
    assert used.length == 0
    assert balloon.are_filled(pfns)


def test_5_5_6_pages_may_come_in_any_order_and_from_any_part_of_ram(balloon: BalloonMachine) -> None:
    low, high = 0x9F, (1 << 32) // 4096
    for pfn in (low, high):
        balloon.memory.write(pfn * 4096, b"\x5a" * 4096)
    pfns = balloon.filled_pfns(5)
    balloon.driver.inflate([high, *reversed(pfns), low])
    assert balloon.are_zero([low, high, *pfns])
    assert balloon.balloon.bad_pfns == 0


def test_5_5_6_numbers_are_of_4096_byte_pages_and_little_endian(balloon: BalloonMachine) -> None:
    first, second = balloon.filled_pfns(2)
    balloon.driver.transfer(INFLATEQ, readable=[first.to_bytes(4, "little")])
    assert balloon.are_zero([first])
    assert balloon.are_filled([second])


def test_5_5_6_a_page_may_go_in_and_out_again_and_again(balloon: BalloonMachine) -> None:
    (pfn,) = balloon.filled_pfns(1)
    for value in (1, 2, 3):
        balloon.memory.write(pfn * 4096, bytes([value]) * 4096)
        balloon.driver.inflate([pfn])
        assert balloon.are_zero([pfn])
        balloon.driver.deflate([pfn])
    assert (balloon.balloon.inflated_pages, balloon.balloon.deflated_pages) == (3, 3)


def test_5_5_6_many_requests_behind_one_kick(balloon: BalloonMachine) -> None:
    inflated, deflated = balloon.filled_pfns(20), balloon.filled_pfns(4)
    balloon.driver.inflate(deflated)
    for pfn in inflated:
        balloon.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    balloon.driver.offer(DEFLATEQ, readable=[pfn_bytes(deflated[:2]), pfn_bytes(deflated[2:])])
    balloon.driver.kick(INFLATEQ)
    balloon.driver.kick(DEFLATEQ)
    assert len(balloon.driver.collect(INFLATEQ)) == 20
    assert len(balloon.driver.collect(DEFLATEQ)) == 1
    assert balloon.balloon.deflated_pages == 4


def test_5_5_6_the_discarded_bytes_are_counted(balloon: BalloonMachine) -> None:
    balloon.driver.inflate(balloon.filled_pfns(16))
    assert balloon.balloon.discarded_bytes == 16 * 4096
    assert balloon.balloon.inflated_pages == 16


def test_5_5_6_every_byte_the_device_changes_is_reported_for_the_cpu(balloon: BalloonMachine) -> None:
    """A CPU that translated code from a page has to hear of it: discards and ring stores alike."""
    pfns = balloon.filled_pfns(6)
    for pfn in pfns[::2]:
        balloon.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    balloon.driver.queues[INFLATEQ].publish()
    balloon.memory.take_writes()
    before = balloon.snapshot()
    balloon.driver.transport.notify(INFLATEQ)
    assert before.changed() != []
    assert before.changed(outside=balloon.memory.take_writes()) == []


def test_5_5_6_the_linux_request_of_256_pages_in_one_buffer(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(256)
    balloon.driver.take_interrupts()
    (used,) = balloon.driver.inflate(pfns)
    assert used.length == 0
    assert balloon.are_zero(pfns)
    assert balloon.driver.take_interrupts().for_queue(INFLATEQ) == 1


# -- the target --------------------------------------------------------------------------------------------------------


def test_5_5_6_num_pages_shows_the_target(balloon: BalloonMachine) -> None:
    for target in (1, 1000, 0):
        balloon.set_target(target)
        assert balloon.driver.num_pages == target


def test_5_5_6_no_more_pages_can_be_wanted_than_there_are(balloon: BalloonMachine) -> None:
    balloon.set_target(0xFFFFFFFF)
    assert balloon.driver.num_pages == balloon.memory.size_bytes // 4096


def test_5_5_6_the_target_survives_a_reset_and_actual_does_not(balloon: BalloonMachine) -> None:
    """num_pages is the host's wish; actual is what this driver said, and a new driver has said nothing."""
    balloon.set_target(40)
    balloon.driver.follow_target()
    balloon.driver.start()
    assert balloon.driver.num_pages == 40
    assert balloon.driver.actual == 0
    assert balloon.balloon.actual_pages == 0


def test_5_5_6_the_target_may_change_while_the_driver_follows(balloon: BalloonMachine) -> None:
    balloon.set_target(30)
    balloon.driver.follow_target()
    balloon.set_target(60)
    balloon.set_target(20)
    assert balloon.driver.follow_target() == 20
    assert balloon.balloon.actual_pages == 20


def test_5_5_6_a_device_of_one_descriptor_a_queue_still_works(make_machine: MakeMachine, way: Way) -> None:
    machine = make_machine(way, build=build_with(queue_size=1))
    machine.driver.start()
    pfns = machine.filled_pfns(10)
    machine.driver.inflate(pfns, per_buffer=3)
    assert machine.are_zero(pfns)
    machine.hear_stats({spec.VIRTIO_BALLOON_S_MEMFREE: 5})
    assert machine.statistics().values == {"stat-free-memory": 5}
