"""How Unicorn 2.1.4 is told not to look for a stop after each access to memory, and the test whether it can be.

Its translator calls a function after every load and store, in case a callback has asked for a stop, and puts all the
guest's registers back into memory for that.  This project stops before blocks only (see `unicorn_cpu.py`), and there
another look is taken in any case.  The translator has a flag of its own to leave those calls out, made for the ARM
instruction IT; there is no call that sets it.  With it a Linux guest needs a tenth to a fifth less time.

The flag is sought among the engine's own fields, and then tried: a run that is stopped from a callback of a load must
go on to the end of the block and no further.  Where that is not so nothing is changed, and the guest runs slower, with
the same results.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct
from collections.abc import Iterator

from unicorn import x86_const

from vmm.cpu import binding
from vmm.cpu.layout import STATE_SIZE

_FIELDS = struct.Struct("<II")  # what a context holds: 1, the CPU; and how large that is
_ADDRESS_BYTES = 8  # then comes an address, and then four flags, of a byte each:
_FLAG = 2  # insert hooks first, first block, no checks, set up
_CONTEXT_OF_THE_CPU = 1
_LOOKED_THROUGH_BYTES = 4096

_PROBE_CODE = bytes.fromhex(
    "8a07"  # mov al, [rdi]: the callback stops here
    "ffc3"  # inc ebx
    "eb00"  # jmp next
    "ffc3"  # next: inc ebx
    "f4"  # hlt
)
_CODE_GPA, _DATA_GPA = 0x1000, 0x5000


def leave_out(engine: binding.Engine, left_out: bool = True) -> None:
    """No more checks in what `engine` translates from now on, if this Unicorn can do without; False: checks again."""
    offset = find_flag()
    if offset:
        ctypes.c_uint8.from_address((engine.handle.value or 0) + offset).value = int(left_out)


@functools.cache
def find_flag() -> int:
    """Where the flag lies in an engine, 0 if it is not found.  Done once per process, in about a millisecond."""
    offsets = [offset for offset in _candidates() if _stops_after_the_load(0) and _ends_with_the_block(offset)]
    return offsets[0] if len(offsets) == 1 else 0


def _candidates() -> Iterator[int]:
    """The places that look like the flag, in an engine that has been used once.  Reads nothing that is not memory."""
    engine = binding.Engine()
    try:
        engine.start(0)  # no memory there: it only sets the engine up
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            fields = os.pread(memory.fileno(), _LOOKED_THROUGH_BYTES, engine.handle.value or 0)
    except OSError:
        return
    finally:
        engine.close()
    for offset in range(0, len(fields) - 32, 4):
        if _FIELDS.unpack_from(fields, offset) == (_CONTEXT_OF_THE_CPU, STATE_SIZE):
            flags = -(-(offset + _FIELDS.size) // 8) * 8 + _ADDRESS_BYTES
            insert_first, first_block, no_checks, set_up = fields[flags : flags + 4]
            if (insert_first, no_checks, set_up) == (0, 0, 1) and first_block <= 1:
                yield flags + _FLAG


def _stops_after_the_load(offset: int) -> bool:
    return _probe(offset) == 0


def _ends_with_the_block(offset: int) -> bool:
    return _probe(offset) == 1


def _probe(offset: int) -> int:
    """How often the probe has counted when a callback of its load has stopped it, with the flag at `offset` set."""
    engine = binding.Engine()
    page = mmap.mmap(-1, _DATA_GPA + 0x1000)
    try:
        page[_CODE_GPA : _CODE_GPA + len(_PROBE_CODE)] = _PROBE_CODE
        engine.map_memory(0, len(page), binding.PROT_ALL, ctypes.addressof(ctypes.c_char.from_buffer(page)))
        engine.hook(binding.HOOK_LOAD, binding.LoadCallback(lambda *_access: engine.stop()))
        engine.write_register(x86_const.UC_X86_REG_RDI, _DATA_GPA)
        engine.write_register(x86_const.UC_X86_REG_RBX, 0)
        if offset:
            ctypes.c_uint8.from_address((engine.handle.value or 0) + offset).value = 1
        if engine.start(_CODE_GPA) != binding.OK:
            return -1
        return engine.read_register(x86_const.UC_X86_REG_RBX)
    finally:
        engine.close()
