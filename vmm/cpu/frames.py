"""The frames an interrupt gate leaves on the stack, in real, protected and long mode.

One `Frames` serves one delivery: it reads gates and descriptors, checks them, pushes, and commits to the state last.
`Fault` tells which exception the delivery itself has raised; what follows from that is decided in `delivery.py`.
"""

from __future__ import annotations

import enum
import functools
from typing import Protocol

from vmm.cpu.layout import (
    CS,
    DS,
    ES,
    FS,
    GDT,
    GS,
    IDT,
    LDT,
    SEG_A,
    SEG_B,
    SEG_C,
    SEG_CODE,
    SEG_DPL_SHIFT,
    SEG_G,
    SEG_L,
    SEG_P,
    SEG_S,
    SEG_TYPE_SHIFT,
    SEG_W,
    SS,
    TR,
    CpuState,
    Segment,
)  # fmt: skip
from vmm.cpu.linear import LinearMemory
from vmm.cpu.paging import is_canonical
from vmm.cpu.physical import PhysicalMemory

RSP = 4
FLAG_TF, FLAG_IF, FLAG_NT, FLAG_RF, FLAG_VM, FLAG_AC = 1 << 8, 1 << 9, 1 << 14, 1 << 16, 1 << 17, 1 << 18

_ALL_BITS = 2**64 - 1
_TS, _NP, _SS, _GP = 10, 11, 12, 13
_SELECTOR_IDT, _SELECTOR_EXTERNAL, _SELECTOR_LDT = 2, 1, 4


class GateType(enum.IntEnum):
    TASK = 5
    INTERRUPT_16 = 6
    TRAP_16 = 7
    INTERRUPT_32 = 14
    TRAP_32 = 15


class Fault(Exception):
    """The delivery raised an exception of its own; a page fault comes as `PageFault` instead."""

    def __init__(self, vector: int, error_code: int = 0) -> None:
        super().__init__(vector, error_code)
        self.vector = vector
        self.error_code = error_code


class DeliveredEvent(Protocol):
    """What of an event the frames depend on."""

    @property
    def vector(self) -> int: ...
    @property
    def return_address(self) -> int: ...
    @property
    def error_code(self) -> int: ...
    @property
    def has_error_code(self) -> bool: ...
    @property
    def is_fault(self) -> bool: ...
    @property
    def is_software(self) -> bool: ...


def decode_segment(selector: int, low: int, high: int) -> Segment:
    """A segment's hidden part from the two words of its descriptor."""
    base = low >> 16 | (high & 0xFF) << 16 | high & 0xFF000000
    limit = low & 0xFFFF | high & 0xF0000
    if high & SEG_G:
        limit = limit << 12 | 0xFFF
    return Segment(selector, base, limit, high & 0x00FFFF00)


@functools.lru_cache(maxsize=64)  # the same few handlers' segments at every event
def handler_code(selector: int, words: int, cpl: int, external: int, long_mode: bool) -> tuple[Segment, int]:
    """The code segment of a handler after its descriptor, as CS will hold it, and the privilege level it runs at.

    Fault if no handler may run there from `cpl`; `external` is the error code's bit 0."""
    error = selector & 0xFFFC | external
    code = decode_segment(selector, words & 0xFFFF_FFFF, words >> 32)
    privilege = code.flags >> SEG_DPL_SHIFT & 3
    if not code.flags & SEG_S or not code.flags & SEG_CODE or privilege > cpl:
        raise Fault(_GP, error)
    if not code.flags & SEG_P:
        raise Fault(_NP, error)
    if long_mode and (not code.flags & SEG_L or code.flags & SEG_B):
        raise Fault(_GP, error)
    if code.flags & SEG_C:
        privilege = cpl
    return code._replace(selector=selector & ~3 | privilege, flags=code.flags | SEG_A), privilege


class Frames:
    """Everything one delivery needs.  `eflags` is the whole register as the interrupted program sees it."""

    def __init__(self, state: CpuState, physical: PhysicalMemory, eflags: int) -> None:
        self._state = state
        self._memory = LinearMemory(state, physical)
        self._eflags = eflags
        self._external = 0

    def _push(self, stack: Segment, pointer: int, mask: int, size: int, values: list[int], error: int) -> int:
        """Push `values` in order on a stack segment; the new stack pointer.  #SS with `error` outside the segment."""
        for value in values:
            pointer = (pointer - size) & mask
            if not _inside(stack, pointer, size, mask):
                raise Fault(_SS, error)
            self._memory.write((stack.base + pointer) & 0xFFFF_FFFF, size, value & (1 << 8 * size) - 1)
        return pointer

    # -- real mode ---------------------------------------------------------------------------------------------------

    def enter_real(self, vector: int, return_address: int) -> None:
        """Through the interrupt vector table: three 16-bit words, no error code."""
        state = self._state
        table = state.segment(IDT)
        if vector * 4 + 3 > table.limit:
            raise Fault(_GP)
        entry = self._memory.read(table.base + vector * 4, 4)
        code, stack, rsp = state.segment(CS), state.segment(SS), state.register(RSP)
        frame = [self._eflags, code.selector, return_address]
        pointer = self._push(stack._replace(limit=0xFFFF, flags=0), rsp, 0xFFFF, 2, frame, 0)
        state.set_register(RSP, rsp & ~0xFFFF | pointer)
        state.set_segment(CS, code._replace(selector=entry >> 16, base=entry >> 16 << 4))
        state.eip = entry & 0xFFFF
        state.eflags &= ~(FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF)

    # -- protected and long mode -------------------------------------------------------------------------------------

    def enter_protected(self, event: DeliveredEvent) -> None:
        """Through a 16- or 32-bit gate of the IDT."""
        state = self._state
        gate_type, selector, offset, _ = self._gate(event, 8)
        wide = gate_type >= GateType.INTERRUPT_32
        size = 4 if wide else 2
        code, privilege = self._handler_code(selector, long_mode=False)
        if offset > code.limit:
            raise Fault(_GP, self._external)
        old_stack, rsp, flags = state.segment(SS), state.register(RSP), self._frame_flags(event)
        frame = [flags, state.segment(CS).selector, event.return_address]
        if event.has_error_code:
            frame.append(event.error_code)
        if privilege < state.cpl:
            stack, pointer, stack_error = self._inner_stack(privilege)
            frame = [old_stack.selector, rsp, *frame]
            if self._eflags & FLAG_VM:
                frame = [state.segment(number).selector for number in (GS, FS, DS, ES)] + frame
        elif self._eflags & FLAG_VM:
            raise Fault(_GP, selector & 0xFFFC | self._external)
        else:
            stack, pointer, stack_error = old_stack, rsp, self._external
        mask = 0xFFFF_FFFF if stack.flags & SEG_B else 0xFFFF
        low = self._push(stack, pointer, mask, size, frame, stack_error)
        self._commit_flags(gate_type)
        if privilege < state.cpl:
            if self._eflags & FLAG_VM:
                for number in (GS, FS, DS, ES):
                    state.load_segment(number, Segment(0, 0, 0, 0))
            state.load_segment(SS, stack)
            rsp = pointer
        state.set_register(RSP, (rsp & ~mask | low) & 0xFFFF_FFFF)
        state.load_segment(CS, code)
        state.eip = offset

    def enter_long(self, event: DeliveredEvent) -> None:
        """Through a 64-bit gate, also from compatibility mode: always five words and an aligned stack."""
        state = self._state
        gate_type, selector, offset, stack_number = self._gate(event, 16)
        code, privilege = self._handler_code(selector, long_mode=True)
        if not is_canonical(offset):
            raise Fault(_GP, self._external)
        old_stack, rsp = state.segment(SS), state.register(RSP)
        inner = privilege < state.cpl
        pointer = rsp
        if stack_number or inner:
            pointer = self._task_state(8 * (stack_number + 3 if stack_number else privilege) + 4, 8)
        pointer &= ~15
        frame = [event.return_address, state.segment(CS).selector, self._frame_flags(event), rsp, old_stack.selector]
        if event.has_error_code:
            frame.insert(0, event.error_code)
        top, pointer = (pointer - 8) & _ALL_BITS, (pointer - 8 * len(frame)) & _ALL_BITS
        if not is_canonical(top) or not is_canonical(pointer):
            raise Fault(_SS, self._external)
        self._memory.write_words(pointer, frame)
        self._commit_flags(gate_type)
        if inner:
            state.set_segment(SS, Segment(privilege, 0, 0, privilege << SEG_DPL_SHIFT))
        state.set_register(RSP, pointer)
        state.enter_64_bit_code(code, privilege)
        state.eip = offset

    def _gate(self, event: DeliveredEvent, size: int) -> tuple[int, int, int, int]:
        """Type, selector, offset and stack number of the gate for an event, with all its checks done."""
        state, table, vector = self._state, self._state.segment(IDT), event.vector
        self._external = 0 if event.is_software else _SELECTOR_EXTERNAL
        error = vector * 8 | _SELECTOR_IDT | self._external
        if vector * size + size - 1 > table.limit:
            raise Fault(_GP, error)
        words = self._memory.read(table.base + vector * size, 8)
        low, high = words & 0xFFFF_FFFF, words >> 32
        gate_type = high >> SEG_TYPE_SHIFT & 0x1F
        valid = (GateType.INTERRUPT_32, GateType.TRAP_32) if size == 16 else tuple(GateType)
        if gate_type not in valid or gate_type == GateType.TASK:
            raise Fault(_GP, error)
        if event.is_software and high >> SEG_DPL_SHIFT & 3 < state.cpl:
            raise Fault(_GP, error)
        if not high & SEG_P:
            raise Fault(_NP, error)
        offset = low & 0xFFFF
        if gate_type >= GateType.INTERRUPT_32:
            offset |= high & 0xFFFF0000
        if size == 16:
            offset |= self._memory.read(table.base + vector * 16 + 8, 4) << 32
        return gate_type, low >> 16, offset, high & 7 if size == 16 else 0

    def _descriptor_words(self, selector: int, vector: int) -> int:
        """The eight bytes behind a selector.  Fault `vector` if there is no such descriptor."""
        table = self._state.segment(LDT if selector & _SELECTOR_LDT else GDT)
        index = selector & ~7
        if index + 7 > table.limit:
            raise Fault(vector, selector & 0xFFFC | self._external)
        return self._memory.read(table.base + index, 8)

    def _handler_code(self, selector: int, long_mode: bool) -> tuple[Segment, int]:
        """The handler's code segment, as CS will hold it, and the privilege level it runs at."""
        if not selector & 0xFFFC:
            raise Fault(_GP, self._external)
        words = self._descriptor_words(selector, _GP)
        return handler_code(selector, words, self._state.cpl, self._external, long_mode)

    def _task_state(self, offset: int, size: int) -> int:
        task = self._state.segment(TR)
        if offset + size - 1 > task.limit:
            raise Fault(_TS, task.selector & 0xFFFC | self._external)
        return self._memory.read(task.base + offset, size)

    def _inner_stack(self, privilege: int) -> tuple[Segment, int, int]:
        """SS and ESP for a more privileged level from the TSS, and the error code of a #SS on that stack."""
        wide = self._state.segment(TR).flags >> SEG_TYPE_SHIFT & 8
        if wide:
            pointer, selector = self._task_state(8 * privilege + 4, 4), self._task_state(8 * privilege + 8, 2)
        else:
            pointer, selector = self._task_state(4 * privilege + 2, 2), self._task_state(4 * privilege + 4, 2)
        error = selector & 0xFFFC | self._external
        if not selector & 0xFFFC or selector & 3 != privilege:
            raise Fault(_TS, error)
        words = self._descriptor_words(selector, _TS)
        stack = decode_segment(selector, words & 0xFFFF_FFFF, words >> 32)
        is_data = stack.flags & SEG_S and not stack.flags & SEG_CODE and stack.flags & SEG_W
        if not is_data or stack.flags >> SEG_DPL_SHIFT & 3 != privilege:
            raise Fault(_TS, error)
        if not stack.flags & SEG_P:
            raise Fault(_SS, error)
        return stack, pointer, error

    def _frame_flags(self, event: DeliveredEvent) -> int:
        """The flags that are pushed: after a fault RF is set, so that the instruction is not trapped again."""
        return self._eflags | (FLAG_RF if event.is_fault else 0)

    def _commit_flags(self, gate_type: int) -> None:
        cleared = FLAG_TF | FLAG_VM | FLAG_RF | FLAG_NT
        if gate_type in (GateType.INTERRUPT_16, GateType.INTERRUPT_32):
            cleared |= FLAG_IF
        self._state.eflags &= ~cleared


def _inside(stack: Segment, pointer: int, size: int, mask: int) -> bool:
    """Whether `size` bytes at `pointer` lie in the segment, which may expand down."""
    if stack.flags & SEG_C and not stack.flags & SEG_CODE and stack.flags & SEG_S:
        return stack.limit < pointer and pointer + size - 1 <= mask
    return pointer + size - 1 <= stack.limit
