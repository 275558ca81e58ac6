"""x, xp and print: what QEMU 7.2 prints of the same bytes, memory that cannot be looked at, and the balloon's pages."""

from __future__ import annotations

import sys

import pytest

import vmm
from vmm.control.monitor import Monitor
from vmm.machine import Machine

BYTES = bytes([0xFF, 0x80, 0x7F, 0, 0x27, 0x5C, 0x0A, 0x0D, *range(0x41, 0x59)]) + b"\xfe" * 16
PLACE = 0x1000

AS_IN_QEMU = [
    ("/4xb", ["0xff 0x80 0x7f 0x00"]),
    ("/5xh", ["0x80ff 0x007f 0x5c27 0x0d0a 0x4241"]),
    ("/3xwh", ["0x80ff 0x007f 0x5c27"]),
    ("/3xL", ["0x0d0a5c27007f80ff 0x4847464544434241", "0x504f4e4d4c4b4a49"]),
    ("/4db", ["255 128 127   0"]),
    ("/4dh", ["33023   127 23591  3338"]),
    ("/4dw", ["   8356095  218782759 1145258561 1212630597"]),
    ("/2dg", ["  939664794842005759  5208208757389214273"]),
    ("/4ub", ["255 128 127   0"]),
    ("/8ob", ["0377 0200 0177   0 047 0134 012 015"]),
    ("/8oh", ["0100377   0177 056047  06412 041101 042103 043105 044107"]),
    ("/4ow", ["  037700377 01502456047 010420641101 011021643105"]),
    ("/2og", [" 064122702340037700377 0441072144250420641101"]),
    ("/8cb", [r"'\xff' '\x80' '\x7f' '\x00' '\'' '\\' '\n' '\r'"]),
    ("/4cw", [r"'\xff' '\x80' '\x7f' '\x00' '\'' '\\' '\n' '\r' 'A' 'B' 'C' 'D' 'E' 'F' 'G' 'H'"]),
    ("/9xb", ["0xff 0x80 0x7f 0x00 0x27 0x5c 0x0a 0x0d", "0x41"]),
    ("/0xb", []),
]


@pytest.fixture(autouse=True)
def known_bytes(machine: Machine) -> None:
    machine.memory.write(PLACE, BYTES)
    machine.memory.take_writes()


@pytest.mark.parametrize(("fmt", "rows"), AS_IN_QEMU, ids=[fmt for fmt, _ in AS_IN_QEMU])
@pytest.mark.parametrize("command", ["x", "xp"])
def test_memory_is_shown_as_qemu_shows_it(command: str, fmt: str, rows: list[str], monitor: Monitor) -> None:
    row_bytes = 8 if fmt.endswith("b") else 16
    places = [f"{PLACE + row_bytes * number:016x}: {row}\n" for number, row in enumerate(rows)]
    assert monitor.execute(f"{command} {fmt} {PLACE:#x}") == "".join(places)
    assert monitor.execute(f"{command}{fmt} {PLACE}") == "".join(places), "a format may follow at once"


def test_a_sign_is_shown_in_items_of_eight_bytes(monitor: Monitor) -> None:
    assert monitor.execute(f"x /dg {PLACE + 32}").split() == ["0000000000001020:", str(-0x0101010101010102)]
    assert monitor.execute(f"x /ug {PLACE + 32}").split() == ["0000000000001020:", str(0xFEFEFEFEFEFEFEFE)]


def test_the_last_format_and_size_count_on(monitor: Monitor) -> None:
    """QEMU begins with xw; a count is for one line only."""
    assert monitor.execute(f"x {PLACE}") == "0000000000001000: 0x007f80ff\n"
    monitor.execute(f"x /3ob {PLACE}")
    assert monitor.execute(f"xp {PLACE}") == "0000000000001000: 0377\n"
    assert monitor.execute(f"x /h {PLACE}") == "0000000000001000: 0100377\n"
    assert monitor.execute(f"x /2d {PLACE}") == "0000000000001000: 33023   127\n"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("xp /2xg 0x3fffff8", "0000000003fffff8: Cannot access memory\n"),
        ("xp /2cg 0x3fffff8", "0000000003fffff8: Cannot access memory\n"),
        ("xp 0xfee00000", "00000000fee00000: Cannot access memory\n"),  # a device: reading it could change it
        ("xp 0x100000000000", "0000100000000000: Cannot access memory\n"),
        ("x -8", "fffffffffffffff8: Cannot access memory\n"),
        ("xp /2xb -8", "fffffffffffffff8: Cannot access memory\n"),
        ("xp /xb 0xa0000", "00000000000a0000: Cannot access memory\n"),
        ("x /i 0xf0000000", "0xf0000000: unable to read memory\n"),
        ("gva2gpa 0x1000", "gpa: 0x1000\n"),
    ],
)  # fmt: skip
def test_what_is_no_memory_cannot_be_accessed(line: str, answer: str, monitor: Monitor) -> None:
    assert monitor.execute(line) == answer


def test_a_row_that_is_no_memory_ends_what_is_shown(monitor: Monitor) -> None:
    zeros = " ".join(["0x00"] * 8)
    shown = f"0000000003fffff8: {zeros}\n0000000004000000: Cannot access memory\n"
    assert monitor.execute("xp /99xb 0x3fffff8") == shown


def test_rom_and_its_copy_can_be_looked_at(machine: Machine, monitor: Monitor) -> None:
    rom = machine.board.rom
    shown = "".join(f" 0x{byte:02x}" for byte in rom[-16:-12])
    assert monitor.execute("x /4xb 0xfffffff0") == f"00000000fffffff0:{shown}\n"
    assert monitor.execute("xp /4xb 0xffff0") == f"00000000000ffff0:{shown}\n"


def test_virtual_memory_goes_through_the_page_tables(machine: Machine, monitor: Monitor) -> None:
    """In long mode; the guest maps its RAM one to one, so one page is mapped elsewhere."""
    machine.run("1s")
    assert monitor.execute("gva2gpa 0x900000000000") == "Unmapped\n"
    assert monitor.execute("x 0x900000000000") == "0000900000000000: Cannot access memory\n"
    cr3 = machine.registers()["cr3"] & ~0xFFF
    tables = [0x300000 + 0x1000 * number for number in range(3)]  # three more levels, for 2000_0000_0000h
    entry = 0x200000000000 >> 39
    machine.memory.write_int(cr3 + 8 * entry, 8, tables[0] | 3)
    for table, following in zip(tables, [*tables[1:], 0x200000], strict=True):
        machine.memory.write_int(table, 8, following | 3)
    machine.memory.write(0x200FFE, b"behind the page table")
    assert monitor.execute("gva2gpa 0x200000000ffe") == "gpa: 0x200ffe\n"
    assert monitor.execute("x /2cb 0x200000000ffe") == "0000200000000ffe: 'b' 'e'\n"
    assert monitor.execute("x /4xb 0x200000000ffe") == "0000200000000ffe: Cannot access memory\n", (
        "the next is not there"
    )


def test_looking_brings_no_page_of_the_balloon_back(machine: Machine, monitor: Monitor) -> None:
    """A page of a page table neither: an entry may point to one."""
    machine.run("1s")
    cr3 = machine.registers()["cr3"] & ~0xFFF
    machine.memory.write_int(cr3 + 8 * 64, 8, 0x300000 | 3)
    machine.memory.discard_run(0x200, 0x200)  # 2 MiB to 4 MiB
    before = machine.memory.backed_bytes()
    assert monitor.execute("xp /2xg 0x200000").endswith(" 0x0000000000000000 0x0000000000000000\n")
    assert monitor.execute("x /1024xg 0x210000").count("\n") == 512
    assert monitor.execute("x /2i 0x220000").count("addb") == 2
    assert monitor.execute("x /x 0x200000000000").endswith("Cannot access memory\n")
    assert machine.memory.backed_bytes() == before


@pytest.mark.parametrize("line", ["x /65537xb 0", "xp /99999999999999999999xg 0", "x /8193xg 0", "x /4097i 0"])
def test_one_line_does_not_hold_the_machine_up(line: str, monitor: Monitor) -> None:
    assert monitor.execute(line).startswith("At most ")


def test_instructions_are_those_of_the_processors_mode(machine: Machine, monitor: Monitor) -> None:
    code = bytes.fromhex("4889d8 0f05 ea")
    machine.memory.write(PLACE, code)
    assert monitor.execute(f"xp /i {PLACE:#x}") == f"{'0x00001000:  48':<38}{'decw':<8} %ax\n"
    machine.run("1s")
    machine.memory.write(PLACE, code)
    assert monitor.execute(f"x /2i {PLACE:#x}") == (
        f"{'0x00001000:  48 89 d8':<38}{'movq':<8} %rbx, %rax\n{'0x00001003:  0f 05':<38}{'syscall':<8} \n"
    )
    assert monitor.execute(f"x /i {PLACE + 5:#x}").split()[-2:] == [".byte", "0xea"], "there is no such instruction"


def test_without_capstone_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch, monitor: Monitor) -> None:
    monkeypatch.setitem(sys.modules, "capstone", None)
    assert "pip install 'balloon-vmm[disassembly]'" in monitor.execute("x /i 0")


def test_a_big_endian_processor_has_its_own_numbers() -> None:
    with vmm.boot("stats", memory="64M", arch="ppc", devices=["virtio-balloon-device,id=balloon0"]) as machine:
        machine.memory.write(PLACE, bytes.fromhex("7c0802a6 4e800020"))
        monitor = Monitor(machine)
        assert monitor.execute(f"xp /2xw {PLACE}") == "0000000000001000: 0x7c0802a6 0x4e800020\n"
        assert monitor.execute(f"x /xh {PLACE}") == "0000000000001000: 0x7c08\n"
        assert [line.split()[5:] for line in monitor.execute(f"x /2i {PLACE}").splitlines()] == [
            ["mflr", "r0"],
            ["blr"],
        ]


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("(1+2)*3", "0x9"), ("/d 1|2+4", "7"), ("/d 3+4*2", "11"), ("/d 7%4", "3"), ("~0", "0xffffffffffffffff"),
        ("/d -1", "-1"), ("/u -1", "18446744073709551615"), ("/o 8", "010"), ("/c 65", "'A'"), ("/d 'a'", "97"),
        ("010", "0x8"), ("0x10 - -4", "0x14"), ("/d -7/2", "-3"), ("/d -7%2", "-1"), ("5 ^ 1 & 4", "0x4"),
        ("$pc", "0xfffffff0"), ("$eip", "0xfff0"), ("$rip", "0xfff0"), ("$cs", "0xf000"), ("$cs.base", "0xffff0000"),
        ("$eflags", "0x2"), ("$eip+$cs.base*2", "0x1fffefff0"), ("0xffffffffffffffff + 1", "0"), ("/o 0", "0"),
        ("/i 5", "5"),
    ],
)  # fmt: skip
def test_expressions_are_qemus(expression: str, answer: str, monitor: Monitor) -> None:
    assert monitor.execute(f"print {expression}") == f"{answer}\n"
    assert monitor.execute(f"p{expression}" if expression[0] == "/" else f"p {expression}") == f"{answer}\n"


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("", "unexpected end of expression"),
        ("1+", "unexpected end of expression"),
        ("(1", "')' expected"),
        ("1/0", "division by zero"),
        ("5%0", "division by zero"),
        ("$", "unknown register"),
        ("$nothing", "unknown register"),
        ("foo", "invalid char 'f' in expression"),
        ('"0"', "invalid char '\"' in expression"),
        ("99999999999999999999", "number too large"),
        ("0x", "print|p: extraneous characters at the end of line"),
        ("1 2", "print|p: extraneous characters at the end of line"),
        ("08", "print|p: extraneous characters at the end of line"),
        ("/q 1", "invalid char in format: 'q'"),
        ("/-4xb 1", "invalid char in format: '-'"),
        ("/0x10xb 1", "invalid char in format: '1'"),
        ("'", "character constant expected"),
        ("'ab'", "missing terminating ' character"),
        ("(" * 4000, "expression too deep"),
        ("-" * 4000, "expression too deep"),
    ],
)
def test_what_is_no_expression_is_complained_of_in_qemus_words(
    expression: str, complaint: str, monitor: Monitor
) -> None:
    assert monitor.execute(f"p {expression}") == f'{complaint}\nTry "help p" for more information\n'
