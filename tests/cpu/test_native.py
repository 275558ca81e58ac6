"""The machine code of both callbacks: made from native.c, placed right, and equal in its decisions on every host."""

from __future__ import annotations

import ctypes
import itertools
import platform
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
