"""The x86 processor under a debugger: breakpoints, watchpoints and single steps that the guest cannot see.

How each of them stops Unicorn precisely:

* A breakpoint is a hook on one address.  Unicorn puts a call into the translation before that instruction, and the
  callback stops there.  Memory is not touched, so ROM and pages that are not there yet are as good as RAM.
* A watchpoint is a hook on the physical addresses behind it, which tells of a load or a store in the middle of an
  instruction.  A second hook, before every instruction, stops before the next one.
* A step sets the translator's copy of the trap flag (in `hflags`, which no guest can read) and takes the trap.

To stop within a block, the checks that `exit_checks` leaves out must be there; so what is translated is forgotten when
the first hook is set and when the last one goes.  Steps need none of it.

Blocks and time.  A block is counted when it begins.  Stopped within one, the rest of it is *open*: it is gone through
step by step, uncounted and with no interrupt, until the block ends where it would have ended, and then the guest runs
on as if nothing had been.  A step into a new block has its length found out first (by a run that is stopped before its
first instruction), so that it is counted once.  In the middle of a step the count is what it would have been in the
block, and so is the time that a device sees.  A state that is saved within a block does not tell that the rest is open:
restored, it counts that rest as a block of its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from unicorn import unicorn_const

from vmm.cpu import binding, exit_checks, saved_state
from vmm.cpu.debug import Access, DebugStop, StopKind, Watchpoint, covers
from vmm.cpu.debug_memory import DebugMemory
from vmm.cpu.layout import CS, HF_CS64, CpuState
from vmm.cpu.native import LONGEST_INSTRUCTION, STOPPED_BEFORE_INSTRUCTION, Clock
from vmm.cpu.repeated import repeated_string

_HF_TF = 1 << 8
_FLAG_TF = 1 << 8
_DEBUG_EXCEPTION = 1
_ALL_BITS = 2**64 - 1
_ENDLESS = 2**32 - 1
_WIDEST_ACCESS_BYTES = 64
_ACCESS_KINDS = {
    Access.WRITE: (unicorn_const.UC_MEM_WRITE,),
    Access.READ: (unicorn_const.UC_MEM_READ,),
    Access.ANY: (unicorn_const.UC_MEM_READ, unicorn_const.UC_MEM_WRITE),
}
_HOOKS = {unicorn_const.UC_MEM_READ: binding.HOOK_LOAD, unicorn_const.UC_MEM_WRITE: binding.HOOK_STORE}


@dataclass(frozen=True)
class Core:
    """What of a processor its debugger works with.

    `emulate(limit)` runs until the count of blocks has reached the limit or something else ends it, and delivers
    exceptions; `take_interrupt()` delivers an interrupt that waits, and tells whether there was one;
    `forget_code(ranges)` drops translations of (gpa, length) ranges; after `leave_halt()` it is at an instruction."""

    engine: binding.Engine
    state: CpuState
    clock: Clock
    memory: DebugMemory
    before_instruction: Any
    emulate: Callable[[int], Any]
    take_interrupt: Callable[[], bool]
    forget_code: Callable[[Iterable[tuple[int, int]]], None]
    leave_halt: Callable[[], None]


class _Open(NamedTuple):
    """The rest of a block that is counted already: from the linear address `at`, where the CPU stands, to `end`."""

    at: int
    end: int


class _Watched(NamedTuple):
    """A watchpoint and the (first, last) physical addresses behind it."""

    watchpoint: Watchpoint
    ranges: tuple[tuple[int, int], ...]


class Debugger:
    """The `CpuDebugger` of an x86 processor, which asks it before and after each run of Unicorn."""

    def __init__(self, core: Core) -> None:
        self.breakpoints: set[int] = set()
        self.watchpoints: set[Watchpoint] = set()
        self.steps_take_interrupts = False
        self._core = core
        self._engine, self._state, self._clock = core.engine, core.state, core.clock
        self._step_wanted = self._passing = False
        self._is_stepping = self._swallows_trap = False
        self._open: _Open | None = None
        self._seen: DebugStop | None = None
        self._hooked: dict[int, int] = {}  # breakpoints, each with its hook
        self._watched: tuple[_Watched, ...] = ()
        self._watch_hooks: list[int] = []
        self._tlb_distance = self._clock.tlb_distance
        self._is_armed = False
        self._breakpoint_callback = binding.BlockCallback(self._on_breakpoint)
        self._access_callback = binding.LoadCallback(self._on_access)

    # -- what a debugger asks ------------------------------------------------------------------------------------------

    def step(self) -> None:
        self._step_wanted = True

    def go_on(self) -> None:
        self._step_wanted = False
        self._passing = True

    def detach(self) -> None:
        self.breakpoints.clear()
        self.watchpoints.clear()
        self._step_wanted = self._passing = False
        self._seen = None

    def registers(self) -> dict[str, int]:
        return saved_state.read_registers(self._engine, self._state)

    def set_registers(self, values: dict[str, int]) -> None:
        saved_state.write_registers(self._engine, self._state, values)
        self._engine.ctl(binding.CTL_FLUSH_TLB)
        if "rip" in values:
            self._core.leave_halt()

    def read_memory(self, gva: int, length: int) -> bytes:
        self._engine.save()
        return self._core.memory.read(gva, length)

    def write_memory(self, gva: int, data: bytes) -> bool:
        self._engine.save()
        pieces = self._core.memory.write(gva, data)
        self._core.forget_code(pieces)
        return bool(pieces) or not data

    # -- what the processor asks, while it runs ------------------------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether `begin` has something to do before Unicorn may run freely."""
        return self._step_wanted or self._passing or self._open is not None

    def begin(self) -> DebugStop | None:
        """Do the step that was asked for, or what is left of an open block.  Not while the CPU halts."""
        self._arm_watchpoints()
        if self._open is not None and self._open.at != self._pc():
            self._open = None  # the debugger has set another place
        if self._step_wanted:
            self._step_wanted = self._passing = False
            taken = self.steps_take_interrupts and self._open is None and self._core.take_interrupt()
            if not taken:
                self._step()
            return self._take_seen() or DebugStop(StopKind.STEP)
        passing, self._passing = self._passing, False
        if self._open is None and not (passing and self._pc() in self.breakpoints):
            return None
        while True:
            self._step()
            if (seen := self._take_seen()) is not None or self._open is None:
                return seen
            if self._open.at in self.breakpoints:
                return DebugStop(StopKind.BREAKPOINT, self._open.at)

    def woke(self) -> DebugStop | None:
        """An interrupt has ended HLT: that is a step."""
        wanted, self._step_wanted = self._step_wanted, False
        return DebugStop(StopKind.STEP) if wanted else None

    def arm(self) -> None:
        """Before Unicorn runs freely: make the hooks those that are asked for."""
        self._arm_watchpoints()
        if self._hooked.keys() == self.breakpoints:
            return
        for address in self._hooked.keys() - self.breakpoints:
            self._engine.unhook(self._hooked.pop(address))
        for address in self.breakpoints - self._hooked.keys():
            bounds = (address, address)
            self._hooked[address] = self._engine.hook(binding.HOOK_CODE, self._breakpoint_callback, bounds=bounds)
        self._settle_hooks()

    def ended(self) -> DebugStop | None:
        """After Unicorn has run freely: why it stopped, if that was for the debugger."""
        clock = self._clock
        seen = self._take_seen()
        if clock.stopped != STOPPED_BEFORE_INSTRUCTION:
            return seen
        pc = int(clock.stopped_pc)
        self._open = _Open(pc, int(clock.previous_pc + clock.previous_size))
        return seen or DebugStop(StopKind.BREAKPOINT, pc)

    def takes(self, vector: int) -> bool:
        """Whether an exception is the end of a step, and nothing that the guest shall see."""
        return self._swallows_trap and vector == _DEBUG_EXCEPTION and not self._state.exception_is_int

    def forget(self) -> None:
        """The processor begins anew or somewhere else."""
        self._open = None
        self._passing = False

    # -- one instruction -----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """One instruction from where the CPU stands, and what it does to the count of blocks."""
        clock, state = self._clock, self._state
        start = self._pc()
        if self._open is None:
            size = self._length_of_block()
            if size is None:
                return  # not even its first byte could be fetched: the exception is delivered
            clock.executed += 1
            clock.previous_pc, clock.previous_size = start, size
            end = start + size
        else:
            end = self._open.end
        counted, previous = clock.executed, (clock.previous_pc, clock.previous_size)
        self._engine.save()
        code = self._core.memory.read(start, LONGEST_INSTRUCTION)
        debug_status, flags = state.dr6, state.eflags
        string = repeated_string(code, state)
        state.hflags |= _HF_TF
        self._engine.restore()
        # As in a block within the one before it, which is not stopped: see must_not_stop in native.c.
        clock.executed, clock.previous_pc, clock.previous_size = counted - 1, (start - 1) & _ALL_BITS, _ENDLESS
        self._swallows_trap = not flags & _FLAG_TF and not code.startswith((b"\x0f\x07", b"\x48\x0f\x07"))  # SYSRET
        self._is_stepping = True
        try:
            self._core.emulate(0)
        finally:
            self._is_stepping = False
            trapped, self._swallows_trap = self._swallows_trap, False
            self._engine.save()
            state.hflags &= ~_HF_TF
            if trapped:
                state.dr6 = debug_status
            if string is not None and clock.executed == counted and string.looks_again(state):
                self._set_pc(start)
            at = self._saved_pc()
            self._engine.restore()
            clock.previous_pc, clock.previous_size = previous
            is_open = clock.executed == counted and start < at < end
            self._open = _Open(at, end) if is_open else None

    def _length_of_block(self) -> int | None:
        """The bytes of the block that begins here.  None if an exception came instead, which is delivered then."""
        clock = self._clock
        executed, previous = clock.executed, (clock.previous_pc, clock.previous_size)
        clock.previous_size = 0  # so that this block lies in no other, and can be stopped
        self._is_stepping = True
        try:
            self._core.emulate(executed)
        finally:
            self._is_stepping = False
            clock.previous_pc, clock.previous_size = previous
        if clock.executed != executed:
            return None
        return int(clock.stopped_size)

    # -- places --------------------------------------------------------------------------------------------------------

    def _pc(self) -> int:
        """The linear address of the next instruction."""
        self._engine.save()
        return self._saved_pc()

    def _saved_pc(self) -> int:
        """The same in the state as it was saved, and perhaps changed."""
        linear = self._state.segment(CS).base + self._state.eip
        return linear & (_ALL_BITS if self._state.hflags & HF_CS64 else 0xFFFF_FFFF)

    def _set_pc(self, linear: int) -> None:
        offset = linear - self._state.segment(CS).base
        self._state.eip = offset & (_ALL_BITS if self._state.hflags & HF_CS64 else 0xFFFF_FFFF)

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def _arm_watchpoints(self) -> None:
        """Watch the memory that the addresses are mapped to now."""
        if not self.watchpoints and not self._watched:
            return
        self._engine.save()
        wanted = tuple(
            _Watched(watchpoint, tuple((gpa, gpa + size - 1) for gpa, size in pieces))
            for watchpoint in sorted(self.watchpoints, key=lambda each: (each.gva, each.length, each.access.value))
            for pieces in [self._core.memory.ranges(watchpoint.gva, watchpoint.length)]
        )
        if wanted == self._watched:
            return
        for hook in self._watch_hooks:
            self._engine.unhook(hook)
        self._watched = wanted
        self._watch_hooks = [
            self._engine.hook(_HOOKS[kind], self._access_callback, bounds=(max(first - _WIDEST_ACCESS_BYTES, 0), last))
            for watchpoint, ranges in wanted
            for first, last in ranges
            for kind in _ACCESS_KINDS[watchpoint.access]
        ]
        if wanted:
            callback, clock = self._core.before_instruction, ctypes.addressof(self._clock)
            self._watch_hooks.append(self._engine.hook(binding.HOOK_CODE, callback, clock))
        self._settle_hooks()

    def _settle_hooks(self) -> None:
        """What is translated already knows nothing of new hooks, and strings are moved without them."""
        self._is_armed = bool(self._hooked or self._watch_hooks)
        exit_checks.leave_out(self._engine, not self._is_armed)
        self._clock.tlb_distance = 0 if self._is_armed else self._tlb_distance
        self._engine.ctl(binding.CTL_FLUSH_TRANSLATIONS)

    def _on_breakpoint(self, _engine: int, pc: int, _size: int, _data: int) -> None:
        if not self._is_stepping and not self._clock.stopped:
            self._clock.stopped, self._clock.stopped_pc = STOPPED_BEFORE_INSTRUCTION, pc
            self._engine.stop()

    def _on_access(self, _engine: int, kind: int, gpa: int, size: int, _value: int, _data: int) -> None:
        if self._seen is not None:
            return
        for watchpoint, ranges in self._watched:
            if kind in _ACCESS_KINDS[watchpoint.access] and covers(ranges, gpa, gpa + size - 1):
                self._seen = DebugStop(StopKind.WATCHPOINT, watchpoint.gva, watchpoint)
                self._clock.wants_stop, self._clock.limit = 1, 0
                return

    def _take_seen(self) -> DebugStop | None:
        seen, self._seen = self._seen, None
        self._clock.wants_stop = 0
        return seen
