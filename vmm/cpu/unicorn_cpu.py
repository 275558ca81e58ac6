"""One x86-64 processor on Unicorn 2.1.4: real mode to long mode, precise stops, a deterministic block count.

The rules that make it precise:

* Unicorn is stopped only before a block (native.c) and after the delivery of an exception, never from a port or MMIO
  callback and never from another thread: there a stop would land inside an instruction.
* A callback that wants the run to end sets the limit of the clock to zero, so that it ends before the next block.
* `blocks` counts executed blocks and delivered events.  Both depend on the guest alone, so that stopping at any
  interval changes neither the count nor what the guest sees.
* An interrupt is delivered at the first block boundary where IF is set and no shadow is in force; native.c looks at
  both flags before each block while an interrupt waits.

It owns the engine and the translated code; it knows no device, no clock and no address beyond RAM and ROM.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from unicorn import x86_const

from devices.effects import Shadow
from devices.errors import ConfigError
from devices.memory import GuestMemory
from devices.state import State
from vmm.cpu import Exit, ExitReason, binding, delivery, exit_checks, registers, saved_state, transitions
from vmm.cpu.code_pages import CodePages
from vmm.cpu.debug_memory import DebugMemory, PeekedMemory
from vmm.cpu.debugger import Core, Debugger
from vmm.cpu.delivery import Event, Source, TripleFault
from vmm.cpu.instructions import Instructions, host_cpuid
from vmm.cpu.layout import CS, EFLAGS_OFFSET, HFLAGS_OFFSET, CpuState, verify_layout
from vmm.cpu.native import STOPPED_BEFORE_BLOCK, Clock, NativeCallbacks, PythonCallbacks, interrupts_open
from vmm.cpu.paging import PHYSICAL_BITS
from vmm.cpu.physical import LARGEST_ROM_BYTES, ROM_END, ROM_UNIT_BYTES, PhysicalMemory
from vmm.cpu.shadow import ShadowMemory
from vmm.cpu.string_output import StringOutput
from vmm.cpu.tlb import find_tlb
from vmm.cpu.x86 import X86Platform

PHYSICAL_LIMIT = 1 << PHYSICAL_BITS
_FLAG_IF = 0x200
_SYSCALL_BYTES = 2  # SYSCALL and SYSENTER; Unicorn adds them to RIP after the callback

_BUDGET = Exit(ExitReason.BUDGET)
_REQUESTED = Exit(ExitReason.REQUESTED)

T = TypeVar("T")


class UnicornCpu:
    """A processor that runs in `memory`, with `rom` ending at 4 GiB and the end of it once more below 1 MiB.

    The ROM has 64 KiB to 16 MiB, in units of 64 KiB (ConfigError otherwise).  Everything else below the physical limit
    belongs to `platform`.  ConfigError if this Unicorn is not the tested one.  `native` False forces the slower
    callbacks in Python; the counts are the same."""

    def __init__(self, memory: GuestMemory, platform: X86Platform, rom: bytes, *, native: bool = True) -> None:
        if not 0 < len(rom) <= LARGEST_ROM_BYTES or len(rom) % ROM_UNIT_BYTES:
            raise ConfigError(f"the firmware must have 64 KiB to 16 MiB, in units of 64 KiB, not {len(rom)} bytes")
        verify_layout()
        self._platform = platform
        self._engine = binding.Engine()
        exit_checks.leave_out(self._engine)
        self._state = CpuState(self._engine.state_address, self._engine.state_size)
        self._engine.save()
        self._pristine = bytes(self._state.memory)
        self._clock = Clock(eflags_offset=EFLAGS_OFFSET, hflags_offset=HFLAGS_OFFSET, tlb_distance=find_tlb())
        self._clock.stop = ctypes.cast(binding.LIBRARY.uc_emu_stop, ctypes.c_void_p).value
        self._clock.translate = ctypes.cast(binding.LIBRARY.uc_vmem_translate, ctypes.c_void_p).value
        self._code_pages = CodePages(memory, self._engine, self._state, self._clock)
        self._shadow = ShadowMemory(self._engine, rom, self._on_own_write)
        self._physical = PhysicalMemory(memory, rom, self._shadow, self._on_own_write)
        self._error: BaseException | None = None
        self._triple_fault: Exit | None = None
        self._stale: list[tuple[int, int]] = []
        self._running = self._requested = self._halted = False
        self._refused_at: int | None = None
        self._debugger: Debugger | None = None
        self._peeked = PeekedMemory(memory, rom, self._shadow)
        self._debug_memory = DebugMemory(self._state, self._peeked)
        self._map(memory, rom)
        self._hook(NativeCallbacks.of_this_host() if native else None)
        self.reset()

    # -- what the machine calls --------------------------------------------------------------------------------------

    @property
    def blocks(self) -> int:
        """Blocks executed and events delivered so far, exact inside a callback too."""
        return int(self._clock.executed)

    def reset(self) -> None:
        """To the reset vector, FFFFFFF0h in real mode; between runs only.  `blocks` goes on."""
        transitions.reset(self._state, self._pristine, host_cpuid()[1, 0][0])
        self._engine.restore()
        self._engine.write_register(x86_const.UC_X86_REG_MXCSR, transitions.RESET_MXCSR)
        self._engine.write_register(x86_const.UC_X86_REG_FPCW, transitions.RESET_FPU_CONTROL)
        self._engine.ctl(binding.CTL_FLUSH_TLB)
        self._clock.irq = 0
        self._halted = False
        if self._debugger is not None:
            self._debugger.forget()

    def run(self, budget_blocks: int) -> Exit:
        """Execute until `blocks` has grown by `budget_blocks`, or less if something else ends it: see `Exit`.

        An exception that a callback of the platform raised is raised here, before the next block."""
        clock = self._clock
        end = clock.executed + budget_blocks
        debugger = self._debugger
        self._requested = False
        while True:
            if self._requested:
                return _REQUESTED
            stop = None
            if self._halted:
                if not self._wake():
                    return Exit(ExitReason.HALTED, interrupts_enabled=self._interrupts_enabled())
                stop = debugger.woke() if debugger is not None else None
            elif debugger is not None and debugger.is_due:
                stop = debugger.begin()
            elif clock.executed >= end:
                return _BUDGET
            elif debugger is None:
                self._start(end)
            else:
                debugger.arm()
                self._start(end)
                stop = debugger.ended()
            if self._triple_fault is not None:
                exit_, self._triple_fault = self._triple_fault, None
                return exit_
            if stop is not None:
                return Exit(ExitReason.DEBUGGER, stop=stop)

    def request_exit(self) -> None:
        """From inside a callback: leave before the next block."""
        self._requested = True
        self._clock.limit = 0

    def set_irq(self, asserted: bool) -> None:
        """Whether an interrupt waits.  It is taken at the first block boundary with IF set and no shadow."""
        self._clock.irq = int(asserted)

    @property
    def irq_asserted(self) -> bool:
        return bool(self._clock.irq)

    def registers(self) -> dict[str, int]:
        """All registers by name; see `registers.py`."""
        self._engine.save()
        return registers.read(self._state, self._engine.read_register(x86_const.UC_X86_REG_RFLAGS))

    def set_registers(self, values: dict[str, int]) -> None:
        """Change registers by the names of `registers()`; the others stay.  Between runs only."""
        self._engine.save()
        registers.write(self._state, values)
        self._engine.restore()
        self._engine.ctl(binding.CTL_FLUSH_TLB)
        self._halted = False

    def save_state(self) -> State:
        """All that decides how it goes on, by name; see `saved_state.py`.  Between runs only."""
        processor = saved_state.read(self._engine, self._state, self._clock, self._halted)
        return {**processor, "shadow": self._shadow.save_state()}

    def check_state(self, saved: Any, where: str) -> None:
        """ConfigError unless `restore_state(saved)` will work."""
        saved_state.check(self.save_state(), saved, where)
        self._shadow.check_state(saved["shadow"], f"{where}.shadow")

    def restore_state(self, saved: Any) -> None:
        """Go on from a saved state, `blocks` too, with RAM as it was then.  Between runs only."""
        saved_state.write(self._engine, self._state, self._clock, saved)
        self._shadow.restore_state(saved["shadow"])
        self._engine.ctl(binding.CTL_FLUSH_TRANSLATIONS)
        self._engine.ctl(binding.CTL_FLUSH_TLB)
        self._code_pages.clear()
        self._stale.clear()
        self._halted, self._clock.irq = saved["halted"], 0
        if self._debugger is not None:
            self._debugger.forget()

    def translate(self, gva: int) -> int | None:
        """The guest-physical address behind a linear one as the page tables stand, or None.  Changes nothing."""
        self._engine.save()
        return self._debug_memory.translate(gva)

    def peek(self, gpa: int, length: int) -> bytes | None:
        """Bytes of RAM, ROM or shadow RAM within one page, without any effect; None where there is no memory."""
        return self._peeked.peek(gpa, length)

    def drop_translations(self, writes: Sequence[tuple[int, int]]) -> None:
        """Forget translated code at (gpa, length) ranges that the host has changed.

        Costs next to nothing where no code was translated.  From inside a callback it takes effect before the next
        block."""
        stale = [write for write in writes if self._code_pages.hit(*write)]
        if stale and self._running:
            self._stale += stale
            self._clock.limit = 0
        elif stale:
            self._code_pages.drop(stale)

    def holds_code(self, gpa: int, length: int) -> bool:
        """Whether translated code comes from a page that the range touches."""
        return self._code_pages.hit(gpa, length)

    def map_shadow(self, shadows: Sequence[Shadow]) -> None:
        """Let ranges between C0000h and FFFFFh read from and write to RAM or not; from inside a callback too."""
        for shadow in shadows:
            self._shadow.set(shadow.gpa, shadow.length, reads_ram=shadow.reads_ram, writes_ram=shadow.writes_ram)

    @property
    def debugger(self) -> Debugger:
        """What a debugger can do with it, from now on."""
        if self._debugger is None:
            core = Core(
                self._engine, self._state, self._clock, self._debug_memory, self._callbacks.instruction,
                self._emulate, self._take_interrupt, self._code_pages.drop, self._leave_halt,
            )  # fmt: skip
            self._debugger = Debugger(core)
        return self._debugger

    def close(self) -> None:
        """Give the engine back.  Before the memory it runs in is closed."""
        self._physical.close()
        self._shadow.close()
        self._state.memory.release()
        self._engine.close()

    # -- running -----------------------------------------------------------------------------------------------------

    def _start(self, end: int) -> None:
        """Let Unicorn run, and deliver what it stopped for."""
        clock = self._clock
        is_free = self._emulate(end)
        at_block = clock.stopped == STOPPED_BEFORE_BLOCK and not clock.wants_stop
        if is_free and at_block and clock.irq and clock.executed < end and not self._requested:
            self._interrupt()

    def _emulate(self, end: int) -> bool:
        """Let Unicorn run.  Whether it ended with nothing that had to be delivered."""
        clock, engine = self._clock, self._engine
        if self._stale:
            self._code_pages.drop(self._stale)
            self._stale.clear()
        if self._code_pages.is_empty:
            engine.save()
            linear = self._state.segment(CS).base + self._state.eip
            self._code_pages.note_first(linear, self._physical)
        clock.limit = end
        clock.stopped = 0
        clock.tsc_per_block, clock.tsc_offset = self._platform.tsc_of_blocks() or (0, 0)
        clock.string_time = 0  # what was changed since the last block may be the code it was
        self._running = True
        error = engine.start(engine.read_register(x86_const.UC_X86_REG_RIP))
        self._running = False
        if error == binding.OK and not clock.stopped and self._triple_fault is None:
            self._halted = True
        if self._error is not None:
            raised, self._error = self._error, None
            raise raised
        if self._refused_at is not None:
            self._deliver_now(self._refused_port)
        elif error in binding.FETCH_ERRORS:
            self._deliver_now(lambda eip: Event(delivery.INVALID_OPCODE, Source.EXCEPTION, eip))
        elif error != binding.OK:
            raise binding.UnicornError(f"Unicorn stopped with error {error} at {self.registers()['rip']:#x}")
        else:
            return True
        return False

    def _interrupts_enabled(self) -> bool:
        self._engine.save()
        return bool(self._state.eflags & _FLAG_IF)

    def _wake(self) -> bool:
        """Out of HLT by a waiting interrupt, if the guest takes interrupts."""
        if not self._clock.irq or not self._interrupts_enabled():
            return False
        self._halted = False
        self._interrupt()
        return True

    def _can_take_interrupt(self) -> bool:
        self._engine.save()
        return interrupts_open(self._state.eflags, self._state.hflags)

    def _leave_halt(self) -> None:
        self._halted = False

    def _take_interrupt(self) -> bool:
        """For a step of the debugger: deliver an interrupt that waits, if the guest can take it."""
        executed = self._clock.executed
        if self._clock.irq:
            self._interrupt()
        return bool(self._clock.executed != executed)

    def _interrupt(self) -> None:
        """Deliver the waiting interrupt between two blocks, if the guest can take it."""
        if self._can_take_interrupt():
            self._clock.irq = 0
            vector = self._platform.acknowledge_irq()
            self._deliver_now(lambda eip: Event(vector, Source.EXTERNAL, eip))

    def _deliver_now(self, make_event: Callable[[int], Event]) -> None:
        """Deliver while Unicorn does not run."""
        self._engine.save()
        self._deliver(make_event(self._state.eip), self._state.eflags)
        self._engine.restore()

    def _deliver(self, event: Event, eflags: int) -> None:
        """Change the saved state to the handler's first instruction, or note the triple fault."""
        try:
            delivery.deliver(self._state, self._physical, event, eflags)
        except TripleFault:
            self._triple_fault = Exit(
                ExitReason.TRIPLE_FAULT, vector=event.vector, registers=registers.read(self._state, eflags)
            )
        self._state.old_exception = -1
        self._clock.executed += 1

    def _refuse_port(self, rip: int) -> None:
        """The program at `rip` used a port it has no right to: #GP before the next block."""
        if self._refused_at is None:
            self._refused_at = rip
        self._clock.limit = 0

    def _refused_port(self, _eip: int) -> Event:
        rip, self._refused_at = self._refused_at or 0, None
        return Event(delivery.GENERAL_PROTECTION, Source.EXCEPTION, rip)

    def _on_own_write(self, gpa: int, length: int) -> None:
        """The delivery of an event wrote to RAM.  If code lies there it is dropped before the next block: the saved
        state is in use until then."""
        if self._code_pages.hit(gpa, length):
            self._stale.append((gpa, length))
            self._clock.limit = 0

    # -- what Unicorn calls ------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._clock.limit = 0

    def _guard(self, function: Callable[..., T], default: T) -> Callable[..., T]:
        """Nothing may be raised into Unicorn: keep the exception for `run` and end before the next block."""

        def guarded(*arguments: Any) -> T:
            try:
                return function(*arguments)
            except BaseException as error:  # KeyboardInterrupt too: it comes up in whatever callback runs first
                self._fail(error)
                return default

        return guarded

    def _on_interrupt(self, _engine: int, vector: int, _data: int) -> None:
        """An exception, or INT n: between two blocks, RIP at the fault or after the INT."""
        try:
            self._engine.save()
            state = self._state
            if self._debugger is not None and self._debugger.takes(vector):
                self._clock.stopped = STOPPED_BEFORE_BLOCK
                self._engine.stop()
                return
            eflags = self._engine.read_register(x86_const.UC_X86_REG_RFLAGS)
            if self._refused_at is not None:  # came first: what follows it must not have happened
                event = self._refused_port(state.eip)
            elif state.exception_is_int:
                start = delivery.start_of_int(state, self._physical, vector)
                event = Event(vector, Source.SOFTWARE, state.eip, start=start)
            else:
                event = Event(vector, Source.EXCEPTION, state.eip, state.error_code & 0xFFFF_FFFF)
            self._deliver(event, eflags)
            self._engine.restore()
        except BaseException as error:
            self._fail(error)
        if self._clock.executed >= self._clock.limit or self._triple_fault is not None:
            self._clock.stopped = STOPPED_BEFORE_BLOCK
            self._engine.stop()  # precise here, and needed: a handler that cannot be fetched announces no block

    def _on_invalid_instruction(self, _engine: int, _data: int) -> bool:
        """#UD, and INT 6, for which Unicorn has not moved RIP."""
        self._engine.save()
        if self._state.exception_is_int:
            self._state.eip = self._state.exception_next_eip
            self._engine.restore()
        self._on_interrupt(_engine, delivery.INVALID_OPCODE, _data)
        return True

    def _on_syscall(self, _engine: int, _data: int) -> None:
        self._transition(
            lambda eflags: transitions.syscall(self._state, eflags, _SYSCALL_BYTES), delivery.INVALID_OPCODE
        )

    def _on_sysenter(self, _engine: int, _data: int) -> None:
        self._transition(lambda eflags: transitions.sysenter(self._state, eflags), delivery.GENERAL_PROTECTION)

    def _transition(self, enter: Callable[[int], bool], vector_if_refused: int) -> None:
        """Enter the kernel from the middle of a block; Unicorn then moves RIP on by the instruction's length."""
        self._engine.save()
        eflags = self._engine.read_register(x86_const.UC_X86_REG_RFLAGS)
        if not enter(eflags):
            self._deliver(Event(vector_if_refused, Source.EXCEPTION, self._state.eip), eflags)
            if self._triple_fault is not None:
                self._clock.limit = 0
        self._state.eip = (self._state.eip - _SYSCALL_BYTES) & (2**64 - 1)
        self._engine.restore()

    # -- setting up --------------------------------------------------------------------------------------------------

    def _hook(self, native: NativeCallbacks | None) -> None:
        engine, guard = self._engine, self._guard
        callbacks = native or PythonCallbacks(self._clock, engine, self._can_take_interrupt)
        self._callbacks = callbacks
        clock_address = ctypes.addressof(self._clock)
        engine.hook(binding.HOOK_BLOCK, callbacks.block, clock_address)
        engine.hook(binding.HOOK_TRANSLATED, callbacks.translated, clock_address)
        engine.hook(binding.HOOK_INTERRUPT, binding.InterruptCallback(self._on_interrupt))
        engine.hook(
            binding.HOOK_INVALID_INSTRUCTION,
            binding.InvalidInstructionCallback(guard(self._on_invalid_instruction, True)),
        )
        strings = StringOutput(engine, self._state, self._physical, self._clock)
        instructions = Instructions(engine, self._state, self._physical, self._platform, self._refuse_port, strings)
        by_instruction = {
            binding.INSTRUCTION_IN: binding.InCallback(guard(instructions.port_in, 0)),
            binding.INSTRUCTION_OUT: binding.OutCallback(guard(instructions.port_out, None)),
            binding.INSTRUCTION_SYSCALL: binding.SyscallCallback(guard(self._on_syscall, None)),
            binding.INSTRUCTION_SYSENTER: binding.SyscallCallback(guard(self._on_sysenter, None)),
            binding.INSTRUCTION_CPUID: binding.ReplaceCallback(guard(instructions.cpuid, 1)),
            **self._tsc_callbacks(instructions, native),
        }
        for instruction, callback in by_instruction.items():
            engine.hook(binding.HOOK_INSTRUCTION, callback, clock_address, instruction)

    def _tsc_callbacks(self, instructions: Instructions, native: NativeCallbacks | None) -> dict[int, Any]:
        """RDTSC and RDTSCP by the machine code, which asks those in Python where only the platform knows the time."""
        rdtsc, rdtscp = (
            binding.ReplaceCallback(self._guard(answer, 1)) for answer in (instructions.rdtsc, instructions.rdtscp)
        )
        self._engine.callbacks += [rdtsc, rdtscp]
        self._clock.rdtsc, self._clock.rdtscp = (ctypes.cast(answer, ctypes.c_void_p) for answer in (rdtsc, rdtscp))
        if native is None:
            return {binding.INSTRUCTION_RDTSC: rdtsc, binding.INSTRUCTION_RDTSCP: rdtscp}
        return {binding.INSTRUCTION_RDTSC: native.rdtsc, binding.INSTRUCTION_RDTSCP: native.rdtscp}

    def _map(self, memory: GuestMemory, rom: bytes) -> None:
        """RAM and ROM as memory, all gaps between them and the shadow RAM as the platform's."""
        self._rom = mmap.mmap(-1, len(rom))
        self._rom[:] = rom
        rom_address = ctypes.addressof(ctypes.c_char.from_buffer(self._rom))
        rom_base = ROM_END - len(rom)
        taken = [(region.gpa, region.size, region.address) for region in memory.regions]
        taken += [(rom_base, len(rom), rom_address), *self._shadow.pieces()]
        # The largest first: Unicorn numbers pages for its code tracking behind the smallest block it has, so that any
        # other order gives two pages one number.
        for gpa, size, address in sorted(taken, key=lambda piece: -piece[1]):
            self._engine.map_memory(gpa, size, binding.PROT_ALL, address)
        self._engine.take_protected_writes(rom_base, ROM_END - 1, lambda _gpa, _size, _value: None)
        self._shadow.start()
        position = 0
        for gpa, size, _ in sorted(taken):
            if position < gpa:
                self._map_window(position, gpa)
            position = gpa + size
        self._map_window(position, PHYSICAL_LIMIT)

    def _map_window(self, start: int, end: int) -> None:
        def read(_engine: int, offset: int, size: int, _data: int) -> int:
            return self._platform.mmio_read(start + offset, size)

        def write(_engine: int, offset: int, size: int, value: int, _data: int) -> None:
            self._platform.mmio_write(start + offset, size, value)

        self._engine.map_device(
            start,
            end - start,
            binding.MmioReadCallback(self._guard(read, 0)),
            binding.MmioWriteCallback(self._guard(write, None)),
        )
