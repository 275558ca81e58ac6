"""The firmware carries out the table-loader's script, and nothing that leads outside the script's own files."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import firmware
from devices.effects import Stop, StopKind
from firmware.acpi.linker import ENTRY_BYTES, F_SEGMENT, HIGH, SCRIPT_FILE, Script, carry_out
from firmware.acpi.tables import FACS_FILE, RSDP_FILE, TABLES_FILE
from tests.firmware.acpi.board import files
from tests.firmware.lab import EXECUTABLE, GIB, HLT, KIB, MIB, READABLE, Lab, Segment

# What the guest does: try to overwrite the RSDP, and copy 64 bytes from there to where the test can read them.
COPY = 0x14000
SEARCH = bytes.fromhex("c704250000 0e00 00000000")  # mov dword [0e0000h], 0
SEARCH += bytes.fromhex("be00000e00 bf00400100 b910000000 f3a5")  # rep movsd of 16 from 0e0000h to 14000h
SEARCH = b"\x57" + SEARCH + b"\x5f" + HLT  # RDI, the boot information, is kept
GUEST = (Segment(0x10000, 0x1000, READABLE | EXECUTABLE, SEARCH),)
LAYOUTS = {
    "1M": ((0, 640 * KIB),),
    "64M": ((0, 640 * KIB), (MIB, 63 * MIB)),
    "5G": ((0, 640 * KIB), (MIB, 3 * GIB - MIB), (4 * GIB, 2 * GIB)),
}
TABLES, NVS = 5, 6


def lab(contents: dict[str, bytes], layout: tuple[tuple[int, int], ...] = LAYOUTS["64M"]) -> Lab:
    return Lab(layout, GUEST, entry=0x10000, files=dict(contents))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_tables_are_installed_where_the_memory_map_says(layout: tuple[tuple[int, int], ...]) -> None:
    made = files()
    with lab(made, layout) as board:
        board.run()
        info = board.boot_info()
        rsdp = board.memory.read(COPY, 36)
        ((tables_base, tables_length),) = [(base, length) for base, length, kind in info.memory_map if kind == TABLES]
        ((facs_base, facs_length),) = [(base, length) for base, length, kind in info.memory_map if kind == NVS]
        expected = carry_out(
            made[SCRIPT_FILE], made, {TABLES_FILE: tables_base, FACS_FILE: facs_base, RSDP_FILE: 0xE0000}
        )
        assert rsdp == expected[RSDP_FILE]
        assert board.memory.read(tables_base, len(made[TABLES_FILE])) == expected[TABLES_FILE]
        assert board.memory.read(facs_base, len(made[FACS_FILE])) == expected[FACS_FILE]
    assert (tables_length, facs_length) == (4096, 4096)
    assert f"acpi: tables at {tables_base:x}h, found from e0000h" in board.lines


def test_the_rsdp_is_write_protected_and_adds_up_to_zero() -> None:
    with lab(files()) as board:
        board.run()
        rsdp = board.memory.read(COPY, 36)
    assert rsdp[:8] == b"RSD PTR "
    assert (sum(rsdp[:20]) % 256, sum(rsdp) % 256) == (0, 0)


def test_a_host_with_dma_hands_over_the_same() -> None:
    with (
        lab(files()) as byte_by_byte,
        Lab(LAYOUTS["64M"], GUEST, entry=0x10000, files=dict(files()), dma=True) as by_dma,
    ):
        byte_by_byte.run()
        by_dma.run()
        assert by_dma.boot_info() == byte_by_byte.boot_info()
        assert by_dma.memory.read(COPY, 64) == byte_by_byte.memory.read(COPY, 64)
        for base, length, kind in by_dma.boot_info().memory_map:
            if kind in (TABLES, NVS):
                assert by_dma.memory.read(base, length) == byte_by_byte.memory.read(base, length)


def test_all_of_ram_is_still_told() -> None:
    with lab(files()) as with_tables, lab({}) as without:
        with_tables.run()
        without.run()
        ram = with_tables.boot_info()
        assert ram.ram_bytes == without.boot_info().ram_bytes
        assert sum(length for _, length, kind in ram.memory_map if kind != 2) + 64 * KIB == ram.ram_bytes


def test_a_host_without_tables_gets_none() -> None:
    with lab({}) as board:
        board.run()
        assert not {kind for _, _, kind in board.boot_info().memory_map} & {TABLES, NVS}
        assert not any(line.startswith("acpi:") for line in board.lines)


def test_pointers_of_every_size_carry_into_all_their_bytes() -> None:
    script = Script()
    script.allocate("a", 4096)
    script.allocate("b", 1)
    for offset, size in ((0, 1), (1, 2), (3, 4), (7, 8)):
        script.add_pointer("a", offset, size, "b")
    made = {"a": b"\xff" * 15, "b": b"?", SCRIPT_FILE: script.contents()}
    with lab(made) as board:
        board.run()
        base, length = next((base, length) for base, length, kind in board.boot_info().memory_map if kind == TABLES)
        assert length == 2 * 4096
        expected = carry_out(made[SCRIPT_FILE], made, {"a": base + 4096, "b": base})
        assert board.memory.read(base + 4096, 15) == expected["a"]


def test_commands_of_later_versions_are_skipped() -> None:
    made = files()
    made[SCRIPT_FILE] = struct.pack("<I", 4).ljust(ENTRY_BYTES, b"\xff") + made[SCRIPT_FILE]
    with lab(made) as board:
        board.run()
        assert board.memory.read(COPY, 8) == b"RSD PTR "


# -- scripts that make no sense ----------------------------------------------------------------------------------------

SMALL = {"a": bytes(16), "b": bytes(16)}


def script(*steps: tuple[object, ...]) -> bytes:
    """Steps as ("allocate", file, …), ("add_pointer", …) or ("add_checksum", …), behind an allocation of "a"."""
    made = Script()
    made.allocate("a", 16)
    for name, *arguments in steps:
        getattr(made, str(name))(*arguments)
    return made.contents()


FIRST = "the table-loader must allocate a file before it names it"
WITHIN = "the table-loader must stay within its files"
ONCE = "the table-loader must allocate at most 8 files, and each of them once"
POWER = "the table-loader must align by a power of two up to 4096"
SIZES = "the table-loader's files must be in fw_cfg and have 1 byte to 256 KiB"
BELOW = "the table-loader must not want more than 16 KiB below 1 MiB"
WIDTH = "the table-loader's pointers must have 1, 2, 4 or 8 bytes"


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (script(("add_pointer", "a", 0, 4, "b")), FIRST),
        (script(("add_pointer", "b", 0, 4, "a")), FIRST),
        (script(("add_checksum", "b", 0, 0, 4)), FIRST),
        (script(("add_pointer", "a", 13, 4, "a")), WITHIN),
        (script(("add_pointer", "a", 0xFFFFFFFF, 1, "a")), WITHIN),
        (script(("add_pointer", "a", 0xFFFFFFFE, 8, "a")), WITHIN),
        (script(("add_checksum", "a", 16, 0, 16)), WITHIN),
        (script(("add_checksum", "a", 0, 0, 17)), WITHIN),
        (script(("add_checksum", "a", 0, 17, 0)), WITHIN),
        (script(("add_checksum", "a", 0, 0xFFFFFFFF, 2)), WITHIN),
        (script(("add_checksum", "a", 0, 1, 0xFFFFFFFF)), WITHIN),
        (script(("add_pointer", "a", 0, 0, "a")), WIDTH),
        (script(("add_pointer", "a", 0, 3, "a")), WIDTH),
        (script(("add_pointer", "a", 0, 255, "a")), WIDTH),
        (script(("allocate", "a", 16)), ONCE),
        (script(*(("allocate", f"f{n}", 16) for n in range(8))), ONCE),
        (script(("allocate", "b", 0)), POWER),
        (script(("allocate", "b", 24)), POWER),
        (script(("allocate", "b", 8192)), POWER),
        (script(("allocate", "missing", 16)), SIZES),
        (script(("allocate", "empty", 16)), SIZES),
        (script(("allocate", "large", 16)), SIZES),
        (script(("allocate", "16 KiB", 16, F_SEGMENT), ("allocate", "b", 1, F_SEGMENT)), BELOW),
        (bytes(65 * ENTRY_BYTES), "the table-loader must have at most 64 commands"),
    ],
)
def test_a_script_that_makes_no_sense_is_one_sentence_and_an_exit_code(contents: bytes, sentence: str) -> None:
    extra = {"empty": b"", "large": bytes(256 * KIB + 1), "16 KiB": bytes(16 * KIB)}
    extra |= {f"f{n}": b"x" for n in range(8)}
    with lab({**SMALL, **extra, SCRIPT_FILE: contents}) as board:
        board.run()
    assert board.lines[-1] == f"firmware: {sentence}"
    assert board.stop == Stop(StopKind.QUIT, firmware.EXIT_BAD_BOARD)


def test_a_name_that_never_ends_is_cut_and_not_found() -> None:
    endless = struct.pack("<I", 1) + b"x" * 124
    with lab({**SMALL, SCRIPT_FILE: endless}) as board:
        board.run()
    assert board.stop == Stop(StopKind.QUIT, firmware.EXIT_BAD_BOARD)


def test_a_guest_that_leaves_no_room_is_told_so() -> None:
    """All pages but those that the page tables take; the tables would need two more."""
    with lab({}, LAYOUTS["1M"]) as board:
        board.run()
        ((tables, _),) = [(base, length) for base, length, kind in board.boot_info().memory_map if kind == 4]
    segments = (Segment(0x10000, tables - 0x10000, READABLE | EXECUTABLE, HLT),)
    with Lab(LAYOUTS["1M"], segments, entry=0x10000, files=dict(files())) as board:
        board.run()
    assert board.lines[-1] == "firmware: the guest leaves no room for ACPI tables below 4 GiB"
    assert board.stop == Stop(StopKind.QUIT, firmware.EXIT_BAD_PAYLOAD)


NAMES = st.sampled_from(["a", "b", "c", "missing"])
NUMBERS = st.one_of(st.integers(0, 40), st.sampled_from([4095, 4096, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF]))
COMMANDS = st.one_of(
    st.tuples(
        st.just("allocate"), NAMES, st.sampled_from([1, 16, 64, 4096, 3]), st.sampled_from([HIGH, F_SEGMENT, 0x80])
    ),
    st.tuples(st.just("add_pointer"), NAMES, NUMBERS, st.sampled_from([1, 2, 4, 8, 5]), NAMES),
    st.tuples(st.just("add_checksum"), NAMES, NUMBERS, NUMBERS, NUMBERS),
)
PATTERN = 0xA5
FIRMWARE_TABLES = 16
"""More pages than the firmware's own page tables for 1 MiB take."""


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(COMMANDS, max_size=12))
def test_no_script_changes_memory_outside_its_files(steps: list[tuple[object, ...]]) -> None:
    """RAM is full of a pattern; afterwards only the firmware's low memory, and what lies at its top, may differ."""
    layout = LAYOUTS["1M"]
    made = {"a": bytes(40), "b": b"FACS" + bytes(4092), "c": b"c", SCRIPT_FILE: script(*steps)}
    with lab(made, layout) as board:
        board.memory.write(0x11000, bytes([PATTERN]) * (640 * KIB - 0x11000))
        board.run()
        assert board.stop is None or board.stop.code in (firmware.EXIT_BAD_BOARD, firmware.EXIT_BAD_PAYLOAD)
        high = 640 * KIB - (FIRMWARE_TABLES + 3) * 4096  # page tables, and a page for each of the three files
        kept = board.memory.read(0x15000, high - 0x15000)
        assert kept.count(PATTERN) == len(kept)
