"""Guest-physical memory as the CPU's own helpers see it: RAM, ROM and shadow RAM, nothing with side effects.

Descriptor tables, page tables and interrupt stacks are read and written here while an exception is delivered.  What is
none of them reads as all ones, and writes to it vanish, as on a bus where nobody answers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from devices.memory import GuestMemory
from vmm.cpu import shadow

ROM_END = 1 << 32
ROM_UNIT_BYTES = 0x10000
LARGEST_ROM_BYTES = 16 << 20

_NUMBERS = {size: struct.Struct("<" + code) for size, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))}


class PhysicalMemory:
    """Numbers of 1, 2, 4 or 8 bytes, little-endian.  `on_write(gpa, length)` hears of every write."""

    def __init__(
        self,
        memory: GuestMemory,
        rom: bytes,
        shadow_memory: shadow.ShadowMemory,
        on_write: Callable[[int, int], None],
    ) -> None:
        self._ram = [(region.gpa, region.end, memoryview(region.mapping)) for region in memory.regions]
        self._shadow = shadow_memory
        self._readable = [
            *((start, end, view.toreadonly()) for start, end, view in self._ram),
            (shadow.BASE, shadow.END, shadow_memory.view),
            (ROM_END - len(rom), ROM_END, memoryview(rom)),
        ]
        self._on_write = on_write

    def read(self, gpa: int, size: int) -> int:
        for start, end, view in self._readable:
            if start <= gpa and gpa + size <= end:
                value: int = _NUMBERS[size].unpack_from(view, gpa - start)[0]
                return value
        return (1 << 8 * size) - 1

    def write(self, gpa: int, size: int, value: int) -> None:
        for start, end, view in self._ram:
            if start <= gpa and gpa + size <= end:
                _NUMBERS[size].pack_into(view, gpa - start, value)
                self._on_write(gpa, size)
                return
        if shadow.BASE <= gpa < shadow.END:
            self._shadow.write(gpa, size, value)
            self._on_write(gpa, size)

    def close(self) -> None:
        """Let go of RAM, so that it can be unmapped."""
        for _, _, view in [*self._readable, *self._ram]:
            view.release()
        self._ram.clear()
        self._readable.clear()
