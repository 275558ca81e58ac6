"""What reaches the platform: ports, device windows, the ROM, the time-stamp counter, and what CPUID tells."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from devices.errors import ConfigError
from devices.memory import GuestMemory
from tests.cpu.lab import RAM_LAYOUT, USER_CODE, USER_DATA, LogPlatform, lab
from vmm.cpu import ExitReason
from vmm.cpu.unicorn_cpu import UnicornCpu


@pytest.mark.parametrize(("suffix", "register", "size"), [("b", "al", 1), ("w", "ax", 2), ("l", "eax", 4)])
def test_in_and_out_of_each_size(suffix: str, register: str, size: int) -> None:
    source = f"""
        movl $0x12345678, %eax; movl $0x3f8, %edx; out{suffix} %{register}, %dx
        xorl %eax, %eax; movl $0x3f9, %edx; in{suffix} %dx, %{register}
        outl %eax, $0x80; hlt
    """
    with lab(source) as bench:
        bench.platform.inputs[0x3F9] = 0xA5A5A5A5 & (1 << 8 * size) - 1
        bench.run()
        assert bench.platform.log[:2] == [
            ("out", 0x3F8, size, 0x12345678 & (1 << 8 * size) - 1),
            ("in", 0x3F9, size, 0),
        ]
        assert bench.reports == [0xA5A5A5A5 & (1 << 8 * size) - 1]


def test_string_input_and_output() -> None:
    source = """
        movl $0x40, %edx
        leaq 0x30000, %rdi; movl $3, %ecx; rep insw
        leaq 0x30000, %rsi; movl $2, %ecx; rep outsw
        hlt
    """
    with lab(source) as bench:
        bench.platform.inputs[0x40] = 0x1234
        bench.run()
        assert bench.platform.log == [("in", 0x40, 2, 0)] * 3 + [("out", 0x40, 2, 0x1234)] * 2
        assert bench.memory.read(0x30000, 8) == bytes.fromhex("3412341234120000")


PLACES = {
    "the hole below 1 MiB": 0xA0000,
    "right above low RAM": 0x400000,
    "the APIC": 0xFEE00020,
    "between RAM and ROM": 0xFFFEFFF8,
    "right above the RAM beyond 4 GiB": (1 << 32) + 0x100000,
    "the top of the physical space": (1 << 40) - 8,
}


@pytest.mark.parametrize("place", PLACES)
def test_all_that_is_no_memory_is_the_platforms(place: str) -> None:
    gpa = PLACES[place]
    source = f"""
        movabs ${0x40000000 | gpa & 0xFFF}, %rbx
        movb $1, (%rbx); movw $2, (%rbx); movl $3, (%rbx); movq $4, (%rbx)
        movb (%rbx), %al; movw (%rbx), %ax; movl (%rbx), %eax; movq (%rbx), %rax
        outl %eax, $0x80; hlt
    """
    with lab(source) as bench:
        bench.map_page(0x40000000, gpa & ~0xFFF, 3 | 1 << 63)
        bench.platform.inputs[gpa] = 0x33221100
        assert bench.run().reason is ExitReason.HALTED
        writes = [entry for entry in bench.platform.log if entry[0] == "write"]
        reads = [entry for entry in bench.platform.log if entry[0] == "read"]
        assert writes[:3] == [("write", gpa, 1, 1), ("write", gpa, 2, 2), ("write", gpa, 4, 3)]
        assert writes[3:] == [("write", gpa, 4, 4), ("write", gpa + 4, 4, 0)], "eight bytes come as two of four"
        assert [(at - gpa, size) for _, at, size, _ in reads] == [(0, 1), (0, 2), (0, 4), (0, 4), (4, 4)]
        assert bench.reports == [0x33221100]


def test_a_read_modify_write_of_a_device_reads_once_and_writes_once() -> None:
    with lab("movl $0x400000, %ebx; lock addl $5, (%rbx); hlt") as bench:
        bench.platform.inputs[0x400000] = 10
        bench.run()
        assert bench.platform.log == [("read", 0x400000, 4, 0), ("write", 0x400000, 4, 15)]


def test_writes_to_the_rom_vanish() -> None:
    source = """
        movl $0xf0000, %ebx; movl (%rbx), %eax; outl %eax, $0x80
        movl $0x12345678, (%rbx); addl $1, (%rbx); movl $0x12345678, 1(%rbx); lock incl (%rbx)
        movl (%rbx), %eax; outl %eax, $0x80; hlt
    """
    with lab(source) as bench:
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports[0] == bench.reports[1]
        assert [entry for entry in bench.platform.log if entry[0] in ("read", "write")] == []


def test_a_jump_to_where_no_memory_is_raises_an_invalid_opcode() -> None:
    """Nobody answers there: all ones are fetched, and FFFFh is no instruction."""
    source = "movl $0x400000, %eax; jmp *%rax; handler: movq (%rsp), %rax; outl %eax, $0x80; hlt"
    with lab(source, gates={6: "handler"}) as bench:
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports == [0x400000]


def test_rdtsc_asks_the_platform() -> None:
    source = """
        movl $0xc0000103, %ecx; movl $0x77, %eax; xorl %edx, %edx; wrmsr
        rdtsc; outl %eax, $0x80; movl %edx, %eax; outl %eax, $0x80
        rdtscp; outl %eax, $0x80; movl %ecx, %eax; outl %eax, $0x80; hlt
    """
    with lab(source) as bench:
        values = iter([0x1122334455667788, 0x99])
        bench.platform.tsc = lambda: next(values)  # type: ignore[method-assign]
        bench.run()
        assert bench.reports == [0x55667788, 0x11223344, 0x99, 0x77]


READS_THE_COUNTER = """
    movl $0xc0000103, %ecx; movl $0x12345678, %eax; movl $-1, %edx; wrmsr
    movl $20, %ebx
    1: movq $-1, %rax; movq %rax, %rcx; movq %rax, %rdx; rdtsc
    call tell
    movq $-1, %rax; movq %rax, %rcx; movq %rax, %rdx; rdtscp
    call tell
    decl %ebx; jnz 1b; hlt
    tell: outl %eax, $0x80; shrq $32, %rax; outl %eax, $0x80
    movl %edx, %eax; outl %eax, $0x80; shrq $32, %rdx; movl %edx, %eax; outl %eax, $0x80
    movl %ecx, %eax; outl %eax, $0x80; shrq $32, %rcx; movl %ecx, %eax; outl %eax, $0x80
    ret
"""


def counter(cpu: UnicornCpu, ticks: int, start: int) -> Callable[[], int]:
    return lambda: cpu.blocks * ticks + start


@pytest.mark.parametrize("line", [None, (10, 0), (10, 0x1234567_89ABCDEF), (7, 2**64 - 300), (1, 2**64 - 1)])
def test_the_counter_by_machine_code_is_the_counter_by_the_platform(line: tuple[int, int] | None) -> None:
    """With a line and without, in Python and natively, stopped anywhere: the same numbers in whole registers."""
    found = []
    for native, known, budget in ((True, line, 10**6), (True, line, 3), (True, None, 7), (False, line, 10**6)):
        with lab(READS_THE_COUNTER, native=native) as bench:
            cpu = bench.cpu
            bench.platform.tsc = counter(cpu, *line or (10, 0))  # type: ignore[method-assign]
            bench.platform.tsc_line = known
            while bench.run(budget).reason is not ExitReason.HALTED:
                pass
            found.append((bench.reports, cpu.blocks))
    assert found[0] == found[1] == found[2] == found[3]
    answers = [tuple(found[0][0][i : i + 6]) for i in range(0, 240, 6)]
    assert len(answers) == 40
    values = [low | high << 32 for low, _, high, _, _, _ in answers]
    ticks, start = line or (10, 0)
    blocks = [(value - start) % 2**64 // ticks for value in values]
    assert blocks == sorted(set(blocks)), "it only goes up"
    assert all(answer[1] == answer[3] == 0 for answer in answers), "the upper halves are cleared"
    assert {answer[4:] for answer in answers[0::2]} == {(0xFFFFFFFF, 0xFFFFFFFF)}, "RDTSC leaves RCX alone"
    assert {answer[4:] for answer in answers[1::2]} == {(0x12345678, 0)}


def test_the_line_of_the_counter_may_change_between_two_runs() -> None:
    source = "1: rdtsc; outl %eax, $0x80; jmp 1b"
    with lab(source) as bench:
        for offset in (0, 1000, 5_000_000):
            bench.platform.tsc_line = (10, offset)
            before, start = len(bench.reports), bench.cpu.blocks
            bench.run(20)
            found = bench.reports[before:]
            assert found and all(offset + 10 * start <= value <= offset + 10 * (start + 21) for value in found)


def test_a_program_without_the_right_gets_no_counter() -> None:
    """CR4.TSD: #GP in ring 3, by machine code too."""
    source = f"""
        movq %cr4, %rax; orl $4, %eax; movq %rax, %cr4
        pushq ${USER_DATA}; pushq $0x60000; pushq $2; pushq ${USER_CODE}; pushq $user; iretq
        user: movl $77, %eax; rdtsc; jmp user
        handler: outl %eax, $0x80; hlt
    """
    with lab(source, gates={13: "handler"}) as bench:
        bench.platform.tsc_line = (10, 0)
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports == [77]


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, ...]:
    source = f"""
        movl ${leaf}, %eax; movl ${subleaf}, %ecx; cpuid
        outl %eax, $0x80; movl %ebx, %eax; outl %eax, $0x80
        movl %ecx, %eax; outl %eax, $0x80; movl %edx, %eax; outl %eax, $0x80; hlt
    """
    with lab(source) as bench:
        bench.run()
        return tuple(bench.reports)


def test_cpuid_hides_what_is_random_or_does_not_work() -> None:
    _, _, ecx, edx = cpuid(1)
    assert not ecx & 1 << 30, "RDRAND"
    assert not ecx & 1 << 21, "x2APIC"
    assert not ecx & 1 << 24, "TSC-deadline"
    assert edx & 1 << 9 and edx & 1 << 4, "there are an APIC and a time-stamp counter"
    assert not cpuid(7)[1] & 1 << 18, "RDSEED"


def test_strings_are_said_to_be_fast_by_words_and_not_by_bytes() -> None:
    """Linux then clears and copies pages with REP STOSQ and MOVSQ; an iteration costs the same time however wide."""
    source = """
        movl $0x1a0, %ecx; rdmsr; outl %eax, $0x80; movl %edx, %eax; outl %eax, $0x80
        movl $0x800, %eax; xorl %edx, %edx; wrmsr; rdmsr; outl %eax, $0x80; hlt
    """
    with lab(source) as bench:
        bench.run()
        assert bench.reports == [1, 0, 0x800], "bit 0 is set by a reset, and the register is the guest's"
        bench.cpu.reset()
        registers: Any = bench.cpu.save_state()["registers"]
        assert registers["misc_enable"] == 1
    assert not cpuid(7)[1] & 1 << 9, "enhanced REP MOVSB and STOSB"


def test_cpuid_tells_the_frequency_of_the_counter() -> None:
    denominator, numerator, crystal_hz, _ = cpuid(0x15)
    assert crystal_hz * numerator // denominator == 1_000_000_000
    assert cpuid(0x16)[0] == 1000
    assert cpuid(0)[0] >= 0x16
    assert cpuid(0x80000007)[3] & 1 << 8, "it is invariant"


def test_cpuid_names_the_processor() -> None:
    text = b"".join(struct.pack("<4I", *cpuid(0x80000002 + i)) for i in range(3))
    assert text.rstrip(b"\0") == b"balloon-vmm processor (Unicorn)"
    assert cpuid(0x80000001)[3] & (1 << 29 | 1 << 20 | 1 << 11) == 1 << 29 | 1 << 20 | 1 << 11, "LM, NX, SYSCALL"


def test_cpuid_follows_cr4_osxsave() -> None:
    source = """
        movl $1, %eax; cpuid; shrl $27, %ecx; andl $1, %ecx; movl %ecx, %eax; outl %eax, $0x80
        movq %cr4, %rax; orl $0x40000, %eax; movq %rax, %cr4
        movl $1, %eax; cpuid; shrl $27, %ecx; andl $1, %ecx; movl %ecx, %eax; outl %eax, $0x80
        hlt
    """
    with lab(source) as bench:
        bench.run()
        assert bench.reports == [0, 1]


def test_a_rom_of_another_size_is_refused() -> None:
    memory = GuestMemory(RAM_LAYOUT, "cpu-rom")
    with pytest.raises(ConfigError, match="the firmware must have 64 KiB to 16 MiB, in units of 64 KiB, not 3 bytes"):
        UnicornCpu(memory, LogPlatform(), b"abc")
    memory.close()


def test_registers_are_written_as_they_are_read() -> None:
    with lab("1: jmp 1b") as bench:
        bench.run(50)
        before = bench.cpu.registers()
        bench.cpu.set_registers(dict.fromkeys(("rax", "rbx", "rip"), 0) | {"rflags": 0xED7})
        assert bench.cpu.registers() != before
        assert bench.cpu.registers()["rflags"] == 0xED7
        bench.cpu.set_registers(before)
        assert bench.cpu.registers() == before
        assert bench.run(5).reason is ExitReason.BUDGET
        with pytest.raises(KeyError):
            bench.cpu.set_registers({"eax": 1})


def test_a_cpu_goes_on_from_the_registers_and_memory_of_another() -> None:
    source = "xorl %ebx, %ebx; 1: incl %ebx; movl %ebx, 0x50000; cmpl $1000, %ebx; jne 1b; hlt"
    with lab(source) as first, lab(source) as second:
        first.run(500)
        for gpa, size in ((0, 0xA0000),):
            second.memory.write(gpa, first.memory.read(gpa, size))
        second.cpu.set_registers(first.cpu.registers())
        first.run()
        second.run()
        assert first.cpu.registers() == second.cpu.registers()
        assert first.memory.read(0, 0xA0000) == second.memory.read(0, 0xA0000)


def test_translate_walks_the_guests_tables() -> None:
    with lab("hlt") as bench:
        bench.map_page(0x40005000, 0x31000, 1)
        bench.run()
        assert bench.cpu.translate(0x40005678) == 0x31678
        assert bench.cpu.translate(0x40006000) is None
        assert bench.cpu.translate(0x123456) == 0x123456
        assert bench.memory.read_int(0x20000 + 8 * 5, 8) == 0x31001, "nothing is marked as accessed"
