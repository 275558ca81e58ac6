"""Small ELF files for the tests: relocatable ones with a section .modinfo, and programs, byte by byte (ELF-64)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

ET_REL, ET_EXEC, EM_X86_64, EM_AARCH64 = 1, 2, 62, 183
PT_LOAD, PT_INTERP = 1, 3
SHT_PROGBITS, SHT_STRTAB = 1, 3
VERSION = "6.1.0-1-test"


def module_file(*lines: str, vermagic: str = f"{VERSION} SMP mod_unload ") -> bytes:
    """A kernel module whose .modinfo has `lines` ("depends=a,b") and a vermagic."""
    info = b"".join(line.encode() + b"\0" for line in (*lines, f"vermagic={vermagic}"))
    return elf_with_section(".modinfo", info)


def elf_with_section(name: str, contents: bytes, kind: int = ET_REL) -> bytes:
    """An ELF file with one section beside its names."""
    names = b"\0" + name.encode() + b"\0.shstrtab\0"
    body = contents + names
    sections = [
        bytes(64),
        _section(1, SHT_PROGBITS, 64, len(contents)),
        _section(1 + len(name) + 1, SHT_STRTAB, 64 + len(contents), len(names)),
    ]
    return _header(kind, EM_X86_64, 0, 64 + len(body), len(sections)) + body + b"".join(sections)


def program_file(contents: bytes, *, machine: int = EM_X86_64, interpreter: bool = False) -> bytes:
    """A program that is nothing but `contents`."""
    kinds = [PT_INTERP] * interpreter + [PT_LOAD]
    start = 64 + 56 * len(kinds)
    size = len(contents)
    headers = b"".join(struct.pack("<IIQQQQQQ", kind, 5, start, 0, 0, size, size, 1) for kind in kinds)
    return _header(ET_EXEC, machine, len(kinds), 0, 0) + headers + contents


def busybox_file(applets: Sequence[str]) -> bytes:
    """A static program with a list of names as busybox keeps it."""
    return program_file(b"text\0" + b"".join(name.encode() + b"\0" for name in applets) + b"\0more")


def module_folder(root: Path, modules: dict[str, bytes], version: str = VERSION) -> Path:
    """lib/modules/VERSION below `root` with files by their path below `kernel`."""
    folder = root / "lib" / "modules" / version
    for path, data in modules.items():
        place = folder / "kernel" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return folder


def _header(kind: int, machine: int, segments: int, sections_at: int, sections: int) -> bytes:
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    segments_at = 64 if segments else 0
    last = max(sections - 1, 0)
    return ident + struct.pack(
        "<HHIQQQIHHHHHH", kind, machine, 1, 0, segments_at, sections_at, 0, 64, 56, segments, 64, sections, last
    )


def _section(name: int, kind: int, offset: int, size: int) -> bytes:
    return struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, offset, size, 0, 0, 1, 0)


def out_of_reach(data: bytes, *, table: int) -> bytes:
    """`data` with a table that no file is long enough for: e_phoff is at 32, e_shoff at 40."""
    return data[:table] + struct.pack("<Q", 1 << 63) + data[table + 8 :]
