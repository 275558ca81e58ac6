"""Code that changes: by the guest's own stores, by the host's writes, by discarded pages."""

from __future__ import annotations

import pytest

from devices.memory import PAGE_SHIFT, Run
from tests.cpu.lab import ORIGIN, Lab, lab
from vmm.cpu import ExitReason

MOV_EAX_2_RET = bytes.fromhex("b802000000c3")
CALL_TWICE = """
    movl $7, %ebx
    call *%rdi
    outl %eax, $0x80
    outb %al, $0x99
    jmp next
next:
    call *%rdi
    outl %eax, $0x80
    hlt
"""
FUNCTION = "movl $1, %eax; ret"
FUNCTION_GPA = 0x30000
NATIVE = pytest.mark.parametrize("native", [True, False])


def load_function(bench: Lab, gva: int) -> None:
    """A function at FUNCTION_GPA that returns 1, called through `gva`."""
    bench.memory.write(FUNCTION_GPA, bytes.fromhex("b801000000c3"))
    bench.run(4)  # past the ROM
    while bench.cpu.registers()["rip"] < ORIGIN or bench.cpu.registers()["rip"] > ORIGIN + 0x1000:
        bench.run(1)
    bench.cpu.set_registers({"rdi": gva})


def change_function(bench: Lab) -> None:
    bench.memory.take_writes()
    bench.memory.write(FUNCTION_GPA, MOV_EAX_2_RET)
    bench.cpu.drop_translations(bench.memory.take_writes())


@NATIVE
@pytest.mark.parametrize("gva", [FUNCTION_GPA, 0x40003000])
def test_a_write_between_two_runs_is_seen(gva: int, native: bool) -> None:
    with lab(CALL_TWICE, native=native) as bench:
        bench.map_page(0x40003000, FUNCTION_GPA, 3)
        load_function(bench, gva)
        bench.platform.on_write[0x99] = lambda _: bench.cpu.request_exit()
        assert bench.run().reason is ExitReason.REQUESTED
        change_function(bench)
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports == [1, 2]


@NATIVE
@pytest.mark.parametrize("gva", [FUNCTION_GPA, 0x40003000])
def test_a_write_from_a_callback_is_seen_in_the_next_block(gva: int, native: bool) -> None:
    with lab(CALL_TWICE, native=native) as bench:
        bench.map_page(0x40003000, FUNCTION_GPA, 3)
        load_function(bench, gva)
        bench.platform.on_write[0x99] = lambda _: change_function(bench)
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports == [1, 2]


def test_a_discarded_page_is_no_longer_executed() -> None:
    """It reads as zeroes, `add %al, (%rax)` again and again: the function does not come back."""
    with lab(CALL_TWICE) as bench:
        bench.map_page(0x40003000, FUNCTION_GPA, 3)
        load_function(bench, 0x40003000)

        def discard(_: int) -> None:
            bench.memory.discard([Run(FUNCTION_GPA >> PAGE_SHIFT, 1)])
            bench.cpu.drop_translations(bench.memory.take_writes())

        bench.platform.on_write[0x99] = discard
        bench.run(100)
        assert bench.reports == [1]
        assert bench.cpu.registers()["rip"] not in range(ORIGIN, ORIGIN + 0x1000)


def test_the_first_code_that_runs_can_be_dropped() -> None:
    """Unicorn announces no translation before the first block, and a restored CPU may begin in RAM."""
    with lab("movl $1, %eax; outb %al, $0x99; jmp program") as bench:
        start = bench.cpu.registers() | {"cs_base": 0, "cs": 0, "rip": 0x30000}
        bench.memory.write(0x30000, b"\xf4")
        bench.cpu.set_registers(start)
        bench.run()
        assert bench.cpu.holds_code(0x30000, 1)


def test_code_above_4_gib_is_dropped_too() -> None:
    with lab(CALL_TWICE) as bench:
        bench.map_page(0x40003000, 1 << 32, 3)
        load_function(bench, 0x40003000)
        bench.memory.write(1 << 32, bytes.fromhex("b801000000c3"))

        def change(_: int) -> None:
            bench.memory.take_writes()
            bench.memory.write(1 << 32, MOV_EAX_2_RET)
            bench.cpu.drop_translations(bench.memory.take_writes())

        bench.platform.on_write[0x99] = change
        bench.run()
        assert bench.reports == [1, 2]


def test_code_that_begins_in_the_page_before_is_dropped() -> None:
    """An instruction across two pages that are no neighbours in RAM; the host changes its second half."""
    with lab(CALL_TWICE) as bench:
        bench.map_page(0x40003000, 0x32000, 3)
        bench.map_page(0x40004000, FUNCTION_GPA, 3)
        load_function(bench, 0x40003FFE)
        bench.memory.write(0x32FFE, b"\xb8\x01")
        bench.memory.write(FUNCTION_GPA, b"\0\0\0\xc3")

        def change(_: int) -> None:
            bench.memory.take_writes()
            bench.memory.write(FUNCTION_GPA, b"\1")
            bench.cpu.drop_translations(bench.memory.take_writes())

        bench.platform.on_write[0x99] = change
        bench.run()
        assert bench.reports == [0x001, 0x101]


def test_a_write_beside_the_code_keeps_the_count() -> None:
    """Dropping translations is no event: the same program has the same count with and without it."""
    source = "movl $50, %ecx; 1: outb %al, $0x99; decl %ecx; jnz 1b; hlt"

    def count(writes: list[tuple[int, int]]) -> int:
        with lab(source) as bench:
            bench.platform.on_write[0x99] = lambda _: bench.cpu.drop_translations(writes)
            bench.run()
            return bench.cpu.blocks

    assert count([]) == count([(ORIGIN, 4)])


def test_the_guests_own_stores_into_code_are_seen_through_another_mapping() -> None:
    source = "movl $0x30000, %edi; call *%rdi; outl %eax, $0x80; movb $9, 0x40003001; call *%rdi; outl %eax, $0x80; hlt"
    with lab(source) as bench:
        bench.map_page(0x40003000, FUNCTION_GPA, 3 | 1 << 63)
        bench.memory.write(FUNCTION_GPA, bytes.fromhex("b801000000c3"))
        bench.run()
        assert bench.reports == [1, 9]


def test_pages_without_code_are_not_marked() -> None:
    with lab("movl $1, 0x50000; movl 0x50000, %eax; hlt") as bench:
        bench.run()
        assert not bench.cpu.holds_code(0x50000, 4096)
        assert bench.cpu.holds_code(ORIGIN, 1)
        assert bench.cpu.holds_code(ORIGIN - 100, 200), "a range that touches the page"
        bench.cpu.drop_translations([(ORIGIN, 1)])
        assert not bench.cpu.holds_code(ORIGIN, 1)


def test_a_frame_pushed_onto_code_that_ran_is_seen() -> None:
    """The return address 100F4h is pushed onto a function; its lowest byte, F4h, is executed as HLT."""
    source = """
        movl $0x30008, %ebx
        movb $0xc3, (%rbx)
        call *%rbx
        leaq 40(%rbx), %rsp
        jmp fault
        .org 0xf4
    fault:
        ud2
    handler:
        outl %eax, $0x80
        jmp *%rbx
    """
    with lab(source, gates={6: "handler"}) as bench:
        assert bench.run(1000).reason is ExitReason.HALTED
        assert bench.cpu.registers()["rip"] == 0x30009
        assert len(bench.reports) == 1
