"""Linear memory as a debugger sees it: through the guest's page tables, and without any effect on what it looks at.

Rights are not looked at.  Reading takes RAM from the memory file and not through its mapping, so that a page that the
host took back stays away; devices are not read at all, since many a register changes when it is read.
"""

from __future__ import annotations

from devices.memory import PAGE_BYTES, GuestMemory
from vmm.cpu import shadow
from vmm.cpu.layout import HF_LMA, CpuState
from vmm.cpu.paging import PageFault, is_canonical, walk
from vmm.cpu.physical import ROM_END, PhysicalMemory


class PeekedMemory(PhysicalMemory):
    """Guest-physical memory that is only looked at; what is no memory reads as all ones, as on the bus."""

    def __init__(self, memory: GuestMemory, rom: bytes, shadow_memory: shadow.ShadowMemory) -> None:
        self._memory = memory
        self._rom = rom
        self._shadow = shadow_memory

    def peek(self, gpa: int, length: int) -> bytes | None:
        """Bytes within one page; None where there is no memory."""
        if self._memory.contains(gpa, length):
            return self._memory.peek(gpa, length)
        if shadow.BASE <= gpa < shadow.END:
            return bytes(self._shadow.view[gpa - shadow.BASE : gpa - shadow.BASE + length])
        start = gpa - (ROM_END - len(self._rom))
        return self._rom[start : start + length] if 0 <= start < len(self._rom) else None

    def read(self, gpa: int, size: int) -> int:
        data = self.peek(gpa, size)
        return (1 << 8 * size) - 1 if data is None else int.from_bytes(data, "little")

    def read_entry(self, gpa: int) -> int:
        return self.read(gpa, 8)

    def is_ram(self, gpa: int, length: int) -> bool:
        """Whether `poke` can write there: RAM, and shadow RAM as far as the guest can write it now."""
        if self._memory.contains(gpa, length):
            return True
        first, last = (
            (gpa - shadow.BASE) // shadow.SEGMENT_BYTES,
            (gpa + length - 1 - shadow.BASE) // shadow.SEGMENT_BYTES,
        )
        return gpa >= shadow.BASE and gpa + length <= shadow.END and all(self._shadow.writes_ram[first : last + 1])

    def poke(self, gpa: int, data: bytes) -> None:
        """Write within one page for which `is_ram` holds."""
        if self._memory.contains(gpa, len(data)):
            self._memory.write(gpa, data)
        else:
            self._shadow.write(gpa, len(data), int.from_bytes(data, "little"))

    def close(self) -> None:
        """It holds nothing that would have to be given back."""


class DebugMemory:
    """What is behind linear addresses now, by `state`, which the owner keeps up to date."""

    def __init__(self, state: CpuState, physical: PeekedMemory) -> None:
        self._state = state
        self._physical = physical

    def translate(self, gva: int) -> int | None:
        """The guest-physical address, or None."""
        if self._state.hflags & HF_LMA and not is_canonical(gva):
            return None
        try:
            return walk(self._state, self._physical, gva, touch=False)
        except PageFault:
            return None

    def ranges(self, gva: int, length: int) -> list[tuple[int, int]]:
        """The (gpa, length) pieces behind `length` bytes, page by page, as far as they are mapped."""
        pieces: list[tuple[int, int]] = []
        while length > 0:
            size = min(length, PAGE_BYTES - gva % PAGE_BYTES)
            gpa = self.translate(gva)
            if gpa is None:
                break
            pieces.append((gpa, size))
            gva, length = (gva + size) & (2**64 - 1), length - size
        return pieces

    def read(self, gva: int, length: int) -> bytes:
        """As far as there is memory."""
        found = bytearray()
        for gpa, size in self.ranges(gva, length):
            data = self._physical.peek(gpa, size)
            if data is None:
                break
            found += data
        return bytes(found)

    def write(self, gva: int, data: bytes) -> list[tuple[int, int]]:
        """Write all of `data`; the (gpa, length) pieces, or none and nothing is done where not all of it is RAM."""
        pieces = self.ranges(gva, len(data))
        if sum(size for _, size in pieces) != len(data) or not all(self._physical.is_ram(*piece) for piece in pieces):
            return []
        position = 0
        for gpa, size in pieces:
            self._physical.poke(gpa, data[position : position + size])
            position += size
        return pieces
