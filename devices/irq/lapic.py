"""The local APIC: where interrupts wait for the processor (Intel SDM volume 3, chapter "APIC").

Life of an interrupt: a source (a device's message, the timer, an error, the guest's own IPI) *requests* a vector by
setting its bit in the IRR.  The CPU asks `pending_vector()`; an answer means that the highest requested vector beats
both the task priority and everything in service.  `acknowledge()` moves it from the IRR to the ISR.  The handler's
write to the EOI register takes the highest bit out of the ISR again.

Invariants: at most one request and one service per vector, so a storm of messages needs no memory; time is only looked
at through `now_ns`, and one call raises the timer's vector at most once.

LINT0 is the 8259's INTR.  In ExtINT mode the vector is the 8259's own and comes from there (`external_pending`); in
fixed mode a rising edge requests the entry's vector.  The EOI of a level-triggered vector is told to the I/O APIC.

The boundary: there is one processor.  So LINT1, the performance and the thermal LVT entries are registers and nothing
more, and lowest priority delivery means "here, if it matches".  NMI, SMI, INIT, start-up and an ExtINT message cannot
be delivered: an `Event` says so.
TSC-deadline mode and x2APIC do not exist (CPUID must not offer them); the base address cannot be moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partialmethod
from itertools import product
from typing import ClassVar, Literal

from devices.effects import NOTHING, Effects, Event
from devices.irq.apic_timer import ApicTimer
from devices.registers import Register, RegisterMap
from devices.state import FLAG, PART, Stateful, Table, uint

MESSAGE_BASE = 0xFEE0_0000  # the same 1 MiB holds the registers (seen from the CPU) and the messages (from devices)
MESSAGE_END = 0xFEF0_0000

# An LVT entry, the interrupt command and an MSI's data share this layout.
VECTOR = 0xFF
DELIVERY_MODE = 0x700
LEVEL_ASSERT = 1 << 14
LEVEL_TRIGGERED = 1 << 15
LVT_MASKED = 1 << 16
LVT_PERIODIC = 1 << 17

FIXED, LOWEST_PRIORITY, SMI, NMI, INIT, STARTUP, EXTINT = 0, 1, 2, 4, 5, 6, 7
_MODE_NAMES = {SMI: "SMI", 3: "reserved", NMI: "NMI", INIT: "INIT", STARTUP: "start-up", EXTINT: "ExtINT"}

SVR_ENABLE = 1 << 8
ESR_SEND_ILLEGAL_VECTOR = 1 << 5
ESR_RECEIVED_ILLEGAL_VECTOR = 1 << 6
ESR_ILLEGAL_REGISTER = 1 << 7

BROADCAST = 0xFF
_FIRST_LEGAL_VECTOR = 16
_SHORTHANDS = {0: None, 1: True, 2: True, 3: False}  # none: look at the destination; self; all; all but self

VectorSet = Literal["isr", "tmr", "irr"]


def _vector_words(offset: int, name: VectorSet) -> list[Register]:
    return [Register(offset + 16 * word, 4, f"{name}_{word}", "ro") for word in range(8)]


REGISTERS = RegisterMap(
    "local APIC",
    0x400,
    [
        Register(0x020, 4, "apic_id", "rw"),
        Register(0x030, 4, "version", "ro"),
        Register(0x080, 4, "tpr", "rw"),
        Register(0x0A0, 4, "ppr", "ro"),
        Register(0x0B0, 4, "eoi", "wo"),
        Register(0x0D0, 4, "ldr", "rw"),
        Register(0x0E0, 4, "dfr", "rw"),
        Register(0x0F0, 4, "svr", "rw"),
        *_vector_words(0x100, "isr"),
        *_vector_words(0x180, "tmr"),
        *_vector_words(0x200, "irr"),
        Register(0x280, 4, "esr", "rw"),
        Register(0x300, 4, "icr_low", "rw"),
        Register(0x310, 4, "icr_high", "rw"),
        Register(0x320, 4, "lvt_timer", "rw"),
        Register(0x330, 4, "lvt_thermal", "rw"),
        Register(0x340, 4, "lvt_performance", "rw"),
        Register(0x350, 4, "lvt_lint0", "rw"),
        Register(0x360, 4, "lvt_lint1", "rw"),
        Register(0x370, 4, "lvt_error", "rw"),
        Register(0x380, 4, "initial_count", "rw"),
        Register(0x390, 4, "current_count", "ro"),
        Register(0x3E0, 4, "divide_configuration", "rw"),
    ],
)
_SLOTS = frozenset(register.offset >> 4 for register in REGISTERS.registers)
_LVT_NAMES = tuple(register.name for register in REGISTERS.registers if register.name.startswith("lvt_"))


def _highest(vectors: int) -> int:
    """The highest vector in a 256-bit set, -1 for the empty one."""
    return vectors.bit_length() - 1


@dataclass
class LocalApic(Stateful):
    """One local APIC.  A bus handler for its 4 KiB of registers; timed; resettable.

    Registers are 32 bits wide at multiples of 16.  Other widths and alignments are cut at register borders as
    `RegisterMap` does it: the 12 bytes after a register read as zero, a partial write merges with what is stored.
    An access that begins in a slot without a register also logs "illegal register address" in the ESR.
    """

    name: str = "lapic"
    apic_id: int = 0
    version: int = 5 << 16 | 0x14  # six LVT entries, an integrated APIC
    tpr: int = 0
    ldr: int = 0
    dfr: int = 0xFFFF_FFFF
    svr: int = 0xFF
    isr: int = 0
    tmr: int = 0
    irr: int = 0
    esr: int = 0
    icr_low: int = 0
    icr_high: int = 0
    lvt_timer: int = LVT_MASKED
    lvt_thermal: int = LVT_MASKED
    lvt_performance: int = LVT_MASKED
    lvt_lint0: int = LVT_MASKED
    lvt_lint1: int = LVT_MASKED
    lvt_error: int = LVT_MASKED
    lint0: bool = False
    timer: ApicTimer = field(default_factory=ApicTimer)
    logged_errors: int = 0  # since the last write to the ESR, which makes them readable

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("apic_id", "version", "tpr", "ldr", "dfr", "svr", "esr", "icr_low", "icr_high"), uint(32)),
        **dict.fromkeys(("isr", "tmr", "irr"), uint(256)),
        **dict.fromkeys(_LVT_NAMES, uint(32)),
        "lint0": FLAG,
        "timer": PART,
        "logged_errors": uint(32),
    }

    def reset(self) -> Effects:
        """Back to the state after power-on; LINT0 stays as it is wired."""
        vars(self).update(vars(LocalApic(self.name, lint0=self.lint0)))
        return Effects(deadline=True)

    # -- the guest's side: registers -----------------------------------------------------------------------------------

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        effects = self.advance(now_ns) | self._check_slots(offset, size)
        value, more = REGISTERS.read(self, offset, size, now_ns)
        return value, effects | more

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        effects = self.advance(now_ns) | self._check_slots(offset, size)
        return effects | REGISTERS.write(self, offset, size, value, now_ns)

    def _check_slots(self, offset: int, size: int) -> Effects:
        """An access of at most 8 bytes touches one slot of 16 or two; each must have a register."""
        legal = offset >> 4 in _SLOTS and offset + size - 1 >> 4 in _SLOTS
        return NOTHING if legal else self._log_error(ESR_ILLEGAL_REGISTER)

    def write_apic_id(self, value: int, now_ns: int) -> Effects:
        self.apic_id = value & 0xFF00_0000
        return NOTHING

    def write_tpr(self, value: int, now_ns: int) -> Effects:
        self.tpr = value & 0xFF
        return NOTHING

    @property
    def ppr(self) -> int:
        """The processor priority: the higher class of task priority and the highest vector in service."""
        in_service = max(_highest(self.isr), 0) & 0xF0
        return self.tpr if self.tpr & 0xF0 >= in_service else in_service

    def write_eoi(self, value: int, now_ns: int) -> Effects:
        """End the service of the highest vector; the I/O APIC hears of it if that was level-triggered."""
        if not self.isr:
            return NOTHING
        vector = _highest(self.isr)
        self.isr &= ~(1 << vector)
        return Effects(ended_vectors=(vector,)) if self.tmr >> vector & 1 else NOTHING

    def write_ldr(self, value: int, now_ns: int) -> Effects:
        self.ldr = value & 0xFF00_0000
        return NOTHING

    def write_dfr(self, value: int, now_ns: int) -> Effects:
        self.dfr = value | 0x0FFF_FFFF
        return NOTHING

    def write_svr(self, value: int, now_ns: int) -> Effects:
        self.svr = value & 0x3FF
        if self.enabled:
            return NOTHING
        for name in _LVT_NAMES:
            setattr(self, name, getattr(self, name) | LVT_MASKED)
        return Effects(deadline=True)

    def write_esr(self, value: int, now_ns: int) -> Effects:
        self.esr, self.logged_errors = self.logged_errors, 0
        return NOTHING

    def _write_lvt(self, name: str, writable: int, value: int, now_ns: int) -> Effects:
        # A disabled APIC keeps its entries masked, whatever is written.
        setattr(self, name, value & writable | (0 if self.enabled else LVT_MASKED))
        return NOTHING

    write_lvt_thermal = partialmethod(_write_lvt, "lvt_thermal", LVT_MASKED | DELIVERY_MODE | VECTOR)
    write_lvt_performance = partialmethod(_write_lvt, "lvt_performance", LVT_MASKED | DELIVERY_MODE | VECTOR)
    write_lvt_lint0 = partialmethod(_write_lvt, "lvt_lint0", 0x1_A000 | DELIVERY_MODE | VECTOR)
    write_lvt_lint1 = partialmethod(_write_lvt, "lvt_lint1", 0x1_A000 | DELIVERY_MODE | VECTOR)
    write_lvt_error = partialmethod(_write_lvt, "lvt_error", LVT_MASKED | VECTOR)

    def write_lvt_timer(self, value: int, now_ns: int) -> Effects:
        self._write_lvt("lvt_timer", LVT_PERIODIC | LVT_MASKED | VECTOR, value, now_ns)
        periodic = bool(self.lvt_timer & LVT_PERIODIC)
        if periodic != self.timer.periodic:
            self.timer.configure(now_ns, periodic=periodic)
        return Effects(deadline=True)

    @property
    def initial_count(self) -> int:
        return self.timer.initial_count

    def write_initial_count(self, value: int, now_ns: int) -> Effects:
        self.timer.start(value, now_ns)
        return Effects(deadline=True)

    def read_current_count(self, now_ns: int) -> int:
        return self.timer.current_count(now_ns)

    @property
    def divide_configuration(self) -> int:
        return self.timer.divide_configuration

    def write_divide_configuration(self, value: int, now_ns: int) -> Effects:
        self.timer.configure(now_ns, divide_configuration=value & 0b1011)
        return Effects(deadline=True)

    def write_icr_high(self, value: int, now_ns: int) -> Effects:
        self.icr_high = value & 0xFF00_0000
        return NOTHING

    def write_icr_low(self, value: int, now_ns: int) -> Effects:
        """Send an interprocessor interrupt; on the only processor there is, it arrives here or nowhere."""
        self.icr_low = value & 0x000C_CFFF
        mode, vector = (value & DELIVERY_MODE) >> 8, value & VECTOR
        if mode in (FIXED, LOWEST_PRIORITY) and vector < _FIRST_LEGAL_VECTOR:
            return self._log_error(ESR_SEND_ILLEGAL_VECTOR)
        here = _SHORTHANDS[value >> 18 & 3]
        if here is None:
            here = self._is_destination(self.icr_high >> 24, logical=bool(value & 1 << 11))
        # An INIT with the level bit clear only re-synchronises arbitration; a start-up IPI wakes other processors.
        if not here or mode == STARTUP or (mode == INIT and not value & LEVEL_ASSERT):
            return NOTHING
        return self._deliver(mode, vector, level_triggered=False)

    # -- the devices' side: messages -----------------------------------------------------------------------------------

    def message(self, address: int, data: int) -> Effects:
        """Take a message-signalled interrupt (SDM, "Message Signalled Interrupts").

        `address` bits 19:12 are the destination and bit 2 says that it is logical; `data` holds vector, delivery mode,
        level and trigger mode.  Addresses outside FEE00000h-FEEFFFFFh are no interrupts: nothing happens.
        """
        if not MESSAGE_BASE <= address < MESSAGE_END:
            return NOTHING
        if not self._is_destination(address >> 12 & 0xFF, logical=bool(address & 4)):
            return NOTHING
        level_triggered = bool(data & LEVEL_TRIGGERED)
        if level_triggered and not data & LEVEL_ASSERT:
            return NOTHING
        return self._deliver((data & DELIVERY_MODE) >> 8, data & VECTOR, level_triggered=level_triggered)

    def _is_destination(self, destination: int, *, logical: bool) -> bool:
        if destination == BROADCAST:
            return True
        if not logical:
            return destination == self.apic_id >> 24
        mine = self.ldr >> 24
        if self.dfr >> 28 == 0xF:  # the flat model: one bit for each processor
            return bool(destination & mine)
        return destination >> 4 == mine >> 4 and bool(destination & mine & 0xF)

    def _deliver(self, mode: int, vector: int, *, level_triggered: bool) -> Effects:
        if mode not in (FIXED, LOWEST_PRIORITY):
            text = f"an interrupt with delivery mode {_MODE_NAMES[mode]} cannot be delivered and was dropped"
            return Effects(events=(Event(self.name, "undeliverable-interrupt", text),))
        if not self.enabled:
            return NOTHING
        return self._request(vector, level_triggered=level_triggered)

    def _request(self, vector: int, *, level_triggered: bool = False) -> Effects:
        if vector < _FIRST_LEGAL_VECTOR:
            return self._log_error(ESR_RECEIVED_ILLEGAL_VECTOR)
        self.irr |= 1 << vector
        self.tmr = self.tmr & ~(1 << vector) | level_triggered << vector
        return NOTHING

    def _log_error(self, error: int) -> Effects:
        """Log an error for the ESR and raise the error vector, once for each kind until the ESR is written.

        The "once" also ends the recursion when the error vector itself is illegal."""
        if self.logged_errors & error:
            return NOTHING
        self.logged_errors |= error
        return NOTHING if self.lvt_error & LVT_MASKED else self._request(self.lvt_error & VECTOR)

    # -- the 8259's side: LINT0 ----------------------------------------------------------------------------------------

    def set_lint0(self, level: bool) -> Effects:
        """Move the pin: in fixed mode a rising edge requests the entry's vector."""
        if level == self.lint0:
            return NOTHING
        rises, self.lint0 = level, level
        fixed = not self.lvt_lint0 & (DELIVERY_MODE | LVT_MASKED)
        return self._request(self.lvt_lint0 & VECTOR) if rises and fixed else NOTHING

    @property
    def external_pending(self) -> bool:
        """Whether the 8259 behind LINT0 has a vector for the processor: the virtual wire of PC firmware."""
        return self.lint0 and self.lvt_lint0 & (DELIVERY_MODE | LVT_MASKED) == EXTINT << 8

    # -- the processor's side ------------------------------------------------------------------------------------------

    @property
    def enabled(self) -> bool:
        """Whether software has enabled the APIC in the SVR; requests are held, not delivered, while it has not."""
        return bool(self.svr & SVR_ENABLE)

    def pending_vector(self) -> int | None:
        """The vector that would be delivered now, None when there is none or its priority is too low."""
        if not self.irr or not self.enabled:
            return None
        vector = _highest(self.irr)
        return vector if vector & 0xF0 > self.ppr & 0xF0 else None

    def acknowledge(self) -> int:
        """Take the pending vector into service; the spurious vector, and no change, when none is pending any more."""
        vector = self.pending_vector()
        if vector is None:
            return self.svr & VECTOR
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector
        return vector

    # -- time ----------------------------------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """When the timer next wants to interrupt; None while it is stopped or its LVT entry is masked."""
        return None if self.lvt_timer & LVT_MASKED else self.timer.due_ns

    def advance(self, now_ns: int) -> Effects:
        """Raise the timer's vector if it has expired by `now_ns`, once for any number of periods."""
        if not self.timer.advance(now_ns):
            return NOTHING
        effects = NOTHING if self.lvt_timer & LVT_MASKED else self._request(self.lvt_timer & VECTOR)
        return effects | Effects(deadline=True)

    def _read_vector_word(self, name: VectorSet, word: int, now_ns: int) -> int:
        vectors: int = getattr(self, name)
        return vectors >> 32 * word & 0xFFFF_FFFF


# The 24 words of ISR, TMR and IRR differ in nothing but their place.
_SETS: tuple[VectorSet, ...] = ("isr", "tmr", "irr")
for _name, _word in product(_SETS, range(8)):
    setattr(LocalApic, f"read_{_name}_{_word}", partialmethod(LocalApic._read_vector_word, _name, _word))
