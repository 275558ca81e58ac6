"""x and xp: memory as the guest's program or its processor finds it; `print` shows a number in the same formats.

Looking has no effect: devices are not read, and a page that the balloon gave away stays away, one of a page table too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmm.control.monitor import disassembly, registers
from vmm.control.monitor.arguments import Format
from vmm.control.monitor.complaints import Failure

if TYPE_CHECKING:
    from vmm.machine import Machine

PAGE_BYTES = 4096
MOST_BYTES = 1 << 16
"""So much is shown of one command: the machine waits for it."""
_MASK = (1 << 64) - 1
_CANNOT = "Cannot access memory"
_PLAIN = {"'": "\\'", "\\": "\\\\", "\n": "\\n", "\r": "\\r"}


def x(machine: Machine, fmt: Format, addr: int) -> str:
    """Virtual memory: through the page tables as they stand."""
    return _dump(_Memory(machine, is_virtual=True), fmt, addr & _MASK)


def xp(machine: Machine, fmt: Format, addr: int) -> str:
    """Physical memory."""
    return _dump(_Memory(machine, is_virtual=False), fmt, addr & _MASK)


def print_(machine: Machine, fmt: Format, value: int) -> str:
    """A number, in 64 bits."""
    bits = value & _MASK
    if fmt.format == "c":
        return f"{_character(value & 0xFF)}\n"
    shown = {"o": f"0{bits:o}" if bits else "0", "x": f"{bits:#x}" if bits else "0", "u": str(bits)}
    return f"{shown.get(fmt.format, value)}\n"


def gva2gpa(machine: Machine, addr: int) -> str:
    """The guest-physical address behind a virtual one."""
    gpa = machine.platform.cpu.translate(addr & _MASK)
    return "Unmapped\n" if gpa is None else f"gpa: {gpa:#x}\n"


class _Memory:
    """What can be looked at, page by page."""

    def __init__(self, machine: Machine, *, is_virtual: bool) -> None:
        self._cpu = machine.platform.cpu
        self._is_virtual = is_virtual
        self._end = 1 << 64 if not is_virtual or registers.is_long_mode(machine) else 1 << 32
        self.machine = machine

    def read(self, address: int, length: int) -> bytes | None:
        """All of it, or None."""
        found = self.read_some(address, length)
        return found if len(found) == length else None

    def read_some(self, address: int, length: int) -> bytes:
        """As far as there is memory."""
        found = bytearray()
        while len(found) < length:
            at = address + len(found) & _MASK
            size = min(length - len(found), PAGE_BYTES - at % PAGE_BYTES)
            data = None if at >= self._end else self._within_page(at, size)
            if data is None:
                break
            found += data
        return bytes(found)

    def _within_page(self, at: int, size: int) -> bytes | None:
        gpa = self._cpu.translate(at) if self._is_virtual else at
        return None if gpa is None else self._cpu.peek(gpa, size)


def _dump(memory: _Memory, fmt: Format, address: int) -> str:
    if fmt.format == "i":
        return disassembly.disassemble(memory.machine, memory.read_some, address, fmt.count)
    length = fmt.size * fmt.count
    if length > MOST_BYTES:
        raise Failure(f"At most {MOST_BYTES} bytes can be shown at once\n")
    return "".join(_rows(memory, fmt, address, length))


def _rows(memory: _Memory, fmt: Format, address: int, length: int) -> Iterator[str]:
    """A row has eight bytes, or sixteen in larger items."""
    row_bytes = 8 if fmt.size == 1 else 16
    for offset in range(0, length, row_bytes):
        at = address + offset & _MASK
        data = memory.read(at, min(row_bytes, length - offset))
        if data is None:
            yield f"{at:016x}: {_CANNOT}\n"
            return
        yield f"{at:016x}:{''.join(_items(data, fmt, memory.machine.config.arch))}\n"


def _items(data: bytes, fmt: Format, arch: str) -> Iterator[str]:
    size = 1 if fmt.format == "c" else fmt.size
    for at in range(0, len(data), size):
        value = int.from_bytes(data[at : at + size], "big" if arch == "ppc" else "little")
        yield f" {_item(value, fmt.format, size)}"


def _item(value: int, format_: str, size: int) -> str:
    """The numbers of one row are as wide as the largest can be.  QEMU shows a sign in items of eight bytes only."""
    if format_ == "c":
        return _character(value)
    if format_ == "x":
        return f"0x{value:0{2 * size}x}"
    if format_ == "o":
        return f"{f'0{value:o}' if value else '0':>{-(-8 * size // 3)}}"
    if format_ == "d" and size == 8 and value >> 63:
        value -= 1 << 64
    return f"{value:>{-(-80 * size // 33)}}"


def _character(value: int) -> str:
    character = chr(value)
    shown = _PLAIN.get(character) or (character if 32 <= value <= 126 else f"\\x{value:02x}")
    return f"'{shown}'"
