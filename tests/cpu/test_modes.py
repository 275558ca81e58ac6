"""From the reset vector through real and protected mode to long mode, and what a program finds there."""

from __future__ import annotations

from tests.cpu.lab import CODE, lab
from vmm.cpu import ExitReason


def test_reset_starts_in_real_mode_at_fffffff0h() -> None:
    with lab("hlt", 16) as bench:
        registers = bench.cpu.registers()
        assert registers["cs_base"] + registers["rip"] == 0xFFFFFFF0
        assert (registers["cs"], registers["rip"]) == (0xF000, 0xFFF0)
        assert registers["cr0"] == 0x60000010 and registers["rflags"] == 2 and registers["efer"] == 0


def test_a_program_runs_in_real_mode() -> None:
    with lab(".code16; movw %cs, %ax; outw %ax, $0x80; hlt", 16) as bench:
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports == [0x1000]


def test_a_program_runs_in_32_bit_protected_mode() -> None:
    with lab(".code32; pushl %cs; popl %eax; outl %eax, $0x80; movl %cr0, %eax; outl %eax, $0x80; hlt", 32) as bench:
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports[0] == CODE
        assert bench.reports[1] & 0x80000001 == 1


def test_a_program_runs_in_long_mode() -> None:
    with lab("movabs $0x1122334455667788, %rax; shr $32, %rax; outl %eax, $0x80; hlt") as bench:
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports == [0x11223344]
        assert bench.cpu.registers()["efer"] & 0x500 == 0x500


def test_reset_goes_back_to_the_reset_vector_and_the_count_goes_on() -> None:
    with lab(".code16; outw %ax, $0x80; hlt", 16) as bench:
        bench.run()
        blocks = bench.cpu.blocks
        bench.cpu.reset()
        assert bench.cpu.registers()["cr0"] == 0x60000010
        bench.run()
        assert len(bench.reports) == 2
        assert bench.cpu.blocks == 2 * blocks
