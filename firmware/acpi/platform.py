"""What the tables say about the board, as one frozen value that the board fills in from its own tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """The addresses from `first` to `last`, inclusive."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class IsaDevice:
    """A device at `count` ports from `port` on, and its interrupt line, if it has one."""

    port: int
    count: int
    line: int | None = None


@dataclass(frozen=True, slots=True)
class PciPin:
    """Interrupt pin `pin` (0 to 3 for INTA to INTD) of the device in `slot` is wired to PIRQ `pirq` (0 to 3)."""

    slot: int
    pin: int
    pirq: int


@dataclass(frozen=True, slots=True)
class MmioDevice:
    """Virtio-mmio device `number`: `length` bytes of registers from `base` on, interrupt `line`, a level."""

    number: int
    base: int
    length: int
    line: int


@dataclass(frozen=True, slots=True)
class Platform:
    """One processor, one I/O APIC with an 8259 pair, and PCI with its bus 0 behind an i440FX and a PIIX3.

    `memory_window` is where firmware and kernels place base address registers, `ecam` the window of PCI Express
    configuration space (1 MiB a bus, from bus 0 on).  PIRQ n is pin `first_pirq_pin` + n of the I/O APIC, and whatever
    8259 input the ISA bridge's register `pirq_register` + n names: one of `pirq_inputs`.  `pm_base` is where the power
    management ports are after reset.  `power_off_type` is the SLP_TYP of S5.
    """

    memory_window: Window
    ecam: Window
    local_apic: int
    io_apic: int
    first_pirq_pin: int
    timer_pin: int
    sci_line: int
    pci_pins: tuple[PciPin, ...]
    isa_bridge_slot: int
    pirq_register: int
    pirq_inputs: tuple[int, ...]
    pm_base: int
    pm_ports: int
    power_off_type: int
    reset_port: int
    reset_value: int
    century_register: int
    serial: IsaDevice
    clock: IsaDevice
    panic: IsaDevice
    firmware_files: IsaDevice
    trigger_ports: IsaDevice
    virtio_mmio: tuple[MmioDevice, ...] = ()
