"""§4.2 virtio over memory-mapped registers: what the device must do, for version 2 and the legacy version 1."""

from __future__ import annotations

import pytest

from devices.virtio import spec
from tests.support import MMIO_BASE, MMIO_LINE, BalloonMachine
from vmm.testing import LegacyMmioTransport, MmioTransport
from vmm.testing.balloon import INFLATEQ, STATS_VQ, STATSQ, pfn_bytes
from vmm.testing.driver import VERSION_1

BOTH = pytest.mark.ways("mmio", "mmio-legacy")
VERSION_2 = pytest.mark.ways("mmio")
LEGACY = pytest.mark.ways("mmio-legacy")
VRING, CONFIG = 1, 2  # InterruptStatus


def registers(machine: BalloonMachine) -> MmioTransport:
    assert isinstance(machine.driver.transport, MmioTransport)
    return machine.driver.transport


def line(machine: BalloonMachine) -> bool:
    return machine.bus.line_level(MMIO_LINE)


# -- what is always there ----------------------------------------------------------------------------------------------


@BOTH
def test_4_2_2_1_the_magic_value_is_virt(machine: BalloonMachine) -> None:
    assert registers(machine).read("MagicValue").to_bytes(4, "little") == b"virt"


@BOTH
def test_4_2_2_1_the_version_is_2_and_that_of_a_legacy_device_1(machine: BalloonMachine) -> None:
    assert registers(machine).read("Version") == (1 if machine.way == "mmio-legacy" else 2)
    assert registers(machine).read("DeviceID") == 5
    assert registers(machine).read("VendorID") != 0


@VERSION_2
def test_4_2_2_features_are_shown_32_bits_at_a_time(machine: BalloonMachine) -> None:
    transport, shown = registers(machine), []
    for select in (0, 1, 2, 0xFFFF_FFFF):
        transport.write("DeviceFeaturesSel", select)
        shown.append(transport.read("DeviceFeatures"))
    assert shown[0] & STATS_VQ and shown[1] & VERSION_1 >> 32 and shown[2:] == [0, 0]


@LEGACY
def test_4_2_4_a_legacy_device_has_32_features(machine: BalloonMachine) -> None:
    transport = registers(machine)
    transport.write("DeviceFeaturesSel", 1)
    assert transport.read("DeviceFeatures") == 0
    transport.write("DriverFeaturesSel", 1)
    transport.write("DriverFeatures", 0xFFFF_FFFF)
    assert machine.balloon.driver_features == 0


@VERSION_2
def test_4_2_2_there_is_no_shared_memory(machine: BalloonMachine) -> None:
    """Length and address of a region that does not exist are -1."""
    for select in (0, 1, 255):
        registers(machine).write("SHMSel", select)
        names = ("SHMLenLow", "SHMLenHigh", "SHMBaseLow", "SHMBaseHigh")
        assert [registers(machine).read(name) for name in names] == [0xFFFF_FFFF] * 4


@BOTH
def test_4_2_2_what_can_only_be_written_reads_as_zero(started: BalloonMachine) -> None:
    transport = registers(started)
    for name in ("DeviceFeaturesSel", "DriverFeatures", "DriverFeaturesSel", "QueueSel", "QueueSize", "QueueNotify"):
        transport.write(name, 1)
        assert transport.read(name) == 0, name
    assert not started.driver.needs_reset


@BOTH
def test_4_2_2_a_queue_that_is_not_there_has_the_size_0(machine: BalloonMachine) -> None:
    sizes = [registers(machine).queue_max_size(index) for index in (0, 1, 2, 3, 0xFFFF, 0xFFFF_FFFF)]
    assert sizes == [128, 128, 128, 0, 0, 0]


@BOTH
def test_4_2_2_writes_to_a_queue_that_is_not_there_do_nothing(started: BalloonMachine) -> None:
    transport = registers(started)
    transport.write("QueueSel", 7)
    for name in ("QueueSize", "QueueReady", "QueueDescLow", "QueueDeviceHigh", "QueuePFN", "QueueAlign", "QueueNotify"):
        transport.write(name, 8)
    assert len(started.driver.inflate(started.filled_pfns(1))) == 1


# -- interrupts --------------------------------------------------------------------------------------------------------


@BOTH
def test_4_2_2_1_an_event_shows_from_when_it_happens_until_it_is_acknowledged(started: BalloonMachine) -> None:
    transport = registers(started)
    assert (transport.read("InterruptStatus"), line(started)) == (0, False)
    started.set_target(5)
    assert (transport.read("InterruptStatus"), line(started)) == (CONFIG, True)
    started.driver.inflate(started.filled_pfns(1))
    assert transport.read("InterruptStatus") == CONFIG | VRING, "reading takes nothing back"
    transport.write("InterruptACK", CONFIG)
    assert (transport.read("InterruptStatus"), line(started)) == (VRING, True)
    transport.write("InterruptACK", VRING)
    assert (transport.read("InterruptStatus"), line(started)) == (0, False)


@BOTH
def test_4_2_2_1_bits_of_no_event_are_zero_whatever_is_acknowledged(started: BalloonMachine) -> None:
    registers(started).write("InterruptACK", 0xFFFF_FFFF)
    assert registers(started).read("InterruptStatus") == 0
    started.set_target(5)
    registers(started).write("InterruptACK", ~CONFIG & 0xFFFF_FFFF)
    assert registers(started).read("InterruptStatus") == CONFIG


@BOTH
def test_4_2_2_1_a_reset_clears_interrupt_status_and_readiness(started: BalloonMachine) -> None:
    started.set_target(5)
    started.driver.inflate(started.filled_pfns(1))
    registers(started).write_status(0)
    assert (registers(started).read("InterruptStatus"), line(started)) == (0, False)
    assert not any(registers(started).queue_enabled(index) for index in range(3))


# -- configuration -----------------------------------------------------------------------------------------------------


@VERSION_2
def test_4_2_2_1_config_generation_changes_between_reads_of_different_values(started: BalloonMachine) -> None:
    transport = registers(started)
    transport.read_config(0, 4)
    before = transport.read("ConfigGeneration")
    assert transport.read("ConfigGeneration") == before
    started.set_target(77)
    transport.read_config(0, 4)
    assert transport.read("ConfigGeneration") != before


@BOTH
@pytest.mark.parametrize("size", [1, 2, 4])
def test_4_2_2_the_configuration_is_accessed_with_byte_alignment(started: BalloonMachine, size: int) -> None:
    started.set_target(0x0421)
    for i in range(0, 4, size):
        started.driver.transport.write_config(4 + i, size, 0x44332211 >> 8 * i & (1 << 8 * size) - 1)
    whole = started.bus.mmio_read(MMIO_BASE + 0x100, 4) | started.bus.mmio_read(MMIO_BASE + 0x104, 4) << 32
    parts = sum(started.driver.transport.read_config(i, size) << 8 * i for i in range(0, 8, size))
    assert whole == parts == 0x44332211_00000421


# -- queues ------------------------------------------------------------------------------------------------------------


@VERSION_2
def test_4_2_2_1_no_queue_is_touched_while_it_is_not_ready(started: BalloonMachine) -> None:
    """The driver writes 0 to QueueReady to stop using it, and may put it back into use."""
    driver, transport, queue = started.driver, registers(started), started.driver.queues[INFLATEQ]
    transport.write("QueueSel", INFLATEQ)
    transport.write("QueueReady", 0)
    assert transport.read("QueueReady") == 0
    (pfn,) = started.filled_pfns(1)
    driver.offer(INFLATEQ, readable=[pfn_bytes([pfn])])
    before = started.snapshot()
    driver.kick(INFLATEQ, force=True)
    assert before.changed(outside=[(queue.layout.driver_gpa, 6 + 2 * queue.size)]) == []
    driver.set_up_queue(INFLATEQ, 64)
    assert len(driver.inflate([pfn])) == 1
    assert started.are_zero([pfn])


@VERSION_2
def test_a_statistics_buffer_is_forgotten_when_its_queue_is_stopped(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 1})
    registers(started).write("QueueSel", STATSQ)
    registers(started).write("QueueReady", 0)
    before = started.snapshot()
    started.request_stats()
    started.bench.advance(10**9)
    assert before.changed() == []
    started.driver.set_up_queue(STATSQ, 8)
    started.driver.post_stats({4: 2})
    assert started.statistics().values == {"stat-free-memory": 2}
    assert started.driver.stats_wanted(), "the request that waited"


@VERSION_2
def test_4_2_2_2_a_ready_queue_does_not_change(started: BalloonMachine) -> None:
    transport = registers(started)
    transport.write("QueueSel", INFLATEQ)
    for name in ("QueueSize", "QueueDescLow", "QueueDescHigh", "QueueDriverLow", "QueueDeviceHigh"):
        transport.write(name, 16)
    assert len(started.driver.inflate(started.filled_pfns(1))) == 1


@VERSION_2
@pytest.mark.parametrize("value", [2, 3, 0x100, 0xFFFF_FFFF])
def test_only_1_makes_a_queue_ready(machine: BalloonMachine, value: int) -> None:
    machine.driver.reset()
    machine.driver.acknowledge()
    machine.driver.negotiate()
    registers(machine).write("QueueSel", INFLATEQ)
    registers(machine).write("QueueReady", value)
    assert registers(machine).read("QueueReady") == 0


@LEGACY
@pytest.mark.parametrize(("page_bytes", "align"), [(4096, 4096), (4096, 64), (16384, 16384), (1024, 4096), (4096, 4)])
def test_4_2_4_page_size_and_alignment_are_the_drivers_choice(
    machine: BalloonMachine, page_bytes: int, align: int
) -> None:
    machine.pages.take()  # what follows is no whole page of a guest with larger ones
    transport = LegacyMmioTransport(
        machine.bus, MMIO_BASE, MMIO_LINE, machine.pages, page_bytes=page_bytes, legacy_align=align
    )
    machine.driver.transport = transport
    machine.driver.reset()
    machine.driver.acknowledge()
    machine.driver.negotiate()
    queue = machine.driver.set_up_queue(INFLATEQ, 8)
    assert queue.layout.desc_gpa % page_bytes == 0 and queue.layout.device_gpa % align == 0
    machine.driver.driver_ok()
    pfns = machine.filled_pfns(3)
    assert len(machine.driver.inflate(pfns)) == 1
    assert machine.are_zero(pfns)


@LEGACY
@pytest.mark.parametrize("value", [0, 3, 4097, 0xFFFF_FFFF])
def test_4_2_4_a_page_size_or_alignment_that_is_no_power_of_two_leaves_the_old_one(
    machine: BalloonMachine, value: int
) -> None:
    driver, transport = machine.driver, registers(machine)
    driver.reset()
    driver.acknowledge()
    driver.negotiate()
    queue = driver.set_up_queue(INFLATEQ, 8)
    page = queue.layout.desc_gpa // 4096
    transport.write("QueuePFN", 0)
    transport.write("GuestPageSize", value)
    transport.write("QueueAlign", value)
    transport.write("QueuePFN", page)
    assert transport.read("QueuePFN") == page
    driver.driver_ok()
    assert len(driver.inflate(machine.filled_pfns(1))) == 1


@BOTH
def test_4_2_2_2_an_access_of_another_width_changes_nothing(started: BalloonMachine) -> None:
    """The driver MUST use 32 bits; reading less gives the bytes, writing less is ignored."""
    bus, at = started.bus, MMIO_BASE
    assert [bus.mmio_read(at + i, 1) for i in range(4)] == list(b"virt")
    assert bus.mmio_read(at + 2, 4) == 0x00007472 | (bus.mmio_read(at + 4, 2) << 16)
    status = spec.VIRTIO_MMIO_REGISTERS["Status"]
    for offset, size in ((0, 1), (0, 2), (1, 1), (2, 2), (-2, 4), (2, 4)):
        bus.mmio_write(at + status + offset, size, 0)
    assert started.driver.status & 4
    bus.mmio_write(at + spec.VIRTIO_MMIO_REGISTERS["QueueNotify"], 2, INFLATEQ)
    assert len(started.driver.inflate(started.filled_pfns(1))) == 1


def test_a_driver_of_the_other_version_leaves_the_device_alone() -> None:
    """§4.2.2.2: the driver MUST ignore a device with a version that it does not know."""
    machine = BalloonMachine("mmio-legacy")
    with pytest.raises(RuntimeError, match="no virtio-mmio device of version 2"):
        MmioTransport(machine.bus, MMIO_BASE, MMIO_LINE, machine.pages)
    machine.close()
