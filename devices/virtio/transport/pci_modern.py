"""The modern virtio transport over PCI (virtio 1.3 §4.1).

Owns what stands between a driver's accesses and a virtio device: the PCI identity, the structures in BAR 4, the ISR
status, and which MSI-X vector an event has.  Refuses to know what kind of device it carries, and what queues and
features mean: every decision about those is the device's.  Where everything stands is in `pci_layout.py`.

- An access belongs to the structure in whose page it starts; what it covers outside the structure reads as zero.
- A write notifies a queue if it covers both bytes of the queue's address; that address, not the value, names the queue.
- The PCI_CFG window does what a direct access would do, with memory decoding off too.  A length other than 1, 2 or 4,
  an absent BAR or an offset outside it makes no access, and `pci_cfg_data` is then plain memory.

Invariant: after status 0 nothing is left of the old driver: no vector, no pending message, no ISR bit, no selection.
"""

from __future__ import annotations

from typing import ClassVar

from devices.effects import NOTHING, Effects
from devices.pci.config import Bar, BarKind, Identity
from devices.pci.function import PciFunction
from devices.pci.msix import MsixTable
from devices.state import FLAG, PART, Many, Table, uint
from devices.virtio import spec
from devices.virtio.device import Notifications, Queue, VirtioDevice
from devices.virtio.transport.pci_layout import (
    CLASS_OTHER,
    COMMON,
    COMMON_CFG,
    DEVICE,
    ISR,
    ISR_CFG,
    MODERN_BAR,
    MODERN_BAR_BYTES,
    MSIX_BAR,
    NOTIFY,
    NOTIFY_OFF_MULTIPLIER,
    SUBSYSTEM_ID_BASE,
    virtio_capabilities,
)


class VirtioPciModern(PciFunction):
    """`device` as a PCI function in `slot` of bus 0, with an MSI-X vector for each queue and one for its configuration.

    ValueError when the device has more queues than the notification page has addresses.
    """

    STATE: ClassVar[Table] = {
        **PciFunction.STATE,
        "device": PART,
        "_dma_enabled": FLAG,
        **dict.fromkeys(("device_feature_select", "driver_feature_select"), uint(32)),
        **dict.fromkeys(("queue_select", "config_msix_vector"), uint(16)),
        "queue_vectors": Many(uint(16)),
        "isr_status": uint(8),
    }

    def __init__(self, device: VirtioDevice, slot: int, *, class_code: int = CLASS_OTHER) -> None:
        if len(device.queues) * NOTIFY_OFF_MULTIPLIER > MODERN_BAR_BYTES - NOTIFY:
            raise ValueError(f"{device.name} has {len(device.queues)} queues, more than the transport can address")
        identity = Identity(
            vendor_id=spec.VIRTIO_PCI_VENDOR_ID,
            device_id=spec.VIRTIO_PCI_MODERN_DEVICE_BASE + device.device_id,
            revision=1,
            class_code=class_code,
            subsystem_vendor_id=spec.VIRTIO_PCI_VENDOR_ID,
            subsystem_id=SUBSYSTEM_ID_BASE + device.device_id,
        )
        self.table = MsixTable(len(device.queues) + 1, MSIX_BAR)
        super().__init__(
            slot,
            device.name,
            identity,
            bars=[Bar(MODERN_BAR, MODERN_BAR_BYTES, BarKind.MEMORY64)],
            capabilities=virtio_capabilities(device),
            msix=self.table,
            interrupt_pin=1,
        )
        self.device = device
        self._window_data = self.config.field("window.pci_cfg_data")
        self._dma_enabled = False
        device.set_dma_enabled(False, 0)
        self._forget_driver()

    def _forget_driver(self) -> None:
        self.device_feature_select = 0
        self.driver_feature_select = 0
        self.queue_select = 0
        self.config_msix_vector = spec.VIRTIO_MSI_NO_VECTOR
        self.queue_vectors = [spec.VIRTIO_MSI_NO_VECTOR] * len(self.device.queues)
        self.isr_status = 0
        self.table.forget_pending()

    # -- what the machine calls ----------------------------------------------------------------------------------------

    def signal(self, notifications: Notifications) -> Effects:
        """What a notification of the driver takes on this transport (§4.1.5.3, §4.1.5.4).

        Events that share a vector make one message."""
        queues, config, deadline, events = notifications
        if config:
            self.isr_status |= spec.VIRTIO_PCI_ISR_CONFIG  # §4.1.4.5.1: whether or not MSI-X is enabled
        effects = Effects(deadline=deadline, events=events) if deadline or events else NOTHING
        if self.table.enabled:
            vectors = [self.queue_vectors[queue] for queue in queues]
            if config:
                vectors.append(self.config_msix_vector)
            for vector in vectors if len(vectors) < 2 else dict.fromkeys(vectors):
                effects |= self.table.notify(vector)  # NO_VECTOR is none of its vectors
        elif queues:
            self.isr_status |= spec.VIRTIO_PCI_ISR_QUEUE
        return effects | self.request_interrupt(self.isr_status != 0)

    def next_deadline_ns(self) -> int | None:
        """The device's next deadline in absolute guest time."""
        return self.device.next_deadline_ns()

    def advance(self, now_ns: int) -> Effects:
        """Let the device do what is due."""
        return self.signal(self.device.advance(now_ns))

    def reset(self) -> Effects:
        """Reset the function and the device behind it."""
        self.device.reset()
        self._dma_enabled = False
        self.device.set_dma_enabled(False, 0)
        self._forget_driver()
        return super().reset() | Effects(deadline=True)

    # -- PciFunction's hooks -------------------------------------------------------------------------------------------

    def command_changed(self, now_ns: int) -> Effects:
        """Without bus mastering the device touches no memory (PCI 3.0 §6.2.2)."""
        if self.bus_master == self._dma_enabled:
            return NOTHING
        self._dma_enabled = self.bus_master
        return self.signal(self.device.set_dma_enabled(self.bus_master, now_ns))

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
            return self._notify(inside, size, now_ns)
        if structure == COMMON:
            return COMMON_CFG.write(self, inside, size, value, now_ns)
        size = min(size, self.device.config_size - inside)
        if structure == DEVICE and size > 0:
            return self.signal(self.device.write_config(inside, size, value & (1 << 8 * size) - 1, now_ns))
        return NOTHING

    def _notify(self, inside: int, size: int, now_ns: int) -> Effects:
        """§4.1.5.2: notify each queue both of whose bytes are among the `size` at `inside`."""
        effects = NOTHING
        first, last = -(-inside // NOTIFY_OFF_MULTIPLIER), (inside + size - 2) // NOTIFY_OFF_MULTIPLIER
        for queue in range(first, last + 1):  # the device knows which of them it has
            effects |= self.signal(self.device.notify(queue, now_ns))
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
        return _feature_word(self.device.device_features, self.device_feature_select)

    @property
    def driver_feature(self) -> int:
        return _feature_word(self.device.driver_features, self.driver_feature_select)

    def write_driver_feature(self, value: int, now_ns: int) -> Effects:
        if self.driver_feature_select < 2:
            shift = 32 * self.driver_feature_select
            kept = self.device.driver_features & ~(0xFFFFFFFF << shift)
            self.device.write_driver_features(kept | value << shift)
        return NOTHING

    def write_config_msix_vector(self, value: int, now_ns: int) -> Effects:
        self.config_msix_vector = self._valid_vector(value)
        return NOTHING

    def _valid_vector(self, value: int) -> int:
        """§4.1.5.1.2.1: a vector that cannot be mapped reads back as NO_VECTOR."""
        return value if value < self.table.vectors else spec.VIRTIO_MSI_NO_VECTOR

    @property
    def num_queues(self) -> int:
        return len(self.device.queues)

    @property
    def device_status(self) -> int:
        return int(self.device.status)

    def write_device_status(self, value: int, now_ns: int) -> Effects:
        notifications = self.device.write_status(value, now_ns)
        if value == 0:
            self._forget_driver()
        return self.signal(notifications)

    @property
    def config_generation(self) -> int:
        return self.device.config_generation

    def read_isr_status(self, now_ns: int) -> tuple[int, Effects]:
        """§4.1.4.5: reading clears it and takes the interrupt back."""
        value, self.isr_status = self.isr_status, 0
        return value, self.request_interrupt(False)

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

    def write_queue_size(self, value: int, now_ns: int) -> Effects:
        return self._write_queue("size", value, now_ns)

    @property
    def queue_msix_vector(self) -> int:
        return self.queue_vectors[self.queue_select] if self._queue() is not None else spec.VIRTIO_MSI_NO_VECTOR

    def write_queue_msix_vector(self, value: int, now_ns: int) -> Effects:
        if self._queue() is not None:
            self.queue_vectors[self.queue_select] = self._valid_vector(value)
        return NOTHING

    @property
    def queue_enable(self) -> int:
        queue = self._queue()
        return int(queue.enabled) if queue is not None else 0

    def write_queue_enable(self, value: int, now_ns: int) -> Effects:
        """Only 1 means anything: the driver must not write 0 (§4.1.4.3.2)."""
        return self._write_queue("enabled", 1, now_ns) if value == 1 else NOTHING

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
