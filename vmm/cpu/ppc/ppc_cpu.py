"""One PowerPC 604e on Unicorn 2.1.4, big-endian: precise stops, a deterministic block count.

The rules are those of the x86 processor: Unicorn is stopped only before a block (native.c) and after the delivery of an
exception; `blocks` counts executed blocks and delivered exceptions, which depend on the guest alone; an external
interrupt is delivered at the first block boundary where MSR[EE] is set.  The line is a level: nobody acknowledges it.

Three things are not as in a real 604e:

* It begins at the guest's entry in real mode, with exceptions at address 0: there is no ROM.
* MSR[POW] cannot be set: Unicorn would never come back.  A guest sleeps by ePAPR's hypercall EV_IDLE (`sc 1` with the
  token in r11), which returns when an interrupt waits, whether or not MSR[EE] is set.
* The time base reads 0 and the decrementer what was written to it: neither runs, and the board has a timer instead.

It owns the engine and the translated code; it knows no device, no clock and no address beyond RAM.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from unicorn import ppc_const

from devices.memory import PAGE_SHIFT, GuestMemory
from devices.state import State
from vmm.cpu import Exit, ExitReason, Platform, binding
from vmm.cpu.ppc import exceptions, registers
from vmm.cpu.ppc.exceptions import INSTRUCTION_BYTES, Event
from vmm.cpu.ppc.layout import MSR_EE, MSR_OFFSET, MSR_POW, PpcState, open_engine, verify_layout
from vmm.cpu.ppc.native import Clock, NativeCallbacks, PythonCallbacks
from vmm.cpu.ppc.paging import translate

PHYSICAL_LIMIT = 1 << 32
RESET_MSR = 0x1000  # ME
EV_IDLE = 1 << 16 | 16  # ePAPR 1.1, the vendor and the number of a hypercall
_HYPERCALL_LEVEL, _HYPERCALL_REGISTER, _RESULT_REGISTER = 1, 11, 3

_BUDGET = Exit(ExitReason.BUDGET)
_REQUESTED = Exit(ExitReason.REQUESTED)
_HALTED = Exit(ExitReason.HALTED, interrupts_enabled=True)

T = TypeVar("T")


class PpcCpu:
    """A processor that runs in `memory`, from `entry` on with `argument` in r3.  What is no RAM is `platform`'s.

    ConfigError if this Unicorn is not the tested one.  `native` False forces the slower callbacks in Python; the counts
    are the same."""

    def __init__(
        self, memory: GuestMemory, platform: Platform, entry: int = 0, argument: int = 0, *, native: bool = True
    ) -> None:
        verify_layout()
        self._memory, self._platform = memory, platform
        self._start_registers = {"pc": entry, "r3": argument}
        self._engine = open_engine()
        self._state = PpcState(self._engine.state_address, self._engine.state_size)
        self._engine.save()
        self._state.msr_mask &= ~MSR_POW
        self._engine.restore()
        self._clock = Clock(msr_offset=MSR_OFFSET)
        self._clock.stop = ctypes.cast(binding.LIBRARY.uc_emu_stop, ctypes.c_void_p).value
        self._clock.translate = ctypes.cast(binding.LIBRARY.uc_vmem_translate, ctypes.c_void_p).value
        self._pages = memory.regions[-1].end >> PAGE_SHIFT
        self._marks = mmap.mmap(-1, self._pages)  # a byte for each page: 1 = code of it was translated
        self._clock.code_pages = ctypes.addressof(ctypes.c_char.from_buffer(self._marks))
        self._clock.code_pages_length = self._pages
        self._pristine = registers.read(self._engine, self._state)
        self._error: BaseException | None = None
        self._running = self._requested = self._halted = self._stale = False
        self._no_code = True
        self._map()
        self._hook(NativeCallbacks.of_this_host() if native else None)
        self.reset()

    # -- what the machine calls ----------------------------------------------------------------------------------------

    @property
    def blocks(self) -> int:
        """Blocks executed and exceptions delivered so far, exact inside a callback too."""
        return int(self._clock.executed)

    def reset(self) -> None:
        """To the guest's entry in real mode; between runs only.  `blocks` goes on."""
        registers.write(self._engine, self._state, {**self._pristine, "msr": RESET_MSR, **self._start_registers})
        self._clock.irq = 0
        self._halted = False

    def run(self, budget_blocks: int) -> Exit:
        """Execute until `blocks` has grown by `budget_blocks`, or less if something else ends it: see `Exit`.

        An exception that a callback of the platform raised is raised here, before the next block."""
        clock = self._clock
        end = clock.executed + budget_blocks
        self._requested = False
        while True:
            if self._requested:
                return _REQUESTED
            if self._halted and not clock.irq:
                return _HALTED
            self._halted = False
            if clock.executed >= end:
                return _BUDGET
            self._start(end)

    def request_exit(self) -> None:
        """From inside a callback: leave before the next block."""
        self._requested = True
        self._clock.limit = 0

    def set_irq(self, asserted: bool) -> None:
        """The level of the processor's interrupt line."""
        self._clock.irq = int(asserted)

    @property
    def irq_asserted(self) -> bool:
        return bool(self._clock.irq)

    def registers(self) -> dict[str, int]:
        """All registers by name; see `registers.py`."""
        return registers.read(self._engine, self._state)

    def set_registers(self, values: dict[str, int]) -> None:
        """Change registers by the names of `registers()`; the others stay.  Between runs only."""
        registers.write(self._engine, self._state, values)
        self._halted = False

    def save_state(self) -> State:
        """All that decides how it goes on, by name; see `registers.py`.  Between runs only."""
        return registers.state_of(self._engine, self._state, self.blocks, self._halted)

    def check_state(self, saved: Any, where: str) -> None:
        """ConfigError unless `restore_state(saved)` will work."""
        registers.check(saved, where)

    def restore_state(self, saved: Any) -> None:
        """Go on from a saved state, `blocks` too, with RAM as it was then.  Between runs only."""
        registers.write(self._engine, self._state, saved["registers"])
        self._forget_code()
        self._clock.executed = saved["blocks"]
        self._halted, self._clock.irq = saved["halted"], 0

    def translate(self, gva: int) -> int | None:
        """The guest-physical address that a load from `gva` reaches as the tables stand, or None.  Changes nothing."""
        self._engine.save()
        return translate(self._state, self._memory, gva)

    def peek(self, gpa: int, length: int) -> bytes | None:
        """Bytes of RAM within one page, without any effect; None where there is no memory."""
        return self._memory.peek(gpa, length) if self._memory.contains(gpa, length) else None

    def drop_translations(self, writes: Sequence[tuple[int, int]]) -> None:
        """Forget translated code at (gpa, length) ranges that the host has changed.

        Costs next to nothing where no code was translated.  From inside a callback it takes effect before the next
        block."""
        if any(self.holds_code(*write) for write in writes):
            self._stale = True
            if self._running:
                self._clock.limit = 0

    def holds_code(self, gpa: int, length: int) -> bool:
        """Whether translated code comes from a page that the range touches."""
        return length > 0 and self._marks.find(b"\1", gpa >> PAGE_SHIFT, (gpa + length - 1 >> PAGE_SHIFT) + 1) >= 0

    @property
    def debugger(self) -> None:
        """There is none for this processor."""
        return None

    def close(self) -> None:
        """Give the engine back.  Before the memory it runs in is closed."""
        self._state.memory.release()
        self._engine.close()

    # -- running -------------------------------------------------------------------------------------------------------

    def _start(self, end: int) -> None:
        clock, engine = self._clock, self._engine
        if self._stale:
            self._forget_code()
        start = engine.read_register(ppc_const.UC_PPC_REG_PC)
        if self._no_code:
            self._note_first(start)
        clock.limit, clock.stopped = end, 0
        self._running = True
        error = engine.start(start)
        self._running = False
        if self._error is not None:
            raised, self._error = self._error, None
            raise raised
        if error in binding.FETCH_ERRORS:
            place = engine.read_register(ppc_const.UC_PPC_REG_PC)
            self._deliver(Event(exceptions.MACHINE_CHECK, place))
        elif error != binding.OK:
            raise binding.UnicornError(f"Unicorn stopped with error {error} at {self.registers()['pc']:#x}")
        elif clock.stopped and clock.irq and clock.executed < end and not self._requested and self._takes_interrupts():
            self._deliver(Event(exceptions.EXTERNAL, engine.read_register(ppc_const.UC_PPC_REG_PC)))

    def _forget_code(self) -> None:
        self._engine.ctl(binding.CTL_FLUSH_TRANSLATIONS)
        self._marks[:] = bytes(self._pages)
        self._stale, self._no_code = False, True

    def _note_first(self, start: int) -> None:
        """Mark what the first block of all may come from: Unicorn does not announce its translation."""
        self._no_code = False
        self._engine.save()
        gpa = translate(self._state, self._memory, start, instruction=True)
        if gpa is not None and gpa >> PAGE_SHIFT < self._pages:
            self._marks[gpa >> PAGE_SHIFT] = 1

    def _takes_interrupts(self) -> bool:
        return bool(self._engine.read_register(ppc_const.UC_PPC_REG_MSR) & MSR_EE)

    def _deliver(self, event: Event) -> None:
        """Change the processor to the handler's first instruction."""
        engine, state = self._engine, self._state
        engine.save()
        msr = exceptions.take(state, event)
        if state.tlb_need_flush:  # the guest changed its tables: taking an exception synchronises
            state.tlb_need_flush = 0
            engine.ctl(binding.CTL_FLUSH_TLB)
        engine.restore()
        engine.write_register(ppc_const.UC_PPC_REG_MSR, msr)
        self._clock.executed += 1

    # -- what Unicorn calls --------------------------------------------------------------------------------------------

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

    def _on_exception(self, _engine: int, number: int, _data: int) -> None:
        """Between two blocks; Unicorn has moved on by one instruction, whatever the exception."""
        try:
            self._engine.save()
            state = self._state
            if number == exceptions.SYSTEM_CALL and self._is_idle_call():
                state.set_register(_RESULT_REGISTER, 0)
                self._engine.restore()
                self._halted = True
                self._clock.executed += 1
            else:
                after = number == exceptions.SYSTEM_CALL
                place = state.nip if after else state.nip - INSTRUCTION_BYTES & 0xFFFF_FFFF
                self._deliver(Event(number, place, state.error_code))
        except BaseException as error:
            self._fail(error)
        if self._clock.executed >= self._clock.limit or self._halted:
            self._clock.stopped = 1
            self._engine.stop()

    def _is_idle_call(self) -> bool:
        state = self._state
        return state.error_code == _HYPERCALL_LEVEL and state.register(_HYPERCALL_REGISTER) == EV_IDLE

    # -- setting up ----------------------------------------------------------------------------------------------------

    def _hook(self, native: NativeCallbacks | None) -> None:
        engine = self._engine
        callbacks = native or PythonCallbacks(self._clock, engine, self._takes_interrupts)
        self._callbacks = callbacks
        clock_address = ctypes.addressof(self._clock)
        engine.hook(binding.HOOK_BLOCK, callbacks.block, clock_address)
        engine.hook(binding.HOOK_TRANSLATED, callbacks.translated, clock_address)
        engine.hook(binding.HOOK_INTERRUPT, binding.InterruptCallback(self._on_exception))

    def _map(self) -> None:
        """RAM as memory, the largest piece first; all gaps between and behind as the platform's."""
        regions = self._memory.regions
        for region in sorted(regions, key=lambda region: -region.size):
            self._engine.map_memory(region.gpa, region.size, binding.PROT_ALL, region.address)
        position = 0
        for region in regions:
            if position < region.gpa:
                self._map_window(position, region.gpa)
            position = region.end
        self._map_window(position, PHYSICAL_LIMIT)

    def _map_window(self, start: int, end: int) -> None:
        """A number of the processor has its highest byte first, one of the bus its lowest."""

        def read(_engine: int, offset: int, size: int, _data: int) -> int:
            return _swap(self._platform.mmio_read(start + offset, size), size)

        def write(_engine: int, offset: int, size: int, value: int, _data: int) -> None:
            self._platform.mmio_write(start + offset, size, _swap(value, size))

        self._engine.map_device(
            start,
            end - start,
            binding.MmioReadCallback(self._guard(read, 0)),
            binding.MmioWriteCallback(self._guard(write, None)),
        )


def _swap(value: int, size: int) -> int:
    return int.from_bytes((value & (1 << 8 * size) - 1).to_bytes(size, "big"), "little")
