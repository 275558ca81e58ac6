"""The legacy virtio transport over memory-mapped registers, version 1 (virtio 1.3 §4.2.4).

Owns what differs from version 2: 32 feature bits, no FEATURES_OK, no generation, and queues that are one piece of
memory each, placed by the number of their first page.
"""

from __future__ import annotations

from typing import ClassVar, Final

from devices.effects import NOTHING, Effects
from devices.registers import Access
from devices.state import Int, Many, Table
from devices.virtio import spec
from devices.virtio.transport.mmio import COMMON, VirtioMmio, register_map

_BITS = 0xFFFFFFFF
_POWER = Int(1, 1 << 31)
_LEGACY: Final[dict[str, tuple[str, Access]]] = {
    "GuestPageSize": ("guest_page_size", "wo"),
    "QueueAlign": ("queue_align", "wo"),
    "QueuePFN": ("queue_pfn", "rw"),
}


class VirtioMmioLegacy(VirtioMmio):
    """The legacy version 1: a queue is one piece of memory, in pages of the size that the driver names.

    A page size or an alignment that is no power of two leaves the old one; 4096 stands where the driver names none."""

    VERSION = spec.VIRTIO_MMIO_LEGACY_VERSION
    REGISTERS = register_map("virtio-mmio version 1", COMMON | _LEGACY)
    STATE: ClassVar[Table] = {
        **VirtioMmio.STATE,
        "guest_page_size": _POWER,
        "queue_aligns": Many(_POWER),
    }

    def _forget_driver(self) -> None:
        super()._forget_driver()
        self.guest_page_size = spec.VIRTIO_LEGACY_QUEUE_ALIGN
        self.queue_aligns = [spec.VIRTIO_LEGACY_QUEUE_ALIGN] * len(self.device.queues)

    def _claimed(self) -> bool:
        return self.device.claim(legacy=True)

    @property
    def device_features(self) -> int:
        """Bits 0 to 31, the only ones (§4.2.4)."""
        return self.device.legacy_features if self.device_features_sel == 0 else 0

    def write_driver_features(self, value: int, now_ns: int) -> Effects:
        return super().write_driver_features(value, now_ns) if self.driver_features_sel == 0 else NOTHING

    def write_guest_page_size(self, value: int, now_ns: int) -> Effects:
        if _is_power_of_two(value):
            self.guest_page_size = value
        return NOTHING

    def write_queue_align(self, value: int, now_ns: int) -> Effects:
        if self._queue() is not None and _is_power_of_two(value):
            self.queue_aligns[self.queue_sel] = value
        return NOTHING

    @property
    def queue_pfn(self) -> int:
        """0 where the queue is not in use."""
        queue = self._queue()
        return queue.desc_gpa // self.guest_page_size & _BITS if queue is not None else 0

    def write_queue_pfn(self, value: int, now_ns: int) -> Effects:
        """§4.2.4: the queue begins with page `value`; 0 takes it out of use."""
        if not self._claimed():
            return NOTHING
        gpa = value * self.guest_page_size
        align = self.queue_aligns[self.queue_sel] if self._queue() is not None else spec.VIRTIO_LEGACY_QUEUE_ALIGN
        return self.signal(self.device.place_queue(self.queue_sel, gpa, align, now_ns))


def _is_power_of_two(value: int) -> bool:
    return value > 0 and not value & value - 1
