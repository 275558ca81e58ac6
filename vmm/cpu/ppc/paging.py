"""Address translation of a 32-bit PowerPC as the tables stand, for whoever looks from outside.

Block address translation first, then segment register and hashed page table (PowerPC Operating Environment
Architecture, ch. 5).  The guest's own accesses do not come here: Unicorn walks the same tables.
"""

from __future__ import annotations

from devices.memory import GuestMemory
from vmm.cpu.ppc.layout import MSR_DR, MSR_IR, MSR_PR, SDR1, PpcState

_DIRECT_STORE = 1 << 31
_VALID, _SECONDARY = 1 << 31, 1 << 6
_GROUP_BYTES, _GROUP_ENTRIES = 64, 8


def translate(state: PpcState, memory: GuestMemory, address: int, *, instruction: bool = False) -> int | None:
    """The guest-physical address behind `address`, or None.  Says nothing of the right to use it."""
    if not state.msr & (MSR_IR if instruction else MSR_DR):
        return address
    block = _translate_block(state, address, instruction)
    return _translate_page(state, memory, address) if block is None else block


def _translate_block(state: PpcState, address: int, instruction: bool) -> int | None:
    valid = 1 if state.msr & MSR_PR else 2  # Vp, Vs
    for upper, lower in state.blocks(instruction):
        inside = (upper & 0x1FFC) << 15 | 0x1FFFF
        if upper & valid and not (address ^ upper) & 0xFFFE0000 & ~inside:
            return lower & 0xFFFE0000 & ~inside | address & inside
    return None


def _translate_page(state: PpcState, memory: GuestMemory, address: int) -> int | None:
    segment, table = state.segments[address >> 28], state.special(SDR1)
    if segment & _DIRECT_STORE:
        return None
    page = address >> 12 & 0xFFFF
    digest = segment & 0x7FFFF ^ page
    wanted = _VALID | (segment & 0xFFFFFF) << 7 | page >> 10
    for secondary, hashed in ((0, digest), (_SECONDARY, ~digest)):
        place = table & 0xFFFF0000 | hashed * _GROUP_BYTES & ((table & 0x1FF) << 16 | 0xFFC0)
        if not memory.contains(place, _GROUP_BYTES):
            return None
        group = memory.peek(place, _GROUP_BYTES)
        for entry in range(0, _GROUP_BYTES, _GROUP_ENTRIES):
            if int.from_bytes(group[entry : entry + 4], "big") == wanted | secondary:
                return int.from_bytes(group[entry + 4 : entry + 8], "big") & 0xFFFFF000 | address & 0xFFF
    return None
