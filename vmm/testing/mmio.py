"""The virtio-mmio transport from the driver's side (§4.2), version 2 and the legacy version 1.

There is nothing to find: a driver is told where the registers are and which line is theirs.  All registers are read and
written with 32 bits, as §4.2.2.2 asks.
"""

from __future__ import annotations

from devices.virtio import spec
from vmm.testing.protocols import ANY_QUEUE, Bus, Interrupts, Memory, PageSource

MOST_QUEUES = 16
"""No register says how many queues there are: the size of each is asked for, and further than this no driver looks."""


class MmioTransport:
    """A `Transport` over virtio-mmio version 2 at `base`, whose interrupt is the line `line`.

    RuntimeError where no such device is (§4.2.2.2: magic value and version)."""

    VERSION = spec.VIRTIO_MMIO_VERSION
    legacy_align = 0

    def __init__(self, bus: Bus, base: int, line: str, pages: PageSource) -> None:
        self.bus = bus
        self.base = base
        self.line = line
        self.pages = pages
        self._accepted = 0
        found = self.read("MagicValue"), self.read("Version")
        if found != (spec.VIRTIO_MMIO_MAGIC, self.VERSION):
            raise RuntimeError(f"no virtio-mmio device of version {self.VERSION} at {base:#x}: {found}")

    @property
    def memory(self) -> Memory:
        return self.bus.memory

    def read(self, register: str) -> int:
        """A register by its name in §4.2.2."""
        return self.bus.mmio_read(self.base + spec.VIRTIO_MMIO_REGISTERS[register], 4)

    def write(self, register: str, value: int) -> None:
        self.bus.mmio_write(self.base + spec.VIRTIO_MMIO_REGISTERS[register], 4, value)

    # -- Transport -----------------------------------------------------------------------------------------------------

    @property
    def device_id(self) -> int:
        return self.read("DeviceID")

    @property
    def num_queues(self) -> int:
        return max((index + 1 for index in range(MOST_QUEUES) if self.queue_max_size(index)), default=0)

    def read_status(self) -> int:
        return self.read("Status")

    def write_status(self, value: int) -> None:
        self.write("Status", value)

    def read_device_features(self) -> int:
        value = 0
        for half in (0, 1):
            self.write("DeviceFeaturesSel", half)
            value |= self.read("DeviceFeatures") << 32 * half
        return value

    def write_driver_features(self, value: int) -> None:
        for half in (0, 1):
            self.write("DriverFeaturesSel", half)
            self.write("DriverFeatures", value >> 32 * half & 0xFFFF_FFFF)
        self._accepted = value

    def read_driver_features(self) -> int:
        """What was written last: the register cannot be read."""
        return self._accepted

    def read_config_generation(self) -> int:
        return self.read("ConfigGeneration")

    def read_config(self, offset: int, size: int) -> int:
        return self.bus.mmio_read(self.base + spec.VIRTIO_MMIO_CONFIG + offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.bus.mmio_write(self.base + spec.VIRTIO_MMIO_CONFIG + offset, size, value)

    def queue_max_size(self, index: int) -> int:
        self.write("QueueSel", index)
        return self.read("QueueSizeMax")

    def set_up_queue(self, index: int, size: int, desc_gpa: int, driver_gpa: int, device_gpa: int) -> None:
        self.write("QueueSel", index)
        self.write("QueueSize", size)
        for part, gpa in (("QueueDesc", desc_gpa), ("QueueDriver", driver_gpa), ("QueueDevice", device_gpa)):
            self.write(part + "Low", gpa & 0xFFFF_FFFF)
            self.write(part + "High", gpa >> 32)
        self.write("QueueReady", 1)

    def queue_enabled(self, index: int) -> bool:
        self.write("QueueSel", index)
        return self.read("QueueReady") == 1

    def reset_queue(self, index: int) -> None:
        """§4.2.2.2: write 1, then wait until QueueReset reads back 0."""
        self.write("QueueSel", index)
        self.write("QueueReset", 1)
        if self.read("QueueReset"):
            raise RuntimeError(f"the reset of queue {index} at {self.base:#x} does not end (§4.2.2.1)")

    def notify(self, index: int, data: int | None = None) -> None:
        self.write("QueueNotify", index if data is None else data)

    # -- interrupts ----------------------------------------------------------------------------------------------------

    def map_interrupts(self) -> None:
        """Nothing to do: there is one line."""

    def take_interrupts(self) -> Interrupts:
        """What arrived since the last call; it is acknowledged (§4.2.3.4).  Looked at only while the line is high."""
        if not self.bus.line_level(self.line):
            return Interrupts({}, 0)
        status = self.read("InterruptStatus")
        self.write("InterruptACK", status)
        queues = {ANY_QUEUE: 1} if status & spec.VIRTIO_MMIO_INT_VRING else {}
        return Interrupts(queues, int(bool(status & spec.VIRTIO_MMIO_INT_CONFIG)))


class LegacyMmioTransport(MmioTransport):
    """The same over version 1 (§4.2.4), with pages of `page_bytes` and `legacy_align` as QueueAlign."""

    VERSION = spec.VIRTIO_MMIO_LEGACY_VERSION

    def __init__(
        self, bus: Bus, base: int, line: str, pages: PageSource, *, page_bytes: int = 4096, legacy_align: int = 4096
    ) -> None:
        super().__init__(bus, base, line, pages)
        self.page_bytes = page_bytes
        self.legacy_align = legacy_align

    def read_config_generation(self) -> int:
        return 0

    def read_device_features(self) -> int:
        self.write("DeviceFeaturesSel", 0)
        return self.read("DeviceFeatures")

    def write_driver_features(self, value: int) -> None:
        self.write("DriverFeaturesSel", 0)
        self.write("DriverFeatures", value & 0xFFFF_FFFF)
        self._accepted = value & 0xFFFF_FFFF

    def set_up_queue(self, index: int, size: int, desc_gpa: int, driver_gpa: int, device_gpa: int) -> None:
        """The parts are where §2.7.2 says."""
        self.write("GuestPageSize", self.page_bytes)
        self.write("QueueSel", index)
        self.write("QueueSize", size)
        self.write("QueueAlign", self.legacy_align)
        self.write("QueuePFN", desc_gpa // self.page_bytes)

    def queue_enabled(self, index: int) -> bool:
        self.write("QueueSel", index)
        return self.read("QueuePFN") != 0
