"""Faults during delivery (SDM volume 3, table 6-5): one after the other, a double fault, a triple fault."""

from __future__ import annotations

from itertools import product

import pytest

from tests.cpu.lab import IDT, TSS, lab
from vmm.cpu import ExitReason
from vmm.cpu.delivery import Event, Source, TripleFault
from vmm.cpu.frames import Fault

BENIGN = [1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19]
CONTRIBUTORY = [0, 10, 11, 12, 13]
PAGE_FAULT = 14


def exception(vector: int) -> Event:
    return Event(vector, Source.EXCEPTION, 0x1000)


@pytest.mark.parametrize(("first", "second"), list(product(BENIGN, [*CONTRIBUTORY, PAGE_FAULT])))
def test_a_fault_after_a_benign_exception_is_delivered_in_its_place(first: int, second: int) -> None:
    assert exception(first).after(Fault(second, 0x18)) == Event(second, Source.EXCEPTION, 0x1000, 0x18)


@pytest.mark.parametrize(("first", "second"), list(product(CONTRIBUTORY, CONTRIBUTORY)))
def test_two_contributory_exceptions_are_a_double_fault(first: int, second: int) -> None:
    assert exception(first).after(Fault(second, 0x18)) == Event(8, Source.EXCEPTION, 0x1000, 0)


@pytest.mark.parametrize("first", CONTRIBUTORY)
def test_a_page_fault_after_a_contributory_exception_is_delivered(first: int) -> None:
    assert exception(first).after(Fault(PAGE_FAULT, 2)).vector == PAGE_FAULT


@pytest.mark.parametrize("second", [*CONTRIBUTORY, PAGE_FAULT])
def test_a_fault_after_a_page_fault_is_a_double_fault(second: int) -> None:
    assert exception(PAGE_FAULT).after(Fault(second)).vector == 8


@pytest.mark.parametrize("second", [*CONTRIBUTORY, PAGE_FAULT])
def test_a_fault_after_a_double_fault_is_the_end(second: int) -> None:
    with pytest.raises(TripleFault):
        exception(8).after(Fault(second))


@pytest.mark.parametrize("source", [Source.SOFTWARE, Source.EXTERNAL])
def test_interrupts_are_benign_whatever_their_vector(source: Source) -> None:
    for vector in (8, 13, 14):
        assert Event(vector, source, 0x1000).after(Fault(13, 3)).vector == 13


DOUBLE = "handler: movq (%rsp), %rax; outl %eax, $0x80; movq 8(%rsp), %rax; outl %eax, $0x80; hlt"


def test_a_contributory_exception_without_a_gate_reaches_the_double_fault_handler() -> None:
    with lab("xorl %ecx, %ecx; fault: divl %ecx;" + DOUBLE, gates={8: "handler"}) as bench:
        bench.run()
        assert bench.reports == [0, bench.labels["fault"]]


def test_an_invalid_opcode_without_a_gate_is_a_not_present_fault() -> None:
    with lab("ud2;" + DOUBLE, gates={11: "handler", 13: "handler"}) as bench:
        bench.memory.write_int(IDT + 16 * 6 + 5, 1, 0x0E)
        bench.run()
        assert bench.reports[0] == 6 * 8 | 2 | 1


def test_a_page_fault_on_a_broken_stack_reaches_the_double_fault_handler_on_its_own_stack() -> None:
    with lab("movl $0x40002000, %esp; fault: pushq %rax;" + DOUBLE, gates={14: "handler"}) as bench:
        bench.map_page(0x40003000, 0x30000, 7)
        bench.gate(8, "handler", ist=1)
        bench.run()
        assert bench.reports == [0, bench.labels["fault"]]
        assert bench.cpu.registers()["cr2"] in range(0x40001000, 0x40002000)


def test_a_triple_fault_tells_vector_place_and_registers() -> None:
    with lab("movl $0x1234, %ebx; movl $0x1238, %eax; fault: movl %eax, %ds; hlt") as bench:
        exit_ = bench.run()
        assert exit_.reason is ExitReason.TRIPLE_FAULT
        assert exit_.vector == 13
        assert exit_.registers["rip"] == bench.labels["fault"]
        assert exit_.registers["rbx"] == 0x1234
        assert exit_.describe().startswith(
            f"triple fault after exception 13 at 0008:{bench.labels['fault']:#x}, rax=0x1238"
        )


def test_a_triple_fault_on_a_syscall_that_is_not_allowed() -> None:
    with lab("movl $0xc0000080, %ecx; rdmsr; andl $~1, %eax; wrmsr; fault: syscall; hlt") as bench:
        exit_ = bench.run()
        assert exit_.reason is ExitReason.TRIPLE_FAULT
        assert (exit_.vector, exit_.registers["rip"]) == (6, bench.labels["fault"])


def test_an_interrupt_stack_beyond_the_tss_is_an_invalid_tss_fault() -> None:
    with lab("ud2;" + DOUBLE, gates={10: "handler"}) as bench:
        bench.gate(6, "handler", ist=7)
        bench.memory.write_int(0x4000 + 8 * 5, 2, 0x3F)  # the TSS is too short
        bench.run()
        assert bench.reports[0] == 0x28 | 1


def test_a_stack_pointer_that_is_not_canonical_is_a_stack_fault() -> None:
    with lab("ud2;" + DOUBLE, gates={12: "handler"}) as bench:
        bench.gate(6, "handler", ist=1)
        bench.memory.write_int(TSS + 36, 8, 1 << 60)
        bench.run()
        assert bench.reports[0] == 1
