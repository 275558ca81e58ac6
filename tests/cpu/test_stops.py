"""Stopping changes nothing: any interval, with and without machine code, gives the same counts and the same end."""

from __future__ import annotations

import pytest

from tests.cpu.lab import ORIGIN, REPORT_PORT, Lab, lab
from vmm.cpu import ExitReason

TIMER_VECTOR = 0x40
TIMER_BLOCKS = 37

WORKOUT = f"""
    sti
    movl $40, %ebp
again:
    /* a string instruction of many steps, each a block of its own */
    leaq buffer, %rsi
    leaq buffer + 8, %rdi
    movl $25, %ecx
    rep movsb
    /* an exception, handled and resumed */
    xorl %edx, %edx
    movl $7, %eax
    xorl %ebx, %ebx
    divl %ebx
    /* a store into the block that runs: the immediate of a later instruction */
    movl patched + 1, %eax
    incl %eax
    movl %eax, patched + 1
    nop
patched:
    movl $0, %eax
    addl %eax, sum
    /* and one that changes an instruction before itself */
    movb $0x90, earlier
earlier:
    nop
    movb $0x90, earlier
    /* time, and a window without interrupts */
    cli
    rdtsc
    addl %eax, sum
    call leaf
    sti
    call leaf
    pushfq
    popfq
    decl %ebp
    jnz again
    movl sum, %eax
    outl %eax, ${REPORT_PORT}
    movl ticks, %eax
    outl %eax, ${REPORT_PORT}
    cli
    hlt
leaf:
    incl sum
    ret
divided:
    incl sum
    addq $2, (%rsp)
    iretq
timer:
    pushq %rax
    incl ticks
    rdtsc
    addl %eax, sum
    popq %rax
    iretq
    .balign 4096
sum: .long 0
ticks: .long 0
buffer: .skip 64, 0x5a
"""
GATES = {0: "divided", TIMER_VECTOR: "timer"}


def run_with_timer(bench: Lab, interval: int) -> tuple[object, ...]:
    """Run to the end, stopping every `interval` blocks; an interrupt is raised whenever its time has come."""
    next_tick = TIMER_BLOCKS
    for _ in range(1_000_000):
        if bench.cpu.blocks >= next_tick:
            bench.platform.raise_irq(TIMER_VECTOR)
            next_tick += TIMER_BLOCKS
        exit_ = bench.run(min(interval, next_tick - bench.cpu.blocks))
        if exit_.reason is ExitReason.HALTED:
            break
    else:
        raise AssertionError("the program did not end")
    return (
        bench.cpu.blocks, bench.reports, bench.cpu.registers(), bench.memory.read(0, 0x30000), bench.platform.vectors,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[object, ...]:
    with lab(WORKOUT, gates=GATES) as bench:
        return run_with_timer(bench, 1_000_000)


def test_the_workout_does_what_it_is_for(uninterrupted: tuple[object, ...]) -> None:
    blocks, reports, *_ = uninterrupted
    assert isinstance(blocks, int) and isinstance(reports, list)
    assert reports[1] == pytest.approx(blocks / TIMER_BLOCKS, abs=3), "every tick arrived"
    assert blocks > 1000


@pytest.mark.parametrize("interval", [*range(1, 71), 83, 97, 101, 127, 128, 129, 255, 256, 257, 499, 500, 501, 997])
def test_any_stop_interval_gives_the_same_end(interval: int, uninterrupted: tuple[object, ...]) -> None:
    with lab(WORKOUT, gates=GATES) as bench:
        assert run_with_timer(bench, interval) == uninterrupted


@pytest.mark.parametrize("interval", [1, 2, 3, 7, 64, 1_000_000])
def test_the_callbacks_in_python_give_the_same_end(interval: int, uninterrupted: tuple[object, ...]) -> None:
    with lab(WORKOUT, gates=GATES, native=False) as bench:
        assert run_with_timer(bench, interval) == uninterrupted


def test_observing_between_stops_changes_nothing(uninterrupted: tuple[object, ...]) -> None:
    with lab(WORKOUT, gates=GATES) as bench:
        bench.platform.on_write[0x81] = lambda _: None
        next_tick = TIMER_BLOCKS
        reason = ExitReason.BUDGET
        while reason is not ExitReason.HALTED:
            if bench.cpu.blocks >= next_tick:
                bench.platform.raise_irq(TIMER_VECTOR)
                next_tick += TIMER_BLOCKS
            registers = bench.cpu.registers()
            bench.cpu.translate(registers["rip"])
            bench.cpu.drop_translations([(ORIGIN, 0x2000)])
            bench.cpu.set_registers(registers)
            reason = bench.run(min(5, next_tick - bench.cpu.blocks)).reason
        assert (bench.cpu.blocks, bench.reports) == uninterrupted[:2]


def test_a_budget_is_kept_exactly_in_plain_code() -> None:
    with lab("1: incl %eax; jmp 1b") as bench:
        for budget in (1, 2, 3, 10, 1000):
            before = bench.cpu.blocks
            assert bench.run(budget).reason is ExitReason.BUDGET
            assert bench.cpu.blocks == before + budget


def test_a_budget_of_nothing_executes_nothing() -> None:
    with lab("1: jmp 1b") as bench:
        before = bench.cpu.registers()
        assert bench.run(0).reason is ExitReason.BUDGET
        assert (bench.cpu.blocks, bench.cpu.registers()) == (0, before)


def test_each_block_of_a_counted_loop_is_counted_once() -> None:
    with lab("movl $1000, %ecx; 1: decl %ecx; jnz 1b; outl %eax, $0x99; cli; hlt") as bench:
        counts: list[int] = []
        bench.platform.on_write[0x99] = lambda _: counts.append(bench.cpu.blocks)
        bench.run()
        with_loop = counts.pop()
    with lab("movl $1, %ecx; 1: decl %ecx; jnz 1b; outl %eax, $0x99; cli; hlt") as bench:
        bench.platform.on_write[0x99] = lambda _: counts.append(bench.cpu.blocks)
        bench.run()
        assert with_loop - counts.pop() == 999


def test_a_string_instruction_stops_between_two_steps() -> None:
    with lab("leaq 0x30000, %rdi; movl $1000, %ecx; movb $1, %al; rep stosb; hlt") as bench:
        while not bench.memory.read_int(0x30000, 1):
            bench.run(1)
        left = bench.cpu.registers()["rcx"]
        bench.run(100)
        assert left - bench.cpu.registers()["rcx"] == 100
        bench.run()
        assert bench.memory.read(0x30000, 1001) == b"\1" * 1000 + b"\0"


def test_a_request_from_a_port_ends_the_run_before_the_next_block() -> None:
    with lab("movl $1, %ebx; outb %al, $0x99; movl $2, %ebx; jmp next; next: movl $3, %ebx; hlt") as bench:
        bench.platform.on_write[0x99] = lambda _: bench.cpu.request_exit()
        assert bench.run().reason is ExitReason.REQUESTED
        registers = bench.cpu.registers()
        assert registers["rbx"] == 2, "the block is carried to its end"
        assert registers["rip"] == bench.labels["next"]
        assert bench.run().reason is ExitReason.HALTED
        assert bench.cpu.registers()["rbx"] == 3


def test_an_exception_in_a_callback_is_raised_by_run_and_the_guest_stops() -> None:
    class Broken(Exception):
        pass

    def fail(_: int) -> None:
        raise Broken

    with lab("outb %al, $0x99; jmp next; next: outl %eax, $0x80; hlt") as bench:
        bench.platform.on_write[0x99] = fail
        with pytest.raises(Broken):
            bench.run()
        assert bench.reports == []
        assert bench.cpu.registers()["rip"] == bench.labels["next"]


def test_a_handler_that_cannot_be_fetched_does_not_hang_the_run() -> None:
    with lab("1: ud2") as bench:
        bench.gate(6, 0x40005000, ist=1)
        bench.gate(14, 0x40005000, ist=1)
        bench.map_page(0x40000000, 0x30000, 7)
        assert bench.run(1000).reason is ExitReason.BUDGET
        assert 1000 <= bench.cpu.blocks <= 1002


def test_a_halted_cpu_stays_halted() -> None:
    with lab("sti; hlt; outl %eax, $0x80; cli; hlt") as bench:
        for _ in range(3):
            exit_ = bench.run()
            assert exit_.reason is ExitReason.HALTED and exit_.interrupts_enabled
        assert bench.reports == []


def test_halting_with_interrupts_off_says_so() -> None:
    with lab("cli; hlt") as bench:
        exit_ = bench.run()
        assert exit_.reason is ExitReason.HALTED and not exit_.interrupts_enabled
