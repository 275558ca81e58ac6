"""The machine code of both callbacks: made from native.c, placed right, and equal in its decisions on every host."""

from __future__ import annotations

import ctypes
import itertools
import platform
import struct
from typing import Any

import pytest
import unicorn
from unicorn import arm64_const, x86_const

from vmm.cpu import build_native
from vmm.cpu.native import Clock, host_code
from vmm.cpu.native_code import NATIVE_CODE

BASE, STACK, CLOCK, STATE, RETURN, STOP, TRANSLATE = 0x1000, 0x9000, 0x10000, 0x11000, 0x20000, 0x21000, 0x22000
MEMORY_BYTES = 0x40000
EFLAGS_OFFSET, HFLAGS_OFFSET = 136, 176
NO_CODE_PAGES = 0x30000
MACHINES = pytest.mark.parametrize("machine", NATIVE_CODE)


def test_the_committed_code_is_what_the_source_gives() -> None:
    assert build_native.render() == (build_native.HERE / "native_code.py").read_text(), (
        "run `python -m vmm.cpu.build_native`"
    )


def test_this_host_has_machine_code() -> None:
    assert (host_code() is not None) == (platform.machine() in NATIVE_CODE)


class Bench:
    """One callback of one architecture, called in an emulator with a clock in its memory."""

    def __init__(self, machine: str, callback: str) -> None:
        self.machine = machine
        self.uc: Any  # Unicorn's binding has no types
        engine: Any = unicorn
        if machine == "x86_64":
            self.uc = engine.Uc(engine.UC_ARCH_X86, engine.UC_MODE_64)
        else:
            self.uc = engine.Uc(engine.UC_ARCH_ARM64, engine.UC_MODE_ARM)
        self.uc.mem_map(0, MEMORY_BYTES)
        self.uc.mem_write(BASE, bytes.fromhex(NATIVE_CODE[machine][callback]))
        self.translations: dict[int, int] = {}
        self.stops = 0

    def call(self, clock: Clock, second: int, third: int) -> Clock:
        """callback(uc, second, third, clock); the functions it may call are served here."""
        self.uc.mem_write(CLOCK, bytes(clock))
        x86 = self.machine == "x86_64"
        registers = x86_const if x86 else arm64_const
        prefix = "UC_X86_REG_" if x86 else "UC_ARM64_REG_"
        names = ("RDI", "RSI", "RDX", "RCX") if x86 else ("X0", "X1", "X2", "X3")
        for name, value in zip(names, (0x5555, second, third, CLOCK), strict=True):
            self.uc.reg_write(getattr(registers, prefix + name), value)
        self.uc.reg_write(getattr(registers, prefix + ("RBP" if x86 else "X19")), STATE)
        self.uc.reg_write(getattr(registers, prefix + ("RSP" if x86 else "SP")), STACK)
        if x86:
            self.uc.mem_write(STACK, RETURN.to_bytes(8, "little"))
        else:
            self.uc.reg_write(arm64_const.UC_ARM64_REG_X30, RETURN)
        place = BASE
        while place != RETURN:
            self._until_call(place)
            place = self._serve(x86)
        return Clock.from_buffer_copy(self.uc.mem_read(CLOCK, ctypes.sizeof(Clock)))

    def _until_call(self, place: int) -> None:
        self.uc.ctl_exits_enabled(True)
        self.uc.ctl_set_exits([RETURN, STOP, TRANSLATE])
        self.uc.emu_start(place, 0)

    def _serve(self, x86: bool) -> int:
        """Act as the function that was called, and give the place to go on at."""
        place = int(self.uc.reg_read(x86_const.UC_X86_REG_RIP if x86 else arm64_const.UC_ARM64_REG_PC))
        if place == RETURN:
            return place
        if x86:
            stack = int(self.uc.reg_read(x86_const.UC_X86_REG_RSP))
            back = int.from_bytes(self.uc.mem_read(stack, 8), "little")
            self.uc.reg_write(x86_const.UC_X86_REG_RSP, stack + 8)
            gva, out = (int(self.uc.reg_read(r)) for r in (x86_const.UC_X86_REG_RSI, x86_const.UC_X86_REG_RCX))
            result = x86_const.UC_X86_REG_RAX
        else:
            back = int(self.uc.reg_read(arm64_const.UC_ARM64_REG_X30))
            gva, out = (int(self.uc.reg_read(r)) for r in (arm64_const.UC_ARM64_REG_X1, arm64_const.UC_ARM64_REG_X3))
            result = arm64_const.UC_ARM64_REG_X0
        if place == STOP:
            self.stops += 1
        elif gva >> 12 in self.translations:
            self.uc.mem_write(out, (self.translations[gva >> 12] << 12 | gva & 0xFFF).to_bytes(8, "little"))
            self.uc.reg_write(result, 0)
        else:
            self.uc.reg_write(result, 1)
        return back


def clock(executed: int = 5, limit: int = 10, irq: int = 0, previous: tuple[int, int] = (0x4000, 32)) -> Clock:
    return Clock(
        executed=executed, limit=limit, irq=irq, previous_pc=previous[0], previous_size=previous[1],
        eflags_offset=EFLAGS_OFFSET, hflags_offset=HFLAGS_OFFSET, stop=STOP, translate=TRANSLATE,
        code_pages=NO_CODE_PAGES, code_pages_length=64,
    )  # fmt: skip


def expected_stop(executed: int, irq: int, interrupt_flag: int, shadow: int, pc: int, size: int) -> bool:
    """The rule in words: at the limit or for an interrupt, but not at one instruction inside the block before."""
    wanted = executed >= 10 or bool(irq and interrupt_flag and not shadow)
    inside = 0x4000 <= pc < 0x4020 and size <= 15 and (pc, size) != (0x4000, 32)
    return wanted and not inside


@MACHINES
def test_the_block_callback_stops_when_it_must(machine: str) -> None:
    bench = Bench(machine, "block")
    cases = itertools.product(
        (9, 10, 11), (0, 1), (0, 1), (0, 1), (0x3FFF, 0x4000, 0x4010, 0x401F, 0x4020), (3, 15, 32)
    )
    for executed, irq, interrupt_flag, shadow, pc, size in cases:
        bench.uc.mem_write(STATE + EFLAGS_OFFSET, (0x2 | interrupt_flag << 9).to_bytes(8, "little"))
        bench.uc.mem_write(STATE + HFLAGS_OFFSET, (0x40 | shadow << 3).to_bytes(4, "little"))
        stops = bench.stops
        after = bench.call(clock(executed, irq=irq), pc, size)
        stopped = bench.stops > stops
        assert stopped == expected_stop(executed, irq, interrupt_flag, shadow, pc, size)
        assert after.stopped == int(stopped)
        assert after.executed == executed + (not stopped)
        assert (after.previous_pc, after.previous_size) == ((0x4000, 32) if stopped else (pc, size))


@MACHINES
@pytest.mark.parametrize(
    ("pc", "size", "marked"),
    [
        (0x7000, 16, {3}),
        (0x7FF8, 8, {3}),
        (0x7FF8, 9, {3, 9}),
        (0x8000, 0, {9}),
        (0xA000, 4, set()),
        (0xB000, 4, set()),
    ],
)
def test_the_translation_callback_marks_physical_pages(machine: str, pc: int, size: int, marked: set[int]) -> None:
    bench = Bench(machine, "translated")
    bench.translations = {7: 3, 8: 9, 0xB: 64}  # page Ah is not mapped, Bh lies beyond the bytes there are
    translation = 0x12000
    bench.uc.mem_write(translation, pc.to_bytes(8, "little") + (1).to_bytes(2, "little") + size.to_bytes(2, "little"))
    bench.uc.mem_write(NO_CODE_PAGES, bytes(128))
    bench.call(clock(), translation, 0)
    pages = bench.uc.mem_read(NO_CODE_PAGES, 128)
    assert {page for page in range(128) if pages[page]} == marked


# -- string instructions, done by the page -----------------------------------------------------------------------------

TLB, CODE_AT, FROM_AT, TO_AT = 0x30000, 0x32000, 0x34000, 0x36000
CODE_PAGE, FROM_PAGE, TO_PAGE = 0x40001000, 0x40002000, 0x40003000
RAX, RCX, RSI, RDI = 0x8877665544332211, 100, FROM_PAGE + 0x800, TO_PAGE + 0x800
CS64, DIRECTION_OFFSET, NO_ACCESS = 1 << 15, 172, 2**64 - 1


def _prepare_strings(bench: Bench, code: bytes, down: bool, to_flags: int = 0) -> None:
    """A CPU state in long mode, the tables of translations before it, and three pages that they know."""
    uc = bench.uc
    registers = (RAX, RCX, 0, 0, 0, 0, RSI, RDI)
    uc.mem_write(STATE, b"".join(value.to_bytes(8, "little") for value in registers))
    uc.mem_write(STATE + EFLAGS_OFFSET, (2).to_bytes(8, "little"))
    uc.mem_write(STATE + HFLAGS_OFFSET, CS64.to_bytes(4, "little"))
    uc.mem_write(STATE + DIRECTION_OFFSET, (-1 if down else 1).to_bytes(4, "little", signed=True))
    uc.mem_write(STATE - 32, struct.pack("<QQ", 63 << 6, TLB))  # the third of the tables
    for page, place, flags in ((CODE_PAGE, CODE_AT, 0), (FROM_PAGE, FROM_AT, 0), (TO_PAGE, TO_AT, to_flags)):
        entry = struct.pack("<QQQQQ", page, page | flags, page, 0, (place - page) & NO_ACCESS)
        uc.mem_write(TLB + (page >> 12 & 63) * 64, entry)
        uc.mem_write(place, bytes(i * 5 & 0xFF for i in range(4096)))
    uc.mem_write(CODE_AT, code)


def _repeat(bench: Bench, code: bytes) -> Clock:
    """The block at CODE_PAGE runs once more, with 60 to go to the limit."""
    again = clock(executed=40, limit=100, previous=(CODE_PAGE, len(code)))
    again.tlb_distance = 64
    return bench.call(again, CODE_PAGE, len(code))


def _registers(bench: Bench) -> tuple[int, ...]:
    return tuple(struct.unpack_from("<Q", bench.uc.mem_read(STATE + 8 * number, 8))[0] for number in (1, 6, 7))


@MACHINES
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("moves", [False, True])
def test_iterations_up_to_the_limit_are_done_at_once(machine: str, moves: bool, width: int, down: bool) -> None:
    opcode = (0xA4 if moves else 0xAA) | (width > 1)
    code = {1: b"\xf3", 2: b"\x66\xf3", 4: b"\xf3", 8: b"\xf3\x48"}[width] + bytes([opcode])
    bench = Bench(machine, "block")
    _prepare_strings(bench, code, down)
    after = _repeat(bench, code)
    step = -width if down else width
    assert (after.executed, after.iterations, after.stopped, bench.stops) == (100, 60, 1, 1)
    assert _registers(bench) == (RCX - 60, RSI + 60 * step * moves, RDI + 60 * step)
    expected = bytearray(i * 5 & 0xFF for i in range(4096))
    for i in range(60):
        at = 0x800 + i * step
        expected[at : at + width] = expected[at : at + width] if moves else RAX.to_bytes(8, "little")[:width]
    assert bench.uc.mem_read(TO_AT, 4096) == expected


@MACHINES
@pytest.mark.parametrize(
    "code", [b"\xf3\xac", b"\xaa", b"\xf0\xf3\xaa", b"\x48\xf3\xab", b"\x26\xf3\xa4", b"\xf3\x0f\xaa"]
)
def test_any_other_instruction_is_left_alone_and_remembered(machine: str, code: bytes) -> None:
    bench = Bench(machine, "block")
    _prepare_strings(bench, code, False)
    after = _repeat(bench, code)
    assert (after.executed, after.iterations, after.plain_pc) == (41, 0, CODE_PAGE)
    assert _registers(bench) == (RCX, RSI, RDI)


@MACHINES
def test_a_page_with_a_flag_is_left_alone(machine: str) -> None:
    bench = Bench(machine, "block")
    _prepare_strings(bench, b"\xf3\xaa", False, to_flags=0x400)
    after = _repeat(bench, b"\xf3\xaa")
    assert (after.executed, after.iterations, after.string_time) == (41, 0, 41)
    assert _registers(bench) == (RCX, RSI, RDI)
