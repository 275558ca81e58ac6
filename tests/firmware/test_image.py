"""The committed ROM: what the processor needs to find in it, and that it is what its sources say."""

from __future__ import annotations

import re
from pathlib import Path

import firmware
from firmware.build import build_firmware
from tests.firmware.elf import parse, section, symbols

ROOT = Path(firmware.__file__).resolve().parents[1]
NEAR_JUMP_16 = (0xE9, 0xEB)


def test_the_rom_has_64_kib_and_a_jump_at_the_reset_vector() -> None:
    rom = firmware.image()
    assert len(rom) == firmware.ROM_BYTES == 64 * 1024
    assert rom[-16] in NEAR_JUMP_16


def test_the_version_is_the_one_in_the_source() -> None:
    source = (ROOT / "firmware" / "main.c").read_text(encoding="utf-8")
    assert re.findall(r'#define VERSION "(.*)"', source) == [firmware.VERSION]


def test_the_exit_codes_are_the_ones_in_the_source() -> None:
    source = (ROOT / "firmware" / "firmware.h").read_text(encoding="utf-8")
    codes = dict(re.findall(r"(EXIT_\w+) = (\d+)", source))
    assert codes == {name: str(getattr(firmware, name)) for name in ("EXIT_BAD_BOARD", "EXIT_BAD_PAYLOAD")}


def test_building_the_sources_gives_the_committed_rom() -> None:
    built = build_firmware(ROOT)
    assert built.image == firmware.image(), "run `make images`"
    assert built.debug == firmware.symbols(), "run `make images`"


def test_the_symbols_belong_to_the_rom() -> None:
    elf = parse(firmware.symbols())
    code = section(elf, ".text")
    at = code["sh_addr"] - 0xFFFF0000
    assert firmware.image()[at : at + code["sh_size"]] == code.data()
    names = symbols(elf)
    assert names["reset_vector"] == 0xFFFFFFF0
    assert {"firmware_main", "paging_start", "pci_scan"} <= names.keys()
