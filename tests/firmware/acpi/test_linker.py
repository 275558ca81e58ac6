"""QEMU's table-loader script: its bytes, and what carrying it out does (docs/specs of QEMU, bios-linker-loader)."""

from __future__ import annotations

import struct

import pytest

from firmware.acpi.linker import F_SEGMENT, HIGH, Allocation, Script, allocations, carry_out
from tests.firmware.acpi.board import files


def test_each_command_is_an_entry_of_128_bytes() -> None:
    script = Script()
    script.allocate("etc/a", 64, F_SEGMENT)
    script.add_pointer("etc/a", 0x10, 8, "etc/b")
    script.add_checksum("etc/a", 9, 4, 36)
    entries = [script.contents()[at : at + 128] for at in (0, 128, 256)]
    assert len(script.contents()) == 3 * 128
    assert entries[0] == (struct.pack("<I56sIB", 1, b"etc/a", 64, 2)).ljust(128, b"\0")
    assert entries[1] == (struct.pack("<I56s56sIB", 2, b"etc/a", b"etc/b", 0x10, 8)).ljust(128, b"\0")
    assert entries[2] == (struct.pack("<I56sIII", 3, b"etc/a", 9, 4, 36)).ljust(128, b"\0")


def test_a_pointer_adds_the_address_to_what_the_field_holds() -> None:
    script = Script()
    script.add_pointer("a", 2, 4, "b")
    done = carry_out(script.contents(), {"a": bytes.fromhex("ffff 10000000 ffff"), "b": b""}, {"a": 0, "b": 0x3FF000})
    assert done["a"] == bytes.fromhex("ffff 10f03f00 ffff")


def test_a_checksum_makes_its_range_add_up_to_zero() -> None:
    script = Script()
    script.add_checksum("a", 1, 0, 3)
    done = carry_out(script.contents(), {"a": b"\x10\x00\x20\x33"}, {"a": 0})
    assert done["a"] == b"\x10\xd0\x20\x33"


def test_commands_that_are_not_known_are_skipped() -> None:
    assert carry_out(struct.pack("<I", 77).ljust(128, b"\0"), {"a": b"x"}, {"a": 0}) == {"a": b"x"}


@pytest.mark.parametrize(
    ("offset", "size", "file", "target"),
    [(0, 4, "none", "a"), (0, 4, "a", "none"), (1, 4, "a", "a"), (0, 3, "a", "a"), (0, 0, "a", "a"), (5, 1, "a", "a")],
)
def test_a_field_outside_its_file_is_refused(offset: int, size: int, file: str, target: str) -> None:
    script = Script()
    script.add_pointer(file, offset, size, target)
    with pytest.raises(ValueError, match=r"^table-loader: .* is no file, or a field is outside its file$"):
        carry_out(script.contents(), {"a": b"1234"}, {"a": 0})


@pytest.mark.parametrize(("offset", "start", "length"), [(4, 0, 4), (0, 1, 4), (0, 5, 1)])
def test_a_checksum_outside_its_file_is_refused(offset: int, start: int, length: int) -> None:
    script = Script()
    script.add_checksum("a", offset, start, length)
    with pytest.raises(ValueError, match=r"is no file, or a field is outside its file$"):
        carry_out(script.contents(), {"a": b"1234"}, {"a": 0})


@pytest.mark.parametrize("name", ["", "x" * 56, "a\0b", "ä"])
def test_a_name_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be 1 to 55 ASCII characters"):
        Script().allocate(name, 16)


def test_the_board_s_script_places_three_files() -> None:
    assert allocations(files()["etc/table-loader"]) == [
        Allocation("etc/acpi/tables", 16, HIGH),
        Allocation("etc/acpi/facs", 64, HIGH),
        Allocation("etc/acpi/rsdp", 16, F_SEGMENT),
    ]
