"""What gdb asks and is answered, packet by packet, with a machine of this process."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from io import BytesIO
from xml.etree import ElementTree

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

import vmm
from devices.errors import ConfigError
from guests import GUESTS
from tests.vmm.control.gdb.client import (
    CR0,
    CS,
    EFLAGS,
    FISEG,
    FS_BASE,
    FSTAT,
    FTAG,
    GENERAL,
    MXCSR,
    RIP,
    ST0,
    XMM0,
    Bench,
    Wire,
    bench,
    frame,
    parse,
)
from vmm.control.gdb.server import GdbServer

REGISTERS_BYTES = 17 * 8 + 4 + 6 * 4 + 9 * 8 + 8 * 10 + 8 * 4 + 16 * 16 + 4


def symbol(name: str, guest: str = "hello") -> int:
    table = ELFFile(BytesIO(GUESTS[guest].symbols("x86_64"))).get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    found = table.get_symbol_by_name(name)
    assert found
    return int(found[0]["st_value"])


@pytest.fixture
def gdb() -> Iterator[Bench]:
    """At the reset vector."""
    with bench() as made:
        yield made


@pytest.fixture
def at_main(gdb: Bench) -> Bench:
    """At the first instruction of the guest's C code, in long mode."""
    assert gdb.ask(b"Z1,%x,1" % symbol("guest_main")) == b"OK"
    assert gdb.go() == b"T05thread:1;"
    assert gdb.ask(b"z1,%x,1" % symbol("guest_main")) == b"OK"
    return gdb


# -- the connection ------------------------------------------------------------------------------------------------


def test_the_words_at_the_beginning(gdb: Bench) -> None:
    supported = gdb.ask(b"qSupported:multiprocess+;swbreak+;hwbreak+;xmlRegisters=i386").split(b";")
    assert {b"qXfer:features:read+", b"vContSupported+", b"QStartNoAckMode+"} <= set(supported)
    size = next(word for word in supported if word.startswith(b"PacketSize="))
    assert int(size.partition(b"=")[2], 16) >= 2 * REGISTERS_BYTES
    assert gdb.ask(b"vMustReplyEmpty") == b""
    assert gdb.ask(b"?") == b"T05thread:1;"
    assert gdb.ask(b"qAttached") == b"1"
    assert gdb.ask(b"qC") == b"QC1"
    assert gdb.ask(b"Hg0") == b"OK"
    assert [gdb.ask(b"qfThreadInfo"), gdb.ask(b"qsThreadInfo")] == [b"m1", b"l"]
    assert [gdb.ask(b"T1"), gdb.ask(b"T2")] == [b"OK", b"E16"]
    assert gdb.ask(b"vCont?") == b"vCont;c;C;s;S"


def test_each_packet_is_acknowledged_until_that_is_turned_off(gdb: Bench) -> None:
    gdb.send(b"qC")
    assert gdb.wire.take() == b"+$QC1#c5"
    gdb.send(b"QStartNoAckMode")
    assert gdb.wire.take() == b"+$OK#9a"
    gdb.session.received(b"+")
    gdb.send(b"qC")
    assert gdb.wire.take() == b"$QC1#c5"


def test_a_damaged_packet_is_asked_for_again_and_an_answer_is_repeated(gdb: Bench) -> None:
    gdb.session.received(b"$qC#00")
    assert gdb.wire.take() == b"-"
    gdb.send(b"qC")
    gdb.wire.take()
    gdb.session.received(b"-")
    assert gdb.wire.take() == b"$QC1#c5"


@pytest.mark.parametrize(
    "data", [b"!", b"R00", b"qOffsets", b"vRun;a", b"qXfer:auxv:read::0,10", b"Z7,0,1", b"\xff", b""]
)
def test_an_unknown_packet_gets_an_empty_answer(gdb: Bench, data: bytes) -> None:
    assert gdb.ask(data) == b""


@pytest.mark.parametrize(
    "data",
    [
        *(b"m", b"m10", b"m,", b"m10,", b"mx,1", b"m-1,1", b"m1_0,1", b"m10000000000000000,1", b"m0,1,2", b"m \t0,1"),
        *("m\u0663,1".encode(), b"p", b"pzz", b"p42", b"P0", b"P42=00", b"P0=0", b"P0=00", b"G", b"G00", b"T", b"c+"),
        *(b"M0,2:00", b"M0,1", b"M0,1:0g", b"X0,2:a", b"Z0", b"Z0,1", b"Zx,0,1", b"Z2,0,0", b"Z2,0,1001", b"z1"),
        *(b"vCont;x", b"vCont;", b"qRcmd,0", b"qRcmd,xy", b"qXfer:features:read:target.xml:0"),
        *(b"Qqemu.sstep=0", b"Qqemu.sstep=8", b"Qqemu.sstep="),
    ],
)  # fmt: skip
def test_a_packet_that_makes_no_sense_gets_an_error_and_changes_nothing(gdb: Bench, data: bytes) -> None:
    before = gdb.ask(b"g")
    assert gdb.ask(data) == b"E16"
    assert gdb.ask(b"g") == before and gdb.machine.is_paused


def test_no_noise_disturbs_the_machine(gdb: Bench) -> None:
    chance = random.Random(6)
    with vmm.boot("hello") as undisturbed:
        undisturbed.run()
    for _ in range(3000):
        # none of those that change something, nor those that let it run or end
        first = chance.choice(b"?gpmHTqQvxyz!~\x00\x80")
        gdb.session.received(frame(bytes((first,)) + chance.randbytes(chance.randrange(12)).translate(None, b"#$}")))
    assert parse(gdb.wire.take())
    gdb.send(b"c")
    gdb.machine.run()
    assert gdb.machine.outcome == undisturbed.outcome
    assert gdb.machine.console == undisturbed.console and gdb.machine.blocks == undisturbed.blocks


# -- registers -----------------------------------------------------------------------------------------------------


def target_description(gdb: Bench, piece: int) -> bytes:
    """Fetched in pieces, as gdb does; an escaped byte may stand anywhere."""
    whole, more = b"", b"m"
    while more == b"m":
        answer = gdb.ask(b"qXfer:features:read:target.xml:%x,%x" % (len(whole), piece))
        more = answer[:1]
        whole += re.sub(rb"}(.)", lambda found: bytes([found[1][0] ^ 0x20]), answer[1:], flags=re.DOTALL)
    assert more == b"l"
    return whole


def test_the_target_description_is_x86_64_with_qemus_registers(gdb: Bench) -> None:
    description = target_description(gdb, 0x100)
    assert description == target_description(gdb, 0xFFB)
    root = ElementTree.fromstring(description.decode())
    assert root.findtext("architecture") == "i386:x86-64"
    registers = {int(each.attrib["regnum"]): each.attrib for each in root.iter("reg")}
    assert sorted(registers) == list(range(MXCSR + 1))
    names = [registers[number]["name"] for number in sorted(registers)]
    assert names[: RIP + 2] == [*GENERAL, "rip", "eflags"]
    assert names[CS:ST0] == [
        *("cs", "ss", "ds", "es", "fs", "gs", "fs_base", "gs_base", "k_gs_base"),
        *("cr0", "cr2", "cr3", "cr4", "cr8", "efer"),
    ]
    assert names[XMM0:] == [*(f"xmm{n}" for n in range(16)), "mxcsr"]
    assert sum(int(each["bitsize"]) for each in registers.values()) // 8 == REGISTERS_BYTES
    assert gdb.ask(b"qXfer:features:read:other.xml:0,100") == b"E00"


def test_the_registers_at_reset(gdb: Bench) -> None:
    whole = bytes.fromhex(gdb.ask(b"g").decode())
    assert len(whole) == REGISTERS_BYTES
    assert whole[RIP * 8 : RIP * 8 + 8] == (0xFFF0).to_bytes(8, "little")
    assert [gdb.register(number) for number in (RIP, EFLAGS, CS, CR0)] == [0xFFF0, 2, 0xF000, 0x60000010]
    assert gdb.register(MXCSR) == 0x1F80


def test_one_register_is_a_piece_of_all(at_main: Bench) -> None:
    whole = b"".join(bytes.fromhex(at_main.ask(b"p%x" % number).decode()) for number in range(MXCSR + 1))
    assert whole == bytes.fromhex(at_main.ask(b"g").decode())


@pytest.mark.parametrize(
    ("number", "size", "value"),
    [
        *((number, 8, 0x1122334455667788 + number) for number in range(17)),
        *((number, 8, 0xFFFF8000_0000_1000 + number) for number in range(FS_BASE, FS_BASE + 3)),
        *((number, 16, (1 << 127) + number) for number in range(XMM0, MXCSR)),
        *((number, 10, (0x3FFF << 64 | 1 << 63) + number) for number in range(ST0, ST0 + 8)),
        (EFLAGS, 4, 0x40406),
        (MXCSR, 4, 0x1FA0),
        (FSTAT, 4, 0x3800),
    ],
)
def test_a_register_that_is_written_reads_back(at_main: Bench, number: int, size: int, value: int) -> None:
    before = {other: at_main.register(other) for other in range(MXCSR + 1)}
    assert at_main.ask(b"P%x=%s" % (number, value.to_bytes(size, "little").hex().encode())) == b"OK"
    assert at_main.register(number) == value
    if number != FSTAT:  # which turns the others round
        changed = {other for other in before if at_main.register(other) != before[other]}
        assert changed - {FTAG} == {number}


def test_all_registers_written_at_once(at_main: Bench) -> None:
    whole = bytearray.fromhex(at_main.ask(b"g").decode())
    assert at_main.ask(b"G" + whole.hex().encode()) == b"OK"
    whole[0:8] = (7).to_bytes(8, "little")
    assert at_main.ask(b"G" + whole.hex().encode()) == b"OK"
    assert at_main.register(0) == 7
    assert at_main.ask(b"G" + whole[:-1].hex().encode()) == b"E16"  # one byte is missing
    assert at_main.ask(b"g") == whole.hex().encode()


def test_a_segment_register_moves_its_base_in_real_mode_and_stays_in_long_mode(gdb: Bench) -> None:
    assert gdb.ask(b"P%x=34120000" % (CS + 2)) == b"OK"
    assert gdb.register(CS + 2) == 0x1234
    assert gdb.machine.registers()["ds_base"] == 0x12340
    assert gdb.ask(b"Z0,%x,1" % symbol("guest_main")) == b"OK"
    gdb.go()
    assert gdb.ask(b"P%x=34120000" % (CS + 2)) == b"E0e"
    assert gdb.ask(b"P%x=01000000" % FISEG) == b"E0e"


def test_the_x87s_tags_are_in_full(at_main: Bench) -> None:
    assert at_main.register(FTAG) == 0x5555 or at_main.register(FTAG) == 0xFFFF
    at_main.ask(b"P%x=f03f0000" % FTAG)  # registers 2 to 6 are empty
    values = {ST0: 0, ST0 + 1: 0x3FFF << 64 | 1 << 63, ST0 + 7: 0x7FFF << 64}
    for number, value in values.items():
        at_main.ask(b"P%x=%s" % (number, value.to_bytes(10, "little").hex().encode()))
    assert at_main.register(FTAG) == 0b10_11_11_11_11_11_00_01


# -- memory --------------------------------------------------------------------------------------------------------


def test_memory_is_read_and_written(at_main: Bench) -> None:
    code = symbol("guest_main")
    image = ELFFile(BytesIO(GUESTS["hello"].image("x86_64")))
    text = next(image.iter_segments(type="PT_LOAD"))
    assert at_main.memory(code, 16) == text.data()[code - text["p_vaddr"] :][:16]
    assert at_main.ask(b"M200000,3:616263") == b"OK"
    assert at_main.ask(b"X200003,4:}\x03}\x04}]z") == b"OK"
    assert at_main.memory(0x200000, 7) == b"abc#$}z"
    assert at_main.ask(b"X200000,0:") == b"OK"  # gdb tries whether there is such a packet
    assert at_main.ask(b"m200000,0") == b""


def test_what_is_no_memory_is_an_error_and_no_device_is_touched(at_main: Bench) -> None:
    for address in (0xFEE00000, 0xE0000000, 0xFFFF_8000_0000_0000, 0xA0000):
        assert at_main.ask(b"m%x,4" % address) == b"E0e"
        assert at_main.ask(b"M%x,1:00" % address) == b"E0e"
    assert at_main.ask(b"MFFFFFFF0,1:00") == b"E0e"  # ROM
    assert len(at_main.memory(0x9FFF0, 0x20)) == 0x10  # up to where there is none


def test_rom_is_read_in_real_mode(gdb: Bench) -> None:
    assert gdb.memory(0xFFFFFFF0, 1) == b"\xe9"
    assert gdb.memory(0xFFFF0, 1) == b"\xe9"


def test_a_long_read_is_as_long_as_a_packet_allows(at_main: Bench) -> None:
    assert 0x1000 <= len(at_main.memory(0x100000, 0x100000)) < 0x2000


# -- running -------------------------------------------------------------------------------------------------------


def test_steps_go_from_the_reset_vector_into_the_firmware(gdb: Bench) -> None:
    assert gdb.go(b"s") == b"T05thread:1;"
    assert gdb.register(RIP) == 0xFF00
    assert gdb.go(b"vCont;s:1;c") == b"T05thread:1;"
    assert gdb.register(RIP) == 0xFF01
    assert gdb.go(b"S05") == b"T05thread:1;"
    assert gdb.register(RIP) == 0xFF02
    assert gdb.go(b"sff00") == b"T05thread:1;"
    assert gdb.register(RIP) == 0xFF01


@pytest.mark.parametrize("go", [b"c", b"C05", b"vCont;c", b"vCont;c:1", b"vCont;C05:1"])
@pytest.mark.parametrize("kind", [b"0", b"1"])
def test_a_breakpoint_of_either_kind_is_reached(gdb: Bench, go: bytes, kind: bytes) -> None:
    gdb.ask(b"Z%s,%x,1" % (kind, symbol("guest_main")))
    assert gdb.go(go) == b"T05thread:1;"
    assert gdb.register(RIP) == symbol("guest_main")


def test_two_kinds_at_one_place_are_two_breakpoints(at_main: Bench) -> None:
    address = symbol("print")
    for kind in (0, 1):
        at_main.ask(b"Z%x,%x,1" % (kind, address))
    at_main.ask(b"z0,%x,1" % address)
    assert at_main.go() == b"T05thread:1;"
    assert at_main.register(RIP) == address


@pytest.mark.parametrize(("kind", "word"), [(2, b"watch"), (3, b"rwatch"), (4, b"awatch")])
def test_a_watchpoint_says_which_address_it_was(at_main: Bench, kind: int, word: bytes) -> None:
    stack = at_main.register(7)
    at_main.ask(b"Z%x,%x,8" % (kind, stack - 8))
    assert at_main.go() == b"T05%s:%x;thread:1;" % (word, stack - 8)


def test_points_have_a_greatest_number(gdb: Bench) -> None:
    answers = [gdb.ask(b"Z1,%x,1" % address) for address in range(1001)]
    assert answers == 1000 * [b"OK"] + [b"E1c"]
    assert [gdb.ask(b"Z2,%x,1" % address) for address in range(65)] == 64 * [b"OK"] + [b"E1c"]
    assert gdb.ask(b"z1,0,1") == b"OK" and gdb.ask(b"Z1,5000,1") == b"OK"


def test_a_pause_by_somebody_else_is_told_as_an_interrupt(at_main: Bench) -> None:
    """Whatever gdb has stopped at before."""
    at_main.send(b"c")
    at_main.wire.take()
    at_main.machine.run(until="10us")
    at_main.machine.pause()
    at_main.machine.run()
    assert parse(at_main.wire.take()) == [b"T02thread:1;"]
    assert at_main.ask(b"qC") == b"QC1"


def test_an_interrupt_pauses_and_is_told_once(gdb: Bench) -> None:
    gdb.session.received(b"\x03")  # nothing runs: nothing is said
    assert gdb.wire.take() == b""
    gdb.send(b"c")
    gdb.wire.take()
    gdb.session.received(b"\x03\x03")
    gdb.machine.run()
    assert parse(gdb.wire.take()) == [b"T02thread:1;"] and gdb.machine.outcome is None


def test_a_machine_that_goes_on_by_itself_stays_gdbs(gdb: Bench) -> None:
    """QMP lets it go on: gdb is not told, and its next word counts."""
    gdb.machine.resume()
    gdb.machine.run(until="10us")
    assert gdb.wire.take() == b""
    assert gdb.go(b"s") == b"T05thread:1;"


def test_the_end_is_told_with_the_exit_status() -> None:
    with bench("hostile", parameter="loop") as gdb:
        gdb.send(b"c")
        outcome = gdb.machine.run()
        gdb.server.end()
        assert outcome is not None
        assert parse(gdb.wire.take()) == [b"W%02x" % outcome.exit_code]


def test_detaching_lets_the_guest_go_on_as_if_nothing_had_been() -> None:
    with vmm.boot("hello") as undisturbed:
        undisturbed.run()
    with bench() as gdb:
        gdb.ask(b"Z0,%x,1" % (symbol("guest_main") + 5))
        gdb.ask(b"Z2,10000,8")
        gdb.go(b"s")
        assert gdb.go() == b"T05thread:1;"
        assert gdb.ask(b"D") == b"OK"
        assert not gdb.machine.is_paused
        gdb.machine.run()
        assert gdb.wire.take() == b""
        assert gdb.machine.report()["console"] == undisturbed.report()["console"]
        assert (gdb.machine.blocks, gdb.machine.now_ns) == (undisturbed.blocks, undisturbed.now_ns)


def test_a_gdb_that_is_gone_has_detached_and_another_can_come(gdb: Bench) -> None:
    gdb.ask(b"Z0,%x,1" % symbol("guest_main"))
    gdb.session.received(b"$m10,")
    gdb.session.ended()
    assert not gdb.machine.is_paused
    wire = Wire()
    session = gdb.connect(wire)
    assert wire.is_open and gdb.machine.is_paused
    session.received(frame(b"c"))
    gdb.machine.run()
    gdb.server.end()
    assert parse(wire.take()) == [b"W00"]  # the breakpoint has gone with its gdb


def test_a_machine_that_begins_paused_stays_so_when_somebody_looks_in_and_is_gone() -> None:
    with vmm.boot("hello") as machine:
        machine.pause()
        gdb = Bench(machine)
        gdb.ask(b"g")
        gdb.session.ended()
        assert machine.is_paused
        gdb.session = gdb.connect(gdb.wire)
        gdb.go(b"s")
        gdb.session.ended()
        assert not machine.is_paused


def test_a_second_gdb_is_let_go_and_the_first_does_not_notice(gdb: Bench) -> None:
    second = Wire()
    session = gdb.connect(second)
    assert not second.is_open
    session.received(b"$k#6b")
    session.ended()
    assert gdb.ask(b"qC") == b"QC1"


@pytest.mark.parametrize("data", [b"k", b"vKill;1"])
def test_a_kill_ends_the_run_as_interrupted(gdb: Bench, data: bytes) -> None:
    gdb.send(data)
    outcome = gdb.machine.run()
    assert outcome is not None and (outcome.kind, outcome.exit_code) == ("interrupted", 130)


def test_interrupts_can_be_let_into_steps_in_qemus_words(gdb: Bench) -> None:
    assert gdb.ask(b"qqemu.sstepbits") == b"ENABLE=1,NOIRQ=2,NOTIMER=4"
    assert gdb.ask(b"qqemu.sstep") == b"0x3"
    assert gdb.ask(b"Qqemu.sstep=1") == b"OK"
    assert gdb.ask(b"qqemu.sstep") == b"0x1"


# -- the monitor ---------------------------------------------------------------------------------------------------


class EchoMonitor:
    def execute(self, line: str) -> str:
        return line * (10_000 if line == "long" else 1)


def test_a_monitor_command_comes_back_as_output() -> None:
    with bench(monitor=EchoMonitor()) as gdb:
        assert gdb.answers(b"qRcmd," + "info µ".encode().hex().encode()) == [
            b"O" + "info µ\n".encode().hex().encode(),
            b"OK",
        ]
        *pieces, last = gdb.answers(b"qRcmd," + b"long".hex().encode())
        assert last == b"OK" and len(pieces) > 1
        assert b"".join(bytes.fromhex(each[1:].decode()) for each in pieces) == b"long" * 10_000 + b"\n"
        assert gdb.answers(b"qRcmd,") == [b"OK"]


# -- where there is none -------------------------------------------------------------------------------------------


def test_another_processor_is_refused_in_one_sentence() -> None:
    with (
        vmm.boot("stats", arch="ppc") as machine,
        pytest.raises(ConfigError, match="gdb can debug the x86-64 processor only"),
    ):
        GdbServer(machine)
