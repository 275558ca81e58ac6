"""PCI and the interrupt controllers as our firmware leaves them, for a kernel that is started without firmware.

The rules are firmware/pci.c's and firmware/interrupts.c's: slots in ascending order, every BAR at the next address that
its size allows, the interrupt line that the ISA bridge's routing gives, bus mastering off, the 8259 pair masked, the
local APIC a virtual wire.  It works through the ports and registers that the processor would use, so that whatever is
plugged in is measured and not looked up.  It knows no device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
CONFIG_ENABLE = 1 << 31

COMMAND, HEADER_TYPE, BAR0, INTERRUPT_LINE, INTERRUPT_PIN = 0x04, 0x0E, 0x10, 0x3C, 0x3D
COMMAND_IO, COMMAND_MEMORY = 1, 2
MULTIFUNCTION = 0x80
BAR_IO, BAR_64BIT, BAR_TYPE = 1, 4, 6

MEMORY_WINDOW, IO_WINDOW = (0xE0000000, 0xFEC00000), (0xC000, 0x10000)

ISA_BRIDGE, ISA_BRIDGE_PIRQ = 0x70008086, 0x60
PIRQ_INPUTS = (10, 10, 11, 11)
SCI_INPUT = 9

PIC_MASTER, PIC_SLAVE, PIC_TRIGGER = 0x20, 0xA0, 0x4D0
APIC = 0xFEE00000
APIC_SPURIOUS, APIC_LINT0, APIC_LINT1 = 0xF0, 0x350, 0x360


class Bus(Protocol):
    """The processor's way to the devices."""

    def port_read(self, port: int, size: int) -> int: ...
    def port_write(self, port: int, size: int, value: int) -> None: ...
    def mmio_write(self, gpa: int, size: int, value: int) -> None: ...


@dataclass
class _Window:
    next: int
    end: int


@dataclass
class _Windows:
    memory: _Window = field(default_factory=lambda: _Window(*MEMORY_WINDOW))
    io: _Window = field(default_factory=lambda: _Window(*IO_WINDOW))


class _Function:
    """The configuration space of one function, by mechanism #1."""

    def __init__(self, bus: Bus, number: int) -> None:
        self._bus = bus
        self.number = number

    def read(self, offset: int, size: int) -> int:
        self._bus.port_write(CONFIG_ADDRESS, 4, CONFIG_ENABLE | self.number << 8 | offset & 0xFC)
        return self._bus.port_read(CONFIG_DATA + (offset & 3), size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._bus.port_write(CONFIG_ADDRESS, 4, CONFIG_ENABLE | self.number << 8 | offset & 0xFC)
        self._bus.port_write(CONFIG_DATA + (offset & 3), size, value)


def assign(bus: Bus) -> None:
    """Give every function on bus 0 its addresses and its interrupt line."""
    windows = _Windows()
    for device in range(32):
        for number in range(8):
            function = _Function(bus, device << 3 | number)
            if function.read(0, 2) != 0xFFFF:
                _set_up(bus, function, windows)
            if number == 0 and (function.read(0, 2) == 0xFFFF or not function.read(HEADER_TYPE, 1) & MULTIFUNCTION):
                break


def _set_up(bus: Bus, function: _Function, windows: _Windows) -> None:
    command = function.read(COMMAND, 2) & ~(COMMAND_IO | COMMAND_MEMORY)
    function.write(COMMAND, 2, command)
    offset = BAR0 if function.read(HEADER_TYPE, 1) & 0x7F == 0 else BAR0 + 24
    while offset < BAR0 + 24:
        is_wide, bit = _place(function, offset, windows)
        command |= bit
        offset += 8 if is_wide else 4
    if function.read(0, 4) == ISA_BRIDGE:
        _route_interrupts(bus, function)
    pin = function.read(INTERRUPT_PIN, 1)
    if pin:
        function.write(INTERRUPT_LINE, 1, PIRQ_INPUTS[((function.number >> 3) - 1 + pin - 1) % 4])
    function.write(COMMAND, 2, command)


def _place(function: _Function, offset: int, windows: _Windows) -> tuple[bool, int]:
    """Measure a BAR and give it its address: whether it takes two registers, and the command bit that it needs."""
    function.write(offset, 4, 0xFFFFFFFF)
    low = function.read(offset, 4)
    is_io = bool(low & BAR_IO)
    is_wide = not is_io and low & BAR_TYPE == BAR_64BIT
    mask = low & (~3 if is_io else ~0xF)
    if is_wide:
        function.write(offset + 4, 4, 0xFFFFFFFF)
        mask |= function.read(offset + 4, 4) << 32
    if not mask:
        return is_wide, 0
    bits = 16 if is_io else 64 if is_wide else 32
    size = (1 << bits) - (mask & (1 << bits) - 1)
    window = windows.io if is_io else windows.memory
    address = -(-window.next // size) * size
    fits = address + size <= window.end
    if fits:
        window.next = address + size
    function.write(offset, 4, (address if fits else 0) & 0xFFFFFFFF)
    if is_wide:
        function.write(offset + 4, 4, (address if fits else 0) >> 32)
    return is_wide, (COMMAND_IO if is_io else COMMAND_MEMORY) if fits else 0


def _route_interrupts(bus: Bus, isa_bridge: _Function) -> None:
    levels = 1 << SCI_INPUT
    for pirq, line in enumerate(PIRQ_INPUTS):
        isa_bridge.write(ISA_BRIDGE_PIRQ + pirq, 1, line)
        levels |= 1 << line
    bus.port_write(PIC_TRIGGER, 1, levels & 0xFF)
    bus.port_write(PIC_TRIGGER + 1, 1, levels >> 8)


def start_interrupt_controllers(bus: Bus) -> None:
    """The 8259 pair at its traditional vectors with every input masked, and the local APIC as a virtual wire."""
    for port, vectors, cascade in ((PIC_MASTER, 0x08, 1 << 2), (PIC_SLAVE, 0x70, 2)):
        bus.port_write(port, 1, 0x11)
        for word in (vectors, cascade, 0x01, 0xFF):
            bus.port_write(port + 1, 1, word)
    for register, value in ((APIC_SPURIOUS, 0x1FF), (APIC_LINT0, 7 << 8), (APIC_LINT1, 4 << 8)):
        bus.mmio_write(APIC + register, 4, value)
