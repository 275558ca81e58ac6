"""External interrupts: when they are taken, what they find, and what HLT does with them."""

from __future__ import annotations

import pytest

from tests.cpu.lab import lab
from vmm.cpu import ExitReason

VECTOR = 0x50
HANDLER = "handler: pushq %rax; movq 8(%rsp), %rax; outl %eax, $0x80; popq %rax; iretq"
NATIVE = pytest.mark.parametrize("native", [True, False])


@NATIVE
def test_an_interrupt_waits_for_if(native: bool) -> None:
    source = f"""
        outb %al, $0x99
        movl $100, %ecx
    1:  decl %ecx; jnz 1b
        sti
        nop
    after:
        cli; hlt
        {HANDLER}
    """
    with lab(source, gates={VECTOR: "handler"}, native=native) as bench:
        bench.platform.on_write[0x99] = lambda _: bench.platform.raise_irq(VECTOR)
        bench.run()
        assert bench.reports == [bench.labels["after"]], "after the instruction that follows STI"


@NATIVE
def test_the_shadow_of_mov_ss_covers_one_instruction(native: bool) -> None:
    source = f"""
        sti; nop
        outb %al, $0x99; movl %ss, %eax; movl %eax, %ss
        nop
    after: nop; jmp next
    next: cli; hlt
        {HANDLER}
    """
    with lab(source, gates={VECTOR: "handler"}, native=native) as bench:
        bench.platform.on_write[0x99] = lambda _: bench.platform.raise_irq(VECTOR)
        bench.run()
        assert bench.reports == [bench.labels["after"]]


def test_a_short_window_is_not_missed() -> None:
    source = f"outb %al, $0x99; 1: cli; nop; jmp 2f; 2: sti; nop; cli; incl %ebx; jmp 1b; {HANDLER}"
    with lab(source, gates={VECTOR: "handler"}) as bench:
        bench.platform.on_write[0x99] = lambda _: bench.platform.raise_irq(VECTOR)
        bench.run(30)
        assert len(bench.reports) == 1
        assert bench.cpu.registers()["rbx"] > 1


def test_sti_hlt_wakes_at_once_when_an_interrupt_waits() -> None:
    source = f"outb %al, $0x99; sti; hlt; after: nop; cli; hlt; {HANDLER}"
    with lab(source, gates={VECTOR: "handler"}) as bench:
        bench.platform.on_write[0x99] = lambda _: bench.platform.raise_irq(VECTOR)
        exit_ = bench.run()
        assert exit_.reason is ExitReason.HALTED and not exit_.interrupts_enabled
        assert bench.reports == [bench.labels["after"]]


def test_an_interrupt_from_outside_wakes_hlt() -> None:
    with lab(f"sti; hlt; after: cli; hlt; {HANDLER}", gates={VECTOR: "handler"}) as bench:
        assert bench.run().interrupts_enabled
        bench.platform.raise_irq(VECTOR)
        assert not bench.run().interrupts_enabled
        assert bench.reports == [bench.labels["after"]]


def test_an_interrupt_cannot_wake_hlt_with_if_clear() -> None:
    with lab(f"cli; hlt; {HANDLER}", gates={VECTOR: "handler"}) as bench:
        bench.run()
        bench.platform.raise_irq(VECTOR)
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports == [] and bench.platform.vectors == [VECTOR]


def test_an_interrupt_taken_back_is_not_delivered() -> None:
    with lab(f"outb %al, $0x99; sti; nop; nop; jmp 1f; 1: cli; hlt; {HANDLER}", gates={VECTOR: "handler"}) as bench:

        def raise_and_take_back(_: int) -> None:
            bench.platform.raise_irq(VECTOR)
            bench.cpu.set_irq(False)

        bench.platform.on_write[0x99] = raise_and_take_back
        bench.run()
        assert bench.reports == []


def test_two_waiting_interrupts_come_one_after_the_other() -> None:
    source = "outb %al, $0x99; sti; nop; cli; hlt; first: movl $1, %eax; jmp both; second: movl $2, %eax; jmp both;"
    with lab(source + "both: outl %eax, $0x80; iretq", gates={0x50: "first", 0x51: "second"}) as bench:

        def raise_both(_: int) -> None:
            bench.platform.raise_irq(0x50)
            bench.platform.raise_irq(0x51)

        bench.platform.on_write[0x99] = raise_both
        bench.run()
        assert bench.reports == [1, 2]


def test_an_interrupt_interrupts_a_string_instruction_and_it_goes_on() -> None:
    source = f"""
        sti
        leaq 0x30000, %rdi; movl $1000, %ecx; movb $7, %al
    string: rep stosb
        cli; hlt
        {HANDLER}
    """
    with lab(source, gates={VECTOR: "handler"}) as bench:
        while not bench.memory.read_int(0x30000, 1):
            bench.run(1)
        bench.run(50)
        bench.platform.raise_irq(VECTOR)
        bench.run()
        assert bench.reports == [bench.labels["string"]]
        assert bench.memory.read(0x30000, 1001) == b"\7" * 1000 + b"\0"


def test_an_interrupt_through_an_absent_gate_is_not_present_with_the_external_bit() -> None:
    source = "sti; outb %al, $0x99; jmp 1f; 1: nop; cli; hlt; handler: popq %rax; outl %eax, $0x80; cli; hlt"
    with lab(source, gates={11: "handler"}) as bench:
        bench.gate(VECTOR, 0x1000)
        bench.memory.write_int(0x5000 + 16 * VECTOR + 4, 2, 0x0E00)  # present bit off
        bench.platform.on_write[0x99] = lambda _: bench.platform.raise_irq(VECTOR)
        bench.run()
        assert bench.reports == [VECTOR * 8 | 2 | 1]
