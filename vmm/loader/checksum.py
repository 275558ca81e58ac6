"""The checksum that a bzImage has at its end (Documentation/arch/x86/boot.rst, "The image checksum").

Owns the question whether it matches, and what that means: no kernel may be refused for it.  Builds of Linux 6.15 and
later leave it out, and nothing in the file tells so; signing for secure boot, which Debian does, changes the file
after its build.  What signing fills in is known and is undone here, so a mismatch is worth a word about a kernel that
died, and no more.
"""

from __future__ import annotations

import struct
import zlib

DOUBT = "the kernel's file may be damaged: its checksum does not match (Linux 6.15 and later have none)"

# Microsoft's PE format, "Optional Header"; a kernel's is always the one for 64 bits (PE32+)
_PE_AT, _PE_MAGIC, _OPTIONAL_HEADER = 0x3C, b"PE\0\0", 24
_CHECKSUM, _CERTIFICATES = _OPTIONAL_HEADER + 64, _OPTIONAL_HEADER + 112 + 4 * 8


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
