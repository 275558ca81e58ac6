"""Linear memory as the processor itself reads and writes it while it delivers one event.

Lives for one delivery: the page tables are walked once for each page, as a processor with a TLB does.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmm.cpu.layout import HF_LMA, CpuState
from vmm.cpu.paging import SettledTables, walk
from vmm.cpu.physical import PhysicalMemory

_PAGE_MASK = 0xFFF


class LinearMemory:
    """Numbers at linear addresses, with supervisor rights.  PageFault where the processor would raise one."""

    def __init__(self, state: CpuState, physical: PhysicalMemory) -> None:
        self._state = state
        self._physical = physical
        self._pages: dict[tuple[int, bool], int] = {}
        self._settled: SettledTables | None = None
        self._address_mask = 0xFFFF_FFFF
        if state.hflags & HF_LMA:
            self._settled = SettledTables(state.cr3, state.efer, physical)
            self._address_mask = 2**64 - 1

    def read(self, linear: int, size: int) -> int:
        """The little-endian number of 1, 2, 4 or 8 bytes."""
        if (linear & _PAGE_MASK) + size <= 0x1000:
            return self._physical.read(self._gpa(linear, False), size)
        parts = [self._physical.read(self._gpa(linear + i, False), 1) << 8 * i for i in range(size)]
        return sum(parts)

    def write(self, linear: int, size: int, value: int) -> None:
        """All of the number, or PageFault and nothing."""
        if (linear & _PAGE_MASK) + size <= 0x1000:
            self._physical.write(self._gpa(linear, True), size, value)
            return
        places = [self._gpa(linear + i, True) for i in range(size)]
        for i, gpa in enumerate(places):
            self._physical.write(gpa, 1, value >> 8 * i & 0xFF)

    def write_words(self, linear: int, words: Sequence[int]) -> None:
        """Eight-byte numbers one behind the other, in the order in which they are pushed: the last one first."""
        if (linear & _PAGE_MASK) + 8 * len(words) <= 0x1000:
            self._physical.write_words(self._gpa(linear, True), words)
            return
        for i in range(len(words) - 1, -1, -1):
            self.write(linear + 8 * i, 8, words[i])

    def _gpa(self, linear: int, write: bool) -> int:
        linear &= self._address_mask
        key = (linear & ~_PAGE_MASK, write)
        page = self._pages.get(key)
        if page is None:
            gpa = self._settled.walk(linear, write) if self._settled is not None else None
            if gpa is None:
                gpa = walk(self._state, self._physical, linear, write=write)
            page = self._pages[key] = gpa & ~_PAGE_MASK
        return page | linear & _PAGE_MASK
