"""Breakpoints, watchpoints and single steps: where they stop, and that the guest and its time cannot tell."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import vmm
from tests.cpu.lab import DATA_16, KERNEL_STACK, Lab, lab
from vmm.cpu import Exit, ExitReason
from vmm.cpu.debug import Access, CpuDebugger, DebugStop, StopKind, Watchpoint
from vmm.cpu.unicorn_cpu import UnicornCpu
from vmm.machine import Machine

DATA_GVA = 0x30000
MODES = pytest.mark.parametrize("mode", [16, 32, 64])
CALLBACKS = pytest.mark.parametrize("native", [True, False], ids=["native", "python"])

LOOP = """
    .code{mode}
    movl $5, %ecx
again:
    movl %ecx, %eax
middle:
    addl $3, %eax
    outb %al, $0x80
    rdtsc
    outb %al, $0x80
    decl %ecx
    jnz again
    hlt
"""
Facts = tuple[int, list[int], dict[str, int]]


def debugger_of(bench: Lab) -> CpuDebugger:
    return bench.cpu.debugger


def finish(bench: Lab, budget: int = 100_000) -> Facts:
    """Let it run until it halts; what can be told apart then."""
    for _ in range(100_000):
        exit_ = bench.run(budget)
        if exit_.reason is ExitReason.HALTED:
            return bench.cpu.blocks, bench.reports, bench.cpu.registers()
    raise AssertionError("it never halts")


def undisturbed(source: str, mode: int = 64, **options: object) -> Facts:
    with lab(source, mode, **options) as bench:  # type: ignore[arg-type]
        return finish(bench)


def stops(bench: Lab, budget: int = 100_000, *, step: bool = False) -> Iterator[DebugStop]:
    """Every stop until it halts, going on after each."""
    for _ in range(100_000):
        (bench.cpu.debugger.step if step else bench.cpu.debugger.go_on)()
        exit_ = bench.run(budget)
        while exit_.reason is ExitReason.BUDGET:
            exit_ = bench.run(budget)
        if exit_.reason is ExitReason.HALTED:
            return
        assert exit_.reason is ExitReason.DEBUGGER and exit_.stop is not None
        yield exit_.stop
    raise AssertionError("it never halts")


def place(bench: Lab) -> int:
    registers = bench.cpu.registers()
    return registers["cs_base"] + registers["rip"]


def to(bench: Lab, label: str) -> None:
    """Run until the instruction at `label` is the next one."""
    bench.cpu.debugger.breakpoints = {bench.labels[label]}
    assert bench.run().stop == DebugStop(StopKind.BREAKPOINT, bench.labels[label])
    bench.cpu.debugger.breakpoints = set()


def walk(bench: Lab, count: int) -> list[str]:
    """The labels of the places after each of `count` steps; the address where there is none."""
    names = {address: name for name, address in bench.labels.items() if name != "program"}
    seen = []
    for _ in range(count):
        bench.cpu.debugger.step()
        assert bench.run().reason is ExitReason.DEBUGGER
        seen.append(names.get(place(bench), hex(place(bench))))
    return seen


# -- breakpoints ---------------------------------------------------------------------------------------------------


@CALLBACKS
@MODES
@pytest.mark.parametrize("label", ["again", "middle"])
@pytest.mark.parametrize("budget", [1, 100_000])
def test_a_breakpoint_stops_each_time_and_changes_nothing(mode: int, label: str, budget: int, native: bool) -> None:
    source = LOOP.format(mode=mode)
    expected = undisturbed(source, mode)
    with lab(source, mode, native=native) as bench:
        debugger_of(bench).breakpoints = {bench.labels[label]}
        seen = []
        for stop in stops(bench, budget):
            assert stop == DebugStop(StopKind.BREAKPOINT, bench.labels[label])
            seen.append((place(bench), bench.cpu.registers()["rcx"]))
        assert seen == [(bench.labels[label], left) for left in (5, 4, 3, 2, 1)]
        assert finish(bench) == expected


def test_a_breakpoint_that_is_taken_away_or_left_behind_changes_nothing() -> None:
    source = LOOP.format(mode=64)
    expected = undisturbed(source)
    with lab(source) as bench:
        debugger_of(bench).breakpoints = {bench.labels["middle"]}
        assert bench.run().reason is ExitReason.DEBUGGER
        debugger_of(bench).detach()
        assert finish(bench) == expected  # from the middle of a block, whose rest is not counted again


def test_rom_can_be_stopped_in() -> None:
    with lab(LOOP.format(mode=64)) as bench:
        debugger_of(bench).breakpoints = {0xFFFFF000, bench.labels["again"]}
        first = bench.run()
        assert first.stop == DebugStop(StopKind.BREAKPOINT, 0xFFFFF000)
        registers = bench.cpu.registers()
        assert (registers["cs_base"], registers["rip"]) == (0xFFFF0000, 0xF000)
        assert [stop.address for stop in stops(bench)] == 5 * [bench.labels["again"]]


def test_a_page_that_is_mapped_later_can_be_stopped_in() -> None:
    source = """
        movabsq $0x40000000, %rdi
        movq $mapped + 3, (0x20000)
        movq %cr3, %rax
        movq %rax, %cr3
        callq *%rdi
        hlt
        .balign 4096
    mapped:
        nop
        movl $7, %eax
        ret
    """
    with lab(source) as bench:
        bench.map_page(0x40000000, 0, 0)  # the tables, and nothing in them
        debugger_of(bench).breakpoints = {0x40000001}
        assert [stop.address for stop in stops(bench)] == [0x40000001]
        assert bench.cpu.registers()["rax"] == 7


def test_nothing_is_written_where_a_breakpoint_is() -> None:
    source = "here: movb here(%rip), %al\n outb %al, $0x80\n hlt"
    with lab(source) as bench:
        debugger_of(bench).breakpoints = {bench.labels["here"]}
        assert len(list(stops(bench))) == 1
        assert bench.reports == [bench.memory.read(bench.labels["here"], 1)[0]]
        assert bench.reports == undisturbed(source)[1]


def test_going_on_does_not_stop_where_it_begins_but_does_the_next_time() -> None:
    with lab(LOOP.format(mode=64)) as bench:
        to(bench, "again")
        debugger_of(bench).breakpoints = {bench.labels["again"]}
        assert len(list(stops(bench))) == 4


def test_a_place_that_the_debugger_sets_ends_the_block_it_was_in() -> None:
    with lab(LOOP.format(mode=64)) as bench:
        to(bench, "middle")
        debugger_of(bench).set_registers({"rip": bench.labels["again"], "rcx": 1})
        before = bench.cpu.blocks
        finish(bench)
        assert bench.reports[0] == 1 + 3 and len(bench.reports) == 2
        assert bench.cpu.blocks == before + 2  # the loop's, and the one of HLT


def test_going_on_passes_a_breakpoint_that_a_step_has_led_to() -> None:
    with lab(LOOP.format(mode=64)) as bench:
        to(bench, "middle")
        debugger_of(bench).breakpoints = {bench.labels["again"]}
        assert walk(bench, 6)[-1] == "again"  # the first instruction of a block
        assert len(list(stops(bench))) == 3


# -- watchpoints ---------------------------------------------------------------------------------------------------

WATCHED = """
    movl $DATA_GVA, %edi
    movl (%rdi), %eax
after_load:
    movl $1, (%rdi)
after_store:
    incl (%rdi)
after_both:
    movq $2, -4(%rdi)
after_wide:
    movb $3, 4(%rdi)
    jmp 1f
1:  movb $4, 3(%rdi)
after_last:
    hlt
""".replace("DATA_GVA", str(DATA_GVA))


@CALLBACKS
@pytest.mark.parametrize(
    ("access", "labels"),
    [
        (Access.WRITE, ["after_store", "after_both", "after_wide", "after_last"]),
        (Access.READ, ["after_load", "after_both"]),
        (Access.ANY, ["after_load", "after_store", "after_both", "after_wide", "after_last"]),
    ],
)
def test_a_watchpoint_stops_right_after_the_instruction(access: Access, labels: list[str], native: bool) -> None:
    expected = undisturbed(WATCHED)
    with lab(WATCHED, native=native) as bench:
        watchpoint = Watchpoint(DATA_GVA, 4, access)
        debugger_of(bench).watchpoints = {watchpoint}
        seen = []
        for stop in stops(bench):
            assert stop == DebugStop(StopKind.WATCHPOINT, DATA_GVA, watchpoint)
            seen.append(place(bench))
        assert seen == [bench.labels[label] for label in labels]
        assert finish(bench) == expected


def test_a_repeated_store_is_seen_where_it_happens() -> None:
    source = f"movl ${DATA_GVA}, %edi\n movl $4096, %ecx\n movb $1, %al\n rep stosb\n hlt"
    expected = undisturbed(source)
    with lab(source) as bench:
        debugger_of(bench).watchpoints = {Watchpoint(DATA_GVA + 1000, 1, Access.WRITE)}
        left = [bench.cpu.registers()["rcx"] for _ in stops(bench)]
        assert left == [4096 - 1001]
        assert finish(bench) == expected


def test_a_store_that_is_repeated_outside_of_unicorn_is_seen_too() -> None:
    """On a page without code, where several iterations are done at once."""
    source = "movl $0x40000000, %edi\n movl $4096, %ecx\n movb $1, %al\n rep stosb\n hlt"
    with lab(source) as bench:
        bench.map_page(0x40000000, 0x200000, 3 | 1 << 63)
        expected = finish(bench)
    with lab(source) as bench:
        bench.map_page(0x40000000, 0x200000, 3 | 1 << 63)
        to(bench, "program")
        debugger_of(bench).watchpoints = {Watchpoint(0x40000000 + 1000, 1, Access.WRITE)}
        assert [bench.cpu.registers()["rcx"] for _ in stops(bench)] == [4096 - 1001]
        assert finish(bench) == expected


@pytest.mark.parametrize(("looks_again", "seen"), [(False, []), (True, [5, 6])], ids=["in one run", "in two"])
def test_a_watchpoint_waits_for_its_page_and_then_watches_the_memory(looks_again: bool, seen: list[int]) -> None:
    """Where it leads is looked up at the beginning of each run; then stores by other addresses count too."""
    source = """
        movq $0x30003, (0x20000)
        movq %cr3, %rax
        movq %rax, %cr3
        outb %al, $0x81
        jmp 1f
    1:  movl $5, (0x30010)
        movabsq $0x40000010, %rdi
        movl $6, (%rdi)
        hlt
    """
    with lab(source) as bench:
        bench.map_page(0x40000000, 0, 0)
        bench.platform.on_write[0x81] = lambda _value: bench.cpu.request_exit() if looks_again else None
        debugger_of(bench).watchpoints = {Watchpoint(0x40000010, 4, Access.WRITE)}
        if looks_again:
            assert bench.run().reason is ExitReason.REQUESTED
        assert [bench.memory.read_int(0x30010, 4) for _ in stops(bench)] == seen


def test_a_step_tells_of_what_it_touched() -> None:
    with lab(WATCHED) as bench:
        to(bench, "after_load")
        debugger_of(bench).watchpoints = {Watchpoint(DATA_GVA, 4, Access.WRITE)}
        debugger_of(bench).step()
        stop = bench.run().stop
        assert stop is not None and stop.kind is StopKind.WATCHPOINT and place(bench) == bench.labels["after_store"]


# -- steps ---------------------------------------------------------------------------------------------------------


@CALLBACKS
@MODES
def test_steps_change_nothing_that_the_guest_can_see(mode: int, native: bool) -> None:
    """Not even the time-stamp counter, which the loop reports."""
    source = LOOP.format(mode=mode)
    expected = undisturbed(source, mode)
    with lab(source, mode, native=native) as bench:
        count = sum(1 for _ in stops(bench, step=True))
        assert count > 5 * 7
        assert finish(bench) == expected


def test_a_step_is_one_instruction_after_sti_and_mov_ss_too() -> None:
    source = f"""
    start: sti
    one: nop
    two: movl ${DATA_16}, %eax
    three: movl %eax, %ss
    four: movl ${KERNEL_STACK}, %esp
    five: pushfq
    six: popq %rax
    seven: cli
    eight: hlt
    """
    with lab(source) as bench:
        to(bench, "start")
        assert walk(bench, 8) == ["one", "two", "three", "four", "five", "six", "seven", "eight"]
        assert bench.cpu.registers()["rax"] & 0x100 == 0  # the guest sees no trap flag


HANDLED = """
start: movl $1, %eax
    {cause}
behind: hlt
handler: nop
in_handler: addq ${pop}, %rsp
    movq $behind, (%rsp)
    iretq
"""


@pytest.mark.parametrize(
    ("cause", "vector", "pop"),
    [("ud2", 6, 0), ("int $0x21", 0x21, 0), ("movl 0xffffff40000000, %eax", 13, 8), ("movl (0x40000000), %eax", 14, 8)],
)
def test_a_step_leads_into_the_handler_of_an_exception(cause: str, vector: int, pop: int) -> None:
    source = HANDLED.format(cause=cause.replace("movl 0xffffff40000000", "movabsl 0xffff400000000000"), pop=pop)
    expected = undisturbed(source, gates={vector: "handler"})
    with lab(source, gates={vector: "handler"}) as bench:
        to(bench, "start")
        walked = walk(bench, 3)
        assert walked[1:] == ["handler", "in_handler"]
        assert finish(bench) == expected


def test_a_step_of_a_repeated_instruction_is_one_iteration() -> None:
    source = f"""
        movl ${DATA_GVA}, %edi
        movl $3, %ecx
        xorl %eax, %eax
    repeated: rep stosl
    compared: movl $5, %ecx
        movl ${DATA_GVA}, %edi
    scan: repe scasl
        hlt
    """
    expected = undisturbed(source)
    with lab(source) as bench:
        to(bench, "repeated")
        assert walk(bench, 4) == ["repeated", "repeated", "repeated", "compared"]
        assert sum(1 for _ in stops(bench, step=True)) > 5
        assert finish(bench) == expected


def test_a_step_over_syscall_and_sysret_ends_at_their_ends() -> None:
    source = """
        movl $0xc0000081, %ecx
        xorl %eax, %eax
        movl $0x00130008, %edx
        wrmsr
        movl $0xc0000082, %ecx
        movl $kernel, %eax
        xorl %edx, %edx
        wrmsr
        movl $user, %ecx
        movl $2, %r11d
    enter: sysretq
    user: syscall
    behind: hlt
    kernel: nop
    second: hlt
    """
    expected = undisturbed(source)
    with lab(source) as bench:
        to(bench, "enter")
        assert walk(bench, 3) == ["user", "kernel", "second"]
        assert finish(bench) == expected


def test_the_guests_own_single_steps_go_on_under_a_debuggers() -> None:
    source = """
        pushfq
        orl $0x100, (%rsp)
        popfq
        nop
        nop
        pushfq
        andl $~0x100, (%rsp)
        popfq
        hlt
    handler:
        movq (%rsp), %rax
        outb %al, $0x80
        movq %dr6, %rax
        outw %ax, $0x80
        iretq
    """
    expected = undisturbed(source, gates={1: "handler"})
    assert len(expected[1]) == 2 * 5
    with lab(source, gates={1: "handler"}) as bench:
        assert sum(1 for _ in stops(bench, step=True)) > 20
        assert finish(bench) == expected


def test_a_program_that_is_entered_with_the_trap_flag_is_trapped_at_once() -> None:
    """SYSRET looks at the new flag, and so does a step over it."""
    source = """
        movl $0xc0000081, %ecx
        xorl %eax, %eax
        movl $0x00130008, %edx
        wrmsr
        movl $user, %ecx
        movl $0x102, %r11d
        sysretq
    user: nop
        nop
        ud2
    handler:
        incl %ebx
        movq (%rsp), %rax
        outb %al, $0x80
        iretq
    done: hlt
    """
    gates = {1: "handler", 6: "done"}
    expected = undisturbed(source, gates=gates)
    assert len(expected[1]) == 3
    with lab(source, gates=gates) as bench:
        assert sum(1 for _ in stops(bench, step=True)) > 20
        assert finish(bench) == expected


def test_steps_leave_no_trace_in_the_debug_registers() -> None:
    source = "nop\n movq %dr6, %rax\n outw %ax, $0x80\n hlt"
    with lab(source) as bench:
        assert sum(1 for _ in stops(bench, step=True)) > 3
        assert bench.reports == undisturbed(source)[1]


@MODES
def test_steps_and_breakpoints_at_the_same_places(mode: int) -> None:
    source = LOOP.format(mode=mode)
    expected = undisturbed(source, mode)
    with lab(source, mode) as bench:
        debugger_of(bench).breakpoints = {bench.labels["again"], bench.labels["middle"]}
        for stop in stops(bench, 1):
            assert place(bench) == stop.address
            debugger_of(bench).step()
            bench.run()
        assert finish(bench) == expected


def test_a_step_in_a_halted_processor_ends_in_the_handler_that_wakes_it() -> None:
    source = "sti\n hlt\nbehind: cli\n hlt\nhandler: nop\nin_handler: iretq"
    with lab(source, gates={0x30: "handler"}) as bench:
        assert bench.run().reason is ExitReason.HALTED
        debugger_of(bench).step()
        assert bench.run().reason is ExitReason.HALTED  # nothing comes yet
        bench.platform.raise_irq(0x30)
        assert bench.run().stop == DebugStop(StopKind.STEP)
        assert place(bench) == bench.labels["handler"]


INTERRUPTED = "sti\n nop\nstart: outb %al, $0x81\none: nop\n jmp two\ntwo: nop\nthree: cli\n hlt\nhandler: iretq"


def test_an_interrupt_waits_while_the_debugger_steps() -> None:
    with lab(INTERRUPTED, gates={0x30: "handler"}) as bench:
        bench.platform.on_write[0x81] = lambda _value: bench.platform.raise_irq(0x30)
        to(bench, "start")
        assert walk(bench, 2) == ["one", hex(bench.labels["one"] + 1)]
        assert walk(bench, 2) == ["two", "three"]
        assert bench.platform.vectors == [0x30]


def test_steps_can_take_interrupts_at_the_end_of_a_block() -> None:
    with lab(INTERRUPTED, gates={0x30: "handler"}) as bench:
        bench.platform.on_write[0x81] = lambda _value: bench.platform.raise_irq(0x30)
        to(bench, "start")
        debugger_of(bench).steps_take_interrupts = True
        assert walk(bench, 5) == ["one", hex(bench.labels["one"] + 1), "two", "handler", "two"]


def test_an_interrupt_that_waits_is_taken_where_it_would_have_been() -> None:
    def run(bench: Lab) -> Facts:
        bench.platform.on_write[0x81] = lambda _value: bench.platform.raise_irq(0x30)
        return finish(bench)

    with lab(INTERRUPTED, gates={0x30: "handler"}) as bench:
        expected = run(bench)
    with lab(INTERRUPTED, gates={0x30: "handler"}) as bench:
        debugger_of(bench).breakpoints = {bench.labels[name] for name in ("start", "one", "handler", "two", "three")}
        assert run(bench) == expected


@contextmanager
def torture() -> Iterator[Machine]:
    with vmm.boot("torture") as m:
        yield m


@pytest.mark.parametrize("seed", [1, 2])
def test_a_guest_of_exceptions_is_the_same_under_a_debugger_that_comes_and_goes(seed: int) -> None:
    """Pieces are stepped through and others run, with breakpoints and watchpoints set and taken away by chance."""
    with torture() as m:
        m.run()
        expected = {**m.report(), "memory": None}
    chance = random.Random(seed)
    with torture() as m:
        cpu = m.platform.cpu
        assert isinstance(cpu, UnicornCpu)
        debugger, really_run = cpu.debugger, cpu.run
        debugger.steps_take_interrupts = True
        symbols = [chance.randrange(0x10000, 0x12C00) for _ in range(2000)]
        left = 0

        def run(budget: int) -> Exit:
            nonlocal left
            debugger.go_on()
            if left:
                left -= 1
                debugger.step()
                return really_run(budget)
            exit_ = really_run(min(budget, chance.choice((1, 2, 10, 100, 3000))))
            if chance.random() < 0.5:
                left = chance.choice((1, 2, 10, 100))
            if chance.random() < 0.02:
                debugger.breakpoints = set(chance.sample(symbols, chance.choice((0, 30))))
                debugger.watchpoints = {Watchpoint(0x15000, 64, Access.ANY)} if chance.random() < 0.3 else set()
            return exit_

        cpu.run = run  # type: ignore[method-assign, assignment]
        m.pause = lambda: None  # type: ignore[method-assign]
        m.run()
        assert {**m.report(), "memory": None} == expected


# -- memory and registers ------------------------------------------------------------------------------------------


def test_memory_is_read_through_the_page_tables_and_rom_and_nothing_else() -> None:
    with lab(LOOP.format(mode=64)) as bench:
        to(bench, "again")
        bench.map_page(0x40000000, 0x30000, 1)
        bench.memory.write(0x30FFE, b"ab")
        debugger = debugger_of(bench)
        assert debugger.read_memory(0x40000FFE, 8) == b"ab"  # behind it nothing is mapped
        assert debugger.read_memory(0x7FFF_0000_0000, 1) == b""
        assert debugger.read_memory(0x8000_0000_0000, 1) == b""  # not canonical
        assert debugger.read_memory(0xFFFFFFF0, 2) == b"\xe9\x0d"
        assert debugger.read_memory(0x3FF00000, 4) == b""  # mapped, and a device's if anybody's
        assert [each for each in bench.platform.log if each[0] == "read"] == []


def test_memory_is_physical_where_paging_is_off() -> None:
    with lab(LOOP.format(mode=32), 32) as bench:
        to(bench, "again")
        bench.memory.write(0x345678, b"here")
        assert debugger_of(bench).read_memory(0x345678, 4) == b"here"


def test_reading_brings_no_page_back() -> None:
    with lab(LOOP.format(mode=64)) as bench:
        to(bench, "again")
        bench.memory.write(0x200000, b"full")
        bench.memory.discard_run(0x200, 1)
        before = bench.memory.backed_bytes()
        assert debugger_of(bench).read_memory(0x200000, 4096) == bytes(4096)
        assert bench.memory.backed_bytes() == before


def test_what_is_written_is_executed() -> None:
    with lab("here: movb $1, %al\n outb %al, $0x80\n decl %ecx\n jnz here\n hlt") as bench:
        to(bench, "here")
        debugger_of(bench).set_registers({"rcx": 3})
        debugger_of(bench).breakpoints = {bench.labels["here"]}
        assert bench.run().reason is ExitReason.DEBUGGER
        assert debugger_of(bench).write_memory(bench.labels["here"] + 1, b"\x09")
        debugger_of(bench).breakpoints = set()
        finish(bench)
        assert bench.reports == [1, 9, 9]


def test_rom_and_unmapped_memory_cannot_be_written_not_even_in_part() -> None:
    with lab(LOOP.format(mode=64)) as bench:
        to(bench, "again")
        bench.map_page(0x40000000, 0x30000, 1)
        debugger = debugger_of(bench)
        assert not debugger.write_memory(0xFFFFFFF0, b"\x90")
        assert not debugger.write_memory(0x40000FFE, b"abcd")
        assert bench.memory.read(0x30FFE, 2) == bytes(2)
        assert debugger.write_memory(0x40000FFE, b"ab")  # which is read-only for the guest
        assert bench.memory.read(0x30FFE, 2) == b"ab"


def test_all_registers_can_be_read_and_written() -> None:
    with lab("here: movaps %xmm3, (0x30000)\n fstpt (0x30010)\n hlt") as bench:
        to(bench, "here")
        values = {"xmm3": 1 << 127 | 5, "fpr7": 0x4000 << 64 | 1 << 63, "fpu_top": 7, "fpu_tags": 0x7F, "r9": 7}
        debugger_of(bench).set_registers(values)
        assert {name: debugger_of(bench).registers()[name] for name in values} == values
        finish(bench)
        assert bench.memory.read_int(0x30000, 8) == 5
        assert bench.memory.read(0x30010, 10) == (0x4000 << 64 | 1 << 63).to_bytes(10, "little")
        with pytest.raises(KeyError):
            debugger_of(bench).set_registers({"fpr8": 0})


def test_a_new_place_wakes_a_halted_processor() -> None:
    with lab("hlt\nbehind: movb $5, %al\n outb %al, $0x80\n hlt") as bench:
        assert bench.run().reason is ExitReason.HALTED
        debugger_of(bench).set_registers({"rip": bench.labels["behind"]})
        assert finish(bench)[1] == [5]
