"""The direct way to a device: its contract methods, no transport and no bus between.

Everything the device asks for comes back by return value; this class remembers it until the driver looks.
"""

from __future__ import annotations

from collections import Counter

from vmm.testing.protocols import (
    EventLike,
    Interrupts,
    Memory,
    NotificationsLike,
    PageSource,
    VirtioDevice,
)


class DirectTransport:
    """A `Transport` that calls `device` itself.  `now_ns` is the guest time of the next call; set it freely.

    `events` collects what the device told its watchers."""

    legacy_align = 0

    def __init__(self, device: VirtioDevice, memory: Memory, pages: PageSource) -> None:
        self.device = device
        self.memory = memory
        self.pages = pages
        self.now_ns = 0
        self.events: list[EventLike] = []
        self._used: Counter[int] = Counter()
        self._config = 0
        self.deliver(device.set_dma_enabled(True, self.now_ns))

    def deliver(self, notifications: NotificationsLike) -> None:
        """Take in what a call (also one on the host's side) brought about."""
        self._used.update(notifications.queues)
        self._config += bool(notifications.config)
        self.events.extend(notifications.events)

    def take_interrupts(self) -> Interrupts:
        taken = Interrupts(dict(self._used), self._config)
        self._used, self._config = Counter(), 0
        return taken

    @property
    def device_id(self) -> int:
        return self.device.device_id

    @property
    def num_queues(self) -> int:
        return len(self.device.queues)

    def read_status(self) -> int:
        return self.device.status

    def write_status(self, value: int) -> None:
        self.deliver(self.device.write_status(value, self.now_ns))

    def read_device_features(self) -> int:
        return self.device.modern_features

    def read_driver_features(self) -> int:
        return self.device.driver_features

    def write_driver_features(self, value: int) -> None:
        self.device.write_driver_features(value)

    def read_config_generation(self) -> int:
        return self.device.config_generation

    def read_config(self, offset: int, size: int) -> int:
        return self.device.read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.deliver(self.device.write_config(offset, size, value, self.now_ns))

    def map_interrupts(self) -> None:
        """Nothing to do: notifications come back by return value."""

    def queue_max_size(self, index: int) -> int:
        """The size the device shows now: its maximum until a driver chose a smaller one, 0 if it is not there."""
        queue = self.device.queues[index]
        return queue.size if self.device.has_queue(queue) else 0

    def set_up_queue(self, index: int, size: int, desc_gpa: int, driver_gpa: int, device_gpa: int) -> None:
        for field, value in (
            ("size", size),
            ("desc_gpa", desc_gpa),
            ("driver_gpa", driver_gpa),
            ("device_gpa", device_gpa),
            ("enabled", 1),
        ):
            self.write_queue(index, field, value)

    def write_queue(self, index: int, field: str, value: int) -> None:
        """One field of one queue, in any order and with any value: for tests of the order and of wrong values."""
        self.deliver(self.device.write_queue(index, field, value, self.now_ns))

    def queue_enabled(self, index: int) -> bool:
        return bool(self.device.queues[index].enabled)

    def reset_queue(self, index: int) -> None:
        self.write_queue(index, "reset", 1)

    def notify(self, index: int, data: int | None = None) -> None:
        self.deliver(self.device.notify(index, self.now_ns, data))
