"""REP OUTSB by the page to a port that collects bytes: nothing differs from byte by byte, to guest or clock."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cpu.lab import Lab, lab
from tests.cpu.test_strings import A_PATTERN, DIRECTION, PAGE, PAGES, READ_ONLY, WINDOW, Case, bench, seen
from vmm.cpu import ExitReason

PORT = 0x402
TO_THE_PORT = b"\x66\xba\x02\x04"  # mov dx, 402h
REP_OUTSB = TO_THE_PORT + b"\xf3\x6e"

STEPPED = """
    movl $0x402, %edx
    movl $0x10000, %esi
    movl $150, %ecx
    xorl %ebx, %ebx
    pushq $0x102                    /* TF */
    popfq
    rep outsb
    pushq $2
    popfq
    hlt
step:
    incl %ebx
    iretq
"""


class Port:
    """What comes out: `data`, of it `at_once` bytes in `pieces` together with one before them."""

    def __init__(self) -> None:
        self.data = b""
        self.pieces: list[int] = []

    def write(self, value: int) -> None:
        self.data += bytes([value & 0xFF])

    def collect(self, data: bytes) -> None:
        self.data += data
        if data:
            self.pieces.append(len(data))


@contextmanager
def port_bench(case: Case, *, collects: bool = True, native: bool = True) -> Generator[tuple[Lab, Port], None, None]:
    """The case in a processor; unless the port `collects`, it gets every byte by itself."""
    with bench(case, native=native) as made:
        port = Port()
        made.platform.on_write[PORT] = port.write
        if collects:
            made.platform.collectors[PORT] = port.collect
        yield made, port


def finished(case: Case, *, collects: bool = True, native: bool = True) -> tuple[Any, ...]:
    with port_bench(case, collects=collects, native=native) as (made, port):
        assert made.run().reason is ExitReason.HALTED
        return port.data, seen(made)


def pieces(case: Case) -> list[int]:
    with port_bench(case) as (made, port):
        made.run()
        return port.pieces


@pytest.mark.parametrize("native", [True, False])
def test_a_page_goes_in_two_pieces_and_all_of_it_arrives(native: bool) -> None:
    case = Case(REP_OUTSB, rcx=PAGE)
    with port_bench(case, native=native) as (made, port):
        made.run()
        assert port.data == A_PATTERN[:PAGE]
        assert port.pieces == [PAGE - 2]  # the first byte is in the block before
        assert (made.cpu.registers()["rcx"], made.cpu.registers()["rsi"]) == (0, WINDOW + PAGE)


OTHERS = {
    "downwards": Case(REP_OUTSB, flags=2 | DIRECTION, rsi=WINDOW + PAGE + 99, rcx=150),
    "words": Case(TO_THE_PORT + b"\x66\xf3\x6f", rcx=150),
    "double words": Case(TO_THE_PORT + b"\xf3\x6f", rcx=150),
    "an OUT in a block of two bytes": Case(TO_THE_PORT + b"\xeb\x00\xee\xf4", rcx=150),
    "one byte": Case(TO_THE_PORT + b"\x6e", rcx=150),
    "from another segment": Case(TO_THE_PORT + b"\x64\xf3\x6e", rsi=0, rcx=150),
    "32-bit addresses": Case(TO_THE_PORT + b"\x67\xf3\x6e", rcx=150),
    "32-bit code": Case(REP_OUTSB, bits=32, rcx=150),
    "from outside RAM": Case(REP_OUTSB, pages=((0, READ_ONLY), (0x3FE00, READ_ONLY)), rsi=WINDOW + PAGE, rcx=150),
}
TAKEN = {
    "nothing": Case(REP_OUTSB, rcx=0),
    "a byte": Case(REP_OUTSB, rcx=1),
    "two bytes": Case(REP_OUTSB, rcx=2),
    "three bytes": Case(REP_OUTSB, rcx=3),
    "over pages that lie elsewhere": Case(
        REP_OUTSB, pages=((4, READ_ONLY), (1, READ_ONLY), (3, READ_ONLY)), rsi=WINDOW + 17, rcx=2 * PAGE + 100
    ),
    "into a page that is not there": Case(REP_OUTSB, pages=((2, READ_ONLY),), rsi=WINDOW + 4000, rcx=PAGE),
    "more than can be": Case(REP_OUTSB, pages=((2, READ_ONLY),), rcx=2**64 - 1),
}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", [*TAKEN, *OTHERS])
def test_it_is_the_same_as_byte_by_byte(name: str, native: bool) -> None:
    case = {**TAKEN, **OTHERS}[name]
    assert finished(case, native=native) == finished(case, collects=False, native=native)


@pytest.mark.parametrize("name", OTHERS)
def test_other_instructions_go_byte_by_byte(name: str) -> None:
    assert pieces(OTHERS[name]) == []


@settings(max_examples=30, deadline=None)
@given(st.integers(0, PAGE * (PAGES - 1)), st.integers(0, PAGE), st.integers(1, 3000))
def test_wherever_it_is_stopped_it_goes_on_in_the_same_way(start: int, count: int, budget: int) -> None:
    case = replace(Case(REP_OUTSB), rsi=WINDOW + start, rcx=count)
    whole = finished(case)
    with port_bench(case) as (made, port):
        while (exit_ := made.run(budget)).reason is not ExitReason.HALTED:
            assert exit_.reason is ExitReason.BUDGET
        assert (port.data, seen(made)) == whole


def test_it_stops_at_the_very_block_that_was_asked_for() -> None:
    case = Case(REP_OUTSB, rcx=PAGE)
    with port_bench(case) as (made, port), port_bench(case, collects=False) as (other, alone):
        for each in (made, other):
            assert each.run(1000).reason is ExitReason.BUDGET
        assert made.cpu.blocks == other.cpu.blocks
        assert port.data == alone.data and 900 < len(port.data) < 1000
        assert made.cpu.registers() == other.cpu.registers()


def test_a_debugger_sees_every_step() -> None:
    with lab(STEPPED, gates={1: "step"}) as made:
        port = Port()
        made.platform.on_write[PORT] = port.write
        made.platform.collectors[PORT] = port.collect
        assert made.run().reason is ExitReason.HALTED
        assert (len(port.data), port.pieces) == (150, [])
        assert made.cpu.registers()["rbx"] >= 150


def test_a_port_that_does_more_than_collect_sees_every_byte() -> None:
    with port_bench(Case(REP_OUTSB, rcx=PAGE), collects=False) as (made, port):
        made.run()
        assert (port.pieces, port.data) == ([], A_PATTERN[:PAGE])
