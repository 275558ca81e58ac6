"""What a file is that was named as a guest by mistake: a flat image has no mark of its own, so anything could be one.

Owns the marks of files that are surely something else.  A mark is trusted only where code hardly begins with it; what
has none is left to be run.
"""

from __future__ import annotations

import codecs

MARKS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\xfd7zXZ\0", "xz data"),
    (0, bytes.fromhex("28b52ffd"), "zstd data"),
    (0, bytes.fromhex("02214c18"), "LZ4 data"),
    (0, bytes.fromhex("04224d18"), "LZ4 data"),
    (0, b"BZh", "bzip2 data"),
    (0, b"070701", "an initramfs, which goes with a kernel"),
    (0, b"070702", "an initramfs, which goes with a kernel"),
    (0, b"!<arch>\n", "an archive, such as a Debian package"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"QFI\xfb", "a disk image"),
    (0, b"KDMV", "a disk image"),
    (0, b"conectix", "a disk image"),
    (0, b"vhdxfile", "a disk image"),
    (0, b"hsqs", "a file system"),
    (0, b"\x89PNG\r\n\x1a\n", "a picture"),
    (0, b"\xff\xd8\xff", "a picture"),
    (0, b"GIF87a", "a picture"),
    (0, b"GIF89a", "a picture"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"SQLite format 3\0", "a database"),
    (0, b"\0asm\1\0\0\0", "a WebAssembly program"),
    (0, b"\xca\xfe\xba\xbe", "a program for Java or macOS"),
    (0, b"\xcf\xfa\xed\xfe", "a program for macOS"),
    (0, codecs.BOM_UTF8, "text"),
    (0, codecs.BOM_UTF16_LE, "text"),
    (0, codecs.BOM_UTF16_BE, "text"),
    (257, b"ustar", "a tar archive"),
    (56, b"ARM\x64", "a kernel for ARM"),
    (0x8001, b"CD001", "a disk image"),
    (0, b"#!", "a script"),
)
SETUP_MAGIC, LINUX_MAGIC = (0, b"MZ"), (0x202, b"HdrS")
_LOOKED_AT_BYTES = 4096
_BLANKS = "\t\n\r\v\f"


def other_kind(data: bytes) -> str | None:
    """What `data` are, as the end of "is …", if they are surely no image of this machine; None otherwise."""
    for offset, mark, kind in MARKS:
        if data.startswith(mark, offset):
            return kind
    if data.startswith(SETUP_MAGIC[1]) and not data.startswith(LINUX_MAGIC[1], LINUX_MAGIC[0]):
        return "the beginning of a kernel or an EFI program"
    return "text" if _is_text(data) else None


def _is_text(data: bytes) -> bool:
    """Whether `data` begin with UTF-8, and so perhaps ASCII, of nothing but what can be printed.

    Code of ASCII's printing characters alone cannot halt, return or jump back.  With the others it might, in theory;
    but a program without a zero, a byte below 20h and an FFh is hardly to be found."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:_LOOKED_AT_BYTES], len(data) <= _LOOKED_AT_BYTES)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in _BLANKS for character in text)
