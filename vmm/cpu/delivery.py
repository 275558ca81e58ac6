"""Delivery of exceptions and interrupts through the guest's own tables (Intel SDM volume 3, chapter 6).

Unicorn reports every exception and delivers none.  `deliver` does what the processor does: finds the gate in IVT or
IDT, checks it, chooses the stack, pushes the frame through the guest's page tables, and changes the CPU state to the
handler's first instruction.  A fault on the way is delivered in its place, or becomes a double fault (table 6-5), or a
`TripleFault`.  The state is changed only when everything has worked.

It knows nothing of Unicorn beyond the fields of `CpuState`.  Task gates, which long mode does not have, are answered
as a gate of a wrong type: #GP with the gate's selector.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from vmm.cpu.frames import Fault, Frames
from vmm.cpu.layout import CR0_PE, CS, HF_LMA, CpuState
from vmm.cpu.paging import PageFault, walk
from vmm.cpu.physical import PhysicalMemory

DIVIDE_ERROR, DEBUG, BREAKPOINT, OVERFLOW = 0, 1, 3, 4
DOUBLE_FAULT, INVALID_TSS, NOT_PRESENT, STACK_FAULT, GENERAL_PROTECTION, PAGE_FAULT = 8, 10, 11, 12, 13, 14
ALIGNMENT_CHECK, CONTROL_PROTECTION = 17, 21
INVALID_OPCODE = 6

_INT3, _INTO = 0xCC, 0xCE

_WITH_ERROR_CODE = {
    DOUBLE_FAULT, INVALID_TSS, NOT_PRESENT, STACK_FAULT, GENERAL_PROTECTION, PAGE_FAULT, ALIGNMENT_CHECK,
    CONTROL_PROTECTION,
}  # fmt: skip
_CONTRIBUTORY = {DIVIDE_ERROR, INVALID_TSS, NOT_PRESENT, STACK_FAULT, GENERAL_PROTECTION}
_TRAPS = {DEBUG, BREAKPOINT, OVERFLOW, DOUBLE_FAULT}


class Source(Enum):
    EXCEPTION = "exception"  # the processor's own, also one that arose during a delivery
    SOFTWARE = "software"  # INT n, INT3, INTO: the gate's DPL counts, there is no error code
    EXTERNAL = "external"  # from the interrupt controller


class Event(NamedTuple):
    """One thing to deliver.  `return_address` is the offset in CS that the handler finds in its frame.

    `start` is where the instruction begins whose return address lies behind it; a fault of INT n points there."""

    vector: int
    source: Source
    return_address: int
    error_code: int = 0
    start: int | None = None

    @property
    def has_error_code(self) -> bool:
        return self.source is Source.EXCEPTION and self.vector in _WITH_ERROR_CODE

    @property
    def is_software(self) -> bool:
        return self.source is Source.SOFTWARE

    @property
    def is_fault(self) -> bool:
        return self.source is Source.EXCEPTION and self.vector not in _TRAPS

    def after(self, fault: Fault) -> Event:
        """What is delivered when delivering this one ended in `fault` (table 6-5).  TripleFault when nothing is."""
        own_class = self.vector if self.source is Source.EXCEPTION else -1
        if own_class == DOUBLE_FAULT:
            raise TripleFault(fault.vector)
        serious = fault.vector in _CONTRIBUTORY
        doubled = (own_class in _CONTRIBUTORY and serious) or (
            own_class == PAGE_FAULT and (serious or fault.vector == PAGE_FAULT)
        )
        place = self.return_address if self.start is None else self.start
        if doubled:
            return Event(DOUBLE_FAULT, Source.EXCEPTION, place)
        return Event(fault.vector, Source.EXCEPTION, place, fault.error_code)


class TripleFault(Exception):
    """A double fault could not be delivered.  `vector` is the exception that its delivery raised."""

    def __init__(self, vector: int) -> None:
        super().__init__(vector)
        self.vector = vector


def deliver(state: CpuState, physical: PhysicalMemory, event: Event, eflags: int) -> None:
    """Take the CPU to the handler of `event`; `eflags` is the complete flags register of the interrupted program.

    TripleFault, and the state as it was, if no handler can be reached."""
    frames = Frames(state, physical, eflags)
    while True:
        try:
            if not state.cr0 & CR0_PE:
                frames.enter_real(event.vector, event.return_address)
            elif state.hflags & HF_LMA:
                frames.enter_long(event)
            else:
                frames.enter_protected(event)
            return
        except Fault as fault:
            event = event.after(fault)
        except PageFault as fault:
            state.cr2 = fault.gva
            event = event.after(Fault(PAGE_FAULT, fault.error_code))


def start_of_int(state: CpuState, physical: PhysicalMemory, vector: int) -> int:
    """Where the INT3, INTO or INT n begins that `eip` is behind.  Prefixes, which none of them needs, are not seen."""
    short = {BREAKPOINT: _INT3, OVERFLOW: _INTO}.get(vector)
    before = (state.eip - 1) & (2**64 - 1)
    try:
        gpa = walk(state, physical, state.segment(CS).base + before, touch=False)
    except PageFault:
        gpa = None
    is_short = short is not None and gpa is not None and physical.read(gpa, 1) == short
    return before if is_short else (state.eip - 2) & (2**64 - 1)
