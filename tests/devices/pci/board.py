"""A small board for the host bridge's tests: two functions on bus 0, three fixed devices and some RAM."""

from __future__ import annotations

from devices.bus import AddressSpace
from devices.effects import NOTHING, Effects, Event
from devices.memory import GuestMemory
from devices.pci.config import Bar, BarKind, Identity
from devices.pci.function import PciFunction
from devices.pci.host_bridge import HostBridge

MIB = 1 << 20
RAM = ((0, 0xA0000), (MIB, 3 * MIB), (1 << 32, MIB))
IO, MEMORY = 1, 2
IDENTITY = Identity(0x1234, 0x5678, 0, 0xFF0000)
ABSENT = 0xFFFFFFFF
FIXED = {"local APIC", "ROM", "COM1", "PCI configuration"}


class Fixed:
    """A device that is no PCI function."""

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return 0x77, NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return NOTHING


class Echo(PciFunction):
    """BAR 0 and BAR 2 are memory, BAR 1 ports; a read gives the number of the register."""

    def __init__(self, slot: int, name: str) -> None:
        bars = [Bar(0, 0x1000, BarKind.MEMORY32), Bar(1, 0x20, BarKind.IO), Bar(2, 0x4000, BarKind.MEMORY64)]
        super().__init__(slot, name, IDENTITY, bars=bars, interrupt_pin=1)

    def read_bar(self, bar: int, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return 0x10 * self.slot + bar, NOTHING


class Board:
    """Two functions on bus 0, driven through the ports as software does."""

    def __init__(self, memory: GuestMemory) -> None:
        self.ports = AddressSpace("port", 16)
        self.mmio = AddressSpace("memory", 52)
        self.mmio.add(0xFEE00000, 0x1000, Fixed(), "local APIC")
        self.mmio.add(0xFFFF0000, 0x10000, Fixed(), "ROM")
        self.ports.add(0x3F8, 8, Fixed(), "COM1")
        self.bridge = HostBridge(self.ports, self.mmio, memory)
        self.bridge.plug(Echo(3, "first"))
        self.bridge.plug(Echo(4, "second"))

    def out(self, port: int, size: int, value: int) -> Effects:
        return self.ports.write(port, size, value, 0)

    def inp(self, port: int, size: int) -> int:
        return self.ports.read(port, size, 0)[0]

    def select(self, slot: int, offset: int, bus: int = 0, function: int = 0, enable: int = 1) -> None:
        self.out(0xCF8, 4, enable << 31 | bus << 16 | slot << 11 | function << 8 | offset & 0xFC)

    def write(self, slot: int, offset: int, size: int, value: int) -> Effects:
        self.select(slot, offset)
        return self.out(0xCFC + (offset & 3), size, value)

    def read(self, slot: int, offset: int, size: int) -> int:
        self.select(slot, offset)
        return self.inp(0xCFC + (offset & 3), size)

    def place(self, slot: int, *, bar0: int = 0xE0000000, bar1: int = 0xC000, bar2: int = 0xE0100000) -> None:
        for offset, value in ((0x10, bar0), (0x14, bar1), (0x18, bar2 & 0xFFFFFFFF), (0x1C, bar2 >> 32)):
            self.write(slot, offset, 4, value)

    def enable(self, slot: int, command: int = IO | MEMORY) -> tuple[Event, ...]:
        return self.write(slot, 4, 2, command).events

    def owners(self) -> set[str]:
        """Who is mapped, besides what is always there."""
        every = {r.owner for space in (self.ports, self.mmio) for r in space.ranges}
        return every - FIXED
