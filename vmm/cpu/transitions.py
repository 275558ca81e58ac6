"""SYSCALL and SYSENTER (Intel SDM volume 2B), which Unicorn leaves to its user, and the state after reset.

Both functions only change a `CpuState`.  They return False where the instruction is not allowed; the caller then
delivers the exception.
"""

from __future__ import annotations

from vmm.cpu.layout import (
    CC_OP_EFLAGS,
    CR0_PE,
    CS,
    DS,
    EFER_SCE,
    ES,
    FS,
    GDT,
    GS,
    HF_ADDSEG,
    HF_CS64,
    HF_LMA,
    IDT,
    LDT,
    SEG_A,
    SEG_B,
    SEG_CODE,
    SEG_G,
    SEG_L,
    SEG_P,
    SEG_R,
    SEG_S,
    SEG_W,
    SS,
    TR,
    CpuState,
    Segment,
)  # fmt: skip

RAX, RCX, RDX, RSP, R11 = 0, 1, 2, 4, 11
RESET_CR0 = 0x6000_0010
RESET_MXCSR = 0x1F80
RESET_FPU_CONTROL = 0x0040

_ARITHMETIC_FLAGS = 0x8D5  # OF SF ZF AF PF CF
_DIRECTION_FLAG = 0x400
_ALWAYS_SET = 2
_FLAT_LIMIT = 0xFFFF_FFFF
_FAST_STRINGS = 1  # in IA32_MISC_ENABLE; without it Linux fills and copies pages word by word in loops
_CODE = SEG_G | SEG_P | SEG_S | SEG_CODE | SEG_R | SEG_A
_DATA = SEG_G | SEG_B | SEG_P | SEG_S | SEG_W | SEG_A


def set_running_eflags(state: CpuState, eflags: int) -> None:
    """Give a running CPU a whole flags register: Unicorn keeps the arithmetic flags and DF apart while it runs."""
    state.cc_src = eflags & _ARITHMETIC_FLAGS
    state.cc_op = CC_OP_EFLAGS
    state.df = -1 if eflags & _DIRECTION_FLAG else 1
    state.eflags = eflags & ~(_ARITHMETIC_FLAGS | _DIRECTION_FLAG) | _ALWAYS_SET


def set_stopped_eflags(state: CpuState, eflags: int) -> None:
    """Give a stopped CPU a whole flags register: Unicorn takes it apart when it starts."""
    set_running_eflags(state, eflags)
    state.eflags = eflags | _ALWAYS_SET


def _flat_kernel_segments(state: CpuState, selector: int, long_mode: bool) -> None:
    code = _CODE | (SEG_L if long_mode else SEG_B)
    state.load_segment(SS, Segment((selector + 8) & 0xFFFC, 0, _FLAT_LIMIT, _DATA))
    state.load_segment(CS, Segment(selector & 0xFFFC, 0, _FLAT_LIMIT, code))


def syscall(state: CpuState, eflags: int, length: int) -> bool:
    """SYSCALL, an instruction of `length` bytes at `eip`.  False (#UD) without EFER.SCE or outside protected mode."""
    if not state.efer & EFER_SCE or not state.cr0 & CR0_PE:
        return False
    selector, next_eip = state.star >> 32 & 0xFFFC, state.eip + length
    if state.hflags & HF_LMA:
        was_64_bit = state.hflags & HF_CS64
        state.set_register(RCX, next_eip if was_64_bit else next_eip & 0xFFFF_FFFF)
        state.set_register(R11, eflags & ~0x10000)
        state.eip = state.lstar if was_64_bit else state.cstar
        set_running_eflags(state, eflags & ~(state.fmask | 0x10000))
        _flat_kernel_segments(state, selector, long_mode=True)
        return True
    state.set_register(RCX, next_eip & 0xFFFF_FFFF)
    state.eip = state.star & 0xFFFF_FFFF
    set_running_eflags(state, eflags & ~0x30200)  # IF, RF and VM
    _flat_kernel_segments(state, selector, long_mode=False)
    return True


def sysenter(state: CpuState, eflags: int) -> bool:
    """SYSENTER.  False (#GP) in real mode or without a kernel code segment in its MSR."""
    if not state.sysenter_cs & 0xFFFC or not state.cr0 & CR0_PE:
        return False
    long_mode = bool(state.hflags & HF_LMA)
    set_running_eflags(state, eflags & ~0x30200)
    _flat_kernel_segments(state, state.sysenter_cs, long_mode)
    mask = 2**64 - 1 if long_mode else 0xFFFF_FFFF
    state.set_register(RSP, state.sysenter_esp & mask)
    state.eip = state.sysenter_eip & mask
    return True


def reset(state: CpuState, pristine: bytes, signature: int) -> None:
    """The state after RESET (SDM volume 3, table 9-1): real mode at FFFFFFF0h.

    `pristine` is the state of a new engine, `signature` goes to RDX.  The FPU's control registers are not in reach
    here and are left to the caller."""
    state.memory[:] = pristine
    for number in range(16):
        state.set_register(number, 0)
    state.set_register(RDX, signature)
    state.cr0, state.cr2, state.cr3, state.cr4, state.efer = RESET_CR0, 0, 0, 0, 0
    state.hflags = HF_ADDSEG
    state.eflags = _ALWAYS_SET
    state.cc_src, state.cc_op, state.df = 0, CC_OP_EFLAGS, 1
    state.misc_enable = _FAST_STRINGS
    state.set_segment(CS, Segment(0xF000, 0xFFFF0000, 0xFFFF, SEG_P | SEG_S | SEG_CODE | SEG_R | SEG_A))
    for number in (ES, SS, DS, FS, GS):
        state.set_segment(number, Segment(0, 0, 0xFFFF, SEG_P | SEG_S | SEG_W | SEG_A))
    state.set_segment(LDT, Segment(0, 0, 0xFFFF, SEG_P | 2 << 8))
    state.set_segment(TR, Segment(0, 0, 0xFFFF, SEG_P | 11 << 8))
    for number in (GDT, IDT):
        state.set_segment(number, Segment(0, 0, 0xFFFF, 0))
    state.eip = 0xFFF0
    state.old_exception = -1
