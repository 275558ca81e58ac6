"""`python -m firmware.build`: firmware.rom and firmware.debug from the sources in this folder."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from elftools.elf.elffile import ELFFile

from firmware.toolchain import BuildError, Linked, Program, build, sources_in

ROM_BYTES = 64 * 1024
ROM_BASE = 0x1_0000_0000 - ROM_BYTES
SHARED = ("console.c", "x86/pci_config.c", "string.c")


def program(root: Path) -> Program:
    """The firmware's sources below the project's folder `root`."""
    shared = tuple(root / "guests" / "lib" / name for name in SHARED)
    options = ("-fpie", "-Iguests/lib/x86")
    return Program(root, (*sources_in(root / "firmware"), *shared), root / "firmware" / "rom.ld", options)


def rom(image: bytes) -> bytes:
    """The ROM's 64 KiB out of the linked ELF file: its segments, each at its place."""
    contents = bytearray(ROM_BYTES)
    for segment in ELFFile(BytesIO(image)).iter_segments(type="PT_LOAD"):
        start = segment["p_paddr"] - ROM_BASE
        data = segment.data()
        if not 0 <= start <= start + len(data) <= ROM_BYTES:
            raise BuildError(f"the segment at {segment['p_paddr']:#x} lies outside the ROM")
        contents[start : start + len(data)] = data
    return bytes(contents)


def build_firmware(root: Path) -> Linked:
    """The ROM's bytes (as `image`) and the ELF file for a debugger."""
    linked = build(program(root))
    return Linked(rom(linked.image), linked.debug)


def main() -> None:
    folder = Path(__file__).resolve().parent
    linked = build_firmware(folder.parent)
    (folder / "firmware.rom").write_bytes(linked.image)
    (folder / "firmware.debug").write_bytes(linked.debug)


if __name__ == "__main__":
    main()
