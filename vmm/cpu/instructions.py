"""The instructions that the platform or this project answers: IN, OUT, CPUID, RDTSC, RDTSCP.

Called by Unicorn in the middle of a block.  Nothing here may stop the CPU or change its place in the program.

Unicorn lets every ring use every port.  The check is made here; a refused access reaches no device, but the #GP can
only be delivered before the next block, so that the rest of the block still runs.  A program that touches ports it has
no right to is ended by its kernel all the same.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

from unicorn import x86_const as x86

from vmm.cpu import binding, cpuid
from vmm.cpu.layout import CR0_PE, SEG_P, SEG_TYPE_SHIFT, TR, CpuState
from vmm.cpu.paging import PageFault, walk
from vmm.cpu.physical import PhysicalMemory
from vmm.cpu.string_output import StringOutput
from vmm.cpu.x86 import X86Platform

_CPUID_REGISTERS = (x86.UC_X86_REG_RAX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX)
_IOPL_SHIFT = 12
_TSS_TYPES = (9, 11)  # a 32- or 64-bit TSS, available or busy
_TSS_IO_MAP_BASE = 0x66


class Instructions:
    """`refuse(rip)` is called when the program at `rip` has no right to the port it names."""

    def __init__(
        self,
        engine: binding.Engine,
        state: CpuState,
        physical: PhysicalMemory,
        platform: X86Platform,
        refuse: Callable[[int], None],
        string_output: StringOutput,
    ) -> None:
        self._engine = engine
        self._state = state
        self._physical = physical
        self._platform = platform
        self._refuse = refuse
        self._string_output = string_output
        self._host_cpuid = host_cpuid()

    def cpuid(self, _engine: int, _data: int) -> int:
        engine = self._engine
        leaf = engine.read_register(x86.UC_X86_REG_RAX) & 0xFFFF_FFFF
        subleaf = engine.read_register(x86.UC_X86_REG_RCX) & 0xFFFF_FFFF
        values = cpuid.answer(leaf, subleaf, engine.read_register(x86.UC_X86_REG_CR4), self._host_cpuid)
        if values is None:
            return 0
        for register, value in zip(_CPUID_REGISTERS, values, strict=True):
            engine.write_register(register, value)
        return 1

    def rdtsc(self, _engine: int, _data: int) -> int:
        tsc = self._platform.tsc()
        self._engine.write_register(x86.UC_X86_REG_RAX, tsc & 0xFFFF_FFFF)
        self._engine.write_register(x86.UC_X86_REG_RDX, tsc >> 32 & 0xFFFF_FFFF)
        return 1

    def rdtscp(self, engine: int, data: int) -> int:
        self._engine.save()
        self._engine.write_register(x86.UC_X86_REG_RCX, self._state.tsc_aux & 0xFFFF_FFFF)
        return self.rdtsc(engine, data)

    def port_in(self, _engine: int, port: int, size: int, _data: int) -> int:
        if self._engine.read_register(x86.UC_X86_REG_CS) & 3 and not self._may_use(port, size):
            return (1 << 8 * size) - 1
        return self._platform.port_read(port, size)

    def port_out(self, _engine: int, port: int, size: int, value: int, _data: int) -> None:
        if self._engine.read_register(x86.UC_X86_REG_CS) & 3 and not self._may_use(port, size):
            return
        self._platform.port_write(port, size, value)
        collect = self._platform.collectors.get(port)
        if collect is not None and size == 1:
            collect(self._string_output.take_rest())

    def _may_use(self, port: int, size: int) -> bool:
        """SDM volume 1, 19.5: by IOPL, or by the bit map in the TSS."""
        self._engine.save()
        state = self._state
        privileged = state.cpl <= state.eflags >> _IOPL_SHIFT & 3 or not state.cr0 & CR0_PE
        if privileged or self._bit_map_allows(port, size):
            return True
        self._refuse(state.eip)
        return False

    def _bit_map_allows(self, port: int, size: int) -> bool:
        task = self._state.segment(TR)
        if not task.flags & SEG_P or task.flags >> SEG_TYPE_SHIFT & 0xF not in _TSS_TYPES or task.limit < 103:
            return False
        try:
            place = self._read(task.base + _TSS_IO_MAP_BASE) + (port >> 3)
            if place + 1 > task.limit:
                return False
            bits = self._read(task.base + place) >> (port & 7)
        except PageFault:
            return False
        return not bits & (1 << size) - 1

    def _read(self, linear: int) -> int:
        """16 bits of the TSS, byte by byte, because they may lie in two pages."""
        low, high = (self._physical.read(walk(self._state, self._physical, linear + i), 1) for i in (0, 1))
        return low | high << 8


@functools.cache
def host_cpuid() -> dict[tuple[int, int], cpuid.Leaf]:
    """Unicorn's own answers to the leaves that `cpuid.py` changes, asked once per process."""
    engine = binding.Engine()
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page[:3] = b"\x0f\xa2\xf4"  # cpuid; hlt
    engine.map_memory(0, mmap.PAGESIZE, binding.PROT_ALL, ctypes.addressof(ctypes.c_char.from_buffer(page)))
    answers: dict[tuple[int, int], cpuid.Leaf] = {}
    for leaf in (1, 7):
        engine.write_register(x86.UC_X86_REG_RAX, leaf)
        engine.write_register(x86.UC_X86_REG_RCX, 0)
        if engine.start(0) != binding.OK:
            raise binding.UnicornError("CPUID could not be executed")
        eax, ebx, ecx, edx = (engine.read_register(register) & 0xFFFF_FFFF for register in _CPUID_REGISTERS)
        answers[leaf, 0] = (eax, ebx, ecx, edx)
    engine.close()
    return answers
