"""The legacy virtio PCI interface from the driver's side (§4.1.4.10): registers in the I/O space of BAR 0.

Everything goes through the bus a real driver would use.  As drivers of that time did, it writes and reads the device's
configuration byte by byte, from wherever it stands: with MSI-X enabled it begins four bytes later.
"""

from __future__ import annotations

from devices.virtio import spec
from vmm.testing.pci import COMMAND_IO, COMMAND_MASTER, COMMAND_MEMORY, Function, Msix, PciBus
from vmm.testing.pci_interrupts import CONFIG_VECTOR, Kind, PciInterrupts
from vmm.testing.protocols import Bus, Interrupts, Memory, PageSource
from vmm.testing.virtio_pci import virtio_device_id, virtio_functions

LEGACY_BAR = 0
HEADER_BYTES, HEADER_BYTES_WITH_MSIX = 20, 24
MOST_QUEUES = 16
"""No register says how many queues there are: the size of each is asked for, and further than this no driver looks."""


class LegacyPciTransport:
    """A `Transport` over legacy virtio-pci; bus mastering is left to the device, as by Linux before 2.6.34.

    BARs are assigned first if no firmware did it.  `interrupts` is "msix", "intx" or "none"; `pages` feeds the rings.
    """

    legacy_align = spec.VIRTIO_LEGACY_QUEUE_ALIGN

    def __init__(self, bus: Bus, function: Function, pages: PageSource, interrupts: Kind = "msix") -> None:
        self.bus = bus
        self.function = function
        self.pages = pages
        self.interrupts = interrupts
        if not function.command & COMMAND_IO:
            PciBus(bus).assign_bars()
        function.command = function.command & ~COMMAND_MASTER | COMMAND_IO | COMMAND_MEMORY
        self.bar_addresses = {bar.number: bar.address for bar in function.bars()}
        self.msix = Msix.of(function, self.bar_addresses.__getitem__)
        self._interrupts = PciInterrupts(function, self.msix, interrupts)

    @classmethod
    def find(cls, bus: Bus, virtio_device_id: int, pages: PageSource, interrupts: Kind = "msix") -> LegacyPciTransport:
        """The first function of that virtio device type on bus 0 that has the legacy interface: it is of revision 0
        (§4.1.2.3)."""
        for function in virtio_functions(bus, virtio_device_id):
            if function.device_id < spec.VIRTIO_PCI_MODERN_DEVICE_BASE:
                return cls(bus, function, pages, interrupts)
        raise LookupError(f"no virtio device of type {virtio_device_id} with a legacy interface on bus 0")

    @property
    def memory(self) -> Memory:
        return self.bus.memory

    @property
    def device_id(self) -> int:
        return virtio_device_id(self.function)

    # -- the registers -------------------------------------------------------------------------------------------------

    def port(self, field: str) -> int:
        """The port of a register by its name in `spec.virtio_pci_legacy`."""
        offset: int = spec.virtio_pci_legacy.fields[field][1]  # type: ignore[index]
        return self.bar_addresses[LEGACY_BAR] + offset

    def read_register(self, field: str) -> int:
        return self.bus.port_read(self.port(field), spec.virtio_pci_legacy[field].itemsize)

    def write_register(self, field: str, value: int) -> None:
        self.bus.port_write(self.port(field), spec.virtio_pci_legacy[field].itemsize, value)

    @property
    def config_port(self) -> int:
        """Where the device's configuration begins now."""
        enabled = self.msix is not None and self.msix.enabled
        return self.bar_addresses[LEGACY_BAR] + (HEADER_BYTES_WITH_MSIX if enabled else HEADER_BYTES)

    # -- Transport -----------------------------------------------------------------------------------------------------

    @property
    def num_queues(self) -> int:
        return max((index + 1 for index in range(MOST_QUEUES) if self.queue_max_size(index)), default=0)

    def read_status(self) -> int:
        return self.read_register("device_status")

    def write_status(self, value: int) -> None:
        self.write_register("device_status", value)

    def read_device_features(self) -> int:
        return self.read_register("device_features")

    def read_driver_features(self) -> int:
        return self.read_register("driver_features")

    def write_driver_features(self, value: int) -> None:
        self.write_register("driver_features", value & 0xFFFF_FFFF)

    def read_config_generation(self) -> int:
        return 0

    def read_config(self, offset: int, size: int) -> int:
        return sum(self.bus.port_read(self.config_port + offset + i, 1) << 8 * i for i in range(size))

    def write_config(self, offset: int, size: int, value: int) -> None:
        for i in range(size):
            self.bus.port_write(self.config_port + offset + i, 1, value >> 8 * i & 0xFF)

    def queue_max_size(self, index: int) -> int:
        self.write_register("queue_select", index)
        return self.read_register("queue_size")

    def set_up_queue(self, index: int, size: int, desc_gpa: int, driver_gpa: int, device_gpa: int) -> None:
        """The parts are where §2.7.2 says; the size cannot be chosen (§4.1.5.1.3.1)."""
        self.write_register("queue_select", index)
        if self.read_register("queue_size") != size:
            raise ValueError(f"a legacy queue has the device's size, not {size}")
        if self.interrupts == "msix":
            self._map_vector("queue_msix_vector", self._interrupts.queue_vector(index))
        self.write_register("queue_address", desc_gpa // self.legacy_align)

    def queue_enabled(self, index: int) -> bool:
        self.write_register("queue_select", index)
        return self.read_register("queue_address") != 0

    def reset_queue(self, index: int) -> None:
        """A single queue cannot be reset through this interface: RuntimeError."""
        raise RuntimeError(f"{self.function.name}: a legacy device has no queue_reset")

    def notify(self, index: int, data: int | None = None) -> None:
        self.write_register("queue_notify", index)

    # -- interrupts ----------------------------------------------------------------------------------------------------

    def map_interrupts(self) -> None:
        """Map the configuration change to its vector; a reset undid it."""
        if self.interrupts == "msix":
            self._map_vector("config_msix_vector", CONFIG_VECTOR)

    def _map_vector(self, field: str, vector: int) -> None:
        self.write_register(field, vector)
        if self.read_register(field) != vector:
            raise RuntimeError(f"{self.function.name}: {field} did not take vector {vector} (§4.1.5.1.2.2)")

    def read_isr(self) -> int:
        """The ISR status, which reading clears."""
        return self.read_register("isr_status")

    def take_interrupts(self) -> Interrupts:
        """What arrived since the last call.  Over INTx the ISR is read only while the line is asserted."""
        return self._interrupts.take(self.num_queues if self.interrupts == "msix" else 0, self.read_isr)
