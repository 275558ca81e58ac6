"""The checksum that a bzImage has at its end (Documentation/arch/x86/boot.rst, "The image checksum").

Owns the question whether it matches, and what that means: no kernel may be refused for it.  Builds of Linux 6.15 and
later leave it out, which only the version in the setup header tells, where there is one; signing for secure boot, which
Debian does, changes the file after its build.  What signing fills in is known and is undone here, so a mismatch is
worth a word, at the start and about a kernel that died, and no more.
"""

from __future__ import annotations

import re
import struct
import zlib

DOUBT = "the kernel's file may be damaged: its checksum does not match (Linux 6.15 and later have none)"

# Microsoft's PE format, "Optional Header"; a kernel's is always the one for 64 bits (PE32+)
_PE_AT, _PE_MAGIC, _OPTIONAL_HEADER = 0x3C, b"PE\0\0", 24
_CHECKSUM, _CERTIFICATES = _OPTIONAL_HEADER + 64, _OPTIONAL_HEADER + 112 + 4 * 8

_VERSION_AT, _VERSION_FROM, _LONGEST_VERSION = 0x20E, 0x200, 256  # "6.1.0-50-cloud-amd64 (…"
_WITHOUT = (6, 15)


def doubt(image: bytes) -> str:
    """What the checksum says against a bzImage, up to where its header says it ends; "" where it says nothing."""
    return "" if checksum_matches(image) or _has_none(image) else DOUBT


def _has_none(image: bytes) -> bool:
    """Whether the kernel tells that it is of a version that is built without one."""
    (offset,) = struct.unpack_from("<H", image, _VERSION_AT)
    start = _VERSION_FROM + offset
    found = re.match(rb"(\d{1,3})\.(\d{1,3})(?!\d)", image[start : start + _LONGEST_VERSION]) if offset else None
    return found is not None and (int(found[1]), int(found[2])) >= _WITHOUT


def checksum_matches(image: bytes) -> bool:
    """Whether the CRC-32 of a bzImage, up to where its header says it ends, is the 0 that its build makes it.

    The build inverts the CRC at its beginning only, zlib at its end too."""
    return zlib.crc32(_unsigned(image)) == 0xFFFFFFFF


def _unsigned(image: bytes) -> bytes:
    """The image with the two fields empty that signing fills in: PE's own checksum, and where the signature is."""
    if len(image) < _PE_AT + 4:
        return image
    (header,) = struct.unpack_from("<I", image, _PE_AT)
    if not image.startswith(_PE_MAGIC, header) or len(image) < header + _CERTIFICATES + 8:
        return image
    unsigned = bytearray(image)
    struct.pack_into("<I", unsigned, header + _CHECKSUM, 0)
    struct.pack_into("<II", unsigned, header + _CERTIFICATES, 0, 0)
    return bytes(unsigned)
