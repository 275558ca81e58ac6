"""The callbacks that run too often for Python: machine code in memory, or the same in Python.

Owns the structure that both sides share (`Clock`, declared a second time in native.c) and the executable memory.
Knows nothing of what a block or an interrupt means to the machine.  Where there is no machine code for the host, the
same decisions are taken by a Python callback: slower by a factor of 50, equal in every count.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import sys
from collections.abc import Callable
from ctypes import c_uint8, c_uint32, c_uint64, c_void_p

from vmm.cpu import binding
from vmm.cpu.native_code import NATIVE_CODE

NO_LIMIT = 2**64 - 1
LONGEST_INSTRUCTION = 15
STOPPED_BEFORE_BLOCK, STOPPED_BEFORE_INSTRUCTION = 1, 2
_INHIBIT_INTERRUPTS = 0x08
_INTERRUPT_FLAG = 0x200
_PAGE_SHIFT = 12
_ALIGNMENT = 64


class Clock(ctypes.Structure):
    """What Python and the callbacks share; `struct clock` in native.c says what each field is."""

    _fields_ = (
        ("executed", c_uint64),
        ("limit", c_uint64),
        ("previous_pc", c_uint64),
        ("previous_size", c_uint32),
        ("irq", c_uint32),
        ("eflags_offset", c_uint32),
        ("hflags_offset", c_uint32),
        ("stopped", c_uint32),
        ("stopped_size", c_uint32),
        ("stop", c_void_p),
        ("translate", c_void_p),
        ("code_pages", c_void_p),
        ("code_pages_length", c_uint64),
        ("tlb_distance", c_uint64),
        ("state", c_void_p),
        ("plain_pc", c_uint64),
        ("string_time", c_uint64),
        ("string", c_uint32),
        ("iterations", c_uint64),
        ("tsc_per_block", c_uint64),
        ("tsc_offset", c_uint64),
        ("rdtsc", c_void_p),
        ("rdtscp", c_void_p),
        ("stopped_pc", c_uint64),
        ("wants_stop", c_uint64),
    )


class _Translation(ctypes.Structure):
    _fields_ = (("pc", c_uint64), ("instructions", ctypes.c_uint16), ("size", ctypes.c_uint16))


def host_code() -> dict[str, str] | None:
    """The machine code for this host, or None.  It follows the calling convention of Linux."""
    return NATIVE_CODE.get(platform.machine()) if sys.platform == "linux" else None


class NativeCallbacks:
    """Machine code of the callbacks in one page that is written first and made executable then."""

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
        self.rdtsc, self.rdtscp = places["rdtsc"], places["rdtscp"]
        self.instruction = places["instruction"]

    @classmethod
    def of_this_host(cls) -> NativeCallbacks | None:
        """None where there is no machine code for it."""
        code = host_code()
        return None if code is None else cls(code)


class PythonCallbacks:
    """The callbacks that tell blocks and instructions, in Python, for hosts without machine code.

    `can_take_interrupt` tells whether IF is set and no interrupt shadow is in force."""

    def __init__(self, clock: Clock, engine: binding.Engine, can_take_interrupt: Callable[[], bool]) -> None:
        self._clock = clock
        self._engine = engine
        self._can_take_interrupt = can_take_interrupt
        self.block = binding.BlockCallback(self._on_block)
        self.translated = binding.TranslatedCallback(self._on_translated)
        self.instruction = binding.BlockCallback(self._on_instruction)

    def _on_block(self, _engine: int, pc: int, size: int, _data: int) -> None:
        clock = self._clock
        stop = clock.executed >= clock.limit or (clock.irq and self._can_take_interrupt())
        if stop and not self._must_not_stop(pc, size):
            clock.stopped = STOPPED_BEFORE_BLOCK
            clock.stopped_size = size
            self._engine.stop()
            return
        clock.executed += 1
        clock.previous_pc = pc
        clock.previous_size = size

    def _on_instruction(self, _engine: int, pc: int, _size: int, _data: int) -> None:
        if self._clock.wants_stop:
            self._clock.stopped = STOPPED_BEFORE_INSTRUCTION
            self._clock.stopped_pc = pc
            self._engine.stop()

    def _must_not_stop(self, pc: int, size: int) -> bool:
        clock = self._clock
        distance = pc - clock.previous_pc
        return (
            size <= LONGEST_INSTRUCTION
            and 0 <= distance < clock.previous_size
            and (distance != 0 or size != clock.previous_size)
        )

    def _on_translated(self, _engine: int, now: int, _before: int, _data: int) -> None:
        translation = _Translation.from_address(now)
        first, last = translation.pc, translation.pc + max(translation.size - 1, 0)
        self._note_page(first)
        if first >> _PAGE_SHIFT != last >> _PAGE_SHIFT:
            self._note_page(last)

    def _note_page(self, gva: int) -> None:
        gpa = c_uint64()
        clock = self._clock
        error = binding.LIBRARY.uc_vmem_translate(self._engine.handle, gva, binding.PROT_EXECUTE, ctypes.byref(gpa))
        page = gpa.value >> _PAGE_SHIFT
        if error == binding.OK and page < clock.code_pages_length:
            c_uint8.from_address(clock.code_pages + page).value = 1


def interrupts_open(eflags: int, hflags: int) -> bool:
    """Whether IF is set and no interrupt shadow (STI, MOV SS) is in force."""
    return bool(eflags & _INTERRUPT_FLAG) and not hflags & _INHIBIT_INTERRUPTS
