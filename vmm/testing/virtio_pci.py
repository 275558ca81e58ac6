"""The modern virtio PCI transport from the driver's side (§4.1): find the structures, then read and write them.

Everything goes through the bus a real driver would use, ports and memory-mapped accesses, and nothing else.  Interrupts
arrive as MSI-X messages (one vector for the configuration, one for each queue) or over the INTx line with the ISR.
"""

from __future__ import annotations

from typing import NamedTuple

from devices.virtio import spec
from vmm.testing.pci import COMMAND_MASTER, COMMAND_MEMORY, SUBSYSTEM_DEVICE_ID, Function, Msix, PciBus
from vmm.testing.pci_interrupts import CONFIG_VECTOR, Kind, PciInterrupts
from vmm.testing.protocols import Bus, Interrupts, Memory, PageSource

_RESET_ATTEMPTS = 1000


class Capability(NamedTuple):
    """A Virtio Structure PCI Capability (§4.1.4): where in configuration space it lies and where it points.

    `multiplier` is notify_off_multiplier, for VIRTIO_PCI_CAP_NOTIFY_CFG only."""

    position: int
    cap_len: int
    cfg_type: int
    bar: int
    id: int
    offset: int
    length: int
    multiplier: int


def virtio_capabilities(function: Function) -> list[Capability]:
    """Every vendor-specific capability of a virtio function, in list order."""
    found = []
    for capability_id, at in function.capabilities():
        if capability_id == spec.PCI_CAP_ID_VNDR:
            cap_len, cfg_type = function.read(at + 2, 1), function.read(at + 3, 1)
            multiplier = function.read(at + 16, 4) if cfg_type == spec.VIRTIO_PCI_CAP_NOTIFY_CFG else 0
            bar, identifier = function.read(at + 4, 1), function.read(at + 5, 1)
            place = function.read(at + 8, 4), function.read(at + 12, 4)
            found.append(Capability(at, cap_len, cfg_type, bar, identifier, *place, multiplier))
    return found


def virtio_device_id(function: Function) -> int:
    """The virtio device type (§4.1.2): in the device id of a modern function, in the subsystem's of a transitional."""
    number = function.device_id
    modern = number >= spec.VIRTIO_PCI_MODERN_DEVICE_BASE
    return number - spec.VIRTIO_PCI_MODERN_DEVICE_BASE if modern else function.read(SUBSYSTEM_DEVICE_ID, 2)


def virtio_functions(bus: Bus, device_id: int) -> list[Function]:
    """The virtio functions of that device type on bus 0, modern and transitional (§4.1.2: 1000h to 107fh)."""
    return [
        function
        for function in PciBus(bus).functions()
        if function.vendor_id == spec.VIRTIO_PCI_VENDOR_ID
        and 0x1000 <= function.device_id <= 0x107F
        and virtio_device_id(function) == device_id
    ]


class PciTransport:
    """A `Transport` over modern virtio-pci.

    BARs are assigned first if no firmware did it.  `interrupts` is "msix", "intx" or "none"; `pages` feeds the rings.
    """

    legacy_align = 0

    def __init__(self, bus: Bus, function: Function, pages: PageSource, interrupts: Kind = "msix") -> None:
        self.bus = bus
        self.function = function
        self.pages = pages
        self.interrupts = interrupts
        if not function.command & COMMAND_MEMORY:
            PciBus(bus).assign_bars()
        function.command |= COMMAND_MEMORY | COMMAND_MASTER
        self.bar_addresses = {bar.number: bar.address for bar in function.bars()}
        self.capabilities = virtio_capabilities(function)
        self.msix = Msix.of(function, self.bar_addresses.__getitem__)
        self._interrupts = PciInterrupts(function, self.msix, interrupts)

    @classmethod
    def find(
        cls,
        bus: Bus,
        virtio_device_id: int,
        pages: PageSource,
        interrupts: Kind = "msix",
    ) -> PciTransport:
        """The first function of that virtio device type on bus 0 that has the modern interface."""
        for function in virtio_functions(bus, virtio_device_id):
            if virtio_capabilities(function):
                return cls(bus, function, pages, interrupts)
        raise LookupError(f"no virtio device of type {virtio_device_id} with a modern interface on bus 0")

    @property
    def memory(self) -> Memory:
        return self.bus.memory

    @property
    def device_id(self) -> int:
        return virtio_device_id(self.function)

    # -- the structures ------------------------------------------------------------------------------------------------

    def capability(self, cfg_type: int) -> Capability:
        """The first capability of a type: a driver takes the first that it can use (§4.1.4.1)."""
        for capability in self.capabilities:
            if capability.cfg_type == cfg_type:
                return capability
        raise LookupError(f"{self.function.name} has no virtio capability of type {cfg_type}")

    def structure_gpa(self, cfg_type: int) -> int:
        """Where the structure of a type lies in memory space."""
        capability = self.capability(cfg_type)
        return self.bar_addresses[capability.bar] + capability.offset

    def common_gpa(self, field: str) -> int:
        offset: int = spec.virtio_pci_common_cfg.fields[field][1]  # type: ignore[index]
        return self.structure_gpa(spec.VIRTIO_PCI_CAP_COMMON_CFG) + offset

    def read_common(self, field: str) -> int:
        """A field of the common configuration (§4.1.4.3) by its name there; 64-bit fields in two halves."""
        gpa, size = self.common_gpa(field), spec.virtio_pci_common_cfg[field].itemsize
        if size == 8:
            return self.bus.mmio_read(gpa, 4) | self.bus.mmio_read(gpa + 4, 4) << 32
        return self.bus.mmio_read(gpa, size)

    def write_common(self, field: str, value: int) -> None:
        gpa, size = self.common_gpa(field), spec.virtio_pci_common_cfg[field].itemsize
        if size == 8:
            self.bus.mmio_write(gpa, 4, value & 0xFFFF_FFFF)
            self.bus.mmio_write(gpa + 4, 4, value >> 32)
        else:
            self.bus.mmio_write(gpa, size, value)

    # -- Transport -----------------------------------------------------------------------------------------------------

    @property
    def num_queues(self) -> int:
        return self.read_common("num_queues")

    def read_status(self) -> int:
        return self.read_common("device_status")

    def write_status(self, value: int) -> None:
        self.write_common("device_status", value)

    def read_device_features(self) -> int:
        return self._read_features("device")

    def read_driver_features(self) -> int:
        return self._read_features("driver")

    def _read_features(self, side: str) -> int:
        value = 0
        for half in (0, 1):
            self.write_common(side + "_feature_select", half)
            value |= self.read_common(side + "_feature") << 32 * half
        return value

    def write_driver_features(self, value: int) -> None:
        for half in (0, 1):
            self.write_common("driver_feature_select", half)
            self.write_common("driver_feature", value >> 32 * half & 0xFFFF_FFFF)

    def read_config_generation(self) -> int:
        return self.read_common("config_generation")

    def read_config(self, offset: int, size: int) -> int:
        return self.bus.mmio_read(self.structure_gpa(spec.VIRTIO_PCI_CAP_DEVICE_CFG) + offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.bus.mmio_write(self.structure_gpa(spec.VIRTIO_PCI_CAP_DEVICE_CFG) + offset, size, value)

    def queue_max_size(self, index: int) -> int:
        self.write_common("queue_select", index)
        return self.read_common("queue_size")

    def set_up_queue(self, index: int, size: int, desc_gpa: int, driver_gpa: int, device_gpa: int) -> None:
        self.write_common("queue_select", index)
        self.write_common("queue_size", size)
        if self.interrupts == "msix":
            self._map_vector("queue_msix_vector", self.queue_vector(index))
        self.write_common("queue_desc", desc_gpa)
        self.write_common("queue_driver", driver_gpa)
        self.write_common("queue_device", device_gpa)
        self.write_common("queue_enable", 1)

    def queue_enabled(self, index: int) -> bool:
        self.write_common("queue_select", index)
        return self.read_common("queue_enable") == 1

    def reset_queue(self, index: int) -> None:
        """§4.1.4.3.2: write 1, then wait until queue_reset reads back 0."""
        self.write_common("queue_select", index)
        self.write_common("queue_reset", 1)
        for _ in range(_RESET_ATTEMPTS):
            if self.read_common("queue_reset") == 0:
                return
        raise RuntimeError(f"{self.function.name}: the reset of queue {index} does not end (§4.1.4.3.1)")

    def notify(self, index: int, data: int | None = None) -> None:
        if data is None:
            self.bus.mmio_write(self.notify_gpa(index), 2, index)
        else:
            self.bus.mmio_write(self.notify_gpa(index), 4, data)

    def notify_gpa(self, index: int) -> int:
        """The Queue Notify address of a queue (§4.1.4.4)."""
        self.write_common("queue_select", index)
        multiplier = self.capability(spec.VIRTIO_PCI_CAP_NOTIFY_CFG).multiplier
        return self.structure_gpa(spec.VIRTIO_PCI_CAP_NOTIFY_CFG) + self.read_common("queue_notify_off") * multiplier

    # -- interrupts ----------------------------------------------------------------------------------------------------

    def queue_vector(self, index: int) -> int:
        """The vector of a queue: one each as far as the table reaches, the rest share the last."""
        return self._interrupts.queue_vector(index)

    def map_interrupts(self) -> None:
        """Map the configuration change to its vector; a reset undid it (§4.1.5.1.2).  Queues map theirs when set up."""
        if self.interrupts == "msix":
            self._map_vector("config_msix_vector", CONFIG_VECTOR)

    def _map_vector(self, field: str, vector: int) -> None:
        self.write_common(field, vector)
        if self.read_common(field) != vector:
            raise RuntimeError(f"{self.function.name}: {field} did not take vector {vector} (§4.1.5.1.2.2)")

    @property
    def line_name(self) -> str:
        """The name of this function's interrupt line on the board."""
        return self._interrupts.line_name

    def read_isr(self) -> int:
        """The ISR status, which reading clears (§4.1.4.5)."""
        return self.bus.mmio_read(self.structure_gpa(spec.VIRTIO_PCI_CAP_ISR_CFG), 1)

    def take_interrupts(self) -> Interrupts:
        """What arrived since the last call.  Over INTx the ISR is read only while the line is asserted."""
        return self._interrupts.take(self.num_queues, self.read_isr)
