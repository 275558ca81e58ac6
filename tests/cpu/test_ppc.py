"""The PowerPC: exceptions where they happened, interrupts, sleep, order of bytes, and a count that no stop changes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from devices.errors import ConfigError
from tests.cpu.ppc_lab import ORIGIN, RAM_BYTES, REPORT, PpcLab, ppc_lab
from vmm.cpu import ExitReason
from vmm.cpu.ppc import build_native, layout
from vmm.cpu.ppc.native import NativeCallbacks

BOTH = pytest.mark.parametrize("native", [True, False], ids=["native", "python"])

# Tells SRR0 (from the program's start) and SRR1, and goes on behind the instruction.
HANDLER = f"""
handler:
    mfsrr0  20
    subis   21, 20, {ORIGIN >> 16}
    report  21
    mfsrr1  21
    report  21
    addi    20, 20, 4
    mtsrr0  20
    rfi
"""


# -- exceptions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "instructions", "srr0", "srr1"),
    [
        (0xC00, "nop\n sc", 8, 0x1000),
        (0x700, "nop\n .long 0\n nop", 4, 0x81000),
        (0x700, "nop\n nop\n trap\n nop", 8, 0x21000),
        (0x800, "nop\n fadd 1, 2, 3\n nop", 4, 0x1000),
        (0x600, "li 5, 2\n nop\n lwarx 4, 0, 5\n nop", 8, 0x1000),
    ],
    ids=["system-call", "invalid", "trap", "float", "alignment"],
)
@BOTH
def test_an_exception_is_told_with_its_place_and_its_reason(
    vector: int, instructions: str, srr0: int, srr1: int, native: bool
) -> None:
    source = f"{instructions}\n report 3\n1: b 1b\n{HANDLER}"
    with ppc_lab(source, vectors={vector: "handler"}, native=native) as lab:
        lab.run(20)
        assert lab.reports == [srr0, srr1, 0x1234]


def test_an_instruction_without_the_right_is_a_program_exception_of_its_own_kind() -> None:
    source = f"""
        lis     4, user@h
        ori     4, 4, user@l
        mtsrr0  4
        li      5, 0x5000       /* ME and PR */
        mtsrr1  5
        rfi
    user:
        nop
        mfmsr   6
        nop
    {HANDLER}"""
    with ppc_lab(source, vectors={0x700: "handler"}) as lab:
        lab.run(6)
        assert lab.reports[0] == lab.labels["user"] + 4 - ORIGIN
        assert lab.reports[1] == 0x45000, "privileged, from a program"


def test_a_load_without_a_translation_is_told_with_its_address() -> None:
    source = """
        lis     4, 0x4567
        ori     4, 4, 0x89a0
        mfmsr   5
        ori     5, 5, 0x10      /* DR: nothing is mapped */
        mtmsr   5
        isync
        lwz     6, 8(4)
        nop
    1:  b       1b
    handler:
        mfdar   21
        report  21
        mfdsisr 21
        report  21
        mfsrr0  21
        report  21
    2:  b       2b
    """
    with ppc_lab(source, vectors={0x300: "handler"}) as lab:
        lab.run(10)
        assert lab.reports == [0x456789A8, 0x40000000, ORIGIN + 6 * 4]


def test_a_traced_program_stops_behind_each_instruction() -> None:
    source = f"""
        lis     4, traced@h
        ori     4, 4, traced@l
        mtsrr0  4
        li      5, 0x1400       /* ME and SE */
        mtsrr1  5
        rfi
    traced:
        li      6, 1
        li      6, 2
    handler:
        mfsrr0  20
        subis   20, 20, {ORIGIN >> 16}
        report  20
        report  6
    1:  b       1b
    """
    with ppc_lab(source, vectors={0xD00: "handler"}) as lab:
        lab.run(20)
        assert lab.reports == [lab.labels["traced"] + 4 - ORIGIN, 1]


def test_a_jump_to_where_no_memory_is_is_a_machine_check() -> None:
    source = "lis 4, 0x9000\n mtctr 4\n bctr\nhandler:\n mfsrr0 21\n report 21\n1: b 1b"
    with ppc_lab(source, vectors={0x200: "handler"}) as lab:
        lab.run(10)
        assert lab.reports == [0x90000000]


def test_exceptions_go_high_where_the_prefix_says_so_and_keep_it() -> None:
    source = "mfmsr 4\n ori 4, 4, 0x40\n mtmsr 4\n isync\n sc\n nop"
    with ppc_lab(source) as lab:
        lab.run(4)  # three blocks and the exception
        registers = lab.cpu.registers()
        assert registers["msr"] == 0x1040
        assert registers["pc"] == 0xFFF00C00


# -- interrupts and sleep --------------------------------------------------------------------------------------------

_WITH_INTERRUPT = """
    li      7, 0
    {before}
1:  addi    7, 7, 1
    b       1b
external:
    report  7
    mfsrr0  8
    report  8
    mfmsr   9
    report  9
2:  b       2b
"""
ENABLE = "mfmsr 4\n ori 4, 4, 0x8000\n mtmsr 4"


@BOTH
def test_an_interrupt_waits_until_the_processor_takes_it(native: bool) -> None:
    with ppc_lab(_WITH_INTERRUPT.format(before="nop"), vectors={0x500: "external"}, native=native) as lab:
        lab.cpu.set_irq(True)
        lab.run(20)
        assert lab.reports == []
    with ppc_lab(_WITH_INTERRUPT.format(before=ENABLE), vectors={0x500: "external"}, native=native) as lab:
        lab.run(20)
        counted = lab.cpu.registers()["r7"]
        lab.cpu.set_irq(True)
        lab.run(20)
        loop = lab.cpu.registers()["r8"]
        assert lab.reports == [counted, loop, 0x1000]
        assert lab.cpu.irq_asserted, "the line is a level"


def test_an_interrupt_that_a_device_raises_comes_before_the_next_block() -> None:
    source = _WITH_INTERRUPT.format(before=f"{ENABLE}\n lis 31, 0xf000\n stw 7, 8(31)")
    with ppc_lab(source, vectors={0x500: "external"}) as lab:
        lab.platform.on_write = lambda gpa: lab.cpu.set_irq(gpa == REPORT + 8)
        lab.run(30)
        assert lab.reports[0] in (0, 1), "the block of the store is ended, and no other begun"


@BOTH
def test_the_idle_call_sleeps_until_an_interrupt_waits_whether_or_not_it_is_taken(native: bool) -> None:
    with ppc_lab("li 3, 77\n idle\n report 3\n1: b 1b", native=native) as lab:
        exit_ = lab.run()
        assert (exit_.reason, exit_.interrupts_enabled) == (ExitReason.HALTED, True)
        assert lab.run().reason is ExitReason.HALTED
        blocks = lab.cpu.blocks
        lab.cpu.set_irq(True)
        assert lab.run(5).reason is ExitReason.BUDGET
        assert lab.reports == [0], "the call says that it went well"
        assert lab.cpu.blocks == blocks + 5


def test_other_calls_of_that_kind_are_the_guests_own() -> None:
    with ppc_lab("li 11, 16\n sc 1\n nop\nhandler:\n report 11\n1: b 1b", vectors={0xC00: "handler"}) as lab:
        assert lab.run(20).reason is ExitReason.BUDGET
        assert lab.reports == [16]


def test_power_management_bits_do_not_stop_the_world() -> None:
    with ppc_lab("lis 4, 4\n ori 4, 4, 0x1000\n mtmsr 4\n isync\n mfmsr 5\n report 5\n1: b 1b") as lab:
        assert lab.run(20).reason is ExitReason.BUDGET
        assert lab.reports == [0x1000]


def test_no_clock_of_the_host_is_seen() -> None:
    source = """
        li      3, 1234
        mttbl   3
        mttbu   3
        mtdec   3
        lis     4, 0x10
        mtctr   4
    1:  bdnz    1b
        mftb    4
        report  4
        mftbu   4
        report  4
        mfdec   4
        report  4
    2:  b       2b
    """
    with ppc_lab(source) as lab:
        lab.run(0x100100)
        assert lab.reports == [0, 0, 1234]


# -- the bus ---------------------------------------------------------------------------------------------------------


def test_numbers_have_their_highest_byte_first() -> None:
    source = """
        lis     31, 0xf000
        lis     4, 0x1122
        ori     4, 4, 0x3344
        stw     4, 16(31)
        sth     4, 20(31)
        stb     4, 22(31)
        addi    5, 31, 24
        stwbrx  4, 0, 5
        lwz     6, 32(31)
        lhz     7, 36(31)
        lbz     8, 38(31)
        addi    5, 31, 32
        lwbrx   9, 0, 5
    1:  b       1b
    """
    with ppc_lab(source) as lab:
        lab.platform.inputs = {REPORT + 32: 0xAABBCCDD, REPORT + 36: 0x5566, REPORT + 38: 0x77}
        lab.run(20)
        assert lab.platform.writes == [
            (REPORT + 16, 4, 0x44332211),
            (REPORT + 20, 2, 0x4433),
            (REPORT + 22, 1, 0x44),
            (REPORT + 24, 4, 0x11223344),
        ]
        registers = lab.cpu.registers()
        assert [registers[name] for name in ("r6", "r7", "r8", "r9")] == [0xDDCCBBAA, 0x6655, 0x77, 0xAABBCCDD]


def test_memory_is_big_endian_and_the_hosts_own() -> None:
    with ppc_lab("lis 4, 0x1122\n ori 4, 4, 0x3344\n stw 4, 0x2000(0)\n lwz 5, 0x2004(0)\n report 5\n1: b 1b") as lab:
        lab.memory.write(0x2004, bytes.fromhex("0badcafe"))
        lab.run(20)
        assert lab.memory.read(0x2000, 4) == bytes.fromhex("11223344")
        assert lab.reports == [0x0BADCAFE]


# -- memory management -----------------------------------------------------------------------------------------------

TABLE, SEGMENT, PAGE = 0x100000, 0x123, 0x60000
EA = 0xA0345000

# One page at EA by the hash table at TABLE, everything below 256 MiB and the reports by blocks.
_PAGED = f"""
    .ifndef MASK
    .set MASK, 0                /* the smallest table, of 64 KiB */
    .endif
    li      4, 0x1ffe
    li      5, 2
    mtspr   537, 5
    mtspr   536, 4
    mtspr   529, 5
    mtspr   528, 4
    lis     4, 0xf000
    ori     5, 4, 2
    ori     4, 4, 0x1ffe
    mtspr   539, 5
    mtspr   538, 4
    lis     4, {TABLE >> 16}
    ori     4, 4, MASK
    mtsdr1  4
    li      4, {SEGMENT}
    mtsr    10, 4
    mfmsr   4
    ori     4, 4, 0x30
    mtmsr   4
    isync
    lis     10, 0xa034
    ori     10, 10, 0x5000
"""


def write_entry(lab: PpcLab, *, secondary: bool, mask: int = 0) -> int:
    """An entry for EA in the group that the architecture names, in the third place; returns its address."""
    index = EA >> 12 & 0xFFFF
    digest = SEGMENT ^ index
    group = (~digest if secondary else digest) & (mask << 10 | 0x3FF)
    place = TABLE + 64 * group + 16
    lab.memory.write(place, struct.pack(">II", 1 << 31 | SEGMENT << 7 | secondary << 6 | index >> 10, PAGE | 0x10 | 2))
    return place


def low_word(lab: PpcLab, place: int) -> int:
    return int.from_bytes(lab.memory.read(place + 4, 4), "big")


@pytest.mark.parametrize("mask", [0, 3], ids=["64K", "256K"])
@pytest.mark.parametrize("secondary", [False, True], ids=["primary", "secondary"])
def test_a_page_is_found_in_the_hash_table_and_its_use_is_noted(secondary: bool, mask: int) -> None:
    source = f".set MASK, {mask}\n{_PAGED}\n b 1f\n1: lwz 6, 4(10)\n report 6\n b 2f\n2: stw 6, 8(10)\n b 3f\n3: b 3b"
    with ppc_lab(source) as lab:
        place = write_entry(lab, secondary=secondary, mask=mask)
        lab.memory.write(PAGE + 4, b"\x12\x34\x56\x78")
        seen = [low_word(lab, place)]
        for _ in range(20):
            lab.run(1)
            if lab.cpu.registers()["msr"] & 0x10:
                assert lab.cpu.translate(EA + 5) == PAGE + 5
            seen.append(low_word(lab, place))  # looking from outside is no use
        assert sorted(set(seen)) == [PAGE | 0x12, PAGE | 0x112, PAGE | 0x192], "untouched, referenced, changed"
        assert seen == sorted(seen)
        assert lab.reports == [0x12345678]
        assert lab.memory.read(PAGE + 8, 4) == b"\x12\x34\x56\x78"


def test_addresses_are_translated_for_who_looks_as_for_the_program() -> None:
    with ppc_lab(f"{_PAGED}\n1: b 1b") as lab:
        assert lab.cpu.translate(0xA0345004) == 0xA0345004, "no translation yet"
        lab.run(5)
        assert lab.cpu.translate(0x12345) == 0x12345
        assert lab.cpu.translate(0xF0000123) == 0xF0000123
        assert lab.cpu.translate(EA) is None, "nothing in the table"
        assert lab.cpu.translate(0x50000000) is None


def test_a_page_taken_out_of_the_table_is_gone_when_the_guest_says_so() -> None:
    source = f"""
    {_PAGED}
        lwz     6, 0(10)
        lis     9, {TABLE >> 16}
        ori     9, 9, {64 * ((SEGMENT ^ EA >> 12 & 0xFFFF) & 0x3FF) + 16}
        li      8, 0
        stw     8, 0(9)
        tlbie   10
        tlbsync
        sync
        lwz     6, 0(10)
        report  6
    1:  b       1b
    handler:
        mfdar   21
        report  21
    2:  b       2b
    """
    with ppc_lab(source, vectors={0x300: "handler"}) as lab:
        write_entry(lab, secondary=False)
        lab.run(30)
        assert lab.reports == [EA]


def test_an_exception_makes_a_page_that_was_taken_out_be_gone() -> None:
    """TLBIE alone may be late; whoever takes an exception has waited for it."""
    source = f"""
    {_PAGED}
        lwz     6, 0(10)
        lis     9, {TABLE >> 16}
        li      8, 0
        ori     9, 9, {64 * ((SEGMENT ^ EA >> 12 & 0xFFFF) & 0x3FF) + 16}
        stw     8, 0(9)
        tlbie   10
        sc
    syscall:
        mfmsr   4
        ori     4, 4, 0x10
        mtmsr   4
        lwz     6, 0(10)
        lis     31, 0xf000
        stw     6, 0(31)
    1:  b       1b
    storage:
        mfdar   21
        report  21
    2:  b       2b
    """
    with ppc_lab(source, vectors={0xC00: "syscall", 0x300: "storage"}) as lab:
        write_entry(lab, secondary=False)
        lab.run(40)
        assert lab.reports == [EA]


# -- code that changes -----------------------------------------------------------------------------------------------


def test_code_that_the_host_changes_is_run_anew() -> None:
    with ppc_lab("1: li 4, 1\n report 4\n b 1b") as lab:
        lab.run(3)
        assert set(lab.reports) == {1}
        assert lab.cpu.holds_code(ORIGIN, 4)
        assert not lab.cpu.holds_code(0x200000, 4096)
        lab.memory.write(ORIGIN, (0x38800002).to_bytes(4, "big"))  # li 4, 2
        lab.cpu.drop_translations(lab.memory.take_writes())
        before = len(lab.reports)
        lab.run(3)
        assert set(lab.reports[before:]) == {2}
        lab.memory.write(ORIGIN, (0x38800003).to_bytes(4, "big"))  # and once more
        lab.cpu.drop_translations(lab.memory.take_writes())
        before = len(lab.reports)
        lab.run(3)
        assert set(lab.reports[before:]) == {3}


def test_code_that_a_device_changes_brings_no_interrupt_that_is_off() -> None:
    source = "1: li 4, 1\n report 4\n b 1b\nexternal:\n report 3\n2: b 2b"
    with ppc_lab(source, vectors={0x500: "external"}) as lab:

        def change(_gpa: int) -> None:
            lab.memory.write(ORIGIN, (0x38800002).to_bytes(4, "big"))
            lab.cpu.drop_translations(lab.memory.take_writes())

        lab.run(2)
        lab.cpu.set_irq(True)
        lab.platform.on_write = change
        lab.run(4)
        assert set(lab.reports) == {1, 2}


def test_code_that_the_host_changes_is_found_behind_a_translation() -> None:
    """Translations are kept by physical address; the program runs 256 MiB above it."""
    source = """
        lis     4, 0x1000
        ori     5, 4, 0x1ffe
        li      6, 2
        mtspr   529, 6          /* 10000000h to 1FFFFFFFh are 0 to FFFFFFFh */
        mtspr   528, 5
        lis     4, high@h
        ori     4, 4, high@l
        oris    4, 4, 0x1000
        mtsrr0  4
        li      5, 0x1020       /* ME and IR */
        mtsrr1  5
        rfi
        .balign 4096
    high:
        li      4, 1
        report  4
        b       high
    """
    with ppc_lab(source) as lab:
        lab.run(10)
        assert set(lab.reports) == {1}
        assert lab.cpu.registers()["pc"] >> 28 == 1
        assert lab.cpu.holds_code(lab.labels["high"], 4)
        lab.memory.write(lab.labels["high"], (0x38800002).to_bytes(4, "big"))  # li 4, 2
        lab.cpu.drop_translations(lab.memory.take_writes())
        before = len(lab.reports)
        lab.run(5)
        assert set(lab.reports[before:]) == {2}


def test_code_that_the_guest_changes_is_run_anew() -> None:
    source = """
        lis     9, there@h
        ori     9, 9, there@l
        bl      there
        lis     8, 0x3880
        ori     8, 8, 2
        stw     8, 0(9)
        dcbst   0, 9
        sync
        icbi    0, 9
        isync
        bl      there
    1:  b       1b
    there:
        li      4, 1
        report  4
        blr
    """
    with ppc_lab(source) as lab:
        lab.run(20)
        assert lab.reports == [1, 2]


# -- stops, counts and states ----------------------------------------------------------------------------------------

# Arithmetic with carries, stores, calls, exceptions and reports: whatever goes wrong shows in a register.
_BUSY = """
    li      4, 0
    li      5, 1
    lis     6, 0x2
    li      12, 200
1:  addc    4, 4, 5
    adde    5, 5, 4
    mulli   7, 4, 13
    xor     4, 4, 7
    stwu    4, 4(6)
    andi.   8, 4, 7
    bne     2f
    sc
2:  bl      sub
    addic.  12, 12, -1
    bne     1b
    report  4
    report  5
3:  b       3b
sub:
    rlwinm  9, 4, 5, 0, 31
    add     5, 5, 9
    blr
handler:
    addi    5, 5, 3
    rfi
"""


def test_stopping_at_any_interval_changes_nothing() -> None:
    results = []
    for interval in (1, 2, 3, 7, 50, 5000):
        with ppc_lab(_BUSY, vectors={0xC00: "handler"}) as lab:
            while lab.cpu.blocks < 2000:
                lab.run(min(interval, 2000 - lab.cpu.blocks))
            results.append((lab.cpu.save_state(), lab.reports, lab.memory.read(0, RAM_BYTES)))
    assert results[1:] == results[:1] * 5
    assert len(results[0][1]) == 2


def test_the_callbacks_in_python_count_the_same() -> None:
    states = []
    for native in (True, False):
        with ppc_lab(_BUSY, vectors={0xC00: "handler"}, native=native) as lab:
            lab.run(777)
            states.append(lab.cpu.save_state())
    assert states[0] == states[1]


def test_a_budget_is_kept_to_the_block() -> None:
    with ppc_lab("1: b 1b") as lab:
        for budget in (1, 5, 1000):
            before = lab.cpu.blocks
            assert lab.run(budget).reason is ExitReason.BUDGET
            assert lab.cpu.blocks == before + budget


def test_a_callback_can_end_the_run_before_the_next_block() -> None:
    with ppc_lab("1: report 3\n b 1b") as lab:
        lab.platform.on_write = lambda gpa: lab.cpu.request_exit()
        assert lab.run().reason is ExitReason.REQUESTED
        assert len(lab.reports) == 1


@pytest.mark.parametrize("cut", [0, 1, 13, 200, 555, 1001])
def test_a_state_goes_on_in_another_processor_as_in_this_one(cut: int) -> None:
    with ppc_lab(_BUSY, vectors={0xC00: "handler"}) as lab, ppc_lab(_BUSY, vectors={0xC00: "handler"}) as other:
        if cut:
            lab.run(cut)
        state = lab.cpu.save_state()
        other.memory.write(0, lab.memory.read(0, RAM_BYTES))
        other.cpu.check_state(state, "cpu")
        other.cpu.restore_state(state)
        assert other.cpu.save_state() == state
        lab.run(500)
        other.run(500)
        assert other.cpu.save_state() == lab.cpu.save_state()
        assert other.memory.read(0, RAM_BYTES) == lab.memory.read(0, RAM_BYTES)


def test_every_register_is_written_by_its_name_and_read_back() -> None:
    with ppc_lab("nop") as lab:
        values = lab.cpu.registers()
        fixed = {"msr", "pc", "spr_287"}
        new = {name: (0x01030507 + 0x0203 * n) & 0xFFFFFFFC for n, name in enumerate(values) if name not in fixed}
        new |= {"cr": 0x87654321, "xer": 0xE000007F, "fpscr": 3, "f31": 0x400921FB54442D18, "msr": 0x9032}
        lab.cpu.set_registers(new)
        assert {name: lab.cpu.registers()[name] for name in new} == new
        with pytest.raises(KeyError):
            lab.cpu.set_registers({"rax": 1})


def test_a_state_that_does_not_fit_is_refused() -> None:
    with ppc_lab("nop") as lab:
        state = lab.cpu.save_state()
        registers = state["registers"]
        assert isinstance(registers, dict)
        for wrong in (
            {**state, "registers": {**registers, "r5": 1 << 32}},
            {**state, "registers": {name: value for name, value in registers.items() if name != "lr"}},
            {**state, "halted": 2},
            {"registers": registers},
        ):
            with pytest.raises(ConfigError, match=r"does not fit this machine: cpu"):
                lab.cpu.check_state(wrong, "cpu")


# -- Unicorn, and what is made of C ------------------------------------------------------------------------------------


def test_another_layout_of_the_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layout.verify_layout()
    monkeypatch.setattr(layout, "PVR", layout.PVR - 1)
    with pytest.raises(ConfigError, match=r"keeps its CPU state in an unknown layout: PVR reads"):
        layout.verify_layout.__wrapped__()


def test_the_machine_code_is_what_the_source_gives() -> None:
    assert Path(build_native.HERE, "native_code.py").read_text() == build_native.render()


def test_this_host_has_machine_code_or_does_without() -> None:
    callbacks = NativeCallbacks.of_this_host()
    assert callbacks is None or callbacks.block.value != callbacks.translated.value
