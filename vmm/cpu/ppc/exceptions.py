"""Exceptions and external interrupts as the processor takes them (PowerPC Operating Environment Architecture, ch. 6).

Unicorn reports every exception and delivers none.  `take` does what the processor does: the interrupted place and state
go to SRR0 and SRR1, translation, interrupts and user mode go off, and the handler's first instruction is next.  Nothing
is written to memory, so that nothing can go wrong on the way.

It knows nothing of Unicorn beyond the fields of `PpcState` and the numbers of its exceptions.
"""

from __future__ import annotations

from typing import NamedTuple

from vmm.cpu.ppc.layout import DSISR, MSR_ILE, MSR_IP, MSR_LE, MSR_ME, SRR0, SRR1, PpcState

# Unicorn's numbers of exceptions
MACHINE_CHECK, DATA_STORAGE, INSTRUCTION_STORAGE, EXTERNAL, ALIGNMENT, PROGRAM = range(1, 7)
FLOAT_UNAVAILABLE, SYSTEM_CALL = 7, 8
TRACE, INVALID = 68, 96

VECTORS = {
    MACHINE_CHECK: 0x200,
    DATA_STORAGE: 0x300,
    INSTRUCTION_STORAGE: 0x400,
    EXTERNAL: 0x500,
    ALIGNMENT: 0x600,
    PROGRAM: 0x700,
    FLOAT_UNAVAILABLE: 0x800,
    SYSTEM_CALL: 0xC00,
    TRACE: 0xD00,
}

INSTRUCTION_BYTES = 4
_SAVED_BITS = ~0x783F0000  # of MSR; the others in SRR1 tell of the exception
#: Unicorn's reason of a program exception, without its detail -> SRR1
_PROGRAM_REASONS = {0x10: 1 << 20, 0x20: 1 << 19, 0x30: 1 << 18, 0x40: 1 << 17}


class Event(NamedTuple):
    """One to be taken: Unicorn's number of it, where the handler returns to, and what Unicorn says it is about."""

    number: int
    return_address: int
    error_code: int = 0


def take(state: PpcState, event: Event) -> int:
    """Change `state` to the handler's first instruction; returns the MSR there, which the caller writes.

    KeyError for an exception that this processor does not have."""
    number = PROGRAM if event.number == INVALID else event.number
    before = state.msr
    state.set_special(SRR0, event.return_address)
    state.set_special(SRR1, before & _SAVED_BITS | _reason(number, event))
    if number == ALIGNMENT:
        state.set_special(DSISR, state.special(DSISR) | event.error_code >> 16 & 0x3FF)
    state.nip = state.exception_prefix | VECTORS[number]
    kept = before & (MSR_ME | MSR_ILE | MSR_IP)
    return kept | (MSR_LE if before & MSR_ILE else 0)


def _reason(number: int, event: Event) -> int:
    """The bits of SRR1 that tell why."""
    if number == INSTRUCTION_STORAGE:
        return event.error_code
    if number == PROGRAM:
        invalid = 1 << 19
        return invalid if event.number == INVALID else _PROGRAM_REASONS.get(event.error_code & ~0xF, invalid)
    return 0
