"""Made-up Linux kernels, written from the kernel's documentation (boot.rst) and the ELF specification."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Sequence

KERNEL_GPA = 0x100_0000
ENTRY_CODE = b"\xf4"  # hlt

Part = tuple[int, bytes, int]  # physical address, bytes in the file, bytes in memory


def note(owner: bytes, kind: int, description: bytes) -> bytes:
    name = owner + b"\0"
    padded = (part + bytes(-len(part) % 4) for part in (name, description))
    return struct.pack("<III", len(name), len(description), kind) + b"".join(padded)


def vmlinux(
    parts: Sequence[Part] = ((KERNEL_GPA, ENTRY_CODE, 0x2000),),
    *,
    entry: int = KERNEL_GPA,
    notes: bytes = b"",
    elf_class: int = 2,
    machine: int = 62,
) -> bytes:
    """An ELF64 file linked high, with its segments at their physical addresses and one segment of notes."""
    segments = [(1, 5, gpa, 0xFFFFFFFF80000000 + gpa, data, size) for gpa, data, size in parts]
    segments += [(4, 4, 0, 0, notes, len(notes))] if notes else []
    position = 64 + 56 * len(segments)
    header = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    table, body = b"", b""
    for kind, flags, gpa, gva, data, size in segments:
        table += struct.pack("<IIQQQQQQ", kind, flags, position + len(body), gva, gpa, len(data), size, 4)
        body += data
    return header + table + body


def bzimage(
    payload: bytes | None = None,
    *,
    protocol: int = 0x20F,
    xloadflags: int = 0x7F,
    init_bytes: int = 0x100_0000,
    initrd_max: int = 0x7FFFFFFF,
    cmdline_bytes: int = 2047,
    setup_sectors: int = 4,
) -> bytes:
    """A bzImage around `payload`, a compressed vmlinux as it lies in the file."""
    payload = gzip.compress(vmlinux()) if payload is None else payload
    before = b"decompressor"
    system = before + payload
    system += bytes(-len(system) % 16)
    setup = bytearray((setup_sectors + 1) * 512)
    struct.pack_into("<B", setup, 0x1F1, setup_sectors)
    struct.pack_into("<I", setup, 0x1F4, len(system) // 16)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    struct.pack_into("<BB4sH", setup, 0x200, 0xEB, 0x6A, b"HdrS", protocol)  # a jump over the header, to 26Ch
    struct.pack_into("<B", setup, 0x211, 0x03)  # LOADED_HIGH, and KASLR_FLAG, which must not come through
    struct.pack_into("<I", setup, 0x22C, initrd_max)
    struct.pack_into("<IBBHI", setup, 0x230, 0x200000, 1, 21, xloadflags, cmdline_bytes)
    struct.pack_into("<II", setup, 0x248, len(before), len(payload))
    struct.pack_into("<QI", setup, 0x258, KERNEL_GPA, init_bytes)
    return bytes(setup) + system
