"""A device that only remembers what the transport asked of it, and a driver's hands on the function that carries it.

The transport knows no concrete device, so neither do its tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from devices.effects import Effects
from devices.virtio import spec
from devices.virtio.device import NO_NOTIFICATIONS, Notifications, VirtioDevice
from devices.virtio.transport.pci_modern import VirtioPciModern

COMMAND, STATUS = 0x04, 0x06
MEMORY, MASTER, INTX_DISABLE = 0x002, 0x004, 0x400
INTERRUPT_STATUS = 0x08
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
NO_VECTOR = 0xFFFF
SLOT = 3
LINE = "00:03.0 INTA"


@dataclass
class RecordingQueue:
    max_size: int = 256
    size: int = 256
    enabled: bool = False
    desc_gpa: int = 0
    driver_gpa: int = 0
    device_gpa: int = 0
    exists: bool = True


class RecordingDevice:
    """The contract of a virtio device and nothing behind it: takes all it is told, answers `answer` to everything."""

    def __init__(self, *, queues: int = 3, config_size: int = 14) -> None:
        self.name = "recorder0"
        self.device_id = 5
        self.device_features = 0x8000_0000_1234_5678
        self.config_size = config_size
        self.queue_count = queues
        self.calls: list[tuple[object, ...]] = []
        self.notified_data: list[int | None] = []
        self.looked_for: list[int] = []
        self.answer: Notifications = NO_NOTIFICATIONS
        self.deadline_ns: int | None = None
        self.dma_enabled = True
        self.reset()

    def reset(self) -> None:
        self.driver_features = 0
        self.status = 0
        self.config_generation = 0
        self.queues = [RecordingQueue() for _ in range(self.queue_count)]
        self.config = bytearray(range(0x40, 0x40 + self.config_size))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RecordingDevice):
            return False
        heard: dict[str, object] = {"calls": [], "notified_data": [], "looked_for": []}
        return {**vars(self), **heard} == {**vars(other), **heard}

    @property
    def modern_features(self) -> int:
        return self.device_features

    def _record(self, *call: object) -> Notifications:
        self.calls.append(call)
        return self.answer

    def write_driver_features(self, value: int) -> None:
        self.driver_features = value

    def write_status(self, value: int, now_ns: int) -> Notifications:
        if value == 0:
            self.reset()
        self.status = value
        return self._record("status", value, now_ns)

    def write_queue(self, index: int, field: str, value: int, now_ns: int) -> Notifications:
        if index < len(self.queues):
            setattr(self.queues[index], field, value)
        return self._record("queue", index, field, value, now_ns)

    def has_queue(self, queue: RecordingQueue) -> bool:
        return queue.exists

    def queue_looked_for(self, index: int) -> None:
        self.looked_for.append(index)

    def notify(self, index: int, now_ns: int, data: int | None = None) -> Notifications:
        self.notified_data.append(data)
        return self._record("notify", index, now_ns)

    def read_config(self, offset: int, size: int) -> int:
        assert offset >= 0 and size > 0 and offset + size <= self.config_size
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int, now_ns: int) -> Notifications:
        assert offset >= 0 and size > 0 and offset + size <= self.config_size
        self.config[offset : offset + size] = value.to_bytes(size, "little")
        return self._record("config", offset, size, value, now_ns)

    def set_dma_enabled(self, enabled: bool, now_ns: int) -> Notifications:
        self.dma_enabled = enabled
        return self._record("dma", enabled, now_ns)

    def next_deadline_ns(self) -> int | None:
        return self.deadline_ns

    def advance(self, now_ns: int) -> Notifications:
        return self._record("advance", now_ns)


class Rig:
    """A recording device in the transport, without any bus: `read` and `write` reach BAR 4."""

    def __init__(self, *, queues: int = 3, config_size: int = 14) -> None:
        self.device = RecordingDevice(queues=queues, config_size=config_size)
        self.function = VirtioPciModern(cast(VirtioDevice, self.device), SLOT)
        self.device.calls.clear()

    def read(self, offset: int, size: int) -> int:
        return self.read_with_effects(offset, size)[0]

    def read_with_effects(self, offset: int, size: int) -> tuple[int, Effects]:
        return self.function.access_read(4, offset, size, 0)

    def write(self, offset: int, size: int, value: int, now_ns: int = 0) -> Effects:
        return self.function.access_write(4, offset, size, value, now_ns)

    def get(self, field: str) -> int:
        """A field of the common configuration in its own width, 64-bit ones in two halves."""
        offset, size = place(field)
        if size == 8:
            return self.read(offset, 4) | self.read(offset + 4, 4) << 32
        return self.read(offset, size)

    def set(self, field: str, value: int, now_ns: int = 0) -> Effects:
        offset, size = place(field)
        if size == 8:
            low = self.write(offset, 4, value & 0xFFFFFFFF, now_ns)
            return low | self.write(offset + 4, 4, value >> 32, now_ns)
        return self.write(offset, size, value, now_ns)

    def config(self, offset: int, size: int) -> int:
        return self.function.read_config(offset, size, 0)[0]

    def set_config(self, offset: int, size: int, value: int, now_ns: int = 0) -> Effects:
        return self.function.write_config(offset, size, value, now_ns)

    def capabilities(self) -> dict[int, int]:
        """cfg_type to position for every vendor-specific capability; MSI-X as 11h << 8."""
        found = {}
        position = self.config(0x34, 1)
        while position:
            identifier = self.config(position, 1)
            found[self.config(position + 3, 1) if identifier == spec.PCI_CAP_ID_VNDR else identifier << 8] = position
            position = self.config(position + 1, 1)
        return found

    def enable_msix(self, *, master: bool = True) -> None:
        """Point vector n at FEE0n000h with data 60h + n, unmask all, and turn MSI-X on."""
        for vector in range(self.function.table.vectors):
            self.function.access_write(1, 16 * vector, 8, 0xFEE00000 | vector << 12, 0)
            self.function.access_write(1, 16 * vector + 8, 8, 0x60 + vector, 0)
        self.set_config(self.capabilities()[0x1100] + 2, 2, 0x8000)
        if master:
            self.set_config(COMMAND, 2, MEMORY | MASTER)
        self.device.calls.clear()

    def map_vectors(self, *queue_vectors: int, config: int = NO_VECTOR) -> None:
        for index, vector in enumerate(queue_vectors):
            self.set("queue_select", index)
            self.set("queue_msix_vector", vector)
        self.set("config_msix_vector", config)


def place(field: str) -> tuple[int, int]:
    """Offset and size of a field, from the structure in §4.1.4.3."""
    offsets = {
        "device_feature_select": (0x00, 4),
        "device_feature": (0x04, 4),
        "driver_feature_select": (0x08, 4),
        "driver_feature": (0x0C, 4),
        "config_msix_vector": (0x10, 2),
        "num_queues": (0x12, 2),
        "device_status": (0x14, 1),
        "config_generation": (0x15, 1),
        "queue_select": (0x16, 2),
        "queue_size": (0x18, 2),
        "queue_msix_vector": (0x1A, 2),
        "queue_enable": (0x1C, 2),
        "queue_notify_off": (0x1E, 2),
        "queue_desc": (0x20, 8),
        "queue_driver": (0x28, 8),
        "queue_device": (0x30, 8),
        "queue_reset": (0x3A, 2),
    }
    return offsets[field]
