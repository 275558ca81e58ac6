"""Made-up Linux kernels, written from the kernel's documentation (boot.rst) and the ELF specification."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence

import lz4.block

KERNEL_GPA = 0x100_0000
ENTRY_CODE = b"\xf4"  # hlt
PE_HEADER = 0x40
VERSION = 0x400  # where the setup part has the kernel's version

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
    version: bytes = b"",
) -> bytes:
    """A bzImage around `payload`, a compressed vmlinux as it lies in the file; its checksum is the last in it."""
    payload = gzip.compress(vmlinux()) if payload is None else payload
    before = b"decompressor"
    system = before + payload
    system += bytes(-(len(system) + 4) % 16)
    setup = bytearray((setup_sectors + 1) * 512)
    struct.pack_into("<B", setup, 0x1F1, setup_sectors)
    struct.pack_into("<I", setup, 0x1F4, (len(system) + 4) // 16)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    struct.pack_into("<BB4sH", setup, 0x200, 0xEB, 0x6A, b"HdrS", protocol)  # a jump over the header, to 26Ch
    struct.pack_into("<B", setup, 0x211, 0x03)  # LOADED_HIGH, and KASLR_FLAG, which must not come through
    struct.pack_into("<I", setup, 0x22C, initrd_max)
    struct.pack_into("<IBBHI", setup, 0x230, 0x200000, 1, 21, xloadflags, cmdline_bytes)
    struct.pack_into("<II", setup, 0x248, len(before), len(payload))
    struct.pack_into("<QI", setup, 0x258, KERNEL_GPA, init_bytes)
    if version:
        struct.pack_into(f"<{len(version)}sx", setup, VERSION, version)
        struct.pack_into("<H", setup, 0x20E, VERSION - 0x200)
    setup[:2] = b"MZ"
    struct.pack_into("<I", setup, 0x3C, PE_HEADER)
    struct.pack_into("<4sH18xH", setup, PE_HEADER, b"PE\0\0", 0x8664, 0x20B)
    return with_checksum(bytes(setup) + system)


def with_checksum(image: bytes) -> bytes:
    """With the CRC-32 behind it that makes the CRC of the whole 0 (boot.rst): the register as it is, not inverted."""
    return image + struct.pack("<I", zlib.crc32(image) ^ 0xFFFFFFFF)


def signed(image: bytes) -> bytes:
    """As signing for secure boot leaves it: a signature behind it, PE's checksum, and where the signature is."""
    return _with_pe_fields(image, 0xD8D44C, len(image), 1472) + bytes(range(184)) * 8


def unsigned(image: bytes) -> bytes:
    """A bzImage without a signature behind it, and with no word about one in it."""
    return _with_pe_fields(image, 0, 0, 0)


def _with_pe_fields(image: bytes, checksum: int, signature_at: int, signature_bytes: int) -> bytes:
    (header,) = struct.unpack_from("<I", image, 0x3C)
    result = bytearray(image)
    struct.pack_into("<I", result, header + 24 + 64, checksum)
    struct.pack_into("<II", result, header + 24 + 112 + 4 * 8, signature_at, signature_bytes)
    return bytes(result)


def sized(packed: bytes, contents: bytes) -> bytes:
    """With the length that the kernel's build appends for every format but gzip."""
    return packed + struct.pack("<I", len(contents))


def lz4_legacy(data: bytes) -> bytes:
    """lz4's legacy frame: a magic number, then blocks of 8 MiB, each behind its compressed length (lz4 -l)."""
    packed = bytes.fromhex("02214c18")
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed
