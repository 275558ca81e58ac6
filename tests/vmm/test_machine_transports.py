"""A whole machine with each kind of transport: what the board makes of the words, and that a cut run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import vmm
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
