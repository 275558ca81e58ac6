"""The guest's page tables, walked the way the processor does (Intel SDM volume 3, chapter 4).

Used where the processor itself reads or writes memory in the name of the guest: descriptor tables and stacks during
the delivery of an exception, and `translate` for debuggers.  Knows 32-bit, PAE and 4-level paging with large pages.
Protection keys, SMAP and 5-level paging are not offered by CPUID and not looked at.
"""

from __future__ import annotations

from vmm.cpu.layout import CR0_PG, CR0_WP, CR4_PAE, CR4_PSE, EFER_NXE, HF_LMA, CpuState
from vmm.cpu.physical import PhysicalMemory

PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 0x20, 0x40, 0x80
PHYSICAL_BITS = 40  # as CPUID leaf 80000008h says
ADDRESS_BITS = (1 << PHYSICAL_BITS) - 0x1000
NO_EXECUTE = 1 << 63

_SETTLED_READ = PRESENT | ACCESSED
_SETTLED_WRITE = PRESENT | ACCESSED | WRITABLE
_RESERVED_BITS = (1 << 52) - (1 << PHYSICAL_BITS)
_ERROR_PROTECTION, _ERROR_WRITE, _ERROR_RESERVED = 1, 2, 8


class PageFault(Exception):
    """The walk found no mapping that allows the access.  `error_code` as #PF pushes it, `gva` as in CR2."""

    def __init__(self, gva: int, error_code: int) -> None:
        super().__init__(gva, error_code)
        self.gva = gva
        self.error_code = error_code


def is_canonical(gva: int) -> bool:
    """Whether bits 63 to 47 are all equal."""
    return gva >> 47 in (0, 0x1FFFF)


def _levels(state: CpuState) -> tuple[int, list[int], int]:
    """The first table, for each level the lowest address bit it decodes, and the bytes of an entry."""
    if state.hflags & HF_LMA:
        return state.cr3 & ADDRESS_BITS, [39, 30, 21, 12], 8
    if state.cr4 & CR4_PAE:
        return state.cr3 & 0xFFFF_FFE0, [30, 21, 12], 8
    return state.cr3 & 0xFFFF_F000, [22, 12], 4


def _is_large(entry: int, shift: int, entry_bytes: int, cr4: int) -> bool:
    if shift == 12 or not entry & LARGE:
        return shift == 12
    return bool(cr4 & CR4_PSE) if entry_bytes == 4 else shift in (21, 30)


def walk(state: CpuState, physical: PhysicalMemory, gva: int, *, write: bool = False, touch: bool = True) -> int:
    """The guest-physical address behind a linear address, for an access with supervisor rights.

    Sets accessed and dirty bits unless `touch` is False; then rights are not looked at either.  PageFault where the
    processor would raise one."""
    if not state.cr0 & CR0_PG:
        return gva & 0xFFFF_FFFF
    table, shifts, entry_bytes = _levels(state)
    long_mode, index_bits = len(shifts) == 4, 9 if entry_bytes == 8 else 10
    reserved = 0 if entry_bytes == 4 else _RESERVED_BITS if state.efer & EFER_NXE else _RESERVED_BITS | NO_EXECUTE
    error = _ERROR_WRITE if write else 0
    writable = True
    for shift in shifts:
        at = table + (gva >> shift & (1 << index_bits) - 1) * entry_bytes
        entry = physical.read(at, entry_bytes)
        if not entry & PRESENT:
            raise PageFault(gva, error)
        if entry & reserved:
            raise PageFault(gva, error | _ERROR_RESERVED | _ERROR_PROTECTION)
        is_pointer_only = shift == 30 and not long_mode  # the four entries of PAE have no rights and no accessed bit
        if not is_pointer_only:
            writable = writable and bool(entry & WRITABLE)
        is_leaf = _is_large(entry, shift, entry_bytes, state.cr4)
        if is_leaf and touch and write and not writable and state.cr0 & CR0_WP:
            raise PageFault(gva, error | _ERROR_PROTECTION)
        if touch and not is_pointer_only:
            marks = ACCESSED | (DIRTY if is_leaf and write else 0)
            if entry & marks != marks:
                physical.write(at, entry_bytes, entry | marks)
        if is_leaf:
            return _leaf_address(entry, shift, entry_bytes) | gva & (1 << shift) - 1
        table = entry & (ADDRESS_BITS if entry_bytes == 8 else 0xFFFF_F000)
    raise AssertionError("the last level is always a leaf")


class SettledTables:
    """The quick way of `walk` in long mode, for pages whose entries already allow the access and carry its marks.

    Almost every walk during a delivery is of that kind: the tables of the processor and the stack of the kernel were
    used before.  Nothing is decided here: where any entry on the way is not so, `walk` has to say what happens."""

    def __init__(self, cr3: int, efer: int, physical: PhysicalMemory) -> None:
        self._root = cr3 & ADDRESS_BITS
        self._read_entry = physical.read_entry
        self._refused = _RESERVED_BITS if efer & EFER_NXE else _RESERVED_BITS | NO_EXECUTE

    def walk(self, gva: int, write: bool) -> int | None:
        """The guest-physical address behind a linear one, or None."""
        wanted = _SETTLED_WRITE if write else _SETTLED_READ
        looked_at, table, read_entry = wanted | self._refused, self._root, self._read_entry
        for shift in (39, 30, 21, 12):
            entry = read_entry(table + (gva >> shift - 3 & 0xFF8))
            if entry & looked_at != wanted:
                return None
            if shift == 12 or (entry & LARGE and shift != 39):
                if write and not entry & DIRTY:
                    return None
                return entry & ADDRESS_BITS & -(1 << shift) | gva & (1 << shift) - 1
            table = entry & ADDRESS_BITS
        raise AssertionError("the last level is always a leaf")


def _leaf_address(entry: int, shift: int, entry_bytes: int) -> int:
    if entry_bytes == 4:
        high = (entry >> 13 & 0xFF) << 32 if shift == 22 else 0  # PSE-36
        return entry & 0xFFFF_FFFF & -(1 << shift) | high
    return entry & ADDRESS_BITS & -(1 << shift)
