"""A transitional virtio function on PCI: the modern interface and the legacy one over one device (virtio 1.3 §1.3.1).

Owns which of the two a driver uses.  The registers of each are `pci_modern`'s and `pci_legacy`'s.

The first interface through which the driver changes the device after a reset is its own until the next reset.  What
comes through the other one changes nothing, except that status 0 resets from either side: a driver that finds the
device in another's hands begins so.  Reading is free, vectors and the ISR status are shared.
"""

from __future__ import annotations

from typing import ClassVar

from devices.effects import NOTHING, Effects
from devices.state import PART, Table
from devices.virtio.device import VirtioDevice
from devices.virtio.transport.pci_layout import DEVICE, LEGACY_BAR, legacy_bar, transitional_identity
from devices.virtio.transport.pci_legacy import LegacyRegisters
from devices.virtio.transport.pci_modern import VirtioPciModern


class VirtioPciTransitional(VirtioPciModern):
    """`device` as a transitional function in `slot` of bus 0.

    ValueError as for a modern function, and where the device's kind came after the legacy interface."""

    STATE: ClassVar[Table] = {**VirtioPciModern.STATE, "registers": PART}

    def __init__(self, device: VirtioDevice, slot: int) -> None:
        self.registers = LegacyRegisters(self)
        super().__init__(device, slot, identity=transitional_identity(device), bars=[legacy_bar(device)])

    def _forget_driver(self) -> None:
        super()._forget_driver()
        self.registers.forget_driver()

    def read_bar(self, bar: int, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        if bar == LEGACY_BAR:
            return self.registers.read(offset, size, now_ns)
        return super().read_bar(bar, offset, size, now_ns)

    def write_bar(self, bar: int, offset: int, size: int, value: int, now_ns: int) -> Effects:
        if bar == LEGACY_BAR:
            return self.registers.write(offset, size, value, now_ns)
        is_config = offset & ~0xFFF == DEVICE and offset & 0xFFF < self.device.config_size
        if is_config and not self.device.claim(legacy=False):
            return NOTHING
        return super().write_bar(bar, offset, size, value, now_ns)

    # -- whatever a modern driver changes the device with --------------------------------------------------------------

    def write_device_status(self, value: int, now_ns: int) -> Effects:
        return NOTHING if value and not self.device.claim(legacy=False) else super().write_device_status(value, now_ns)

    def write_driver_feature(self, value: int, now_ns: int) -> Effects:
        return super().write_driver_feature(value, now_ns) if self.device.claim(legacy=False) else NOTHING

    def _write_queue(self, field: str, value: int, now_ns: int) -> Effects:
        return super()._write_queue(field, value, now_ns) if self.device.claim(legacy=False) else NOTHING

    def _notify(self, inside: int, size: int, value: int, now_ns: int) -> Effects:
        return super()._notify(inside, size, value, now_ns) if self.device.claim(legacy=False) else NOTHING
