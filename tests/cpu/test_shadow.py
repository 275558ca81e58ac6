"""Shadow RAM: what the processor finds between C0000h and FFFFFh, changed from inside the program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from devices.effects import Shadow
from devices.errors import ConfigError
from devices.memory import GuestMemory
from tests.cpu.lab import RAM_LAYOUT, Lab, LogPlatform, rom
from tests.cpu.lab import lab as any_lab
from vmm.cpu import ExitReason
from vmm.cpu.unicorn_cpu import UnicornCpu

CONTROL = 0x90  # in these programs: bit 0 lets reads come from RAM, bit 1 lets writes go there
ROM, READ, WRITE, BOTH = range(4)
F_SEGMENT, F_BYTES = 0xF0000, 0x10000


@contextmanager
def lab(source: str, *, gates: Mapping[int, str] | None = None, native: bool = True) -> Iterator[Lab]:
    """A bench in protected mode without paging."""
    with any_lab(".code32\n" + source, 32, gates=gates, native=native) as bench:
        yield bench


def control(bench: Lab, gpa: int = F_SEGMENT, length: int = F_BYTES) -> None:
    def switch(value: int) -> None:
        bench.cpu.map_shadow([Shadow(gpa, length, bool(value & READ), bool(value & WRITE))])

    bench.platform.on_write[CONTROL] = switch


def set_mode(mode: int) -> str:
    return f"movl ${mode}, %eax; outb %al, ${CONTROL};"


def store(gpa: int, value: int) -> str:
    return f"movl ${value}, {gpa:#x};"


def report(gpa: int) -> str:
    return f"movl {gpa:#x}, %eax; outl %eax, $0x80;"


def rom_word(gpa: int) -> int:
    return int.from_bytes(rom(32)[gpa - F_SEGMENT :][:4], "little")


PLACE = 0xFF000 - 0x10  # inside the ROM's code, so that it is not all zeros
START = 0xFF000


@pytest.mark.parametrize(
    ("mode", "finds_stored", "keeps"),
    [(ROM, False, False), (READ, False, False), (WRITE, False, True), (BOTH, True, True)],
)
def test_the_four_ways_to_map_a_range(mode: int, finds_stored: bool, keeps: bool) -> None:
    """All in one basic block: each change holds for the very next instruction."""
    source = set_mode(mode) + store(START, 0x11223344) + report(START) + set_mode(READ) + report(START) + "hlt"
    with lab(source) as bench:
        control(bench)
        bench.run()
        ram = 0x11223344 if keeps else 0
        first = ram if mode & READ else rom_word(START)
        assert bench.reports == [first, ram]
        assert finds_stored == (bench.reports[0] == 0x11223344)


@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("l", 4)])
def test_stores_of_every_size_go_to_the_ram_behind_the_rom(suffix: str, size: int) -> None:
    source = (
        set_mode(WRITE) + f"mov{suffix} $0x5a, {START + 3:#x};" + set_mode(READ) + report(START) + report(START + 4)
    )
    with lab(source + "hlt") as bench:
        control(bench)
        bench.run()
        assert bench.reports == [0x5A000000, 0]


def test_a_store_across_two_ranges_goes_where_each_part_belongs() -> None:
    source = set_mode(BOTH) + store(0xCFFFE, 0x44332211) + report(0xCFFFE) + "hlt"
    with lab(source) as bench:
        control(bench, 0xCC000, 0x4000)
        bench.run()
        assert bench.reports == [0xFFFF2211]


def test_what_was_written_survives_being_hidden() -> None:
    source = set_mode(BOTH) + store(START, 7) + set_mode(ROM) + report(START) + set_mode(BOTH) + report(START) + "hlt"
    with lab(source) as bench:
        control(bench)
        bench.run()
        assert bench.reports == [rom_word(START), 7]


def test_where_there_is_no_rom_reads_give_ones() -> None:
    with lab(report(0xC0000) + report(0xEFFFC) + store(0xC0000, 0) + report(0xC0000) + "hlt") as bench:
        bench.run()
        assert bench.reports == [0xFFFFFFFF] * 3


def test_code_runs_from_shadow_ram_and_follows_it_when_it_changes() -> None:
    """The program writes `mov eax, N; ret` there, calls it, hides it behind other bytes and calls it again."""
    call = "movl $0xe0000, %ecx; call *%ecx; outl %eax, $0x80;"
    code = store(0xE0000, 0x000001B8) + store(0xE0004, 0x9090C300)
    source = set_mode(BOTH) + code + call + store(0xE0001, 2) + call
    source += set_mode(ROM) + "jmp 1f; 1:" + set_mode(BOTH) + "jmp 2f; 2:" + call + "hlt"
    with lab(source) as bench:
        control(bench, 0xE0000, 0x4000)
        bench.run()
        assert bench.reports == [1, 2, 2]


def test_code_that_was_rewritten_while_hidden_is_translated_anew() -> None:
    call = "movl $0xe0000, %ecx; call *%ecx; outl %eax, $0x80;"
    source = set_mode(BOTH) + store(0xE0000, 0x000001B8) + store(0xE0004, 0x9090C300) + call
    source += set_mode(WRITE) + store(0xE0001, 2) + set_mode(READ) + call + "hlt"
    with lab(source) as bench:
        control(bench, 0xE0000, 0x4000)
        bench.run()
        assert bench.reports == [1, 2]


def test_an_interrupt_table_in_shadow_ram_is_found() -> None:
    """Firmware keeps its descriptor tables there."""
    source = f"""
        {set_mode(BOTH)}
        movl $0x5000, %esi; movl $0xe0000, %edi; movl $0x200, %ecx; rep movsl
        lidtl pointer; int $0x30; outl %eax, $0x80; hlt
    handler: movl $9, %eax; iretl
    pointer: .word 0x7ff; .long 0xe0000
    """
    with lab(source, gates={0x30: "handler"}) as bench:
        control(bench, 0xE0000, 0x4000)
        bench.run()
        assert bench.reports == [9]


def test_an_interrupt_s_frame_can_lie_in_shadow_ram() -> None:
    source = f"""
        {set_mode(BOTH)} movl $0xe1000, %esp; int $0x30
    handler: movl $0xe0ff4, %ebx; movl 4(%ebx), %eax; outl %eax, $0x80; hlt
    """
    with lab(source, gates={0x30: "handler"}) as bench:
        control(bench, 0xE0000, 0x4000)
        bench.run()
        assert bench.reports == [0x08]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("budget", [1, 2, 7])
def test_stopping_anywhere_changes_nothing(native: bool, budget: int) -> None:
    source = set_mode(BOTH) + store(START, 7) + "jmp 1f; 1:" + set_mode(ROM) + report(START) + "jmp 2f; 2:"
    source += set_mode(READ) + report(START) + "hlt"
    with lab(source, native=native) as bench:
        control(bench)
        while bench.run(budget).reason is not ExitReason.HALTED:
            pass
        assert bench.reports == [rom_word(START), 7]


@pytest.mark.parametrize("size", [0, 1, 0xFFFF, 0x18000, 0x1010000])
def test_a_firmware_of_an_impossible_size_is_refused(size: int) -> None:
    with (
        GuestMemory(RAM_LAYOUT, "cpu-rom") as memory,
        pytest.raises(ConfigError, match=f"units of 64 KiB, not {size} bytes"),
    ):
        UnicornCpu(memory, LogPlatform(), bytes(size))


@pytest.mark.parametrize("units", [2, 4, 16])
def test_a_large_firmware_ends_at_4_gib_and_its_last_128_kib_below_1_mib(units: int) -> None:
    image = b"".join(bytes([n]) * 0x10000 for n in range(units - 1)) + rom(32)
    source = report(0x100000000 - units * 0x10000) + report(0xE0000) + report(0xF0000 - 4) + "hlt"
    with lab(source) as bench, GuestMemory(RAM_LAYOUT, "cpu-rom") as memory:
        for region in memory.regions:
            memory.write(region.gpa, bench.memory.peek(region.gpa, region.size))
        platform = LogPlatform()
        cpu = UnicornCpu(memory, platform, image)
        cpu.run(10_000)
        cpu.close()
        last = (units - 2) * 0x01010101
        assert platform.reports == [0, last, last]
