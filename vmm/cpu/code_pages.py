"""Which pages of guest-physical memory hold translated code, and how to forget it.

Unicorn keeps translations by physical address and notices stores of the guest, not those of the host.  Its call for
dropping them takes a *virtual* address.  So a callback (native.c) notes the physical page of everything that is
translated in one byte a page; a write of the host costs one look at that byte, and only where it is set the
translations of the page are dropped, with paging switched off around the call, so that virtual is physical.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable

from devices.memory import PAGE_BYTES, PAGE_SHIFT, GuestMemory
from vmm.cpu import binding
from vmm.cpu.layout import CR0_PG, HF_LMA, CpuState
from vmm.cpu.native import Clock
from vmm.cpu.paging import PageFault, walk
from vmm.cpu.physical import PhysicalMemory

FIRST_MIB = 1 << 20


class CodePages:
    """The bytes that the callback sets, found through `clock.code_pages`."""

    def __init__(self, memory: GuestMemory, engine: binding.Engine, state: CpuState, clock: Clock) -> None:
        self._engine = engine
        self._state = state
        self.is_empty = True
        self._count = max(memory.regions[-1].end, FIRST_MIB) >> PAGE_SHIFT  # shadow RAM ends with the first MiB
        self._marks = mmap.mmap(-1, self._count)
        clock.code_pages = ctypes.addressof(ctypes.c_char.from_buffer(self._marks))
        clock.code_pages_length = self._count

    def clear(self) -> None:
        """All translations are gone."""
        self._marks[:] = bytes(len(self._marks))
        self.is_empty = True

    def hit(self, gpa: int, length: int) -> bool:
        """Whether code was translated from a page that the range touches."""
        first, last = gpa >> PAGE_SHIFT, gpa + length - 1 >> PAGE_SHIFT
        if first == last:
            return first < self._count and self._marks[first] != 0
        return length > 0 and self._marks.find(b"\1", first, last + 1) >= 0

    def note_first(self, linear: int, physical: PhysicalMemory) -> None:
        """Mark what the first block of all may come from: Unicorn does not announce its translation."""
        self.is_empty = False
        for gva in (linear, linear + PAGE_BYTES):
            try:
                page = walk(self._state, physical, gva, touch=False) >> PAGE_SHIFT
            except PageFault:
                continue
            if page < self._count:
                self._marks[page] = 1

    def drop(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Forget all code in the pages that the (gpa, length) ranges touch.  Between two runs."""
        pages = {
            page
            for gpa, length in ranges
            for page in range(gpa >> PAGE_SHIFT, min((gpa + length - 1 >> PAGE_SHIFT) + 1, self._count))
            if self._marks[page]
        }
        state, engine = self._state, self._engine
        engine.save()
        kept = bytes(state.memory)
        state.cr0 &= ~CR0_PG
        state.hflags |= HF_LMA  # else Unicorn cuts physical addresses to 32 bits
        engine.restore()
        engine.ctl(binding.CTL_FLUSH_TLB)
        for page in pages:
            engine.remove_translations(page << PAGE_SHIFT, (page << PAGE_SHIFT) + PAGE_BYTES)
            self._marks[page] = 0
        state.memory[:] = kept
        engine.restore()
        engine.ctl(binding.CTL_FLUSH_TLB)
