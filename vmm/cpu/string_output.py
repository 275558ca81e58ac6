"""REP OUTSB to a port that only collects bytes: all that is left of it in this page, in the callback of one byte.

Unicorn makes a block and a callback of each byte, which for a program of Linux costs some 25 us: the right to the port
stands in the TSS, behind four walks of the page tables.  REP may be interrupted between any two bytes and so be found
with any number of them done; a program cannot see how many were done at once.  The count of blocks moves on as if each
had been one, never beyond where the CPU is to stop, so that a run is the same to the byte with this and without.

Only the plain instruction of 64-bit code (F3 6E) that goes upwards through RAM is taken; every other one goes byte by
byte.
"""

from __future__ import annotations

from unicorn import x86_const as x86

from vmm.cpu import binding
from vmm.cpu.layout import HF_CS64, CpuState
from vmm.cpu.native import Clock
from vmm.cpu.paging import PageFault, walk
from vmm.cpu.physical import PhysicalMemory

REP_OUTSB = b"\xf3\x6e"
_RCX, _RSI = 1, 6
_PAGE_BYTES = 0x1000
_FLAG_TF = 1 << 8


class StringOutput:
    """Looks at the CPU in the middle of an OUT, and moves its string instruction on."""

    def __init__(self, engine: binding.Engine, state: CpuState, physical: PhysicalMemory, clock: Clock) -> None:
        self._engine = engine
        self._state = state
        self._physical = physical
        self._clock = clock

    def take_rest(self) -> bytes:
        """The bytes behind the one that is being written now, which count as written; b"" for any other instruction."""
        if self._clock.previous_size != len(REP_OUTSB):  # from the second byte on the instruction is its own block
            return b""
        self._engine.save()
        source = self._state.register(_RSI)
        count = self._count(source)
        try:
            if count <= 0 or not self._is_plain() or not self._is_rep_outsb():
                return b""
            rest = self._physical.read_ram(self._translate(source + 1), count)
        except PageFault:
            return b""
        if rest:
            self._move_on(source, count)
        return rest

    def _count(self, source: int) -> int:
        """How many bytes behind this one lie in the same page, are asked for, and are due before the CPU stops."""
        in_page = _PAGE_BYTES - 1 - source % _PAGE_BYTES
        until_stop = int(self._clock.limit) - int(self._clock.executed)
        return min(self._state.register(_RCX) - 1, in_page, until_stop)

    def _is_plain(self) -> bool:
        """64-bit code, where DS begins at 0, upwards, and not a step at a time."""
        state = self._state
        return bool(state.hflags & HF_CS64) and state.df == 1 and not state.eflags & _FLAG_TF

    def _is_rep_outsb(self) -> bool:
        pc = self._clock.previous_pc
        return self._physical.read_ram(self._translate(pc), len(REP_OUTSB)) == REP_OUTSB

    def _translate(self, linear: int) -> int:
        return walk(self._state, self._physical, linear, touch=False)

    def _move_on(self, source: int, count: int) -> None:
        self._engine.write_register(x86.UC_X86_REG_RSI, source + count)
        self._engine.write_register(x86.UC_X86_REG_RCX, self._state.register(_RCX) - count)
        self._clock.executed += count
