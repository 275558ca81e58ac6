"""§4.1.2 to §4.1.4: identity, capabilities, common configuration, notification and the PCI_CFG window."""

from __future__ import annotations

from itertools import pairwise

import pytest

from devices.virtio import spec
from devices.virtio.spec import Status
from tests.support import BALLOON_SLOT, BalloonMachine
from vmm.testing.balloon import INFLATEQ, STATS_VQ, STATSQ, pfn_bytes
from vmm.testing.driver import EVENT_IDX, VERSION_1
from vmm.testing.pci import COMMAND_MASTER, COMMAND_MEMORY, REVISION_ID, SUBSYSTEM_DEVICE_ID, PciBus
from vmm.testing.virtio_pci import Capability

COMMON, NOTIFY, ISR = spec.VIRTIO_PCI_CAP_COMMON_CFG, spec.VIRTIO_PCI_CAP_NOTIFY_CFG, spec.VIRTIO_PCI_CAP_ISR_CFG
DEVICE, WINDOW = spec.VIRTIO_PCI_CAP_DEVICE_CFG, spec.VIRTIO_PCI_CAP_PCI_CFG


def test_4_1_2_1_the_balloon_is_found_by_its_ids(pci: BalloonMachine) -> None:
    function = PciBus(pci.bus).find(0x1AF4, 0x1040 + 5)
    assert function.slot == BALLOON_SLOT


def test_4_1_2_1_a_legacy_driver_would_not_take_it(pci: BalloonMachine) -> None:
    assert pci.pci.function.read(REVISION_ID, 1) >= 1
    assert pci.pci.function.read(SUBSYSTEM_DEVICE_ID, 2) >= 0x40


@pytest.mark.parametrize("cfg_type", [COMMON, NOTIFY, ISR, DEVICE, WINDOW])
def test_4_1_4_each_structure_is_presented(pci: BalloonMachine, cfg_type: int) -> None:
    """§4.1.4.3.1, 4.4.1, 4.5.1, 4.6 and 4.9.1 ask for at least one each."""
    assert pci.pci.capability(cfg_type)


def test_4_1_4_2_cap_len_covers_the_whole_capability(pci: BalloonMachine) -> None:
    extra = {NOTIFY: 4, WINDOW: 4}
    for capability in pci.pci.capabilities:
        assert capability.cap_len >= 16 + extra.get(capability.cfg_type, 0), capability


def test_4_1_4_every_structure_lies_inside_its_bar_and_none_overlaps_another(pci: BalloonMachine) -> None:
    sizes = {bar.number: bar.size for bar in pci.pci.function.bars()}
    placed = [c for c in pci.pci.capabilities if c.cfg_type != WINDOW]
    assert all(c.length > 0 and c.offset + c.length <= sizes[c.bar] for c in placed)
    spans = sorted((c.bar, c.offset, c.offset + c.length) for c in placed)
    assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(spans))


def test_4_1_4_structures_are_aligned_as_each_asks(pci: BalloonMachine) -> None:
    assert pci.pci.capability(COMMON).offset % 4 == 0  # §4.1.4.3.1
    assert pci.pci.capability(NOTIFY).offset % 2 == 0  # §4.1.4.4.1
    assert pci.pci.capability(DEVICE).offset % 4 == 0  # §4.1.4.6.1


def test_4_1_4_4_1_the_notification_structure_holds_every_queues_address(pci: BalloonMachine) -> None:
    capability = pci.pci.capability(NOTIFY)
    assert capability.multiplier == 0 or (capability.multiplier.bit_count() == 1 and capability.multiplier > 1)
    assert capability.length >= 2
    for index in range(pci.pci.num_queues):
        pci.pci.write_common("queue_select", index)
        assert capability.length >= pci.pci.read_common("queue_notify_off") * capability.multiplier + 2


def test_4_1_4_3_1_features_are_shown_32_bits_at_a_time_and_0_beyond(pci: BalloonMachine) -> None:
    transport = pci.pci
    shown = []
    for select in (0, 1, 2, 3, 0xFFFFFFFF):
        transport.write_common("device_feature_select", select)
        assert transport.read_common("device_feature_select") == select
        shown.append(transport.read_common("device_feature"))
    assert shown[1] & VERSION_1 >> 32
    assert shown[2:] == [0, 0, 0]
    assert shown[0] | shown[1] << 32 == transport.read_device_features()


def test_4_1_4_3_1_driver_features_read_back_by_half(pci: BalloonMachine) -> None:
    offered = pci.pci.read_device_features()
    pci.driver.reset()
    pci.driver.acknowledge()
    pci.pci.write_common("driver_feature_select", 1)
    pci.pci.write_common("driver_feature", VERSION_1 >> 32)
    assert pci.pci.read_driver_features() == VERSION_1
    pci.pci.write_common("driver_feature_select", 0)
    pci.pci.write_common("driver_feature", EVENT_IDX)
    assert pci.pci.read_driver_features() == (EVENT_IDX | VERSION_1) & offered


def test_4_1_4_3_1_features_beyond_bit_63_cannot_be_set(pci: BalloonMachine) -> None:
    pci.driver.reset()
    pci.driver.acknowledge()
    pci.pci.write_common("driver_feature_select", 2)
    pci.pci.write_common("driver_feature", 0xFFFFFFFF)
    assert pci.pci.read_common("driver_feature") == 0
    assert pci.pci.read_driver_features() == 0


def test_4_1_3_2_the_halves_of_a_64_bit_field_are_independent(pci: BalloonMachine) -> None:
    transport = pci.pci
    transport.write_common("queue_select", INFLATEQ)
    for field in ("queue_desc", "queue_driver", "queue_device"):
        gpa = transport.common_gpa(field)
        transport.bus.mmio_write(gpa + 4, 4, 0x12345678)
        transport.bus.mmio_write(gpa, 4, 0x9ABCDE00)
        assert transport.read_common(field) == 0x123456789ABCDE00
        transport.bus.mmio_write(gpa, 4, 0x1000)
        assert transport.read_common(field) == 0x1234567800001000


def test_4_1_4_3_1_queue_size_is_a_power_of_two_or_0_where_there_is_no_queue(pci: BalloonMachine) -> None:
    for index in range(pci.pci.num_queues):
        assert pci.pci.queue_max_size(index).bit_count() == 1
    for index in (pci.pci.num_queues, 100, 0xFFFF):
        assert pci.pci.queue_max_size(index) == 0
        assert not pci.pci.queue_enabled(index)


def test_4_1_4_3_1_queue_size_is_0_for_a_queue_whose_feature_was_not_negotiated(pci: BalloonMachine) -> None:
    """§5.5.2: statsq only exists if VIRTIO_BALLOON_F_STATS_VQ is set.  Until then the driver can still set it."""
    pci.driver.reset()
    pci.driver.acknowledge()
    sizes = [pci.pci.queue_max_size(index) for index in range(3)]
    assert all(sizes)
    pci.driver.negotiate(pci.driver.transport.read_device_features() & ~STATS_VQ)
    assert [pci.pci.queue_max_size(index) for index in range(3)] == [*sizes[:STATSQ], 0]
    assert pci.pci.num_queues == 3
    pci.pci.write_common("queue_enable", 1)
    assert not pci.pci.queue_enabled(STATSQ)
    pci.driver.reset()
    assert [pci.pci.queue_max_size(index) for index in range(3)] == sizes


def test_4_1_4_3_1_queue_size_is_shown_for_every_queue_that_was_negotiated(pci: BalloonMachine) -> None:
    pci.driver.start()
    assert all(pci.pci.queue_max_size(index) for index in range(3))


@pytest.mark.parametrize("size", [0, 3, 12, 0x8001, 0xFFFF])
def test_4_1_4_3_2_a_queue_size_that_is_no_power_of_two_is_not_taken(pci: BalloonMachine, size: int) -> None:
    pci.pci.write_common("queue_select", INFLATEQ)
    before = pci.pci.read_common("queue_size")
    pci.pci.write_common("queue_size", size)
    assert pci.pci.read_common("queue_size") == before


def test_4_1_5_1_3_a_queue_cannot_be_made_larger_than_the_device_offers(pci: BalloonMachine) -> None:
    largest = pci.pci.queue_max_size(INFLATEQ)
    pci.pci.write_common("queue_size", largest // 2)
    pci.pci.write_common("queue_size", largest * 2)
    assert pci.pci.read_common("queue_size") == largest // 2
    pci.pci.write_common("queue_size", largest)
    assert pci.pci.read_common("queue_size") == largest


def test_4_1_4_3_1_queues_are_disabled_and_back_at_full_size_after_a_reset(pci: BalloonMachine) -> None:
    sizes = [pci.pci.queue_max_size(index) for index in range(pci.pci.num_queues)]
    pci.driver.start(queue_sizes=8)
    assert all(pci.pci.queue_enabled(index) for index in range(len(sizes)))
    pci.driver.reset()
    assert not any(pci.pci.queue_enabled(index) for index in range(len(sizes)))
    assert [pci.pci.queue_max_size(index) for index in range(len(sizes))] == sizes


def test_4_1_4_3_2_writing_0_to_queue_enable_does_not_disable_it(pci: BalloonMachine) -> None:
    pci.driver.start()
    pci.pci.write_common("queue_select", INFLATEQ)
    pci.pci.write_common("queue_enable", 0)
    pfns = pci.filled_pfns(1)
    pci.driver.inflate(pfns)
    assert pci.are_zero(pfns)


def test_4_1_4_3_2_fields_that_are_the_devices_cannot_be_written(pci: BalloonMachine) -> None:
    for field in ("device_feature", "num_queues", "config_generation", "queue_notify_off"):
        before = pci.pci.read_common(field)
        pci.pci.write_common(field, 0x5A)
        assert pci.pci.read_common(field) == before, field


def test_4_1_4_3_2_a_queues_addresses_are_fixed_once_it_is_enabled(pci: BalloonMachine) -> None:
    pci.driver.start()
    place = pci.driver.queues[INFLATEQ].layout
    pci.pci.write_common("queue_select", INFLATEQ)
    for field in ("queue_desc", "queue_driver", "queue_device"):
        pci.pci.write_common(field, 0x7000)
    assert pci.pci.read_common("queue_desc") == place.desc_gpa
    pfns = pci.filled_pfns(1)
    pci.driver.inflate(pfns)
    assert pci.are_zero(pfns)


def test_4_1_4_3_1_each_queue_has_fields_of_its_own(pci: BalloonMachine) -> None:
    pci.driver.start()
    shown = []
    for index in range(pci.pci.num_queues):
        pci.pci.write_common("queue_select", index)
        shown.append(pci.pci.read_common("queue_desc"))
    assert shown == [pci.driver.queues[index].layout.desc_gpa for index in range(len(shown))]


@pytest.mark.parametrize("cfg_type", [COMMON, ISR, DEVICE])
def test_structures_may_be_read_by_the_byte(pci: BalloonMachine, cfg_type: int) -> None:
    pci.set_target(0x304)
    gpa, length = pci.pci.structure_gpa(cfg_type), pci.pci.capability(cfg_type).length
    length = min(length, 56)
    wide = b"".join(pci.bus.mmio_read(gpa + i, 4).to_bytes(4, "little") for i in range(0, length & ~3, 4))
    single = bytes(pci.bus.mmio_read(gpa + i, 1) for i in range(length & ~3))
    assert single == wide


# -- §4.1.5.2 notifications --------------------------------------------------------------------------------------------


def test_4_1_5_2_a_notification_reaches_only_the_queue_whose_address_it_was_written_to(pci: BalloonMachine) -> None:
    pci.driver.start()
    pfns = pci.filled_pfns(1)
    pci.driver.offer(INFLATEQ, readable=[pfn_bytes(pfns)])
    pci.driver.queues[INFLATEQ].publish()
    multiplier = pci.pci.capability(NOTIFY).multiplier
    assert multiplier, "with a multiplier of 0 all queues share one address and this test has nothing to show"
    pci.pci.notify(STATSQ)
    assert pci.driver.collect(INFLATEQ) == []
    pci.pci.notify(INFLATEQ)
    assert len(pci.driver.collect(INFLATEQ)) == 1


# -- §4.1.4.9 the window in configuration space ------------------------------------------------------------------------


def point_window(pci: BalloonMachine, capability: Capability, offset: int, length: int) -> int:
    """Set the window up; where pci_cfg_data lies."""
    at, function = pci.pci.capability(WINDOW).position, pci.pci.function
    function.write(at + 4, 1, capability.bar)
    function.write(at + 8, 4, capability.offset + offset)
    function.write(at + 12, 4, length)
    return at + 16


def test_4_1_4_9_1_the_window_reads_any_structure(pci: BalloonMachine) -> None:
    pci.driver.start()
    pci.driver.actual = 0xCAFE1234
    device, common = pci.pci.capability(DEVICE), pci.pci.capability(COMMON)
    function = pci.pci.function
    assert function.read(point_window(pci, device, 4, 4), 4) == 0xCAFE1234
    assert function.read(point_window(pci, device, 6, 2), 2) == 0xCAFE
    assert function.read(point_window(pci, device, 5, 1), 1) == 0x12
    assert function.read(point_window(pci, common, 0x12, 2), 2) == pci.pci.num_queues


def test_4_1_4_9_1_the_window_writes_any_structure(pci: BalloonMachine) -> None:
    pci.driver.start()
    function, device = pci.pci.function, pci.pci.capability(DEVICE)
    function.write(point_window(pci, device, 4, 4), 4, 0x11223344)
    assert pci.driver.actual == 0x11223344
    function.write(point_window(pci, device, 5, 1), 1, 0xFF)
    assert pci.driver.actual == 0x1122FF44


def test_4_1_4_9_1_a_driver_can_be_run_through_the_window_alone(pci: BalloonMachine) -> None:
    """Status, then a notification: the whole device behind four bytes of configuration space."""
    pci.driver.start()
    pfns = pci.filled_pfns(1)
    pci.driver.offer(INFLATEQ, readable=[pfn_bytes(pfns)])
    pci.driver.queues[INFLATEQ].publish()
    data = point_window(
        pci, pci.pci.capability(NOTIFY), pci.pci.notify_gpa(INFLATEQ) - pci.pci.structure_gpa(NOTIFY), 2
    )
    pci.pci.function.write(data, 2, INFLATEQ)
    assert pci.are_zero(pfns)
    data = point_window(pci, pci.pci.capability(COMMON), 0x14, 1)
    pci.pci.function.write(data, 1, 0)
    assert pci.driver.status == 0


# -- command register --------------------------------------------------------------------------------------------------


def test_pci_without_memory_decoding_the_structures_are_gone(pci: BalloonMachine) -> None:
    gpa = pci.pci.structure_gpa(COMMON)
    pci.pci.function.command &= ~COMMAND_MEMORY
    assert pci.bus.mmio_read(gpa, 4) == 0xFFFFFFFF
    pci.pci.function.command |= COMMAND_MEMORY
    assert pci.bus.mmio_read(gpa, 4) != 0xFFFFFFFF


def test_pci_without_bus_mastering_nothing_is_consumed_and_with_it_nothing_was_forgotten(pci: BalloonMachine) -> None:
    pci.driver.start()
    pci.driver.take_interrupts()
    pfns = pci.filled_pfns(1)
    pci.pci.function.command &= ~COMMAND_MASTER
    pci.driver.offer(INFLATEQ, readable=[pfn_bytes(pfns)])
    before_kick = pci.driver.queues[INFLATEQ]
    before_kick.publish()
    before = pci.snapshot()
    pci.pci.notify(INFLATEQ)
    pci.set_target(4)
    assert before.changed() == []
    assert pci.driver.take_interrupts() == ({}, 0)
    pci.pci.function.command |= COMMAND_MASTER
    assert len(pci.driver.collect(INFLATEQ)) == 1
    assert pci.are_zero(pfns)
    assert pci.driver.take_interrupts() == ({INFLATEQ: 1}, 1)


def test_pci_bars_can_be_moved(pci: BalloonMachine) -> None:
    pci.driver.start()
    transport = pci.pci
    for bar in transport.function.bars():
        transport.function.place_bar(bar, bar.address + 0x0100_0000)
        transport.bar_addresses[bar.number] = bar.address + 0x0100_0000
    pfns = pci.filled_pfns(1)
    pci.driver.inflate(pfns)
    assert pci.are_zero(pfns)
    assert pci.driver.status & Status.DRIVER_OK
