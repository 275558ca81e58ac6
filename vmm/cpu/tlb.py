"""Where Unicorn 2.1.4 keeps its tables of translations, and the test that finds out whether it is so.

The machine code that does repeated string instructions (strings.h) reads them.  They are no part of the CPU state that
a context holds: they lie before it, at a distance that depends on how the library was compiled.  Where they are not
found the machine code leaves those instructions to Unicorn, with the same results.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct

from unicorn import x86_const as x86

from vmm.cpu import binding
from vmm.cpu.layout import EFLAGS_OFFSET, HFLAGS_OFFSET
from vmm.cpu.native import NO_LIMIT, Clock, NativeCallbacks

TLB_DISTANCE = 64
_KERNEL = 2  # the third table: supervisor without SMAP
_TABLE = struct.Struct("<QQ")  # (entries - 1) * 64, address of the entries
_ENTRY = struct.Struct("<QQQQQ24x")  # linear address for reads, for writes, for fetches, gpa, host - linear address
_FEWEST_ENTRIES, _MOST_ENTRIES = 64, 1 << 22

_PROBE_CODE = bytes.fromhex(
    "8a07"  # mov al, [rdi]
    "ffc9"  # again: dec ecx
    "75fc"  # jnz again: the third time, the machine code has been told where the state is
    "f4"  # hlt
)
_CODE_GPA, _DATA_GPA = 0x1000, 0x5000


@functools.cache
def find_tlb() -> int:
    """How far before the CPU state the tables begin, 0 if they are not there or this host has no machine code.

    Done once per process, in about a millisecond.  Nothing is touched that might not be memory."""
    callbacks = NativeCallbacks.of_this_host()
    if callbacks is None:
        return 0
    engine = binding.Engine()
    page = mmap.mmap(-1, _DATA_GPA + 0x1000)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    clock = Clock(eflags_offset=EFLAGS_OFFSET, hflags_offset=HFLAGS_OFFSET, limit=NO_LIMIT)
    try:
        page[_CODE_GPA : _CODE_GPA + len(_PROBE_CODE)] = _PROBE_CODE
        engine.map_memory(0, len(page), binding.PROT_ALL, address)
        engine.hook(binding.HOOK_BLOCK, callbacks.block, ctypes.addressof(clock))
        engine.write_register(x86.UC_X86_REG_RCX, 4)
        engine.write_register(x86.UC_X86_REG_RDI, _DATA_GPA)
        if engine.start(_CODE_GPA) != binding.OK or not clock.state:
            return 0
        return TLB_DISTANCE if _is_table(clock.state - TLB_DISTANCE, address) else 0
    finally:
        engine.close()


def _is_table(place: int, host: int) -> bool:
    """Whether the tables at `place` know the page that the probe has read, guest memory being at `host`."""
    try:
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            mask, entries = _TABLE.unpack(os.pread(memory.fileno(), _TABLE.size, place + _KERNEL * _TABLE.size))
            count = mask // _ENTRY.size + 1
            if mask % _ENTRY.size or count & (count - 1) or not _FEWEST_ENTRIES <= count <= _MOST_ENTRIES:
                return False
            position = entries + (_DATA_GPA >> 12 & count - 1) * _ENTRY.size
            read, _, _, gpa, addend = _ENTRY.unpack(os.pread(memory.fileno(), _ENTRY.size, position))
    except (OSError, OverflowError, struct.error):
        return False
    return (read, gpa, addend) == (_DATA_GPA, _DATA_GPA, host)
