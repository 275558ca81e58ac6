"""§5.5.6.7 free page reporting.  D13 is the device's normative statement without PAGE_POISON.

Contents are looked at through the memory file, so that looking does not bring a page back."""

from __future__ import annotations

import pytest

from devices.virtio import spec
from devices.virtio.spec import Status
from tests.fixtures import MakeMachine
from tests.support import MIB, SIZED_WAYS, BalloonMachine, Way, build_reporting, build_with
from vmm.testing.balloon import INFLATEQ, PAGE_REPORTING, STATS_VQ, STATSQ, BalloonDriver
from vmm.testing.driver import EVENT_IDX, INDIRECT_DESC

PAGE = 4096
RING_FEATURES = {"plain": EVENT_IDX | INDIRECT_DESC, "event-idx": INDIRECT_DESC, "indirect": EVENT_IDX, "both": 0}
"""What each variant leaves out."""


@pytest.fixture(params=RING_FEATURES)
def balloon(make_machine: MakeMachine, way: Way, request: pytest.FixtureRequest) -> BalloonMachine:
    """A started machine with reporting for each combination of the ring's features."""
    machine = make_machine(way, build=build_reporting)
    machine.driver.start(machine.driver.transport.read_device_features() & ~RING_FEATURES[request.param])
    machine.driver.take_interrupts()
    return machine


def ranges(pfns: list[int]) -> list[tuple[int, int]]:
    return [(pfn * PAGE, PAGE) for pfn in pfns]


def filled_block(machine: BalloonMachine, pages: int) -> list[int]:
    """Neighbouring pages that are in use."""
    gpa = machine.pages.take(pages)
    machine.memory.write(gpa, b"\x5a" * (pages * PAGE))
    return [gpa // PAGE + i for i in range(pages)]


# -- the queue ---------------------------------------------------------------------------------------------------------


def test_5_5_3_reporting_is_offered_only_when_asked_for(machine: BalloonMachine) -> None:
    assert not machine.driver.transport.read_device_features() & PAGE_REPORTING
    assert machine.driver.transport.num_queues == 3


def test_5_5_2_reporting_vq_is_the_queue_behind_statsq(balloon: BalloonMachine) -> None:
    assert balloon.driver.transport.num_queues == 4
    assert balloon.driver.reporting_vq == 3
    assert [queue.name for queue in balloon.balloon.queues] == ["inflateq", "deflateq", "statsq", "reporting_vq"]


def test_5_5_2_without_statsq_it_moves_up(make_machine: MakeMachine, way: Way) -> None:
    """Queues are numbered densely over what is offered: this is what drivers of other devices expect."""
    machine = make_machine(way, build=build_with(spec.VIRTIO_BALLOON_F_PAGE_REPORTING, without=STATS_VQ))
    machine.driver.start()
    assert machine.driver.transport.num_queues == 3
    assert [queue.name for queue in machine.balloon.queues] == ["inflateq", "deflateq", "reporting_vq"]
    pfns = machine.filled_pfns(3)
    machine.driver.report(ranges(pfns))
    assert machine.driver.reporting_vq == 2
    assert machine.are_zero(pfns)
    assert machine.statistics().reason == "not negotiated"


def test_5_5_2_an_offered_statsq_keeps_its_number_when_the_driver_does_without(balloon: BalloonMachine) -> None:
    balloon.driver.start(balloon.driver.features & ~STATS_VQ)
    assert balloon.driver.reporting_vq == 3
    assert STATSQ not in balloon.driver.queues
    pfns = balloon.filled_pfns(3)
    balloon.driver.report(ranges(pfns))
    assert balloon.are_zero(pfns)


@pytest.mark.ways(*SIZED_WAYS)
def test_5_5_2_reporting_vq_does_not_exist_unless_negotiated(balloon: BalloonMachine) -> None:
    driver = balloon.driver
    driver.start(driver.features & ~PAGE_REPORTING)
    assert 3 not in driver.queues
    driver.transport.set_up_queue(3, 32, 0x110000, 0x112000, 0x114000)
    assert not driver.transport.queue_enabled(3)
    driver.transport.notify(3)
    assert not driver.needs_reset


@pytest.mark.parametrize("queue_size", [1, 16, 128])
def test_it_has_room_for_the_32_ranges_of_linux(make_machine: MakeMachine, way: Way, queue_size: int) -> None:
    """Linux refuses the device otherwise (-ENOSPC); it posts 32 ranges at once, with or without indirect tables."""
    machine = make_machine(way, build=build_with(spec.VIRTIO_BALLOON_F_PAGE_REPORTING, queue_size=queue_size))
    assert machine.driver.transport.queue_max_size(machine.driver.reporting_vq) >= 32
    machine.driver.start(machine.driver.transport.read_device_features() & ~INDIRECT_DESC)
    pfns = machine.filled_pfns(64)[::2]
    (used,) = machine.driver.report(ranges(pfns))
    assert used.length == 0
    assert machine.are_zero(pfns)


# -- D13 ---------------------------------------------------------------------------------------------------------------


def test_d13_5_5_6_7_2_a_reported_page_is_given_back_to_the_host_before_the_acknowledgement(
    balloon: BalloonMachine,
) -> None:
    """The device MAY modify the pages until it uses the buffer: when the buffer is back, it has."""
    pfns = filled_block(balloon, 64)
    before = balloon.memory.backed_bytes()
    balloon.driver.take_interrupts()
    (used,) = balloon.driver.report([(pfns[0] * PAGE, 64 * PAGE)])
    assert used.length == 0
    assert balloon.driver.take_interrupts().for_queue(balloon.driver.reporting_vq) == 1
    assert balloon.memory.backed_bytes() <= before - 64 * PAGE + 4 * PAGE  # the ring may be new
    assert balloon.are_zero(pfns)
    assert balloon.memory.backed_bytes() <= before - 64 * PAGE + 4 * PAGE, "looking brought pages back"


def test_d13_5_5_6_7_2_only_the_pages_reported_are_modified(balloon: BalloonMachine) -> None:
    pfns = filled_block(balloon, 9)
    balloon.driver.report(ranges(pfns[1::2]))
    assert balloon.are_zero(pfns[1::2])
    assert balloon.are_filled(pfns[0::2])


def test_d13_5_5_6_7_2_a_page_is_left_alone_once_its_report_was_acknowledged(balloon: BalloonMachine) -> None:
    """The driver may use it without a word (§5.5.6.7); nothing that happens later touches it."""
    pfns = filled_block(balloon, 4)
    balloon.driver.report([(pfns[0] * PAGE, 4 * PAGE)])
    for pfn in pfns:
        balloon.memory.write(pfn * PAGE, b"\x33" * PAGE)
    other = balloon.filled_pfns(4)
    balloon.driver.report(ranges(other))
    balloon.driver.inflate(other)
    balloon.driver.deflate(other)
    balloon.driver.transport.notify(balloon.driver.reporting_vq)
    balloon.set_target(50)
    balloon.bench.advance(10**9)
    assert balloon.are_filled(pfns, 0x33)
    balloon.driver.start()
    assert balloon.are_filled(pfns, 0x33)


@pytest.mark.modern
def test_d13_5_5_6_7_2_nothing_is_touched_before_driver_ok_and_nothing_is_forgotten(balloon: BalloonMachine) -> None:
    driver = balloon.driver
    features = driver.features
    driver.reset()
    driver.acknowledge()
    driver.negotiate(features)
    driver.set_up_queues()
    pfns = balloon.filled_pfns(2)
    driver.offer(driver.reporting_vq, writable=ranges(pfns))
    driver.kick(driver.reporting_vq, force=True)
    assert balloon.are_filled(pfns)
    assert driver.collect(driver.reporting_vq) == []
    driver.driver_ok()
    assert balloon.are_zero(pfns)
    assert len(driver.collect(driver.reporting_vq)) == 1


def test_5_5_6_7_a_page_may_be_reported_used_and_reported_again(balloon: BalloonMachine) -> None:
    (pfn,) = balloon.filled_pfns(1)
    for value in (1, 2, 3):
        balloon.memory.write(pfn * PAGE, bytes([value]) * PAGE)
        balloon.driver.report(ranges([pfn]))
        assert balloon.are_zero([pfn])
    assert balloon.balloon.reported_pages == 3


# -- ranges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "length", "whole"),
    [
        (0, 4 * PAGE, [0, 1, 2, 3]),
        (1, 4 * PAGE, [1, 2, 3]),
        (1, 4 * PAGE - 1, [1, 2, 3]),
        (PAGE - 1, PAGE + 1, [1]),
        (0, 2 * PAGE + 4095, [0, 1]),
        (1, PAGE, []),
        (0, PAGE - 1, []),
        (PAGE + 100, 3, []),
        (100, 2 * PAGE - 100, [1]),
    ],
)
def test_5_5_6_7_whole_pages_inside_a_range_are_taken_and_no_others(
    reporting: BalloonMachine, start: int, length: int, whole: list[int]
) -> None:
    """Addresses and lengths are in bytes; what is left over keeps its contents and is counted."""
    pfns = filled_block(reporting, 6)
    (used,) = reporting.driver.report([(pfns[0] * PAGE + start, length)])
    assert used.length == 0
    assert reporting.are_zero([pfns[i] for i in whole])
    assert reporting.are_filled([pfn for i, pfn in enumerate(pfns) if i not in whole])
    assert reporting.balloon.reported_pages == len(whole)
    assert reporting.balloon.ignored_bytes == length - len(whole) * PAGE
    assert not reporting.driver.needs_reset


def test_5_5_6_7_two_halves_of_a_page_are_no_page(reporting: BalloonMachine) -> None:
    (pfn,) = reporting.filled_pfns(1)
    reporting.driver.report([(pfn * PAGE, 2048), (pfn * PAGE + 2048, 2048)])
    assert reporting.are_filled([pfn])
    assert (reporting.balloon.reported_pages, reporting.balloon.ignored_bytes) == (0, PAGE)


def test_5_5_6_7_ranges_may_overlap_repeat_and_come_in_any_order(balloon: BalloonMachine) -> None:
    pfns = filled_block(balloon, 10)
    base = pfns[0] * PAGE
    balloon.driver.report(
        [(base + 4 * PAGE, 3 * PAGE), (base + PAGE, PAGE), (base + 5 * PAGE, 4 * PAGE), (base + PAGE, PAGE)]
    )
    assert balloon.are_zero([pfns[1], *pfns[4:9]])
    assert balloon.are_filled([pfns[i] for i in (0, 2, 3, 9)])
    assert balloon.balloon.reported_pages == 6
    assert balloon.balloon.discarded_bytes == 6 * PAGE


def test_5_5_6_7_ranges_from_every_part_of_ram(balloon: BalloonMachine) -> None:
    """The page below the PC's hole, the last below 4 GiB, and both ends of what lies above it."""
    gpas = [0x9F000, 4 * MIB - PAGE, 1 << 32, (1 << 32) + MIB - PAGE]
    for gpa in gpas:
        balloon.memory.write(gpa, b"\x5a" * PAGE)
    balloon.driver.report([(gpa, PAGE) for gpa in reversed(gpas)])
    assert balloon.are_zero([gpa // PAGE for gpa in gpas])
    assert balloon.balloon.reported_pages == 4


def test_5_5_6_7_many_reports_behind_one_kick(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(90)
    driver = balloon.driver
    for first in range(0, 90, 3):
        driver.offer(driver.reporting_vq, writable=ranges(pfns[first : first + 3]))
    driver.kick(driver.reporting_vq)
    used = driver.collect(driver.reporting_vq)
    assert [entry.length for entry in used] == [0] * 30
    assert balloon.are_zero(pfns)
    assert balloon.balloon.discarded_bytes == 90 * PAGE


def test_5_5_6_7_large_blocks(make_machine: MakeMachine, way: Way) -> None:
    """The driver SHOULD report large pages: here one range is most of the RAM above 4 GiB."""
    machine = make_machine(way, build=build_reporting)
    machine.driver.start()
    machine.memory.write(1 << 32, b"\x5a" * MIB)
    before = machine.memory.backed_bytes()
    machine.driver.report([((1 << 32) + PAGE, MIB - 2 * PAGE)])
    first, last = (1 << 32) // PAGE, ((1 << 32) + MIB) // PAGE - 1
    assert machine.memory.backed_bytes() <= before - (MIB - 2 * PAGE) + 8 * PAGE
    assert machine.are_filled([first, last])
    assert machine.memory.peek((1 << 32) + PAGE, MIB - 2 * PAGE) == bytes(MIB - 2 * PAGE)


# -- what the balloon knows of it --------------------------------------------------------------------------------------


def test_5_5_6_7_a_report_is_no_inflation(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(8)
    balloon.driver.inflate(pfns[:4])
    balloon.driver.report(ranges(pfns[2:]))
    assert balloon.balloon.balloon_pages == 4
    assert (balloon.balloon.inflated_pages, balloon.balloon.reported_pages) == (4, 6)
    assert balloon.balloon.discarded_bytes == 10 * PAGE
    assert balloon.driver.actual == 0
    balloon.driver.deflate(pfns[:4])
    assert (balloon.balloon.deflated_pages, balloon.balloon.stray_pages) == (4, 0)


def test_5_5_6_7_watchers_are_told_of_each_batch(reporting: BalloonMachine) -> None:
    reporting.events.clear()
    reporting.driver.report(ranges(reporting.filled_pfns(5)))
    assert [(event.kind, event.text) for event in reporting.events] == [
        ("reported", "the driver reported 5 free pages")
    ]


def test_5_5_6_7_every_byte_the_device_changes_is_reported_for_the_cpu(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(6)
    driver = balloon.driver
    driver.offer(driver.reporting_vq, writable=ranges(pfns[::2]))
    driver.queues[driver.reporting_vq].publish()
    balloon.memory.take_writes()
    before = balloon.snapshot()
    driver.transport.notify(driver.reporting_vq)
    assert before.changed() != []
    assert before.changed(outside=balloon.memory.take_writes()) == []


def test_2_4_a_reset_with_reports_on_their_way_leaves_a_fresh_device(balloon: BalloonMachine) -> None:
    driver = balloon.driver
    pfns = balloon.filled_pfns(3)
    driver.report(ranges(pfns[:1]))
    driver.offer(driver.reporting_vq, writable=ranges(pfns[1:]))
    driver.queues[driver.reporting_vq].publish()
    driver.reset()
    fresh = build_reporting(balloon.memory)
    fresh.device_features = balloon.balloon.device_features  # the ring's are chosen by the way
    fresh.set_dma_enabled(balloon.balloon.dma_enabled, 0)
    assert balloon.balloon == fresh
    assert balloon.are_filled(pfns[1:])
    assert balloon.balloon.reported_pages == 1
    driver.start()
    driver.report(ranges(pfns[1:]))
    assert balloon.are_zero(pfns)


def test_2_1_reports_wait_while_bus_mastering_is_off(make_machine: MakeMachine) -> None:
    machine = make_machine("pci", build=build_reporting)
    machine.driver.start()
    driver, function = machine.driver, machine.pci.function
    pfns = machine.filled_pfns(2)
    command = function.command
    function.command = command & ~4
    driver.offer(driver.reporting_vq, writable=ranges(pfns))
    driver.kick(driver.reporting_vq, force=True)
    assert machine.are_filled(pfns)
    function.command = command
    assert machine.are_zero(pfns)
    assert len(driver.collect(driver.reporting_vq)) == 1


def test_5_5_6_7_other_queues_go_on_beside_it(balloon: BalloonMachine) -> None:
    pfns = balloon.filled_pfns(4)
    balloon.hear_stats({4: 17})
    balloon.driver.report(ranges(pfns[:2]))
    (used,) = balloon.driver.inflate(pfns[2:])
    assert used.length == 0
    assert balloon.driver.queues[INFLATEQ].in_flight == ()
    assert balloon.statistics().values == {"stat-free-memory": 17}
    assert balloon.are_zero(pfns)
    assert Status.DEVICE_NEEDS_RESET not in balloon.driver.status


def test_a_saved_balloon_goes_on_reporting(make_machine: MakeMachine) -> None:
    """The ring of reporting_vq, a report on its way and the counters are state."""
    machine = make_machine("direct", build=build_reporting)
    driver, device = machine.driver, machine.balloon
    driver.start()
    pfns = machine.filled_pfns(3)
    driver.report(ranges(pfns[:1]))
    driver.offer(driver.reporting_vq, writable=ranges(pfns[1:]))
    driver.queues[driver.reporting_vq].publish()
    saved = device.save_state()
    other = build_reporting(machine.memory)
    other.check_state(saved, "balloon0")
    other.restore_state(saved)
    assert other == device
    assert other.reported_pages == 1
    other.notify(driver.reporting_vq, 0)
    assert machine.are_zero(pfns)
    assert other.reported_pages == 3
    assert len(driver.collect(driver.reporting_vq)) == 1


@pytest.mark.ways(*SIZED_WAYS)
def test_the_driver_library_waits_for_room(reporting: BalloonMachine) -> None:
    """More ranges than the queue has descriptors: it kicks, collects and goes on."""
    driver: BalloonDriver = reporting.driver
    driver.start(driver.features & ~INDIRECT_DESC, {driver.reporting_vq: 32})
    pfns = reporting.filled_pfns(200)
    used = driver.report(ranges(pfns))
    assert len(used) == 7
    assert reporting.are_zero(pfns)
