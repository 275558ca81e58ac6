"""What the driver library asks of the world around it, as protocols, so that it depends on none of it.

`Memory` is guest RAM as the driver's CPU sees it.  `Bus` is a CPU's view of a board: ports, memory-mapped registers,
RAM, and a way to hear interrupt messages and lines; the machine, a bench without a CPU or a remote device can all be
one.  `VirtioDevice` is a device without any transport, for the direct way in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol


class Memory(Protocol):
    """Guest RAM.  Addresses are guest-physical; an access that is not all RAM raises."""

    def read(self, gpa: int, length: int) -> bytes: ...

    def write(self, gpa: int, data: bytes) -> None: ...


class Bus(Protocol):
    """A board as a program running on it sees it.  Sizes are 1, 2 or 4 bytes, values unsigned and little-endian."""

    @property
    def memory(self) -> Memory: ...

    def port_read(self, port: int, size: int) -> int: ...

    def port_write(self, port: int, size: int, value: int) -> None: ...

    def mmio_read(self, gpa: int, size: int) -> int: ...

    def mmio_write(self, gpa: int, size: int, value: int) -> None: ...

    def listen(self, address: int, callback: Callable[[int], None]) -> None:
        """Call `callback(data)` for every interrupt message written to `address` from now on."""
        ...

    def line_level(self, name: str) -> bool:
        """The level of the interrupt line `name` now."""
        ...


class NotificationsLike(Protocol):
    """What a device wants its driver to hear: queue indices with used buffers, and a configuration change."""

    @property
    def queues(self) -> Sequence[int]: ...

    @property
    def config(self) -> bool: ...

    @property
    def events(self) -> Sequence[EventLike]: ...


class EventLike(Protocol):
    """Something a watcher may want to know: who, a stable word, a sentence."""

    @property
    def source(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def text(self) -> str: ...


class QueueLike(Protocol):
    """A device's view of one virtqueue, as its transport shows it."""

    @property
    def max_size(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def enabled(self) -> bool | int: ...


class VirtioDevice(Protocol):
    """A virtio device without a transport."""

    @property
    def device_id(self) -> int: ...

    @property
    def modern_features(self) -> int: ...

    @property
    def driver_features(self) -> int: ...

    @property
    def status(self) -> int: ...

    @property
    def config_generation(self) -> int: ...

    @property
    def config_size(self) -> int: ...

    @property
    def queues(self) -> Sequence[QueueLike]: ...

    def write_driver_features(self, value: int) -> None: ...

    def write_status(self, value: int, now_ns: int) -> NotificationsLike: ...

    def write_queue(self, index: int, field: str, value: int, now_ns: int) -> NotificationsLike: ...

    def has_queue(self, queue: Any) -> bool: ...

    def notify(self, index: int, now_ns: int, data: int | None = None) -> NotificationsLike: ...

    def read_config(self, offset: int, size: int) -> int: ...

    def write_config(self, offset: int, size: int, value: int, now_ns: int) -> NotificationsLike: ...

    def set_dma_enabled(self, enabled: bool, now_ns: int) -> NotificationsLike: ...


ANY_QUEUE = -1


class Interrupts(NamedTuple):
    """What arrived since the last look.  `used` maps a queue's index to the number of its used-buffer notifications,
    `config` counts configuration-change notifications.  INTx tells less: there each kind counts once however often it
    was raised, and ANY_QUEUE stands for whichever queue it was."""

    used: dict[int, int]
    config: int

    def for_queue(self, index: int) -> int:
        """How many notifications may have been for queue `index`."""
        return self.used.get(index, 0) + self.used.get(ANY_QUEUE, 0)


class Transport(Protocol):
    """How a driver reaches its device (§4): the operations that every transport has."""

    @property
    def memory(self) -> Memory: ...

    @property
    def pages(self) -> PageSource: ...

    @property
    def device_id(self) -> int: ...

    @property
    def legacy_align(self) -> int:
        """0 for a modern interface; for a legacy one the alignment of a queue and of the used ring in it (§2.7.2)."""
        ...

    @property
    def num_queues(self) -> int: ...

    def read_status(self) -> int: ...

    def write_status(self, value: int) -> None: ...

    def read_device_features(self) -> int: ...

    def read_driver_features(self) -> int: ...

    def write_driver_features(self, value: int) -> None: ...

    def read_config_generation(self) -> int:
        """0 where the interface has none."""
        ...

    def read_config(self, offset: int, size: int) -> int: ...

    def write_config(self, offset: int, size: int, value: int) -> None: ...

    def map_interrupts(self) -> None:
        """Say, after a reset, where interrupts are to go."""
        ...

    def queue_max_size(self, index: int) -> int: ...

    def set_up_queue(self, index: int, size: int, desc_gpa: int, driver_gpa: int, device_gpa: int) -> None: ...

    def queue_enabled(self, index: int) -> bool: ...

    def reset_queue(self, index: int) -> None:
        """Reset one queue (§2.6.1) and wait until that is done."""
        ...

    def notify(self, index: int, data: int | None = None) -> None:
        """Notify queue `index`; `data` are the 32 bits of NOTIFICATION_DATA (§2.9), where that was negotiated."""
        ...

    def take_interrupts(self) -> Interrupts: ...


class PageSource(Protocol):
    """Where a driver takes whole 4096-byte pages of guest RAM from."""

    def take(self, count: int = 1) -> int:
        """The guest-physical address of `count` consecutive free pages; OutOfPages when there are none."""
        ...

    def give(self, gpa: int, count: int = 1) -> None: ...
