"""Repeated string instructions (Intel SDM volume 2B, REP), as far as stepping through them must know them.

Unicorn executes each iteration as a block that jumps to itself; the last of these blocks only finds that the counter is
zero.  While the trap flag is set it saves that last look, so that a step must put it back.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmm.cpu.layout import HF_CS32, HF_CS64, CpuState

_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
_REPNE, _REPE, _ADDRESS_SIZE = 0xF2, 0xF3, 0x67
_OPCODES = frozenset((*range(0x6C, 0x70), *range(0xA4, 0xA8), *range(0xAA, 0xB0)))
_COMPARING = frozenset((0xA6, 0xA7, 0xAE, 0xAF))  # CMPS and SCAS, which ZF ends too
_FLAG_ZF = 1 << 6
_RCX = 1


@dataclass(frozen=True)
class RepeatedString:
    """One that repeats itself at least once more.  `ends_with_zf` is the value of ZF that ends it, None for those that
    only the counter ends."""

    count_mask: int
    ends_with_zf: bool | None

    def looks_again(self, state: CpuState) -> bool:
        """Whether, after an iteration, it would look at its counter again and find zero."""
        if state.register(_RCX) & self.count_mask:
            return False
        return self.ends_with_zf is None or bool(state.eflags & _FLAG_ZF) != self.ends_with_zf


def repeated_string(code: bytes, state: CpuState) -> RepeatedString | None:
    """What `code` begins with in the mode of `state`, if it is such an instruction and its counter is not zero."""
    is_64_bit = bool(state.hflags & HF_CS64)
    prefixes, position = set(), 0
    while position < len(code) and (code[position] in _PREFIXES or (is_64_bit and code[position] & 0xF0 == 0x40)):
        prefixes.add(code[position])
        position += 1
    if not prefixes & {_REPNE, _REPE} or position == len(code) or code[position] not in _OPCODES:
        return None
    mask = _count_mask(state, _ADDRESS_SIZE in prefixes)
    if not state.register(_RCX) & mask:
        return None
    is_comparing = code[position] in _COMPARING
    return RepeatedString(mask, _REPNE in prefixes if is_comparing else None)


def _count_mask(state: CpuState, is_overridden: bool) -> int:
    """The counter is CX, ECX or RCX by the size of addresses."""
    if state.hflags & HF_CS64:
        return 0xFFFF_FFFF if is_overridden else 2**64 - 1
    return 0xFFFF_FFFF if bool(state.hflags & HF_CS32) != is_overridden else 0xFFFF
