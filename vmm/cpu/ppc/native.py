"""The callbacks that run too often for Python, for a PowerPC: machine code in memory, or the same in Python.

Owns the structure that both sides share (`Clock`, declared a second time in native.c) and the executable memory.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from collections.abc import Callable
from ctypes import c_uint8, c_uint32, c_uint64, c_void_p

from vmm.cpu import binding
from vmm.cpu.ppc.native_code import NATIVE_CODE

_PAGE_SHIFT = 12
_ALIGNMENT = 64


class Clock(ctypes.Structure):
    """What Python and the callbacks share; `struct clock` in native.c says what each field is."""

    _fields_ = (
        ("executed", c_uint64),
        ("limit", c_uint64),
        ("irq", c_uint32),
        ("msr_offset", c_uint32),
        ("stopped", c_uint64),
        ("stop", c_void_p),
        ("translate", c_void_p),
        ("code_pages", c_void_p),
        ("code_pages_length", c_uint64),
    )


class _Translation(ctypes.Structure):
    _fields_ = (("pc", c_uint64), ("instructions", ctypes.c_uint16), ("size", ctypes.c_uint16))


class NativeCallbacks:
    """Machine code of both callbacks in one page that is written first and made executable then."""

    def __init__(self, code: dict[str, str]) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        places, end = {}, 0
        for name, text in code.items():
            machine_code = bytes.fromhex(text)
            self._memory[end : end + len(machine_code)] = machine_code
            places[name] = c_void_p(address + end)
            end += -(-len(machine_code) // _ALIGNMENT) * _ALIGNMENT
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC) != 0:
            raise OSError(ctypes.get_errno(), "the host does not let memory be made executable")
        self.block, self.translated = places["block"], places["translated"]

    @classmethod
    def of_this_host(cls) -> NativeCallbacks | None:
        """None where there is no machine code for it, which follows the calling convention of Linux."""
        code = NATIVE_CODE.get(platform.machine()) if sys.platform == "linux" else None
        return None if code is None else cls(code)


class PythonCallbacks:
    """The same two callbacks in Python, for hosts without machine code.

    `can_take_interrupt` tells whether the processor takes external interrupts."""

    def __init__(self, clock: Clock, engine: binding.Engine, can_take_interrupt: Callable[[], bool]) -> None:
        self._clock = clock
        self._engine = engine
        self._can_take_interrupt = can_take_interrupt
        self.block = binding.BlockCallback(self._on_block)
        self.translated = binding.TranslatedCallback(self._on_translated)

    def _on_block(self, _engine: int, _pc: int, _size: int, _data: int) -> None:
        clock = self._clock
        if clock.executed >= clock.limit or (clock.irq and self._can_take_interrupt()):
            clock.stopped = 1
            self._engine.stop()
        else:
            clock.executed += 1

    def _on_translated(self, _engine: int, now: int, _before: int, _data: int) -> None:
        gpa, clock = c_uint64(), self._clock
        ea = _Translation.from_address(now).pc
        error = binding.LIBRARY.uc_vmem_translate(self._engine.handle, ea, binding.PROT_EXECUTE, ctypes.byref(gpa))
        page = gpa.value >> _PAGE_SHIFT
        if error == binding.OK and page < clock.code_pages_length:
            c_uint8.from_address(clock.code_pages + page).value = 1
