"""Exceptions and INT n in long mode: frames, error codes, stacks and rights (SDM volume 3, 6.14 and table 6-1).

Each handler reports the words of its frame; `report_frame` reports error code (if any), RIP, CS, RFLAGS, RSP, SS.
"""

from __future__ import annotations

import pytest

from tests.cpu.lab import CODE, DATA, IST1, KERNEL_STACK, RSP0, USER_CODE, USER_DATA, lab
from vmm.cpu import ExitReason

FRAME_WORDS = 5
USER_STACK = 0x40002000
WITH_CODE = """
with_code:
    movq (%rsp), %rax; outl %eax, $0x80
    addq $8, %rsp
"""
WITHOUT_CODE = """
without_code:
    movq (%rsp), %rax; outl %eax, $0x80
    movq 8(%rsp), %rax; outl %eax, $0x80
    movq 16(%rsp), %rax; outl %eax, $0x80
    movq 24(%rsp), %rax; outl %eax, $0x80
    movq 32(%rsp), %rax; outl %eax, $0x80
    movq %rsp, %rax; outl %eax, $0x80
    movl %ss, %eax; outl %eax, $0x80
    hlt
"""
HANDLERS = WITH_CODE + WITHOUT_CODE
TO_RING_3 = f"""
    pushq ${USER_DATA}
    pushq $user_stack_top
    pushq $2
    pushq ${USER_CODE}
    pushq $user
    iretq
"""
USER_END = """
    .balign 16
    .skip 256
user_stack_top:
"""


def test_divide_error_pushes_the_address_of_the_division() -> None:
    with lab("xorl %ecx, %ecx; xorl %edx, %edx; fault: divl %ecx; hlt" + HANDLERS, gates={0: "without_code"}) as bench:
        assert bench.run().reason is ExitReason.HALTED
        rip, cs, rflags, rsp, ss, handler_rsp, handler_ss = bench.reports
        assert (rip, cs) == (bench.labels["fault"], CODE)
        assert (rsp, ss, handler_ss) == (KERNEL_STACK, DATA, DATA)
        assert handler_rsp == KERNEL_STACK - 8 * FRAME_WORDS
        assert rflags & 0x10000, "a fault sets RF in the frame"


@pytest.mark.parametrize("offset", range(0, 16, 8))
def test_the_stack_is_aligned_to_16_bytes_before_the_frame(offset: int) -> None:
    source = f"subq ${offset + 3}, %rsp; ud2" + HANDLERS
    with lab(source, gates={6: "without_code"}) as bench:
        bench.run()
        *_, rsp, _ss, handler_rsp, _ = bench.reports
        assert rsp == KERNEL_STACK - offset - 3
        assert handler_rsp == (rsp & ~15) - 8 * FRAME_WORDS


def test_invalid_opcode_points_at_the_instruction() -> None:
    with lab("nop; fault: ud2" + HANDLERS, gates={6: "without_code"}) as bench:
        bench.run()
        assert bench.reports[0] == bench.labels["fault"]


def test_breakpoint_points_behind_the_instruction_and_leaves_rf_alone() -> None:
    with lab("int3; after: hlt" + HANDLERS, gates={3: "without_code"}) as bench:
        bench.run()
        assert bench.reports[0] == bench.labels["after"]
        assert not bench.reports[2] & 0x10000


def test_int_6_points_behind_the_instruction() -> None:
    with lab("int $6; after: hlt" + HANDLERS, gates={6: "without_code"}) as bench:
        bench.run()
        assert bench.reports[0] == bench.labels["after"]


def test_general_protection_pushes_the_selector() -> None:
    with lab("movl $0x1238, %eax; fault: movl %eax, %ds; hlt" + HANDLERS, gates={13: "with_code"}) as bench:
        bench.run()
        assert bench.reports[:2] == [0x1238, bench.labels["fault"]]


def test_int_13_pushes_no_error_code() -> None:
    with lab("int $13; after: hlt" + HANDLERS, gates={13: "without_code"}) as bench:
        bench.run()
        assert bench.reports[:2] == [bench.labels["after"], CODE]


PAGE_FAULTS = {
    "read of an absent page": ("movl 0x40001000, %eax", None, 0),
    "write of an absent page": ("movl %eax, 0x40001000", None, 2),
    "write of a read-only page": ("movl %eax, 0x40001000", 0x1, 3),
    "fetch of an absent page": ("movl $0x40001000, %eax; jmp *%rax", None, 0x10),
    "fetch of a no-execute page": ("movl $0x40001000, %eax; jmp *%rax", 0x8000000000000003, 0x11),
}


@pytest.mark.parametrize("case", PAGE_FAULTS)
def test_page_fault_in_ring_0(case: str) -> None:
    instruction, flags, error_code = PAGE_FAULTS[case]
    source = f"{instruction}; hlt; handler: movq %cr2, %rax; outl %eax, $0x80; {WITH_CODE} {WITHOUT_CODE}"
    with lab(source, gates={14: "handler"}) as bench:
        bench.map_page(0x40000000, 0x30000, 7)
        if flags is not None:
            bench.map_page(0x40001000, 0x30000, flags)
        bench.run()
        assert bench.reports[:2] == [0x40001000, error_code]
        expected = 0x40001000 if "fetch" in case else 0x10000
        assert bench.reports[2] == expected


USER_PAGE_FAULTS = {
    "read of an absent page": ("movl 0x40001000, %eax", None, 4),
    "write of an absent page": ("movl %eax, 0x40001000", None, 6),
    "read of a supervisor page": ("movl 0x40001000, %eax", 3, 5),
    "write of a read-only page": ("movl %eax, 0x40001000", 5, 7),
}


@pytest.mark.parametrize("case", USER_PAGE_FAULTS)
def test_page_fault_in_ring_3_switches_to_rsp0(case: str) -> None:
    instruction, flags, error_code = USER_PAGE_FAULTS[case]
    source = f"{TO_RING_3} user: {instruction}; hlt; handler: movq %cr2, %rax; outl %eax, $0x80; {HANDLERS} {USER_END}"
    with lab(source, gates={14: "handler"}) as bench:
        bench.map_page(0x40000000, 0x30000, 7)
        if flags is not None:
            bench.map_page(0x40001000, 0x30000, flags)
        bench.run()
        cr2, code, rip, cs, _, rsp, ss, handler_rsp, handler_ss = bench.reports
        assert (cr2, code) == (0x40001000, error_code)
        assert (rip, cs) == (bench.labels["user"], USER_CODE)
        assert (rsp, ss) == (bench.labels["user_stack_top"], USER_DATA)
        assert handler_rsp == RSP0 - 8 * FRAME_WORDS
        assert handler_ss == 0, "the new stack segment is the null selector"


def test_int_n_from_ring_3_needs_the_gates_dpl() -> None:
    source = f"{TO_RING_3} user: int $0x40; hlt; {HANDLERS} {USER_END}"
    with lab(source, gates={0x40: "without_code", 13: "with_code"}) as bench:
        bench.run()
        error_code, rip = bench.reports[:2]
        assert error_code == 0x40 * 8 | 2, "the IDT's entry, and not an external event"
        assert rip == bench.labels["user"], "a refused INT n is a fault"


def test_int_n_from_ring_3_through_a_gate_of_dpl_3() -> None:
    source = f"{TO_RING_3} user: int $0x40; after: hlt; {HANDLERS} {USER_END}"
    with lab(source) as bench:
        bench.gate(0x40, "without_code", dpl=3)
        bench.run()
        assert bench.reports[:2] == [bench.labels["after"], USER_CODE]


def test_an_exception_from_ring_3_ignores_the_gates_dpl() -> None:
    source = f"{TO_RING_3} user: xorl %ecx, %ecx; fault: divl %ecx; {HANDLERS} {USER_END}"
    with lab(source, gates={0: "without_code"}) as bench:
        bench.run()
        assert bench.reports[:2] == [bench.labels["fault"], USER_CODE]


def test_a_privileged_instruction_in_ring_3_is_refused() -> None:
    source = f"{TO_RING_3} user: hlt; {HANDLERS} {USER_END}"
    with lab(source, gates={13: "with_code"}) as bench:
        bench.run()
        assert bench.reports[:3] == [0, bench.labels["user"], USER_CODE]


def test_port_access_in_ring_3_is_refused_without_iopl() -> None:
    source = f"{TO_RING_3} user: outb %al, $0x99; {HANDLERS} {USER_END}"
    with lab(source, gates={13: "with_code"}) as bench:
        bench.run()
        assert bench.reports[:3] == [0, bench.labels["user"], USER_CODE]
        assert not any(entry[1] == 0x99 for entry in bench.platform.log)


def test_an_interrupt_stack_is_used_without_a_change_of_ring() -> None:
    with lab("ud2" + HANDLERS) as bench:
        bench.gate(6, "without_code", ist=1)
        bench.run()
        *_, rsp, _ss, handler_rsp, handler_ss = bench.reports
        assert rsp == KERNEL_STACK
        assert handler_rsp == IST1 - 8 * FRAME_WORDS
        assert handler_ss == DATA


@pytest.mark.parametrize(("kind", "interrupt_flag"), [(0x0E, 0), (0x0F, 0x200)])
def test_an_interrupt_gate_clears_if_and_a_trap_gate_does_not(kind: int, interrupt_flag: int) -> None:
    source = "sti; pushfq; orq $0x4000, (%rsp); popfq; int $0x40; handler: pushfq; popq %rax; outl %eax, $0x80; hlt"
    with lab(source) as bench:
        bench.gate(0x40, "handler", kind=kind)
        bench.run()
        assert bench.reports[0] & 0x200 == interrupt_flag
        assert bench.reports[0] & 0x4000 == 0, "NT is cleared"


def test_the_arithmetic_flags_and_df_survive_an_exception() -> None:
    source = """
        std; movb $0x7f, %al; addb $1, %al      /* OF SF AF, no CF */
        int $0x40
        pushfq; popq %rax; outl %eax, $0x80; hlt
    handler: movq 16(%rsp), %rax; outl %eax, $0x80; xorl %eax, %eax; cld; iretq
    """
    with lab(source, gates={0x40: "handler"}) as bench:
        bench.run()
        expected = 0x400 | 0x800 | 0x80 | 0x10
        assert [value & 0xCD5 for value in bench.reports] == [expected, expected]


def test_iretq_goes_back_to_ring_3_and_the_program_goes_on() -> None:
    source = f"{TO_RING_3} user: movl $1, %ebx; int $0x40; addl $1, %ebx; int $0x41; {USER_END}"
    handlers = "first: iretq; second: movl %ebx, %eax; outl %eax, $0x80; hlt;"
    with lab(handlers.join(("jmp start;", "start:" + source))) as bench:
        bench.gate(0x40, "first", dpl=3)
        bench.gate(0x41, "second", dpl=3)
        bench.run()
        assert bench.reports == [2]


def test_single_step_traps_after_each_instruction() -> None:
    source = """
        pushfq; orq $0x100, (%rsp); popfq
    first: nop
    second: nop
    third: pushfq
        andq $~0x100, (%rsp)
        popfq
        nop
        hlt
    handler: movq (%rsp), %rax; outl %eax, $0x80; pushfq; popq %rax; andl $0x100, %eax; outl %eax, $0x80; iretq
    """
    with lab(source, gates={1: "handler"}) as bench:
        bench.run()
        where, flags = bench.reports[0::2], bench.reports[1::2]
        labels = bench.labels
        assert where[:2] == [labels["second"], labels["third"]]
        assert len(where) == 5, "two NOP, PUSHF, AND and the POPF that ends it"
        assert set(flags) == {0}, "TF is off in the handler"


def test_a_page_fault_after_a_page_fault_is_again_a_page_fault() -> None:
    source = """
        movl 0x40001000, %eax; movl 0x40002000, %eax; hlt
    handler: movq %cr2, %rax; outl %eax, $0x80; addq $8, %rsp; addq $7, (%rsp); iretq
    """
    with lab(source, gates={14: "handler"}) as bench:
        bench.map_page(0x40000000, 0x30000, 7)
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports == [0x40001000, 0x40002000]


def test_syscall_and_sysret() -> None:
    source = f"""
        movl $0xc0000081, %ecx; xorl %eax, %eax; movl $({CODE} | ({DATA} | 3) << 16), %edx; wrmsr
        movl $0xc0000082, %ecx; movl $kernel, %eax; xorl %edx, %edx; wrmsr
        movl $0xc0000084, %ecx; movl $0x600, %eax; wrmsr
        {TO_RING_3}
    user: movl $0x7fffffff, %eax; std; addl $1, %eax; syscall
    after: movl %cs, %ebx; cld; syscall
    kernel:
        outl %eax, $0x80
        movl %ecx, %eax; outl %eax, $0x80
        movl %r11d, %eax; outl %eax, $0x80
        movl %cs, %eax; outl %eax, $0x80
        movl %ss, %eax; outl %eax, $0x80
        pushfq; popq %rax; outl %eax, $0x80
        movl %ebx, %eax; outl %eax, $0x80
        sysretq
    {USER_END}
    """
    with lab(source) as bench:
        bench.run(40)
        first, second = bench.reports[:7], bench.reports[7:14]
        assert first[0] == 0x80000000
        assert first[1] == bench.labels["after"]
        assert first[2] & 0xCD5 == 0x400 | 0x800 | 0x80 | 0x10 | 0x04, "R11 holds the flags of the program"
        assert first[3:5] == [CODE, DATA]
        assert first[5] & 0x600 == 0, "the mask of FMASK"
        assert second[6] == USER_CODE


def test_syscall_without_efer_sce_is_an_invalid_opcode() -> None:
    source = f"""
        movl $0xc0000080, %ecx; rdmsr; andl $~1, %eax; wrmsr
        {TO_RING_3}
    user: syscall
    {HANDLERS}{USER_END}
    """
    with lab(source, gates={6: "without_code"}) as bench:
        bench.run()
        assert bench.reports[:2] == [bench.labels["user"], USER_CODE]


def test_an_exception_in_compatibility_mode_enters_a_64_bit_handler() -> None:
    source = f"""
        pushq ${USER_DATA}; pushq $user_stack_top; pushq $2; pushq $0x43; pushq $user; iretq
        .code32
    user: xorl %ecx, %ecx
    fault: divl %ecx
        .code64
    {HANDLERS}{USER_END}
    """
    with lab(source, gates={0: "without_code"}) as bench:
        bench.run()
        rip, cs, _, rsp, ss, handler_rsp, _ = bench.reports
        assert (rip, cs) == (bench.labels["fault"], 0x43)
        assert (rsp, ss) == (bench.labels["user_stack_top"], USER_DATA)
        assert handler_rsp == RSP0 - 8 * FRAME_WORDS


def test_syscall_from_compatibility_mode_goes_to_cstar() -> None:
    source = f"""
        movl $0xc0000081, %ecx; xorl %eax, %eax; movl $({CODE} | ({DATA} | 3) << 16), %edx; wrmsr
        movl $0xc0000083, %ecx; movl $kernel, %eax; xorl %edx, %edx; wrmsr
        pushq ${USER_DATA}; pushq $user_stack_top; pushq $2; pushq $0x43; pushq $user; iretq
        .code32
    user: syscall
    after: nop
        .code64
    kernel: movl %ecx, %eax; outl %eax, $0x80; movl %cs, %eax; outl %eax, $0x80; hlt
    {USER_END}
    """
    with lab(source) as bench:
        bench.run()
        assert bench.reports == [bench.labels["after"], CODE]


def test_sysenter_and_sysexit() -> None:
    source = f"""
        movl $0x174, %ecx; movl ${CODE}, %eax; xorl %edx, %edx; wrmsr
        movl $0x175, %ecx; movl ${KERNEL_STACK}, %eax; wrmsr
        movl $0x176, %ecx; movl $kernel, %eax; wrmsr
        {TO_RING_3}
    user: sysenter
    kernel: movl %cs, %eax; outl %eax, $0x80; movl %esp, %eax; outl %eax, $0x80; hlt
    {USER_END}
    """
    with lab(source) as bench:
        bench.run()
        assert bench.reports == [CODE, KERNEL_STACK]
