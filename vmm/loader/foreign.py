"""What a file is that was named as a guest by mistake: a flat image has no mark of its own, so anything could be one.

Owns the marks of files that are surely something else.  A mark is trusted only where code hardly begins with it; what
has none is left to be run.
"""

from __future__ import annotations

import string

MARKS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\xfd7zXZ\0", "xz data"),
    (0, bytes.fromhex("28b52ffd"), "zstd data"),
    (0, bytes.fromhex("02214c18"), "LZ4 data"),
    (0, bytes.fromhex("04224d18"), "LZ4 data"),
    (0, b"BZh", "bzip2 data"),
    (0, b"070701", "an initramfs, which goes with a kernel"),
    (0, b"!<arch>\n", "an archive, such as a Debian package"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"QFI\xfb", "a disk image"),
    (257, b"ustar", "a tar archive"),
    (56, b"ARM\x64", "a kernel for ARM"),
    (0x8001, b"CD001", "a disk image"),
    (0, b"#!", "a script"),
)
SETUP_MAGIC, LINUX_MAGIC = (0, b"MZ"), (0x202, b"HdrS")
_TEXT = frozenset(string.printable.encode())  # code of these bytes alone cannot halt, return or jump back


def other_kind(data: bytes) -> str | None:
    """What `data` are, as the end of "is …", if they are surely no image of this machine; None otherwise."""
    for offset, mark, kind in MARKS:
        if data.startswith(mark, offset):
            return kind
    if data.startswith(SETUP_MAGIC[1]) and not data.startswith(LINUX_MAGIC[1], LINUX_MAGIC[0]):
        return "the beginning of a kernel or an EFI program"
    return "text" if _TEXT.issuperset(data[:4096]) else None
