"""Transitional and legacy functions: who they say they are, where their registers are, and one driver at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from devices.bus import AddressSpace
from devices.memory import GuestMemory
from devices.pci.host_bridge import HostBridge
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.rng import Rng
from devices.virtio.spec import Status
from devices.virtio.transport.mmio import VirtioMmio
from devices.virtio.transport.pci_legacy import VirtioPciLegacy
from devices.virtio.transport.pci_transitional import VirtioPciTransitional
from tests.support import BALLOON_SLOT, LEGACY_WAYS, MODERN_WAYS, BalloonMachine, Way
from vmm.testing import BalloonDriver, LegacyPciTransport, PciBus, PciTransport
from vmm.testing.balloon import INFLATEQ
from vmm.testing.driver import VERSION_1
from vmm.testing.pci import COMMAND_MASTER, REVISION_ID, SUBSYSTEM_DEVICE_ID, Function


@pytest.fixture
def machine() -> Iterator[BalloonMachine]:
    """A transitional balloon that no driver has touched."""
    machine = BalloonMachine("transitional")
    yield machine
    machine.close()


@pytest.fixture
def faces(machine: BalloonMachine) -> tuple[BalloonDriver, BalloonDriver]:
    """A modern and a legacy driver of the one device."""
    legacy = LegacyPciTransport.find(machine.bus, spec.DeviceId.BALLOON, machine.pages, "none")
    machine.pci.function.command |= COMMAND_MASTER  # which a legacy driver may leave off
    return machine.driver, BalloonDriver(legacy)


# -- identity (§4.1.2) -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["transitional", "legacy"])
def test_4_1_2_3_a_function_for_legacy_drivers_is_1002_revision_0_subsystem_5(way: Way) -> None:
    machine = BalloonMachine(way)
    (function,) = [each for each in PciBus(machine.bus).functions() if each.slot == BALLOON_SLOT]
    assert (function.vendor_id, function.device_id) == (0x1AF4, 0x1002)
    assert (function.read(REVISION_ID, 1), function.read(SUBSYSTEM_DEVICE_ID, 2)) == (0, 5)
    bars = {bar.number: bar.space for bar in function.bars()}
    assert bars == {0: "io", 1: "memory"} | ({4: "memory"} if way == "transitional" else {})
    capabilities = [identifier for identifier, _ in function.capabilities()]
    assert (spec.PCI_CAP_ID_VNDR in capabilities) == (way == "transitional")
    machine.close()


def test_another_kind_of_device_has_its_own_transitional_id() -> None:
    with GuestMemory([(0, 1 << 20)]) as memory:
        ports = AddressSpace("port", 16)
        bridge = HostBridge(ports, AddressSpace("memory", 52), memory)
        bridge.plug(VirtioPciLegacy(Rng(memory, bytes), 5))
        assert bridge.read_function(5 << 3, 2, 2, 0)[0] == 0x1005
        assert bridge.read_function(5 << 3, 0x2E, 2, 0)[0] == 4


def test_a_kind_that_came_later_cannot_be_a_legacy_device() -> None:
    class Later(Rng):
        device_id = 42  # type: ignore[assignment]

    with GuestMemory([(0, 1 << 20)]) as memory:
        for transport in (VirtioPciLegacy, VirtioPciTransitional):
            with pytest.raises(ValueError, match="rng0 cannot be a legacy device: its kind came later"):
                transport(Later(memory, bytes), 5)


# -- the registers (§4.1.4.10) -----------------------------------------------------------------------------------------


def test_4_1_4_10_the_configuration_moves_with_msi_x() -> None:
    machine = BalloonMachine("legacy-intx")
    driver, transport = machine.driver, machine.driver.transport
    assert isinstance(transport, LegacyPciTransport) and transport.msix is not None
    driver.start()
    machine.set_target(0x123)
    driver.actual = 0x44332211
    base = transport.bar_addresses[0]
    assert [machine.bus.port_read(base + at, 4) for at in (20, 24)] == [0x123, 0x44332211]
    transport.msix.enable()
    assert [machine.bus.port_read(base + at, 4) for at in (20, 24, 28)] == [0xFFFFFFFF, 0x123, 0x44332211]
    machine.bus.port_write(base + 28, 4, 7)
    assert machine.balloon.actual_pages == 7
    transport.msix.enable(False)
    assert machine.bus.port_read(base + 24, 4) == 7
    machine.close()


def test_4_1_4_10_any_width_gives_the_configuration_the_same() -> None:
    machine = BalloonMachine("legacy")
    machine.driver.start()
    machine.set_target(0x321)
    machine.driver.actual = 0x44332211
    assert isinstance(machine.driver.transport, LegacyPciTransport)
    port = machine.driver.transport.config_port
    for size in (1, 2, 4):
        read = (machine.bus.port_read(port + i, size) << 8 * i for i in range(0, 8, size))
        assert sum(read) == 0x44332211_00000321
    machine.close()


def test_bus_mastering_comes_with_driver_for_who_never_heard_of_it() -> None:
    machine = BalloonMachine("legacy")
    driver, function = machine.driver, Function(machine.bus, BALLOON_SLOT)
    driver.reset()
    driver.add_status(Status.ACKNOWLEDGE)
    assert not function.command & COMMAND_MASTER
    driver.add_status(Status.DRIVER)
    assert function.command & COMMAND_MASTER
    machine.close()


# -- one device, two interfaces ----------------------------------------------------------------------------------------


def test_a_legacy_driver_works_on_a_transitional_function(faces: tuple[BalloonDriver, BalloonDriver]) -> None:
    modern, legacy = faces
    legacy.start()
    assert modern.transport.read_status() == legacy.status == 7
    assert not modern.transport.read_driver_features() & VERSION_1


def test_while_one_driver_is_at_work_the_other_changes_nothing(
    machine: BalloonMachine, faces: tuple[BalloonDriver, BalloonDriver]
) -> None:
    for first, second in (faces, faces[::-1]):
        first.start()
        before = machine.balloon.save_state()
        other = second.transport
        other.write_status(1)
        other.write_status(0xFF)
        other.write_driver_features(1)
        other.write_config(4, 4, 99)
        other.notify(INFLATEQ)
        size = other.queue_max_size(INFLATEQ)
        other.set_up_queue(INFLATEQ, size, 0x1000, 0x2000, 0x3000)
        assert machine.balloon.save_state() == before
        assert len(first.inflate(machine.filled_pfns(1))) == 1


def test_a_reset_from_either_side_gives_the_device_away(
    machine: BalloonMachine, faces: tuple[BalloonDriver, BalloonDriver]
) -> None:
    """Firmware drives it by one interface, the operating system by the other."""
    for first, second in (faces, faces[::-1]):
        first.start()
        second.start()
        assert len(second.inflate(machine.filled_pfns(1))) == 1
        assert (machine.balloon.negotiated_features >> spec.VIRTIO_F_VERSION_1 & 1) == (not second.is_legacy)


def test_looking_takes_no_side(machine: BalloonMachine, faces: tuple[BalloonDriver, BalloonDriver]) -> None:
    modern, legacy = faces
    for driver in (legacy, modern):
        driver.transport.read_device_features()
        driver.transport.queue_max_size(1)
        driver.transport.read_config(0, 4)
    assert machine.balloon.legacy is None
    modern.start()
    assert machine.balloon.legacy is False


# -- state -------------------------------------------------------------------------------------------------------------

EVERY_TRANSPORT = [way for way in MODERN_WAYS + LEGACY_WAYS if way != "direct"]


def rebuilt(machine: BalloonMachine) -> Any:
    """A transport like the machine's, around a new balloon on the same RAM."""
    kind, balloon = type(machine.function), Balloon(machine.memory, features=machine.balloon.device_features)
    if isinstance(machine.function, VirtioMmio):
        return type(machine.function)(balloon, machine.function.line)
    return kind(balloon, BALLOON_SLOT)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize("way", EVERY_TRANSPORT)
def test_a_transport_goes_on_from_its_saved_state(way: Way) -> None:
    machine = BalloonMachine(way)
    driver = machine.driver
    driver.start()
    pfns = machine.filled_pfns(4)
    driver.inflate(pfns[:2])
    driver.post_stats({4: 1})
    saved, other = machine.function.save_state(), rebuilt(machine)
    other.check_state(saved, "it")
    other.restore_state(saved)
    assert other == machine.function and other.save_state() == saved
    driver.offer(INFLATEQ, readable=[pfns[2].to_bytes(4, "little")])
    driver.queues[INFLATEQ].publish()
    other.signal(other.device.notify(INFLATEQ, 0))
    assert [used.length for used in driver.collect(INFLATEQ)] == [0]
    assert machine.are_zero(pfns[:3]) and machine.are_filled(pfns[3:])
    other.signal(other.device.request_stats(0))
    assert driver.stats_wanted()
    machine.close()


@pytest.mark.parametrize("way", EVERY_TRANSPORT)
def test_a_reset_transport_equals_a_new_one(way: Way) -> None:
    machine = BalloonMachine(way)
    machine.driver.start()
    machine.driver.inflate(machine.filled_pfns(2))
    machine.driver.actual = 2
    assert machine.function != rebuilt(machine)
    machine.function.reset()
    assert machine.function == rebuilt(machine)
    machine.close()


@pytest.mark.parametrize("way", EVERY_TRANSPORT)
def test_a_saved_legacy_queue_that_is_placed_and_not_used_yet_is_kept(way: Way) -> None:
    machine = BalloonMachine(way)
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    driver.negotiate()
    driver.set_up_queues()
    saved, other = machine.function.save_state(), rebuilt(machine)
    other.check_state(saved, "it")
    other.restore_state(saved)
    assert other == machine.function
    other.device.write_status(15, 0)
    (pfn,) = machine.filled_pfns(1)
    driver.offer(INFLATEQ, readable=[pfn.to_bytes(4, "little")])
    driver.queues[INFLATEQ].publish()
    other.device.notify(INFLATEQ, 0)
    assert len(driver.collect(INFLATEQ)) == 1 and machine.are_zero([pfn])
    machine.close()


def test_the_modern_driver_library_finds_a_transitional_function(machine: BalloonMachine) -> None:
    found = PciTransport.find(machine.bus, spec.DeviceId.BALLOON, machine.pages, "none")
    assert (found.device_id, found.function.device_id) == (5, 0x1002)
