"""A virtio driver for any device type: initialisation in the order of §3.1.1, queues, configuration, interrupts.

Over a legacy interface it is a transitional driver (§3.1.2): 32 feature bits and no FEATURES_OK, queues in one piece
each, and a configuration without a generation.

It behaves as the specification asks a driver to; `vmm.testing.raw` is the way to misbehave.  Everything it does to the
device goes through a `Transport`, so the same test drives a device directly and over PCI.

    driver = Driver(transport)
    driver.start()
    head = driver.offer(readable=[b"..."], writable=[64])
    driver.kick()
    (used,) = driver.collect()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from devices.virtio import spec
from devices.virtio.spec import Status
from vmm.testing.packed_ring import PackedQueue
from vmm.testing.protocols import Interrupts, Memory, PageSource, Transport
from vmm.testing.ring import DeviceViolation, Queue, Readable, SplitQueue, Used, Writable

EVENT_IDX = 1 << spec.VIRTIO_F_EVENT_IDX
INDIRECT_DESC = 1 << spec.VIRTIO_F_INDIRECT_DESC
VERSION_1 = 1 << spec.VIRTIO_F_VERSION_1
ANY_LAYOUT = 1 << spec.VIRTIO_F_ANY_LAYOUT
RING_PACKED = 1 << spec.VIRTIO_F_RING_PACKED
IN_ORDER = 1 << spec.VIRTIO_F_IN_ORDER
NOTIFICATION_DATA = 1 << spec.VIRTIO_F_NOTIFICATION_DATA
RING_RESET = 1 << spec.VIRTIO_F_RING_RESET

_CONFIG_ATTEMPTS = 16


class FeaturesRefused(RuntimeError):
    """The device did not keep FEATURES_OK (§3.1.1 step 6); the message names the set that was tried."""


class Driver:
    """The driver of one device.  `supported` is the mask of features that it understands.

    `processor` is the byte order of the processor that it plays, `order` the one in which it writes rings and payloads:
    the same on a legacy interface, little-endian on a modern one (§2.7.3)."""

    supported = (
        EVENT_IDX | INDIRECT_DESC | VERSION_1 | ANY_LAYOUT | RING_PACKED | IN_ORDER | NOTIFICATION_DATA | RING_RESET
    )

    def __init__(self, transport: Transport, *, processor: spec.ByteOrder = "<") -> None:
        self.transport = transport
        self.order: spec.ByteOrder = processor if self.is_legacy else "<"
        self.features = 0
        self.queues: dict[int, Queue[Any]] = {}

    @property
    def memory(self) -> Memory:
        return self.transport.memory

    @property
    def pages(self) -> PageSource:
        return self.transport.pages

    @property
    def is_legacy(self) -> bool:
        """Whether the device is reached through a legacy interface."""
        return self.transport.legacy_align > 0

    @property
    def status(self) -> Status:
        return Status(self.transport.read_status())

    @property
    def needs_reset(self) -> bool:
        return Status.DEVICE_NEEDS_RESET in self.status

    # -- initialisation ------------------------------------------------------------------------------------------------

    def start(self, features: int | None = None, queue_sizes: int | Mapping[int, int] | None = None) -> None:
        """All of §3.1.1: reset, acknowledge, negotiate, set up every queue, DRIVER_OK.

        `features` is the set to accept, by default all that are offered and supported; `queue_sizes` as for
        `set_up_queues`.  FeaturesRefused when the device does not agree."""
        self.reset()
        self.acknowledge()
        self.negotiate(features)
        self.set_up_queues(queue_sizes)
        self.driver_ok()

    def reset(self) -> None:
        """Write 0 and wait until it reads back (§4.1.4.3.2); every queue is forgotten."""
        self.transport.write_status(0)
        if self.transport.read_status() != 0:
            raise DeviceViolation(f"the status after a reset is {self.transport.read_status():#x}, not 0 (§2.4.1)")
        for queue in self.queues.values():
            queue.release()
        self.queues = {}
        self.features = 0

    def acknowledge(self) -> None:
        """Steps 2 and 3: the device was noticed, and there is a driver for it."""
        self.add_status(Status.ACKNOWLEDGE)
        self.add_status(Status.DRIVER)

    def negotiate(self, features: int | None = None) -> None:
        """Steps 4 to 6: accept features and see whether the device keeps FEATURES_OK, which legacy ones do not know."""
        if features is None:
            features = self.transport.read_device_features() & self.supported
        self.transport.write_driver_features(features)
        if not self.is_legacy:
            self.add_status(Status.FEATURES_OK)
            if Status.FEATURES_OK not in self.status:
                raise FeaturesRefused(f"the device refused the features {features:#x}")
        self.features = features

    def set_up_queues(self, sizes: int | Mapping[int, int] | None = None) -> None:
        """Step 7: rings for every queue the device has.

        `sizes` is one size for all, or one per index; by default, and at most, what the device offers."""
        self.transport.map_interrupts()
        for index in range(self.transport.num_queues):
            largest = self.transport.queue_max_size(index)
            if largest and self.has_queue(index):
                wanted = sizes.get(index, largest) if isinstance(sizes, Mapping) else sizes or largest
                self.set_up_queue(index, min(wanted, largest))

    def has_queue(self, index: int) -> bool:
        """Whether the negotiated features leave queue `index` in existence; a device type may say otherwise."""
        return True

    def set_up_queue(self, index: int, size: int) -> Queue[Any]:
        """Rings of `size` entries for one queue, known to the device and enabled."""
        make: type[Queue[Any]] = PackedQueue if self.features & RING_PACKED else SplitQueue
        event_idx, indirect = bool(self.features & EVENT_IDX), bool(self.features & INDIRECT_DESC)
        in_order, align = bool(self.features & IN_ORDER), self.transport.legacy_align
        queue = make(
            self.memory,
            self.pages,
            index,
            size,
            event_idx=event_idx,
            indirect=indirect,
            in_order=in_order,
            legacy_align=align,
            order=self.order,
        )
        place = queue.layout
        self.transport.set_up_queue(index, size, place.desc_gpa, place.driver_gpa, place.device_gpa)
        if not self.transport.queue_enabled(index):
            raise DeviceViolation(f"queue {index} did not become enabled (§4.1.4.3)")
        self.queues[index] = queue
        return queue

    def reset_queue(self, index: int) -> None:
        """§2.6.1, with RING_RESET: one queue is forgotten, with what is in flight; `set_up_queue` makes a new one."""
        self.transport.reset_queue(index)
        if self.transport.queue_enabled(index):
            raise DeviceViolation(f"queue {index} is enabled after its reset (§4.1.4.3.1)")
        self.queues.pop(index).release()

    def driver_ok(self) -> None:
        """Step 8: the device is live."""
        self.add_status(Status.DRIVER_OK)

    def add_status(self, bits: int) -> None:
        """Set bits of the device status; a driver never clears one but by a reset (§2.1.1)."""
        self.transport.write_status(self.transport.read_status() | bits)

    # -- buffers -------------------------------------------------------------------------------------------------------

    def offer(
        self,
        queue: int = 0,
        *,
        readable: Sequence[Readable] = (),
        writable: Sequence[Writable] = (),
        indirect: bool | None = None,
    ) -> int:
        """Place one buffer in a queue (see `SplitQueue.offer`); `kick` makes it visible.  Its head is returned."""
        return self.queues[queue].offer(readable, writable, indirect=indirect)

    def kick(self, queue: int = 0, *, force: bool = False) -> bool:
        """Publish what was offered and notify the device if it wants to be (always with `force`); whether it was."""
        self.queues[queue].publish()
        wanted = self.queues[queue].must_notify()
        if wanted or force:
            self.notify(queue)
        return wanted or force

    def notify(self, queue: int) -> None:
        """Notify the device (§2.9), with data where that was negotiated."""
        if self.features & NOTIFICATION_DATA:
            self.transport.notify(queue, queue | self.queues[queue].notification_data() << 16)
        else:
            self.transport.notify(queue)

    def collect(self, queue: int = 0) -> list[Used]:
        """The buffers that came back since the last call."""
        return self.queues[queue].collect()

    def transfer(
        self,
        queue: int = 0,
        *,
        readable: Sequence[Readable] = (),
        writable: Sequence[Writable] = (),
        indirect: bool | None = None,
    ) -> list[Used]:
        """Offer one buffer, kick, collect."""
        self.offer(queue, readable=readable, writable=writable, indirect=indirect)
        self.kick(queue)
        return self.collect(queue)

    # -- configuration and interrupts ----------------------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> int:
        """`size` bytes of device configuration as one value that was true at one moment (§2.5.1: generation retry; a
        legacy driver reads until it gets the same twice, §2.5.4)."""
        for _ in range(_CONFIG_ATTEMPTS):
            before = self.transport.read_config_generation()
            value = self._read_config_once(offset, size)
            still = self.transport.read_config_generation() == before
            if still and (not self.is_legacy or self._read_config_once(offset, size) == value):
                return value
        raise DeviceViolation(f"config_generation never stood still over {_CONFIG_ATTEMPTS} reads (§2.5.3)")

    def _read_config_once(self, offset: int, size: int) -> int:
        step = min(size, 4)
        return sum(self.transport.read_config(offset + i, step) << 8 * i for i in range(0, size, step))

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.transport.write_config(offset, size, value)

    def take_interrupts(self) -> Interrupts:
        """What arrived since the last call."""
        return self.transport.take_interrupts()
