"""Exceptions and INT n in real mode and in 16- and 32-bit protected mode (SDM volume 3, 6.12 and 21.1)."""

from __future__ import annotations

import pytest

from tests.cpu.lab import CODE, CODE_16, DATA, KERNEL_STACK, ORIGIN, RSP0, TSS, USER_DATA, lab
from vmm.cpu import ExitReason

USER_CODE_32 = 0x23
FRAME_16 = """
    .code16
frame:
    movw %sp, %bp
    movw (%bp), %ax; outw %ax, $0x80
    movw 2(%bp), %ax; outw %ax, $0x80
    movw 4(%bp), %ax; outw %ax, $0x80
    movw %bp, %ax; outw %ax, $0x80
    pushfw; popw %ax; outw %ax, $0x80
    hlt
"""
FRAME_32 = """
    .code32
with_code:
    popl %eax; outl %eax, $0x80
frame:
    movl %esp, %ebp
    movl (%ebp), %eax; outl %eax, $0x80
    movl 4(%ebp), %eax; outl %eax, $0x80
    movl 8(%ebp), %eax; outl %eax, $0x80
    movl 12(%ebp), %eax; outl %eax, $0x80
    movl 16(%ebp), %eax; outl %eax, $0x80
    movl %ebp, %eax; outl %eax, $0x80
    movl %ss, %eax; outl %eax, $0x80
    hlt
"""
TO_RING_3 = f"""
    .code32
    pushl ${USER_DATA}; pushl $user_stack_top; pushl $2; pushl ${USER_CODE_32}; pushl $user; iretl
"""
USER_STACK = "\n.balign 16; .skip 256; user_stack_top:"


def test_int_n_in_real_mode_goes_through_the_vector_table() -> None:
    with lab(".code16; sti; stc; int $0x21; after:" + FRAME_16, 16, gates={0x21: "frame"}) as bench:
        assert bench.run().reason is ExitReason.HALTED
        ip, cs, flags, sp, inside = bench.reports
        assert (ip, cs) == (bench.labels["after"] - ORIGIN, ORIGIN >> 4)
        assert flags & 0x201 == 0x201
        assert sp == KERNEL_STACK - 6
        assert inside & 0x301 == 1, "IF and TF are off, the rest stays"


def test_a_divide_error_in_real_mode_points_at_the_division() -> None:
    with lab(".code16; xorw %cx, %cx; fault: divw %cx; hlt;" + FRAME_16, 16, gates={0: "frame"}) as bench:
        bench.run()
        assert bench.reports[0] == bench.labels["fault"] - ORIGIN


def test_iret_in_real_mode_goes_back() -> None:
    source = ".code16; int $0x21; outw %ax, $0x80; hlt; handler: movw $42, %ax; iretw"
    with lab(source, 16, gates={0x21: "handler"}) as bench:
        bench.run()
        assert bench.reports == [42]


def test_an_interrupt_in_real_mode() -> None:
    source = ".code16; sti; hlt; cli; hlt; handler: movw $42, %ax; outw %ax, $0x80; iretw"
    with lab(source, 16, gates={0x30: "handler"}) as bench:
        assert bench.run().interrupts_enabled
        bench.platform.raise_irq(0x30)
        assert not bench.run().interrupts_enabled
        assert bench.reports == [42]


def test_a_vector_beyond_the_real_mode_table_ends_in_a_triple_fault() -> None:
    source = ".code16; lidtl %cs:table - program; fault: int $0x21; table: .word 3; .long 0"
    with lab(source, 16) as bench:
        exit_ = bench.run()
        assert exit_.reason is ExitReason.TRIPLE_FAULT
        assert exit_.vector == 0x21


def test_a_fault_in_ring_0_of_protected_mode_keeps_the_stack() -> None:
    with lab(".code32; xorl %ecx, %ecx; fault: divl %ecx; hlt;" + FRAME_32, 32, gates={0: "frame"}) as bench:
        bench.run()
        eip, cs, eflags, *_, esp, ss = bench.reports
        assert (eip, cs) == (bench.labels["fault"], CODE)
        assert esp == KERNEL_STACK - 12 and ss == DATA
        assert eflags & 0x10000


def test_a_general_protection_fault_in_protected_mode_pushes_its_code() -> None:
    source = ".code32; movl $0x1238, %eax; fault: movl %eax, %ds; hlt;" + FRAME_32
    with lab(source, 32, gates={13: "with_code"}) as bench:
        bench.run()
        assert bench.reports[:3] == [0x1238, bench.labels["fault"], CODE]


def test_a_fault_in_ring_3_takes_the_stack_from_the_tss() -> None:
    source = TO_RING_3 + "user: xorl %ecx, %ecx; fault: divl %ecx;" + FRAME_32 + USER_STACK
    with lab(source, 32, gates={0: "frame"}) as bench:
        bench.run()
        eip, cs, _, esp, ss, handler_esp, handler_ss = bench.reports
        assert (eip, cs) == (bench.labels["fault"], USER_CODE_32)
        assert (esp, ss) == (bench.labels["user_stack_top"], USER_DATA)
        assert (handler_esp, handler_ss) == (RSP0 - 20, DATA)


def test_int_n_in_ring_3_needs_the_gates_dpl() -> None:
    source = TO_RING_3 + "user: int $0x40;" + FRAME_32 + USER_STACK
    with lab(source, 32, gates={0x40: "frame", 13: "with_code"}) as bench:
        bench.run()
        assert bench.reports[:2] == [0x40 * 8 | 2, bench.labels["user"]]


def test_int_n_in_ring_3_and_back() -> None:
    source = TO_RING_3 + "user: movl $1, %ebx; int $0x40; incl %ebx; int $0x41; first: iretl;"
    source += "second: movl %ebx, %eax; outl %eax, $0x80; hlt;" + USER_STACK
    with lab(source, 32) as bench:
        bench.gate_32(0x40, "first", dpl=3)
        bench.gate_32(0x41, "second", dpl=3)
        bench.run()
        assert bench.reports == [2]


def test_a_16_bit_gate_pushes_words_and_enters_16_bit_code() -> None:
    source = """
        .code32
        int $0x40
    after:
        hlt
        .code16
    handler:
        movl %esp, %ebx
        movw %ss:(%ebx), %ax; outw %ax, $0x80
        movw %ss:2(%ebx), %ax; outw %ax, $0x80
        movl %ebx, %eax; outl %eax, $0x80
        movw %cs, %ax; outw %ax, $0x80
        hlt
    """
    with lab(source, 32) as bench:
        bench.gate_32(0x40, "handler", kind=6, cs=CODE_16)
        bench.run()
        assert bench.reports == [bench.labels["after"] & 0xFFFF, CODE, KERNEL_STACK - 6, CODE_16]


@pytest.mark.parametrize("kind", [5, 0, 12])
def test_task_gates_and_unknown_types_are_a_general_protection_fault(kind: int) -> None:
    with lab(".code32; start: int $0x40; hlt;" + FRAME_32, 32, gates={13: "with_code"}) as bench:
        bench.gate_32(0x40, "frame", kind=kind)
        bench.run()
        assert bench.reports[:2] == [0x40 * 8 | 2, bench.labels["start"]]


def test_a_null_stack_in_the_tss_is_an_invalid_tss_fault() -> None:
    source = TO_RING_3 + "user: int $0x40;" + FRAME_32 + USER_STACK
    with lab(source, 32, gates={10: "with_code"}) as bench:
        bench.gate_32(0x40, "frame", dpl=3)
        bench.memory.write_int(TSS + 8, 2, 0)
        assert bench.run().reason is ExitReason.TRIPLE_FAULT, "the handler of #TS needs the same stack"


def test_paging_in_32_bit_mode_and_a_page_fault() -> None:
    source = """
        .code32
        movl %cr4, %eax; orl $0x10, %eax; movl %eax, %cr4
        movl $0x20000, %eax; movl %eax, %cr3
        movl %cr0, %eax; orl $0x80000000, %eax; movl %eax, %cr0
        jmp paged
    paged: movl 0x40001000, %eax; outl %eax, $0x80
    fault: movl %eax, 0x40002000
        hlt
    handler: movl %cr2, %eax; outl %eax, $0x80; jmp with_code
    """
    with lab(source + FRAME_32, 32, gates={14: "handler"}) as bench:
        bench.memory.write_int(0x20000, 4, 0x83)  # the first 4 MiB
        bench.memory.write_int(0x20000 + 4 * 0x3FF, 4, 0xFFC00083)
        bench.memory.write_int(0x20000 + 4 * 0x100, 4, 0x21007)
        bench.memory.write_int(0x21000 + 4, 4, 0x30003)
        bench.memory.write_int(0x30000, 4, 0x1234)
        bench.run()
        assert bench.reports[:4] == [0x1234, 0x40002000, 2, bench.labels["fault"]]
        assert bench.cpu.translate(0x40001234) == 0x30234
        assert bench.cpu.translate(0x40002000) is None
