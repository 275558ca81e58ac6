"""The processor's state as a value: programs cut at every block, each time going on in a new processor."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from devices.errors import ConfigError
from devices.memory_state import MemoryState
from tests.cpu.lab import Lab, lab
from vmm.cpu import ExitReason

VECTOR = 0x50
MOST_BLOCKS = 400
HANDLER = "handler: pushq %rax; movq 8(%rsp), %rax; outl %eax, $0x80; popq %rax; iretq"

SET_UP_FPU = """
    finit
    fldpi; fld1; fldl2e                        /* three registers of the stack in use */
    movl $0x0f7f, 8(%rsp); fldcw 8(%rsp)       /* all masked, extended, towards zero */
    movl $0xffbf, 8(%rsp); ldmxcsr 8(%rsp)     /* towards zero, flush to zero, flags set */
    movabsq $0x123456789abcdef0, %rax
    movq %rax, %xmm3; movq %rax, %xmm15; punpcklqdq %xmm15, %xmm15
    movq %rax, %mm1                            /* register 1 of the x87, all tags valid */
    jmp 1f
1:  jmp 2f
2:
"""
TELL_FPU = """
    jmp 1f
1:  leaq 0x100000, %rdi
    fxsave64 (%rdi)
    movq %xmm3, %rax; outl %eax, $0x80; shrq $32, %rax; outl %eax, $0x80
    movl 24(%rdi), %eax; outl %eax, $0x80      /* MXCSR */
    movl (%rdi), %eax; outl %eax, $0x80        /* control, status with the top */
    movzbl 4(%rdi), %eax; outl %eax, $0x80     /* tags */
    movq 32(%rdi), %rax; outl %eax, $0x80; shrq $32, %rax; outl %eax, $0x80
    movq 416(%rdi), %rax; outl %eax, $0x80
    hlt
"""
ROUNDING = """
    finit
    movl $0x0b7f, 8(%rsp); fldcw 8(%rsp)       /* upwards */
    movl $0x5f80, 8(%rsp); ldmxcsr 8(%rsp)     /* upwards */
    jmp 1f
1:  movl $1, %eax; cvtsi2ss %eax, %xmm0; movl $3, %eax; cvtsi2ss %eax, %xmm1
    divss %xmm1, %xmm0; movd %xmm0, %eax; outl %eax, $0x80
    fld1; movl $3, 8(%rsp); fidivl 8(%rsp); fstps 8(%rsp); movl 8(%rsp), %eax; outl %eax, $0x80
    hlt
"""
MSRS = "0xc0000081 0xc0000082 0xc0000083 0xc0000084 0xc0000100 0xc0000101 0xc0000102 0xc0000103 0x174 0x175 0x176 0x277"
MSRS += " 0x1a0 0x17a 0xc0010117 0x200 0x201 0x20f 0x250 0x258 0x26f 0x2ff 0x401 0x402 0x427"
SYSTEM_REGISTERS = (
    "".join(
        f"movl ${number}, %ecx; movl ${0x1000 + 8 * i}, %eax; movl ${i}, %edx; wrmsr\n"
        for i, number in enumerate(MSRS.split())
    )
    + "movl $0x1230, %eax; movq %rax, %dr0; movq %rax, %dr3; movl $7, %eax; movq %rax, %cr8; movq %rax, %cr2\n"
    + "movl $0x40620, %eax; movq %rax, %cr4; xorl %ecx, %ecx; xorl %edx, %edx; movl $3, %eax; xsetbv\n"
    + "jmp 1f\n1: jmp 2f\n2:\n"
    + "".join(
        f"movl ${number}, %ecx; rdmsr; outl %eax, $0x80; movl %edx, %eax; outl %eax, $0x80\n" for number in MSRS.split()
    )
    + "".join(f"movq %{name}, %rax; outl %eax, $0x80\n" for name in ("dr0", "dr3", "cr8", "cr2", "cr4", "cr3", "cr0"))
    + "xorl %ecx, %ecx; xgetbv; outl %eax, $0x80; hlt"
)
FLAGS = """
    movl $20, %ebx
1:  movl %ebx, %eax; addl $0x7ffffff0, %eax; jmp 2f
2:  pushfq; popq %rax; outl %eax, $0x80; std; jmp 3f
3:  pushfq; popq %rax; outl %eax, $0x80; cld
    decl %ebx; jnz 1b
    hlt
"""
STRINGS = """
    movl $0x100000, %edi; movl $0x30000, %esi; movl $37, %ecx; rep movsb
    std; movl $0x100010, %edi; movl $11, %ecx; movl $0x5a, %eax; rep stosb; cld
    movl 0x100000, %eax; outl %eax, $0x80; hlt
"""
OWN_CODE = """
    movl $12, %ebx
1:  movb %bl, place + 1(%rip); movb $0x90, 3f(%rip)
place: movl $0, %eax; outl %eax, $0x80
3:  nop; decl %ebx; jnz 1b
    hlt
"""
INTERRUPTS = f"""
    outb %al, $0x99
    movl $9, %ecx
1:  cli; nop; jmp 2f
2:  sti; nop; decl %ecx; jnz 1b
    sti; hlt
after: nop; cli; hlt
    {HANDLER}
"""
SHADOWS = f"""
    movl $9, %ecx
1:  outb %al, $0x99; sti; movl %ss, %eax; movl %eax, %ss; nop; cli; decl %ecx; jnz 1b
    hlt
    {HANDLER}
"""


def answer(bench: Lab) -> None:
    bench.platform.on_write[0x99] = lambda _: bench.platform.raise_irq(VECTOR)


def move(source: Lab, target: Lab) -> None:
    """All of one bench into another: RAM, processor, and what the platform has to say."""
    ram = MemoryState(target.memory)
    ram_state: Any = MemoryState(source.memory).save_state()
    ram.check_state(ram_state, "ram")
    ram.restore_state(ram_state)
    state = source.cpu.save_state()
    target.cpu.check_state(state, "cpu")
    target.cpu.restore_state(state)
    assert target.cpu.save_state() == state
    target.platform.log[:] = source.platform.log
    target.platform.vectors[:] = source.platform.vectors
    target.cpu.set_irq(bool(target.platform.vectors))


def cut_at_every_block(source: str, mode: int, native: bool) -> tuple[list[Any], Any]:
    """Run one block at a time, each in another processor than the one before; the log and the state at the end."""
    gates = {VECTOR: "handler"} if "handler:" in source else {}
    with lab(source, mode, gates=gates) as first, lab(source, mode, gates=gates, native=native) as second:
        answer(first)
        answer(second)
        here, there = first, second
        for _ in range(MOST_BLOCKS):
            exit_ = here.run(1)
            move(here, there)
            here, there = there, here
            if exit_.reason is ExitReason.HALTED and not (exit_.interrupts_enabled and here.platform.vectors):
                return here.platform.log, here.cpu.save_state()
            assert exit_.reason in (ExitReason.BUDGET, ExitReason.HALTED), exit_.describe()
    pytest.fail("the program does not end")


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize(
    "source",
    [SET_UP_FPU + TELL_FPU, ROUNDING, SYSTEM_REGISTERS, FLAGS, STRINGS, OWN_CODE, INTERRUPTS, SHADOWS],
    ids=["fpu", "rounding", "system registers", "flags", "strings", "own code", "interrupts", "shadows"],
)
def test_a_program_cut_at_every_block_is_the_program_that_was_not_cut(source: str, native: bool) -> None:
    gates = {VECTOR: "handler"} if "handler:" in source else {}
    with lab(source, gates=gates) as bench:
        answer(bench)
        assert bench.run().reason is ExitReason.HALTED
        expected, end = bench.platform.log, bench.cpu.save_state()
    assert len(expected) > 0
    assert cut_at_every_block(source, 64, native) == (expected, end)


@pytest.mark.parametrize("mode", [16, 32])
def test_modes_without_paging_go_on_too(mode: int) -> None:
    source = f".code{mode}\nmovw $7, %cx\n1: movw %cx, %ax\noutw %ax, $0x80\ndecw %cx\njnz 1b\nhlt"
    with lab(source, mode) as bench:
        bench.run()
        expected, end = bench.platform.log, bench.cpu.save_state()
    assert [value for *_, value in expected] == [7, 6, 5, 4, 3, 2, 1]
    assert cut_at_every_block(source, mode, True) == (expected, end)


def test_what_a_program_puts_into_the_fpu_has_its_name() -> None:
    with lab(SET_UP_FPU + "hlt") as bench:
        bench.run()
        state: Any = bench.cpu.save_state()
    registers = state["registers"]
    assert registers["xmm3"] == 0x123456789ABCDEF0
    assert registers["xmm15"] == 0x123456789ABCDEF0123456789ABCDEF0
    assert registers["fpr1"] & 2**64 - 1 == 0x123456789ABCDEF0
    assert (registers["fpu_control"], registers["mxcsr"]) == (0x0F7F, 0xFFBF)
    assert (registers["fpu_tags"], registers["fpu_top"]) == (0, 0), "MMX: all registers in use, the top is 0"


def test_every_register_goes_where_it_came_from() -> None:
    """Each register is given a value of its own, one at a time, and nothing else may change."""
    rng = random.Random(1)
    with lab("hlt") as bench:
        bench.run()
        before: Any = bench.cpu.save_state()
        for name in before["registers"]:
            if name.startswith(("xmm", "fpr", "dr", "msr_02", "r1")) or name in ("pat", "star", "rax", "cr2", "lstar"):
                state = {**before, "registers": {**before["registers"], name: rng.getrandbits(62)}}
                bench.cpu.check_state(state, "cpu")
                bench.cpu.restore_state(state)
                assert bench.cpu.save_state() == state, name
        bench.cpu.restore_state(before)
        assert bench.cpu.save_state() == before


def test_a_state_that_does_not_fit_is_refused() -> None:
    changes: list[tuple[Callable[[Any], Any], str]] = [
        (lambda state: state["registers"].pop("rip"), "cpu.registers has no field 'rip'."),
        (lambda state: state["registers"].update(ymm0=1), "cpu.registers has an unknown field 'ymm0'."),
        (lambda state: state["registers"].update(cs=1 << 32), "cpu.registers.cs must be a number from 0 to 4294967295"),
        (lambda state: state.update(blocks=-1), "cpu.blocks must be a number from 0 to"),
        (lambda state: state.update(halted=None), "cpu.halted must be true or false, not None."),
    ]
    with lab("hlt") as bench:
        for change, sentence in changes:
            state: Any = bench.cpu.save_state()
            change(state)
            with pytest.raises(ConfigError) as refused:
                bench.cpu.check_state(state, "cpu")
            assert sentence in str(refused.value)
