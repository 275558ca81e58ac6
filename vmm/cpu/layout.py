"""Where Unicorn 2.1.4 keeps the CPU's state, and the test that refuses any other layout.

Unicorn's calls reach the selectors of segments but not their hidden parts, and no exception's error code.  Both are
in the state that a context holds, a plain structure in memory.  `CpuState` names its fields; `verify_layout` writes
known values through Unicorn's own calls, runs a few instructions, and looks whether each field is where it is
expected.  Nothing may be changed in a state before that test has passed.

Values follow Unicorn: segment flags are the second word of a descriptor (bits 8 to 23), `hflags` are the bits that
the translator looks at, `eflags` lacks the arithmetic flags while the guest runs.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from typing import NamedTuple

from unicorn import x86_const

from devices.errors import ConfigError
from vmm.cpu import binding

STATE_SIZE = 5568
ES, CS, SS, DS, FS, GS = range(6)
LDT, TR, GDT, IDT = range(6, 10)

SEGMENTS_OFFSET = 184
_SEGMENT = struct.Struct("<I4xQII")  # selector, base, limit, flags
EFLAGS_OFFSET = 136
HFLAGS_OFFSET = 176

# hflags
HF_CPL = 3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_PE = 1 << 7
HF_LMA = 1 << 14
HF_CS64 = 1 << 15

# segment flags
SEG_TYPE_SHIFT = 8
SEG_DPL_SHIFT = 13
SEG_A = 1 << 8
SEG_W = 1 << 9
SEG_R = 1 << 9
SEG_C = 1 << 10  # code: conforming; data: expand down
SEG_CODE = 1 << 11
SEG_S = 1 << 12
SEG_P = 1 << 15
SEG_L = 1 << 21
SEG_B = 1 << 22
SEG_G = 1 << 23

CR0_PE = 1
CR0_WP = 1 << 16
CR0_PG = 1 << 31
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_OSXSAVE = 1 << 18
EFER_SCE = 1
EFER_NXE = 1 << 11

CC_OP_EFLAGS = 1  # Unicorn's "the arithmetic flags are in cc_src"


class Segment(NamedTuple):
    selector: int
    base: int
    limit: int
    flags: int


class _Field:
    """One number of the state, at a fixed place."""

    def __init__(self, offset: int, code: str = "Q") -> None:
        self.offset = offset
        self.code = code
        self._struct = struct.Struct("<" + code)

    def __get__(self, state: CpuState, owner: type) -> int:
        value: int = self._struct.unpack_from(state.memory, self.offset)[0]
        return value

    def __set__(self, state: CpuState, value: int) -> None:
        self._struct.pack_into(state.memory, self.offset, value)


class CpuState:
    """A view of one saved CPU state.  Fields change in place; `Engine.restore` makes the changes count."""

    eip = _Field(128)
    eflags = _Field(EFLAGS_OFFSET)
    cc_src = _Field(152)
    cc_op = _Field(168, "I")
    df = _Field(172, "i")
    hflags = _Field(HFLAGS_OFFSET, "I")
    cr0 = _Field(424)
    cr2 = _Field(440)
    cr3 = _Field(448)
    cr4 = _Field(456)
    efer = _Field(592)
    sysenter_cs = _Field(4800, "I")
    sysenter_esp = _Field(4808)
    sysenter_eip = _Field(4816)
    star = _Field(4824)
    lstar = _Field(4840)
    cstar = _Field(4848)
    fmask = _Field(4856)
    kernel_gs_base = _Field(4864)
    tsc_aux = _Field(4896)
    misc_enable = _Field(4920)
    error_code = _Field(STATE_SIZE - 184, "i")
    exception_is_int = _Field(STATE_SIZE - 180, "i")
    exception_next_eip = _Field(STATE_SIZE - 176)
    dr6 = _Field(STATE_SIZE - 168 + 48)
    dr7 = _Field(STATE_SIZE - 168 + 56)
    old_exception = _Field(STATE_SIZE - 72, "i")
    cr8 = _Field(STATE_SIZE - 12, "B")

    def __init__(self, address: int, size: int) -> None:
        self.memory = memoryview((ctypes.c_char * size).from_address(address)).cast("B")

    def register(self, number: int) -> int:
        """General-purpose register 0 to 15 (RAX RCX RDX RBX RSP RBP RSI RDI R8 …)."""
        value: int = struct.unpack_from("<Q", self.memory, 8 * number)[0]
        return value

    def set_register(self, number: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, 8 * number, value & (2**64 - 1))

    def segment(self, number: int) -> Segment:
        return Segment(*_SEGMENT.unpack_from(self.memory, SEGMENTS_OFFSET + _SEGMENT.size * number))

    def set_segment(self, number: int, segment: Segment) -> None:
        """Store a segment and nothing else: see `load_segment`."""
        _SEGMENT.pack_into(self.memory, SEGMENTS_OFFSET + _SEGMENT.size * number, *segment)

    def load_segment(self, number: int, segment: Segment) -> None:
        """Store a segment and let `hflags` follow: CPL from SS, operand size and 64-bit mode from CS."""
        self.set_segment(number, segment)
        hflags = self.hflags
        if number == CS:
            hflags &= ~(HF_CS32 | HF_CS64)
            if hflags & HF_LMA and segment.flags & SEG_L:
                hflags |= HF_CS32 | HF_CS64
            elif segment.flags & SEG_B:
                hflags |= HF_CS32
        if number == SS:
            hflags = hflags & ~HF_CPL | segment.flags >> SEG_DPL_SHIFT & 3
        hflags &= ~(HF_SS32 | HF_ADDSEG)
        if hflags & HF_CS64:
            hflags |= HF_SS32
        else:
            hflags |= HF_SS32 if self.segment(SS).flags & SEG_B else 0
            flat = not (self.segment(DS).base | self.segment(ES).base | self.segment(SS).base)
            if not (self.cr0 & CR0_PE and hflags & HF_CS32 and flat) or self.eflags & 1 << 17:
                hflags |= HF_ADDSEG
        self.hflags = hflags

    def enter_64_bit_code(self, code: Segment, privilege: int) -> None:
        """Load CS with a 64-bit code segment and run at `privilege`: `load_segment` for where the rest of `hflags` is
        known."""
        self.set_segment(CS, code)
        self.hflags = self.hflags & ~(HF_CPL | HF_ADDSEG) | HF_CS32 | HF_CS64 | HF_SS32 | privilege

    @property
    def cpl(self) -> int:
        return self.hflags & HF_CPL


# -- the self-test ---------------------------------------------------------------------------------------------------

_PROBE_CODE = bytes.fromhex(
    "cd42"  # int 42h
    "b83800 0000"  # mov eax, 38h
    "8ed8"  # mov ds, eax: no such descriptor, #GP(38h)
    "f4"  # hlt
)
_PROBE_GPA = 0x1000


class Mismatch(Exception):
    """A field that is not where it should be."""


def _expect(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise Mismatch(f"{name} reads {found:#x}, not {expected:#x}")


@functools.cache
def verify_layout() -> None:
    """ConfigError unless this Unicorn keeps its CPU state as this module says.

    Done once per process, in about 2 ms."""
    binding.require_tested_version()
    engine = binding.Engine()
    try:
        if engine.state_size != STATE_SIZE:
            raise Mismatch(f"the CPU state has {engine.state_size} bytes, not {STATE_SIZE}")
        state = CpuState(engine.state_address, engine.state_size)
        _verify_registers(engine, state)
        _verify_exceptions(engine, state)
    except Mismatch as mismatch:
        raise ConfigError(f"this build of Unicorn keeps its CPU state in an unknown layout: {mismatch}") from None
    finally:
        engine.close()


def _verify_registers(engine: binding.Engine, state: CpuState) -> None:
    general = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{number}" for number in range(8, 16)))
    for number, name in enumerate(general):
        engine.write_register(getattr(x86_const, f"UC_X86_REG_{name}"), 0x1122334455667700 + number)
    msrs = {
        "star": 0xC0000081, "lstar": 0xC0000082, "cstar": 0xC0000083, "fmask": 0xC0000084,
        "kernel_gs_base": 0xC0000102, "tsc_aux": 0xC0000103, "misc_enable": 0x1A0,
        "sysenter_cs": 0x174, "sysenter_esp": 0x175, "sysenter_eip": 0x176,
    }  # fmt: skip
    for number in msrs.values():
        engine.write_msr(number, number & 0xFFFF)
    engine.write_register(x86_const.UC_X86_REG_CR2, 0xABCDEF012345)
    engine.write_register(x86_const.UC_X86_REG_RIP, 0x123456789ABC)
    engine.write_register(x86_const.UC_X86_REG_FS_BASE, 0xF5F5F5F5F5)
    tables = {LDT: x86_const.UC_X86_REG_LDTR, TR: x86_const.UC_X86_REG_TR}
    for table in tables.values():
        engine.write_table(table, 0x5A, 0x12345678, 0x4321, 0x8B00)
    engine.write_table(x86_const.UC_X86_REG_GDTR, 0, 0x23456789, 0x1F, 0)
    engine.write_table(x86_const.UC_X86_REG_IDTR, 0, 0x34567890, 0x2F, 0)
    engine.save()
    for number, name in enumerate(general):
        _expect(name, state.register(number), 0x1122334455667700 + number)
    for name, number in msrs.items():
        _expect(name, getattr(state, name), number & 0xFFFF)
    _expect("cr2", state.cr2, 0xABCDEF012345)
    _expect("rip", state.eip, 0x123456789ABC)
    _expect("fs base", state.segment(FS).base, 0xF5F5F5F5F5)
    for number in tables:
        for found, expected in zip(state.segment(number), (0x5A, 0x12345678, 0x4321, 0x8B00), strict=True):
            _expect("a system table", found, expected)
    _expect("gdt", state.segment(GDT).base << 16 | state.segment(GDT).limit, 0x23456789001F)
    _expect("idt", state.segment(IDT).base << 16 | state.segment(IDT).limit, 0x34567890002F)
    _expect("hflags", state.hflags & (HF_PE | HF_LMA | HF_CS64 | HF_CS32), HF_PE | HF_LMA | HF_CS64 | HF_CS32)
    _expect("cr0", state.cr0 & (CR0_PE | CR0_PG), CR0_PE)
    _expect("efer", state.efer & 0x500, 0x500)


def _verify_exceptions(engine: binding.Engine, state: CpuState) -> None:
    page = ctypes.create_string_buffer(2 * 4096)
    address = -(-ctypes.addressof(page) // 4096) * 4096
    ctypes.memmove(address, _PROBE_CODE, len(_PROBE_CODE))
    engine.map_memory(_PROBE_GPA, 4096, binding.PROT_ALL, address)
    seen: list[tuple[int, int, int, int, int]] = []

    def on_interrupt(_engine: int, vector: int, _data: int) -> None:
        engine.save()
        seen.append((vector, state.exception_is_int, state.error_code, state.old_exception, state.eip))
        state.old_exception = -1
        state.eip = _PROBE_GPA + (2 if len(seen) == 1 else len(_PROBE_CODE) - 1)
        state.eflags = state.eflags & ~0x200
        engine.restore()

    engine.write_table(x86_const.UC_X86_REG_GDTR, 0, 0, 0, 0)
    engine.write_table(x86_const.UC_X86_REG_LDTR, 0, 0, 0, 0)
    engine.hook(binding.HOOK_INTERRUPT, binding.InterruptCallback(on_interrupt))
    _expect("the error of a run", engine.start(_PROBE_GPA), binding.OK)
    expected = [(0x42, 1, 0, -1, _PROBE_GPA + 2), (13, 0, 0x38, 13, _PROBE_GPA + 7)]
    if seen != expected:
        raise Mismatch(f"two exceptions were seen as {seen}, not {expected}")
    engine.save()
    _expect("rip after hlt", state.eip, _PROBE_GPA + len(_PROBE_CODE))
