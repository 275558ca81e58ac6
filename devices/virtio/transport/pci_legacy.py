"""The legacy virtio interface over PCI: registers in I/O space (virtio 1.3 §4.1.4.10, §4.1.5.1.3.1).

Owns what a legacy driver's accesses to BAR 0 mean.  `LegacyRegisters` are that for any function; `VirtioPciLegacy` is a
function that has nothing else, as devices were before virtio 1.0.

- The device's configuration begins at 20, or at 24 while MSI-X is enabled: it moves under a driver that enables it.
- Queue address, queue notify and the vectors take a whole value only: half an address would name another page.
- Features are bits 0 to 31.  There is no FEATURES_OK and no generation, and a queue's size cannot be chosen.
- Linux before 2.6.34 never enables bus mastering.  It is enabled for the driver when it sets DRIVER, as in QEMU.

The registers are little-endian whatever the driver's processor is; rings and payloads are not (`VirtioDevice.order`).
"""

from __future__ import annotations

from typing import ClassVar

from devices.effects import NOTHING, Effects
from devices.registers import RegisterMap
from devices.state import PART, Stateful, Table, uint
from devices.virtio import spec
from devices.virtio.device import Queue, VirtioDevice
from devices.virtio.spec import Status
from devices.virtio.transport.pci_function import VirtioPciFunction
from devices.virtio.transport.pci_layout import LEGACY, LEGACY_WITH_MSIX, legacy_bar, transitional_identity

_BITS = 0xFFFFFFFF
_PAGE_BYTES = spec.VIRTIO_LEGACY_QUEUE_ALIGN


class LegacyRegisters(Stateful):
    """The registers of `function` for a legacy driver.  Reading changes nothing but the ISR status."""

    STATE: ClassVar[Table] = {"queue_select": uint(16)}

    def __init__(self, function: VirtioPciFunction) -> None:
        self._function = function
        self.forget_driver()

    def __eq__(self, other: object) -> bool:
        """Whether a driver would find the same selected."""
        return isinstance(other, LegacyRegisters) and self.queue_select == other.queue_select

    def forget_driver(self) -> None:
        """The device was reset."""
        self.queue_select = 0

    @property
    def _device(self) -> VirtioDevice:
        return self._function.device

    def _map(self) -> RegisterMap:
        return LEGACY_WITH_MSIX if self._function.table.enabled else LEGACY

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        """The value of `size` bytes at `offset` of BAR 0."""
        registers = self._map()
        value, effects = registers.read(self, offset, size, now_ns)
        begin, length = _beyond(registers, offset, size)
        length = min(length, self._device.config_size - begin)
        if length > 0:
            value |= self._device.read_config(begin, length) << 8 * (begin + registers.size - offset)
        return value, effects

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        """Write the low `size` bytes of `value` at `offset` of BAR 0."""
        registers = self._map()
        effects = registers.write(self, offset, size, value, now_ns)
        begin, length = _beyond(registers, offset, size)
        length = min(length, self._device.config_size - begin)
        if length > 0 and self._device.claim(legacy=True):
            part = value >> 8 * (begin + registers.size - offset) & (1 << 8 * length) - 1
            effects |= self._function.signal(self._device.write_config(begin, length, part, now_ns))
        return effects

    # -- the whole device ----------------------------------------------------------------------------------------------

    @property
    def device_features(self) -> int:
        return self._device.legacy_features

    @property
    def driver_features(self) -> int:
        return self._device.driver_features & _BITS

    def write_driver_features(self, value: int, now_ns: int) -> Effects:
        if self._device.claim(legacy=True):
            self._device.write_driver_features(value)
        return NOTHING

    @property
    def device_status(self) -> int:
        return int(self._device.status)

    def write_device_status(self, value: int, now_ns: int) -> Effects:
        if value and not self._device.claim(legacy=True):
            return NOTHING
        effects = self._function.set_status(value, now_ns)
        if value & Status.DRIVER:
            effects |= self._function.enable_bus_master(now_ns)
        return effects

    def read_isr_status(self, now_ns: int) -> tuple[int, Effects]:
        return self._function.read_isr_status(now_ns)

    @property
    def config_msix_vector(self) -> int:
        return self._function.config_msix_vector

    def write_config_msix_vector(self, value: int, now_ns: int) -> Effects:
        return self._function.write_config_msix_vector(value, now_ns)

    def write_queue_notify(self, value: int, now_ns: int) -> Effects:
        """The value is the queue's number (§4.1.5.2)."""
        if not self._device.claim(legacy=True):
            return NOTHING
        return self._function.signal(self._device.notify(value, now_ns))

    # -- the selected queue --------------------------------------------------------------------------------------------

    def _queue(self) -> Queue | None:
        queues = self._device.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    @property
    def queue_address(self) -> int:
        """In pages of 4096 bytes; 0 where the queue is not in use."""
        queue = self._queue()
        return queue.desc_gpa // _PAGE_BYTES & _BITS if queue is not None else 0

    def write_queue_address(self, value: int, now_ns: int) -> Effects:
        """§4.1.5.1.3.1: the queue begins with page `value`; 0 takes it out of use."""
        if not self._device.claim(legacy=True):
            return NOTHING
        placed = self._device.place_queue(self.queue_select, value * _PAGE_BYTES, _PAGE_BYTES, now_ns)
        return self._function.signal(placed)

    @property
    def queue_size(self) -> int:
        """0 where there is no such queue."""
        queue = self._queue()
        return queue.size if queue is not None and self._device.has_queue(queue) else 0

    def read_queue_size(self, now_ns: int) -> int:
        size = self.queue_size
        if not size:
            self._device.queue_looked_for(self.queue_select)
        return size

    @property
    def queue_msix_vector(self) -> int:
        return self._function.queue_vectors[self.queue_select] if self._queue() else spec.VIRTIO_MSI_NO_VECTOR

    def write_queue_msix_vector(self, value: int, now_ns: int) -> Effects:
        if self._queue() is not None:
            self._function.queue_vectors[self.queue_select] = self._function.valid_vector(value)
        return NOTHING


def _beyond(registers: RegisterMap, offset: int, size: int) -> tuple[int, int]:
    """What an access covers behind the registers: offset in the device's configuration, bytes (0 or less if none)."""
    begin = max(offset - registers.size, 0)
    return begin, offset + size - registers.size - begin


class VirtioPciLegacy(VirtioPciFunction):
    """`device` as a legacy function in `slot` of bus 0.  ValueError where its kind came after the legacy interface."""

    STATE: ClassVar[Table] = {**VirtioPciFunction.STATE, "registers": PART}

    def __init__(self, device: VirtioDevice, slot: int) -> None:
        self.registers = LegacyRegisters(self)
        super().__init__(device, slot, transitional_identity(device), bars=[legacy_bar(device)])

    def _forget_driver(self) -> None:
        super()._forget_driver()
        self.registers.forget_driver()

    def read_bar(self, bar: int, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return self.registers.read(offset, size, now_ns)

    def write_bar(self, bar: int, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return self.registers.write(offset, size, value, now_ns)
