"""§2.7.3 and the balloon's legacy notes: a big-endian driver over a legacy interface, and over a modern one.

Rings, page frame numbers (L9's command ids have the same rule) and statistics (L7) are in the driver's own order, the
balloon's configuration (L3) and every register little-endian always.
"""

from __future__ import annotations

import struct

import pytest

from devices.virtio import spec
from devices.virtio.balloon import Balloon
from tests.fixtures import MakeMachine
from tests.support import LEGACY_WAYS, MODERN_WAYS, BalloonMachine, Way, build_reporting, build_with
from vmm.testing import RawQueue
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, NUM_PAGES, STATSQ, pfn_bytes, stats_v2_bytes
from vmm.testing.driver import EVENT_IDX, INDIRECT_DESC
from vmm.testing.mistakes import RING_MISTAKES, Mistake

OTHER_FEATURES = {"plain": EVENT_IDX | INDIRECT_DESC, "event-idx": INDIRECT_DESC, "indirect": EVENT_IDX, "both": 0}
"""What each variant leaves out."""
LEGACY = pytest.mark.ways(*LEGACY_WAYS)


@pytest.fixture(params=OTHER_FEATURES)
def big(make_machine: MakeMachine, way: Way, request: pytest.FixtureRequest) -> BalloonMachine:
    """A started big-endian driver, for each combination of the ring's features."""
    machine = make_machine(way, processor=">")
    machine.driver.start(machine.driver.transport.read_device_features() & ~OTHER_FEATURES[request.param])
    machine.driver.take_interrupts()
    return machine


def started(machine: BalloonMachine) -> BalloonMachine:
    machine.driver.start()
    machine.driver.take_interrupts()
    return machine


@LEGACY
def test_2_7_3_the_whole_scenario_in_the_driver_s_order(big: BalloonMachine) -> None:
    driver = big.driver
    big.set_target(300)
    assert driver.take_interrupts().config == 1
    assert driver.follow_target() == 300
    assert (big.balloon.inflated_pages, big.balloon.actual_pages, big.balloon.bad_pfns) == (300, 300, 0)
    assert big.are_zero(driver.held_pfns)
    big.set_target(17)
    assert driver.follow_target() == 17
    assert big.balloon.deflated_pages == 283
    big.hear_stats({4: 0x0102030405060708, 5: 6})
    assert big.statistics().values == {"stat-free-memory": 0x0102030405060708, "stat-total-memory": 6}
    assert not driver.needs_reset


@LEGACY
def test_2_7_3_the_bytes_in_memory_are_big_endian(make_machine: MakeMachine, way: Way) -> None:
    """Read here by hand, so that driver and device cannot be wrong in the same way."""
    machine = started(make_machine(way, processor=">"))
    (pfn,) = machine.filled_pfns(1)
    layout = machine.driver.queues[INFLATEQ].layout
    payload = machine.pages.take()
    machine.memory.write(payload, struct.pack(">I", pfn))
    machine.memory.write(layout.desc_gpa, struct.pack(">QIHH", payload, 4, 0, 0))
    machine.memory.write(layout.driver_gpa, struct.pack(">HHH", 0, 1, 0))
    machine.driver.transport.notify(INFLATEQ)
    assert machine.are_zero([pfn])
    assert machine.memory.read(layout.device_gpa, 12) == struct.pack(">HHII", 0, 1, 0, 0)


@LEGACY
def test_l7_5_5_6_3_statistics_are_native(make_machine: MakeMachine, way: Way) -> None:
    machine = started(make_machine(way, processor=">"))
    machine.hear_stats({4: 1})
    machine.request_stats()
    machine.driver.collect(STATSQ)
    machine.driver.post_stats(b"\x00\x05\x01\x02\x03\x04\x05\x06\x07\x08")
    assert machine.statistics().raw == ((5, 0x0102030405060708),)


@LEGACY
def test_l3_5_5_4_the_configuration_is_little_endian_all_the_same(make_machine: MakeMachine, way: Way) -> None:
    machine = started(make_machine(way, processor=">"))
    machine.set_target(0x0304)
    assert [machine.driver.transport.read_config(NUM_PAGES + i, 1) for i in range(4)] == [4, 3, 0, 0]


@LEGACY
@pytest.mark.parametrize("framing", ["one piece", "cut in an entry", "one piece in a table"])
def test_2_7_3_many_chains_at_once(big: BalloonMachine, framing: str) -> None:
    """As many as the queue has descriptors: the way on which all chains are followed together."""
    driver, queue = big.driver, big.driver.queues[INFLATEQ]
    assert queue.size == 128
    pfns = big.filled_pfns(64 if framing == "cut in an entry" else 128)
    for pfn in pfns:
        entry = pfn.to_bytes(4, "big")
        pieces = [entry[:1], entry[1:]] if framing == "cut in an entry" else [entry]
        driver.offer(INFLATEQ, readable=pieces, indirect=queue.indirect and framing == "one piece in a table")
    driver.kick(INFLATEQ)
    assert len(driver.collect(INFLATEQ)) == len(pfns)
    assert big.are_zero(pfns)
    assert big.balloon.bad_pfns == 0


@LEGACY
def test_2_7_7_suppression_is_read_in_the_driver_s_order(big: BalloonMachine) -> None:
    queue = big.driver.queues[DEFLATEQ]
    queue.suppress_notifications()
    big.driver.deflate(big.filled_pfns(2))
    assert big.driver.take_interrupts().used == {}
    queue.want_notifications()
    big.driver.deflate(big.filled_pfns(2))
    assert big.driver.take_interrupts().for_queue(DEFLATEQ) == 1


@LEGACY
def test_2_7_3_reports_have_addresses_in_the_driver_s_order(make_machine: MakeMachine, way: Way) -> None:
    machine = started(make_machine(way, processor=">", build=build_reporting))
    pfns = machine.filled_pfns(40)
    machine.driver.report([(pfn * 4096, 4096) for pfn in pfns])
    assert machine.are_zero(pfns) and machine.balloon.reported_pages == 40


@pytest.mark.ways("legacy", "mmio-legacy")
@pytest.mark.parametrize("mistake", RING_MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_in_a_big_endian_ring_needs_a_reset(make_machine: MakeMachine, way: Way, mistake: Mistake) -> None:
    machine = make_machine(way, processor=">")
    machine.driver.start(machine.driver.transport.read_device_features() & ~mistake.without)
    raw = RawQueue(machine.driver, INFLATEQ)
    mistake.make(raw)
    raw.kick()
    assert machine.driver.needs_reset
    machine.driver.start()
    pfns = machine.filled_pfns(2)
    assert len(machine.driver.inflate(pfns)) == 1 and machine.are_zero(pfns)


@pytest.mark.ways(*MODERN_WAYS)
def test_a_modern_interface_is_little_endian_whoever_drives_it(make_machine: MakeMachine, way: Way) -> None:
    machine = started(make_machine(way, processor=">"))
    assert machine.driver.order == "<"
    pfns = machine.filled_pfns(3)
    machine.driver.inflate(pfns)
    machine.driver.post_stats({4: 9})
    assert machine.are_zero(pfns)
    assert machine.statistics().values == {"stat-free-memory": 9}


@LEGACY
def test_a_big_endian_driver_is_not_understood_where_the_board_says_otherwise(
    make_machine: MakeMachine, way: Way
) -> None:
    """The order is the board's to say, since nothing in the legacy interface tells it (§2.7.3)."""
    machine = make_machine(way, processor=">")
    machine.balloon.driver_order = "<"
    machine.driver.start()
    machine.driver.offer(INFLATEQ, readable=[pfn_bytes([1], ">")])
    machine.driver.kick(INFLATEQ, force=True)
    assert machine.driver.needs_reset


@LEGACY
def test_a_saved_ring_keeps_the_driver_s_order(make_machine: MakeMachine, way: Way) -> None:
    machine = started(make_machine(way, processor=">"))
    machine.driver.inflate(machine.filled_pfns(1))
    saved = machine.balloon.save_state()
    other = Balloon(machine.memory)
    other.driver_order = ">"
    other.check_state(saved, "balloon")
    other.restore_state(saved)
    assert other == machine.balloon and other.save_state() == saved
    (pfn,) = machine.filled_pfns(1)
    machine.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn], ">")])
    machine.driver.queues[INFLATEQ].publish()
    other.notify(INFLATEQ, 0)
    assert len(machine.driver.collect(INFLATEQ)) == 1 and machine.are_zero([pfn])


@LEGACY
def test_l9_5_5_6_5_3_command_ids_are_in_the_driver_s_order(make_machine: MakeMachine, way: Way) -> None:
    """And the same id in the configuration space is little-endian."""
    machine = make_machine(way, processor=">", build=build_with(spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT))
    machine.driver.start()
    machine.host(machine.balloon.start_hinting(machine.now_ns))
    assert machine.driver.hint_cmd_id == 2
    pfns = machine.filled_pfns(3)
    machine.driver.send_id((2).to_bytes(4, "little"))
    machine.driver.hint([(pfns[0] * 4096, 4096)])
    assert (machine.balloon.hinted_pages, machine.balloon.stale_hint_pages) == (0, 1)
    machine.driver.hint_round([(pfn * 4096, 4096) for pfn in pfns])
    assert machine.balloon.hinted_pages == 3
    assert machine.driver.hint_cmd_id == 1


@LEGACY
def test_statistics_of_the_first_patch_have_a_native_tag_and_a_little_endian_value(
    make_machine: MakeMachine, way: Way
) -> None:
    """The slip of the patch, on a machine where it shows."""
    machine = make_machine(way, processor=">", build=lambda memory: Balloon(memory, stats_format="v2"))
    machine.driver.start()
    machine.driver.post_stats(b"\xa5" * 56)
    machine.request_stats()
    assert machine.driver.stats_wanted()
    payload = bytes.fromhex("0005 0000 00010000  0003 0000 07000000")
    assert payload == stats_v2_bytes([(5, 256), (3, 7)], ">")
    machine.driver.post_stats(payload)
    assert machine.statistics().raw == ((5, 256), (3, 7))
    assert machine.statistics().values == {"stat-free-memory": 256 << 10, "stat-major-faults": 7}
