"""REP STOS and REP MOVS by the page: nothing differs from one element at a time, to the guest or to the clock."""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cpu.lab import CODE, CODE_16, CODE_32, DATA, DATA_16, GDT, ORIGIN, PAGE_TABLE, Lab, lab
from vmm.cpu import ExitReason
from vmm.cpu.tlb import find_tlb

ARGUMENTS = 0x30000
WINDOW, FRAMES = 0x40000000, 0x200000
PAGES = 6
PAGE = 0x1000
PRESENT, WRITABLE, NO_EXECUTE = 1, 2, 1 << 63
DATA_PAGE = PRESENT | WRITABLE | NO_EXECUTE
READ_ONLY, EXECUTABLE = PRESENT | NO_EXECUTE, PRESENT | WRITABLE
DIRECTION = 1 << 10
A_PATTERN = bytes(i * 7 + (i >> 8) & 0xFF for i in range(PAGES * PAGE))

# Loads registers, flags and segments from ARGUMENTS, goes on in the code segment asked for, and stops behind the
# instruction under test.  FS and, for 16-bit code, DS and ES begin at WINDOW.
PROGRAM = f"""
    movl ${ARGUMENTS}, %ebx
    movl ${DATA_16}, %eax
    movl %eax, %fs
    movl 48(%rbx), %eax
    movl %eax, %ds
    movl %eax, %es
    pushq 40(%rbx)
    pushq 56(%rbx)
    movq 0(%rbx), %rax
    movq 8(%rbx), %rcx
    movq 16(%rbx), %rsi
    movq 24(%rbx), %rdi
    pushq 32(%rbx)
    popfq
    lretq
    .balign 64
code:
    .fill 16, 1, 0x90
    hlt
fault:
    hlt
"""


@dataclass(frozen=True)
class Case:
    """One repeated instruction: its bytes, the registers it begins with, and what the pages of the window are."""

    code: bytes
    bits: int = 64
    rax: int = 0x8877665544332211
    rcx: int = 2048
    rsi: int = WINDOW
    rdi: int = WINDOW + 2 * PAGE
    flags: int = 2
    pages: Sequence[tuple[int, int]] = tuple((number, DATA_PAGE) for number in range(PAGES))
    """For each page its frame and its rights."""


@contextmanager
def bench(case: Case, *, at_once: bool = True, native: bool = True) -> Generator[Lab, None, None]:
    """The case in a processor, ready to run; without `at_once` Unicorn does every iteration."""
    with lab(PROGRAM, gates={14: "fault"}, native=native) as made:
        if not at_once:
            made.cpu._clock.tlb_distance = 0
        selector = {64: CODE, 32: CODE_32, 16: CODE_16}[case.bits]
        entry = made.labels["code"] - (ORIGIN if case.bits == 16 else 0)
        data = DATA_16 if case.bits == 16 else DATA
        arguments = (case.rax, case.rcx, case.rsi, case.rdi, case.flags, selector, data, entry)
        made.memory.write(ARGUMENTS, struct.pack("<8Q", *arguments))
        made.memory.write(GDT + DATA_16, struct.pack("<Q", 0x000093000000FFFF | (WINDOW >> 24) << 56))
        made.memory.write(made.labels["code"], case.code)
        made.memory.write(FRAMES, A_PATTERN)
        for number, (frame, rights) in enumerate(case.pages):
            made.map_page(WINDOW + number * PAGE, FRAMES + frame * PAGE, rights)
        yield made


def seen(made: Lab) -> tuple[Any, ...]:
    """Everything that the guest and the machine can see."""
    memory = made.memory
    return (
        made.cpu.blocks,
        made.cpu.registers(),
        memory.read(FRAMES, len(A_PATTERN)),
        memory.read(PAGE_TABLE, 8 * PAGES),
    )


def finished(case: Case, *, at_once: bool = True, native: bool = True) -> tuple[Any, ...]:
    with bench(case, at_once=at_once, native=native) as made:
        assert made.run().reason is ExitReason.HALTED
        return seen(made)


def done_at_once(case: Case) -> int:
    """How many iterations Unicorn was spared."""
    with bench(case) as made:
        made.run()
        return int(made.cpu._clock.iterations)


STORES = {1: b"\xf3\xaa", 2: b"\xf3\x66\xab", 4: b"\xf3\xab", 8: b"\xf3\x48\xab"}
MOVES = {1: b"\xf3\xa4", 2: b"\xf3\x66\xa5", 4: b"\xf3\xa5", 8: b"\xf3\x48\xa5"}

pytestmark = pytest.mark.skipif(not find_tlb(), reason="this host has no machine code for string instructions")


# -- that it is done at all --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [*STORES.values(), *MOVES.values(), b"\xf2\xaa", b"\x67\xf3\x48\xab"])
def test_pages_of_plain_memory_are_done_by_the_page(code: bytes) -> None:
    width = 1 if code[-1] in (0xA4, 0xAA) else 8 if 0x48 in code else 2 if 0x66 in code else 4
    case = Case(code, rcx=2 * PAGE // width)
    assert done_at_once(case) >= case.rcx - 6, "all but the first and last of each page"
    assert finished(case) == finished(case, at_once=False)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(
    "code", [b"\xf3\xaa", b"\xf3\xab", b"\xf3\x66\xab", b"\xf3\x67\xab", b"\xf3\xa5", b"\x26\xf3\xa4"]
)
def test_older_code_has_its_own_operand_and_address_sizes(bits: int, code: bytes) -> None:
    base = WINDOW if bits == 32 else 0
    flat = b"\x67" in code and bits == 32  # 16-bit addresses from flat 32-bit code: not in the window
    case = Case(code, bits, rcx=1000, rsi=base, rdi=base + 2 * PAGE + 8)
    assert (done_at_once(case) > 900) != flat
    assert finished(case) == finished(case, at_once=False)


def test_a_segment_that_a_prefix_names_counts_for_the_source() -> None:
    case = Case(b"\x64\xf3\x48\xa5", rcx=512, rsi=0)  # FS begins at the window
    assert done_at_once(case) > 500
    assert finished(case) == finished(case, at_once=False)
    assert finished(case)[2][2 * PAGE : 3 * PAGE] == A_PATTERN[:PAGE]


def test_memory_may_be_taken_from_where_it_was_just_put() -> None:
    case = Case(b"\xf3\xa4", rcx=PAGE, rsi=WINDOW + 5, rdi=WINDOW + 8)
    assert done_at_once(case) > 4000
    assert finished(case)[2][5:PAGE] == (A_PATTERN[5:8] * PAGE)[: PAGE - 5], "three bytes, over and over"


def test_the_direction_flag_goes_down() -> None:
    case = Case(b"\xf3\x48\xa5", rcx=1024, rsi=WINDOW + 2 * PAGE - 8, rdi=WINDOW + 4 * PAGE - 8, flags=2 | DIRECTION)
    assert done_at_once(case) > 1000
    outcome = finished(case)
    assert outcome == finished(case, at_once=False)
    assert outcome[2][2 * PAGE : 4 * PAGE] == A_PATTERN[: 2 * PAGE]
    assert outcome[1]["rdi"] == WINDOW + 2 * PAGE - 8


# -- what is left to Unicorn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rights", [READ_ONLY, EXECUTABLE, 0, PRESENT | WRITABLE | NO_EXECUTE | 1 << 45])
def test_a_page_that_is_not_plain_writable_memory_is_never_touched(rights: int) -> None:
    case = Case(b"\xf3\xaa", rcx=PAGE, pages=[(0, DATA_PAGE), (1, DATA_PAGE), (2, rights), (3, rights)])
    assert done_at_once(case) == 0
    assert finished(case) == finished(case, at_once=False)


def test_a_page_fault_comes_after_all_that_was_done_before_it() -> None:
    case = Case(b"\xf3\xaa", rcx=3 * PAGE, pages=[(0, DATA_PAGE), (1, DATA_PAGE), (2, DATA_PAGE), (3, READ_ONLY)])
    outcome = finished(case)
    assert outcome == finished(case, at_once=False)
    assert outcome[1]["cr2"] == WINDOW + 3 * PAGE
    assert outcome[1]["rcx"] == 2 * PAGE


def test_code_that_is_overwritten_through_another_address_is_seen() -> None:
    """The page of the instruction itself, mapped a second time as data: the store changes what comes behind it."""
    code_frame = (ORIGIN - FRAMES) // PAGE
    with bench(Case(b"\xf3\xaa")) as made:
        place = made.labels["code"] + 4 - ORIGIN
        hlt = 0xF4
    case = Case(b"\xf3\xaa\x90\x90\x0f\x0b", rax=hlt, rcx=2, rdi=WINDOW + place, pages=[(code_frame, DATA_PAGE)])
    assert finished(case) == finished(case, at_once=False)


def test_single_steps_are_one_iteration_each() -> None:
    case = Case(b"\xf3\xaa", rcx=100, flags=2 | 1 << 8)
    with bench(case) as made:
        made.gate(1, "fault")
        made.run()
        assert made.cpu._clock.iterations == 0


def test_without_paging_every_page_is_executable_and_left_alone() -> None:
    source = "xorw %di, %di\n movw $0x3000, %ax\n movw %ax, %es\n movw $1000, %cx\n rep stosb\n hlt"
    with lab(source, 16) as made:
        made.run()
        assert made.cpu._clock.iterations == 0
        assert made.memory.read(0x30000, 1001) == bytes(1000) + b"\0"


# -- equality on anything ----------------------------------------------------------------------------------------------

prefixes = st.lists(st.sampled_from([0x66, 0x67, 0x26, 0x2E, 0x36, 0x3E, 0x64]), max_size=2)
near_an_end = st.builds(
    lambda page, offset: page * PAGE + offset, st.integers(0, PAGES), st.integers(-70, 70) | st.integers(0, PAGE)
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    bits = draw(st.sampled_from([64, 64, 32, 16]))
    rex = draw(st.sampled_from([b"", b"\x48", b"\x41"])) if bits == 64 else b""
    opcode = draw(st.sampled_from([0xA4, 0xA5, 0xAA, 0xAB]))
    before = draw(st.permutations([draw(st.sampled_from([0xF2, 0xF3])), *draw(prefixes)]))
    base = 0 if bits == 16 else WINDOW
    kinds = st.sampled_from([DATA_PAGE] * 6 + [READ_ONLY, EXECUTABLE, 0, DATA_PAGE | 0x60])
    return Case(
        bytes(before) + rex + bytes([opcode]),
        bits,
        rax=draw(st.integers(0, 2**64 - 1)),
        rcx=draw(st.integers(0, 3000) | st.sampled_from([0x10000, 0x100000200])),
        rsi=base + draw(near_an_end) & 2**64 - 1,
        rdi=base + draw(near_an_end) & 2**64 - 1,
        flags=2 | draw(st.sampled_from([0, 0, DIRECTION])),
        pages=draw(st.lists(st.tuples(st.integers(0, PAGES - 1), kinds), min_size=PAGES, max_size=PAGES)),
    )


@settings(max_examples=150)
@given(cases(), st.lists(st.integers(1, 1500), max_size=4))
def test_nothing_differs_from_one_element_at_a_time(case: Case, budgets: list[int]) -> None:
    """Registers, memory, page tables and the block clock, also wherever a budget ends in the middle."""
    with bench(case) as fast, bench(case, at_once=False) as slow:
        for budget in [*budgets, 20_000]:
            assert fast.run(budget) == slow.run(budget)
            assert seen(fast) == seen(slow)


@pytest.mark.parametrize("code", [b"\xf3\x48\xab", b"\xf3\xa4"])
def test_the_callbacks_in_python_count_the_same(code: bytes) -> None:
    assert finished(Case(code, rcx=700)) == finished(Case(code, rcx=700), native=False)
