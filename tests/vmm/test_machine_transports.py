"""A whole machine with each kind of transport: what the board makes of the words, and that a cut run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import vmm
from devices.effects import Event
from devices.virtio import spec
from tests.vmm.boards import pc_board
from tests.vmm.test_machine_devices import SLEEP, GuestsBus
from vmm.machine import Machine
from vmm.testing import (
    BalloonDriver,
    LegacyMmioTransport,
    LegacyPciTransport,
    MmioTransport,
    PageAllocator,
    PciTransport,
    Transport,
)
from vmm.testing.balloon import DEFLATEQ, pfn_bytes

DRIVER_RAM = (0x200000, 0x300000)
Reach = Callable[[GuestsBus, PageAllocator], Transport]

WAYS: dict[str, tuple[str, Reach]] = {
    "transitional": ("virtio-balloon-pci,disable-legacy=off", lambda bus, pages: PciTransport.find(bus, 5, pages)),
    "transitional, legacy driver": (
        "virtio-balloon-pci,disable-legacy=off",
        lambda bus, pages: LegacyPciTransport.find(bus, 5, pages),
    ),
    "legacy": (
        "virtio-balloon-pci,disable-legacy=off,disable-modern=on",
        lambda bus, pages: LegacyPciTransport.find(bus, 5, pages, "none"),
    ),
    "virtio-mmio": ("virtio-balloon-device", lambda bus, pages: MmioTransport(bus, 0xFEC10000, "isa12", pages)),
    "virtio-mmio version 1": (
        "virtio-balloon-device,force-legacy=on,slot=1",
        lambda bus, pages: LegacyMmioTransport(bus, 0xFEC11000, "isa14", pages),
    ),
}


def boot(path: Path, device: str) -> Machine:
    path.write_bytes(SLEEP)
    return vmm.boot(path, memory="8M", devices=(device, "virtio-rng-device"))


@pytest.mark.parametrize("way", WAYS)
def test_a_machine_goes_on_with_its_balloon_from_a_saved_state(way: str, tmp_path: Path) -> None:
    device, reach = WAYS[way]
    with boot(tmp_path / "guest", device) as machine, boot(tmp_path / "guest", device) as other:
        machine.run("10ms")
        driver = BalloonDriver(reach(GuestsBus(machine), PageAllocator(*DRIVER_RAM)))
        driver.start()
        driver.post_stats(b"\xff\xff" + bytes(8))
        machine.balloon.set_target("7M")
        assert driver.follow_target() == 256
        state = machine.save()
        other.restore(state)
        assert other.save() == state
        assert (other.balloon.actual_pages, other.balloon.inflated_pages) == (256, 256)
        driver.offer(DEFLATEQ, readable=[pfn_bytes(driver.held_pfns[:1])])
        driver.queues[DEFLATEQ].publish()
        for region in machine.memory.regions:
            other.memory.write(region.gpa, machine.memory.peek(region.gpa, region.size))
        transport, balloon = other.board.need_balloon()
        other.platform.carry_out(transport.signal(balloon.notify(DEFLATEQ, other.now_ns)))
        assert (other.balloon.deflated_pages, machine.balloon.deflated_pages) == (1, 0)


def test_a_level_of_a_virtio_mmio_line_reaches_the_io_apic(tmp_path: Path) -> None:
    """Pin 12 as a level: the vector comes, and comes again until the event is acknowledged."""
    with boot(tmp_path / "guest", "virtio-balloon-device") as machine:
        machine.run("10ms")
        bus = GuestsBus(machine)
        for index, value in ((0x10 + 2 * 12, 1 << 15 | 0x55), (0x11 + 2 * 12, 0)):
            bus.mmio_write(0xFEC00000, 4, index)
            bus.mmio_write(0xFEC00010, 4, value)
        bus.mmio_write(0xFEE000F0, 4, 0x1FF)
        driver = BalloonDriver(MmioTransport(bus, 0xFEC10000, "isa12", PageAllocator(*DRIVER_RAM)))
        driver.start()
        assert pc_board(machine).lapic.pending_vector() is None
        machine.balloon.set_target("7M")
        assert pc_board(machine).lapic.pending_vector() == 0x55
        assert pc_board(machine).lapic.acknowledge() == 0x55
        bus.mmio_write(0xFEE000B0, 4, 0)
        assert pc_board(machine).lapic.pending_vector() == 0x55, "nobody has acknowledged the event"
        bus.mmio_write(0xFEC10064, 4, 3)
        assert pc_board(machine).lapic.acknowledge() == 0x55
        bus.mmio_write(0xFEE000B0, 4, 0)
        assert pc_board(machine).lapic.pending_vector() is None


# -- what is offered ---------------------------------------------------------------------------------------------------


def offered_bits(machine: Machine, reach: Reach) -> set[int]:
    """What a driver reads."""
    offered = reach(GuestsBus(machine), PageAllocator(*DRIVER_RAM)).read_device_features()
    return {bit for bit in range(64) if offered >> bit & 1}


@pytest.mark.parametrize("way", WAYS)
def test_the_report_tells_of_the_features_that_the_driver_was_offered(way: str, tmp_path: Path) -> None:
    device, reach = WAYS[way]
    with boot(tmp_path / "guest", device) as machine:
        machine.run("10ms")
        driver = BalloonDriver(reach(GuestsBus(machine), PageAllocator(*DRIVER_RAM)))
        driver.start()
        names = spec.feature_names(driver.transport.read_device_features(), 5)
        assert machine.report()["features"]["offered"] == names
        assert set(machine.balloon.negotiated) <= set(names)
        assert ("VIRTIO_F_VERSION_1" in names) is not driver.is_legacy
        assert ("VIRTIO_F_ANY_LAYOUT" in names) is driver.is_legacy


def test_a_legacy_device_is_told_of_as_such_before_there_is_a_driver(tmp_path: Path) -> None:
    for device in (WAYS["legacy"][0], "virtio-balloon-device,force-legacy=on"):
        with boot(tmp_path / "guest", device) as machine:
            assert "VIRTIO_F_VERSION_1" not in machine.balloon.offered
            assert "VIRTIO_F_RING_RESET" not in machine.balloon.offered
            assert "VIRTIO_F_NOTIFY_ON_EMPTY" in machine.balloon.offered


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("properties", ["", ",notify_on_empty=off"])
def test_the_bits_of_legacy_interfaces_follow_their_properties(way: str, properties: str, tmp_path: Path) -> None:
    """§6.3: NOTIFY_ON_EMPTY is 24, ANY_LAYOUT 27; QEMU offers both to legacy drivers, and to no others."""
    device, reach = WAYS[way]
    with boot(tmp_path / "guest", device + properties) as machine:
        machine.run("10ms")
        found = offered_bits(machine, reach) & {24, 27}
        wanted = {27} | (set() if properties else {24})
        assert found == (wanted if "legacy" in way or "version 1" in way else set())


@pytest.mark.parametrize("way", ["legacy", "virtio-mmio version 1"])
def test_a_legacy_device_may_be_without_any_layout(way: str, tmp_path: Path) -> None:
    device, reach = WAYS[way]
    with boot(tmp_path / "guest", device + ",any_layout=off") as machine:
        machine.run("10ms")
        assert 24 in offered_bits(machine, reach) and 27 not in offered_bits(machine, reach)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 32, 1024, 32768])
def test_queues_have_the_size_that_was_asked_for(way: str, size: int, tmp_path: Path) -> None:
    """But free_page_vq, which has at least 2 entries, and reporting_vq, with 32."""
    device, reach = WAYS[way]
    properties = f",queue-size={size},free-page-hint=on,free-page-reporting=on"
    with boot(tmp_path / "guest", device + properties) as machine:
        machine.run("10ms")
        driver = BalloonDriver(reach(GuestsBus(machine), PageAllocator(0x200000, 0x700000)))
        driver.start()
        sizes = [queue.size for queue in driver.queues.values()]
        assert sizes == [size, size, size, max(size, 2), max(size, 32)]
        machine.balloon.set_target("7900K")
        assert driver.follow_target() == machine.balloon.actual_pages > 0
        assert not driver.needs_reset


@pytest.mark.parametrize("driver", ["virtio-rng-pci", "virtio-rng-device"])
def test_the_rngs_queue_has_the_size_that_was_asked_for(driver: str, tmp_path: Path) -> None:
    path = tmp_path / "guest"
    path.write_bytes(SLEEP)
    for properties, size in (("", 64), (",queue-size=4", 4)):
        with vmm.boot(path, memory="8M", devices=(driver + properties,)) as machine:
            assert [queue.size for queue in machine.board.virtio_devices[0].queues] == [size]


# -- a driver that stops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_end_of_the_run_tells_of_the_queue_at_which_a_driver_stopped(way: str, tmp_path: Path) -> None:
    """It finds no queue where it looks, and does nothing more: no FAILED, no reset."""
    device, reach = WAYS[way]
    path = tmp_path / "guest"
    path.write_bytes(SLEEP)
    properties = ",queue-numbering=spec,free-page-reporting=on"
    texts: list[str] = []

    class Heard:
        def on_event(self, now_ns: int, event: Event) -> None:
            texts.extend([event.text] if event.kind == "queue-numbering" else [])

        def on_console(self, data: bytes) -> None: ...

        def on_stats(self, now_ns: int) -> None: ...

        def on_target(self, now_ns: int) -> None: ...

    with vmm.boot(path, memory="8M", devices=(device + properties,), duration="20ms") as machine:
        machine.observers.append(Heard())
        machine.run("10ms")
        driver = BalloonDriver(reach(GuestsBus(machine), PageAllocator(*DRIVER_RAM)))
        driver.reset()
        driver.acknowledge()
        driver.negotiate()
        assert driver.transport.queue_max_size(3) == 0
        machine.run("5ms")
        assert texts == []
        machine.run()
    assert texts == [
        "the driver looks for queue 3, which does not exist with queue-numbering=spec; "
        "set queue-numbering=offered or negotiated if it means reporting_vq"
    ]
