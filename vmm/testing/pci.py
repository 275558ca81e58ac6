"""PCI as a driver sees it: configuration mechanism #1, capabilities, BAR sizing and assignment, MSI-X.

Knows PCI 3.0 and nothing of virtio.  It stands in for firmware where none ran: `PciBus.assign_bars` gives every memory
BAR an address in the board's PCI window and turns decoding and bus mastering on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vmm.testing.protocols import Bus

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC

VENDOR_ID, DEVICE_ID, COMMAND, STATUS, REVISION_ID = 0x00, 0x02, 0x04, 0x06, 0x08
BAR0, SUBSYSTEM_DEVICE_ID, CAPABILITIES_POINTER, INTERRUPT_PIN = 0x10, 0x2E, 0x34, 0x3D

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_INTX_DISABLE = 1, 2, 4, 0x400
STATUS_INTERRUPT, STATUS_CAPABILITIES = 8, 0x10
CAPABILITY_MSIX = 0x11

FIRST_MEMORY_BAR = 0xE000_0000
FIRST_IO_BAR = 0xC000
NO_FUNCTION = 0xFFFF


class Bar(NamedTuple):
    """One base address register: its number, "memory" or "io", address (0 = unassigned) and size in bytes."""

    number: int
    space: str
    address: int
    size: int
    is_64bit: bool = False


class Function:
    """One function of bus 0, through its 256 bytes of configuration space."""

    def __init__(self, bus: Bus, slot: int, function: int = 0) -> None:
        self.bus = bus
        self.slot = slot
        self.function = function
        self._address = 0x8000_0000 | slot << 11 | function << 8

    @property
    def name(self) -> str:
        return f"00:{self.slot:02x}.{self.function}"

    def read(self, offset: int, size: int) -> int:
        self.bus.port_write(CONFIG_ADDRESS, 4, self._address | offset & 0xFC)
        return self.bus.port_read(CONFIG_DATA + (offset & 3), size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.bus.port_write(CONFIG_ADDRESS, 4, self._address | offset & 0xFC)
        self.bus.port_write(CONFIG_DATA + (offset & 3), size, value)

    @property
    def vendor_id(self) -> int:
        return self.read(VENDOR_ID, 2)

    @property
    def device_id(self) -> int:
        return self.read(DEVICE_ID, 2)

    @property
    def command(self) -> int:
        return self.read(COMMAND, 2)

    @command.setter
    def command(self, value: int) -> None:
        self.write(COMMAND, 2, value)

    def capabilities(self) -> Iterator[tuple[int, int]]:
        """(id, offset) of every capability in list order (PCI 3.0 §6.7).  A list that loops raises RuntimeError."""
        if not self.read(STATUS, 2) & STATUS_CAPABILITIES:
            return
        seen: set[int] = set()
        offset = self.read(CAPABILITIES_POINTER, 1) & 0xFC
        while offset:
            if offset in seen:
                raise RuntimeError(f"{self.name}: the capability list comes back to {offset:#x}")
            seen.add(offset)
            yield self.read(offset, 1), offset
            offset = self.read(offset + 1, 1) & 0xFC

    def bars(self) -> list[Bar]:
        """The implemented BARs, sized with all ones as in PCI 3.0 §6.2.5.1; decoding is off meanwhile."""
        command = self.command
        self.command = command & ~(COMMAND_IO | COMMAND_MEMORY)
        found, number = [], 0
        while number < 6:
            bar = self._size_bar(number)
            if bar is not None:
                found.append(bar)
            number += 2 if bar is not None and bar.is_64bit else 1
        self.command = command
        return found

    def _size_bar(self, number: int) -> Bar | None:
        is_io = bool(self.read(BAR0 + 4 * number, 4) & 1)
        is_64bit = not is_io and self.read(BAR0 + 4 * number, 4) & 6 == 4
        width = 8 if is_64bit else 4
        flags_mask = 3 if is_io else 0xF
        old = self._read_wide(number, width)
        self._write_wide(number, width, (1 << 8 * width) - 1)
        answer = self._read_wide(number, width) & ~flags_mask
        self._write_wide(number, width, old)
        if answer == 0:
            return None
        # The lowest address bit that can be set is the size; a device may leave the upper half of an I/O BAR at zero.
        return Bar(number, "io" if is_io else "memory", old & ~flags_mask, answer & -answer, is_64bit)

    def _read_wide(self, number: int, width: int) -> int:
        return sum(self.read(BAR0 + 4 * number + i, 4) << 8 * i for i in range(0, width, 4))

    def _write_wide(self, number: int, width: int, value: int) -> None:
        for i in range(0, width, 4):
            self.write(BAR0 + 4 * number + i, 4, value >> 8 * i & 0xFFFF_FFFF)

    def place_bar(self, bar: Bar, address: int) -> None:
        self._write_wide(bar.number, 8 if bar.is_64bit else 4, address)


class PciBus:
    """Bus 0 of a board, found through its ports."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    def functions(self) -> list[Function]:
        """Function 0 of every slot where something answers."""
        every = (Function(self.bus, slot) for slot in range(32))
        return [function for function in every if function.vendor_id != NO_FUNCTION]

    def find(self, vendor_id: int, device_id: int) -> Function:
        """The first function with these ids; LookupError when there is none."""
        for function in self.functions():
            if (function.vendor_id, function.device_id) == (vendor_id, device_id):
                return function
        raise LookupError(f"no PCI function {vendor_id:04x}:{device_id:04x} on bus 0")

    def assign_bars(self) -> None:
        """Give every BAR that has no address one, naturally aligned, and switch decoding and bus mastering on."""
        next_free = {"memory": FIRST_MEMORY_BAR, "io": FIRST_IO_BAR}
        for function in self.functions():
            enable = 0
            for bar in function.bars():
                enable |= COMMAND_IO if bar.space == "io" else COMMAND_MEMORY
                if bar.address == 0:
                    address = -(-next_free[bar.space] // bar.size) * bar.size
                    function.place_bar(bar, address)
                    next_free[bar.space] = address + bar.size
            if enable:
                function.command |= enable | COMMAND_MASTER


@dataclass(slots=True)
class Msix:
    """A function's MSI-X capability and table (PCI 3.0 §6.8.2).  `listen` points a vector at a callback."""

    function: Function
    offset: int
    table_gpa: int
    pba_gpa: int

    @classmethod
    def of(cls, function: Function, bar_address: Callable[[int], int]) -> Msix | None:
        """The capability if the function has one; `bar_address` tells where a BAR lies."""
        for capability_id, offset in function.capabilities():
            if capability_id == CAPABILITY_MSIX:
                table, pba = function.read(offset + 4, 4), function.read(offset + 8, 4)
                places = [bar_address(word & 7) + (word & ~7) for word in (table, pba)]
                return cls(function, offset, *places)
        return None

    @property
    def table_size(self) -> int:
        """How many vectors there are."""
        return (self.function.read(self.offset + 2, 2) & 0x7FF) + 1

    def enable(self, enabled: bool = True, *, function_mask: bool = False) -> None:
        self.function.write(self.offset + 2, 2, enabled << 15 | function_mask << 14)

    @property
    def enabled(self) -> bool:
        return bool(self.function.read(self.offset + 2, 2) >> 15)

    def point(self, vector: int, address: int, data: int, *, masked: bool = False) -> None:
        """Let `vector` write the 32-bit `data` to `address`: an APIC's window, or RAM."""
        entry = self.table_gpa + 16 * vector
        for i, word in enumerate((address & 0xFFFF_FFFF, address >> 32, data, int(masked))):
            self.function.bus.mmio_write(entry + 4 * i, 4, word)

    def mask(self, vector: int, masked: bool = True) -> None:
        self.function.bus.mmio_write(self.table_gpa + 16 * vector + 12, 4, int(masked))

    def pending(self, vector: int) -> bool:
        word = self.function.bus.mmio_read(self.pba_gpa + vector // 32 * 4, 4)
        return bool(word >> vector % 32 & 1)
