"""Guest-physical memory as the CPU's own helpers see it: RAM, ROM and shadow RAM, nothing with side effects.

Descriptor tables, page tables and interrupt stacks are read and written here while an exception is delivered.  What is
none of them reads as all ones, and writes to it vanish, as on a bus where nobody answers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from devices.memory import GuestMemory
from vmm.cpu import shadow

ROM_END = 1 << 32
ROM_UNIT_BYTES = 0x10000
LARGEST_ROM_BYTES = 16 << 20

_LONGEST_FRAME_WORDS = 6
_WORDS = [struct.Struct(f"<{count}Q") for count in range(_LONGEST_FRAME_WORDS + 1)]
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
        self._ram = [
            (region.gpa, region.end, memoryview(region.mapping)[region.gpa - region.base :][: region.size])
            for region in memory.regions
        ]
        self._shadow = shadow_memory
        self._readable = [
            *((start, end, view.toreadonly()) for start, end, view in self._ram),
            (shadow.BASE, shadow.END, shadow_memory.view),
            (ROM_END - len(rom), ROM_END, memoryview(rom)),
        ]
        # A page table's entry is eight bytes at a multiple of eight: one look into the words of the RAM it lies in, the
        # largest part of RAM first.
        self._words = [
            (start, end, view.toreadonly().cast("Q"))
            for start, end, view in sorted(self._ram, key=lambda part: part[0] - part[1])
        ]
        self._on_write = on_write

    def read_entry(self, gpa: int) -> int:
        """The eight bytes at `gpa`, a multiple of eight."""
        for start, end, words in self._words:
            if start <= gpa < end:
                return words[gpa - start >> 3]
        return self.read(gpa, 8)

    def read(self, gpa: int, size: int) -> int:
        for start, end, view in self._readable:
            if start <= gpa and gpa + size <= end:
                value: int = _NUMBERS[size].unpack_from(view, gpa - start)[0]
                return value
        return (1 << 8 * size) - 1

    def read_ram(self, gpa: int, count: int) -> bytes:
        """`count` bytes of RAM; b"" where they do not all lie in it."""
        for start, end, view in self._ram:
            if start <= gpa and gpa + count <= end:
                return bytes(view[gpa - start : gpa - start + count])
        return b""

    def write(self, gpa: int, size: int, value: int) -> None:
        for start, end, view in self._ram:
            if start <= gpa and gpa + size <= end:
                _NUMBERS[size].pack_into(view, gpa - start, value)
                self._on_write(gpa, size)
                return
        if shadow.BASE <= gpa < shadow.END:
            self._shadow.write(gpa, size, value)
            self._on_write(gpa, size)

    def write_words(self, gpa: int, words: Sequence[int]) -> None:
        """Some eight-byte numbers, one behind the other, within one page."""
        size = 8 * len(words)
        for start, end, view in self._ram:
            if start <= gpa and gpa + size <= end:
                _WORDS[len(words)].pack_into(view, gpa - start, *words)
                self._on_write(gpa, size)
                return
        for i, word in enumerate(words):
            self.write(gpa + 8 * i, 8, word)

    def close(self) -> None:
        """Let go of RAM, so that it can be unmapped."""
        for _, _, view in [*self._words, *self._readable, *self._ram]:
            view.release()
        self._words.clear()
        self._ram.clear()
        self._readable.clear()
