"""The modern virtio transport over PCI (virtio 1.3 §4.1).

Owns what stands between a driver's accesses and a virtio device: the PCI identity, the structures in BAR 4 and the
window to them.  Refuses to know what kind of device it carries, and what queues and features mean: every decision about
those is the device's.  Where everything stands is in `pci_layout.py`, interrupts are `pci_function.py`'s.

- An access belongs to the structure in whose page it starts; what it covers outside the structure reads as zero.
- A write notifies a queue if it covers both bytes of the queue's address; that address, not the value, names the queue.
- The PCI_CFG window does what a direct access would do, with memory decoding off too.  A length other than 1, 2 or 4,
  an absent BAR or an offset outside it makes no access, and `pci_cfg_data` is then plain memory.

Invariant: after status 0 no selection is left of the old driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from devices.effects import NOTHING, Effects
from devices.pci.config import Bar, BarKind, Identity
from devices.state import Table, uint
from devices.virtio import spec
from devices.virtio.device import Queue, VirtioDevice
from devices.virtio.transport.pci_function import VirtioPciFunction
from devices.virtio.transport.pci_layout import (
    CLASS_OTHER,
    COMMON,
    COMMON_CFG,
    DEVICE,
    ISR,
    ISR_CFG,
    MODERN_BAR,
    MODERN_BAR_BYTES,
    NOTIFY,
    NOTIFY_OFF_MULTIPLIER,
    modern_identity,
    virtio_capabilities,
)


class VirtioPciModern(VirtioPciFunction):
    """`device` as a modern virtio function in `slot` of bus 0; a transitional one has another `identity` and more
    `bars`.

    ValueError when the device has more queues than the notification page has addresses.
    """

    STATE: ClassVar[Table] = {
        **VirtioPciFunction.STATE,
        **dict.fromkeys(("device_feature_select", "driver_feature_select"), uint(32)),
        "queue_select": uint(16),
    }

    def __init__(
        self,
        device: VirtioDevice,
        slot: int,
        *,
        class_code: int = CLASS_OTHER,
        identity: Identity | None = None,
        bars: Sequence[Bar] = (),
    ) -> None:
        if len(device.queues) * NOTIFY_OFF_MULTIPLIER > MODERN_BAR_BYTES - NOTIFY:
            raise ValueError(f"{device.name} has {len(device.queues)} queues, more than the transport can address")
        super().__init__(
            device,
            slot,
            identity or modern_identity(device, class_code),
            bars=[*bars, Bar(MODERN_BAR, MODERN_BAR_BYTES, BarKind.MEMORY64)],
            capabilities=virtio_capabilities(device),
        )
        self._window_data = self.config.field("window.pci_cfg_data")

    def _forget_driver(self) -> None:
        super()._forget_driver()
        self.device_feature_select = 0
        self.driver_feature_select = 0
        self.queue_select = 0

    # -- PciFunction's hooks -------------------------------------------------------------------------------------------

    def read_bar(self, bar: int, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        structure, inside = offset & ~0xFFF, offset & 0xFFF
        if structure == COMMON:
            return COMMON_CFG.read(self, inside, size, now_ns)
        if structure == ISR:
            return ISR_CFG.read(self, inside, size, now_ns)
        size = min(size, self.device.config_size - inside)
        if structure == DEVICE and size > 0:
            return self.device.read_config(inside, size), NOTHING
        return 0, NOTHING

    def write_bar(self, bar: int, offset: int, size: int, value: int, now_ns: int) -> Effects:
        structure, inside = offset & ~0xFFF, offset & 0xFFF
        if structure == NOTIFY:
            return self._notify(inside, size, value, now_ns)
        if structure == COMMON:
            return COMMON_CFG.write(self, inside, size, value, now_ns)
        size = min(size, self.device.config_size - inside)
        if structure == DEVICE and size > 0:
            return self.signal(self.device.write_config(inside, size, value & (1 << 8 * size) - 1, now_ns))
        return NOTHING

    def _notify(self, inside: int, size: int, value: int, now_ns: int) -> Effects:
        """§4.1.5.2: notify each queue both of whose bytes are among the `size` at `inside`.

        Where all four of its address are, the device hears what they hold."""
        effects = NOTHING
        first, last = -(-inside // NOTIFY_OFF_MULTIPLIER), (inside + size - 2) // NOTIFY_OFF_MULTIPLIER
        for queue in range(first, last + 1):  # the device knows which of them it has
            before = queue * NOTIFY_OFF_MULTIPLIER - inside
            data = value >> 8 * before & 0xFFFFFFFF if before + 4 <= size else None
            effects |= self.signal(self.device.notify(queue, now_ns, data))
        return effects

    # -- the PCI_CFG window (§4.1.4.9) ---------------------------------------------------------------------------------

    def read_config(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        effects = NOTHING
        if self._touches_window(offset, size) and (window := self._window()):
            value, effects = self.access_read(*window, now_ns)
            data = self.config["window.pci_cfg_data"]
            length = window[2]
            self.config["window.pci_cfg_data"] = data >> 8 * length << 8 * length | value
        value, more = super().read_config(offset, size, now_ns)
        return value, effects | more

    def write_config(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        effects = super().write_config(offset, size, value, now_ns)
        if self._touches_window(offset, size) and (window := self._window()):
            data = self.config["window.pci_cfg_data"] & (1 << 8 * window[2]) - 1
            effects |= self.access_write(*window, data, now_ns)
        return effects

    def _touches_window(self, offset: int, size: int) -> bool:
        data = self._window_data
        return offset < data.offset + data.size and data.offset < offset + size

    def _window(self) -> tuple[int, int, int] | None:
        """BAR, offset and length that the window shows now; None when there is nothing to show."""
        bar = self.bars.get(self.config["window.bar"])
        offset, length = self.config["window.offset"], self.config["window.length"]
        if bar is None or length not in (1, 2, 4) or offset + length > bar.size:
            return None
        return bar.index, offset, length

    # -- common configuration: the whole device (§4.1.4.3) -------------------------------------------------------------

    @property
    def device_feature(self) -> int:
        return _feature_word(self.device.modern_features, self.device_feature_select)

    @property
    def driver_feature(self) -> int:
        return _feature_word(self.device.driver_features, self.driver_feature_select)

    def write_driver_feature(self, value: int, now_ns: int) -> Effects:
        if self.driver_feature_select < 2:
            shift = 32 * self.driver_feature_select
            kept = self.device.driver_features & ~(0xFFFFFFFF << shift)
            self.device.write_driver_features(kept | value << shift)
        return NOTHING

    @property
    def num_queues(self) -> int:
        return len(self.device.queues)

    @property
    def device_status(self) -> int:
        return int(self.device.status)

    def write_device_status(self, value: int, now_ns: int) -> Effects:
        return self.set_status(value, now_ns)

    @property
    def config_generation(self) -> int:
        return self.device.config_generation

    # -- common configuration: the selected queue ----------------------------------------------------------------------

    def _queue(self) -> Queue | None:
        queues = self.device.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    def _write_queue(self, field: str, value: int, now_ns: int) -> Effects:
        if self._queue() is None and field != "enabled":
            return NOTHING  # what a driver wants of a queue that is not there the device may have a word on
        return self.signal(self.device.write_queue(self.queue_select, field, value, now_ns))

    @property
    def queue_size(self) -> int:
        """§4.1.4.3.1: 0 where the queue is not there for the driver."""
        queue = self._queue()
        return queue.size if queue is not None and self.device.has_queue(queue) else 0

    def read_queue_size(self, now_ns: int) -> int:
        """A driver that finds none stops here, most of them: the device hears what it looked for."""
        size = self.queue_size
        if not size:
            self.device.queue_looked_for(self.queue_select)
        return size

    def write_queue_size(self, value: int, now_ns: int) -> Effects:
        return self._write_queue("size", value, now_ns)

    @property
    def queue_msix_vector(self) -> int:
        return self.queue_vectors[self.queue_select] if self._queue() is not None else spec.VIRTIO_MSI_NO_VECTOR

    def write_queue_msix_vector(self, value: int, now_ns: int) -> Effects:
        if self._queue() is not None:
            self.queue_vectors[self.queue_select] = self.valid_vector(value)
        return NOTHING

    @property
    def queue_enable(self) -> int:
        queue = self._queue()
        return int(queue.enabled) if queue is not None else 0

    def write_queue_enable(self, value: int, now_ns: int) -> Effects:
        """Only 1 means anything: the driver must not write 0 (§4.1.4.3.2)."""
        return self._write_queue("enabled", 1, now_ns) if value == 1 else NOTHING

    @property
    def queue_reset(self) -> int:
        """§4.1.4.3.1: a reset is done before the write that asked for it is over."""
        return 0

    def write_queue_reset(self, value: int, now_ns: int) -> Effects:
        """Only 1 means anything, and only with RING_RESET; the queue's vector is unmapped with it."""
        queue = self._queue()
        if value != 1 or queue is None or not queue.enabled:
            return NOTHING
        effects = self._write_queue("reset", 1, now_ns)
        if not queue.enabled:
            self.queue_vectors[self.queue_select] = spec.VIRTIO_MSI_NO_VECTOR
        return effects

    @property
    def queue_notify_off(self) -> int:
        return self.queue_select if self._queue() is not None else 0

    @property
    def queue_desc(self) -> int:
        queue = self._queue()
        return queue.desc_gpa if queue is not None else 0

    def write_queue_desc(self, value: int, now_ns: int) -> Effects:
        return self._write_queue("desc_gpa", value, now_ns)

    @property
    def queue_driver(self) -> int:
        queue = self._queue()
        return queue.driver_gpa if queue is not None else 0

    def write_queue_driver(self, value: int, now_ns: int) -> Effects:
        return self._write_queue("driver_gpa", value, now_ns)

    @property
    def queue_device(self) -> int:
        queue = self._queue()
        return queue.device_gpa if queue is not None else 0

    def write_queue_device(self, value: int, now_ns: int) -> Effects:
        return self._write_queue("device_gpa", value, now_ns)


def _feature_word(features: int, select: int) -> int:
    """The 32 bits of `features` that `select` shows; 0 beyond the 64 that are defined."""
    return features >> 32 * select & 0xFFFFFFFF
