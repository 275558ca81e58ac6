"""What is inside a compressed kernel, through the usual libraries: LZ4 (legacy frames), gzip, xz and zstd.

Owns the magic numbers and one rule: nothing inflates beyond the limit that the caller gives, whatever the data says.
It refuses to know what a kernel is.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

_LZ4_LEGACY_BLOCK_BYTES = 8 << 20  # a block never inflates to more (lz4's frame format, "legacy frame")

_ZSTD_PIECE_BYTES = 1024  # a stream takes no limit; a block of 4 bytes inflates to 128 KiB at most, a piece to 32 MiB


class Damaged(ValueError):
    """The data are no whole stream of their format, or inflate beyond the limit; the message ends a sentence."""


class Format(NamedTuple):
    """`inflate(data, limit)` stops soon after more than `limit` bytes; it may raise anything for damaged data."""

    name: str
    magic: bytes
    inflate: Callable[[bytes, int], bytes]


def _gzip(data: bytes, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)  # 31: with gzip's header and checksum
    inflated = stream.decompress(data, limit + 1)
    if not stream.eof and len(inflated) <= limit:
        raise EOFError
    return inflated


def _xz(data: bytes, limit: int) -> bytes:
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    inflated = stream.decompress(data, limit + 1)
    if not stream.eof and len(inflated) <= limit:
        raise EOFError
    return inflated


def _zstd(data: bytes, limit: int) -> bytes:
    import zstandard  # only where it is needed: the libraries cost a start

    stream, inflated = zstandard.ZstdDecompressor().decompressobj(), bytearray()
    for position in range(0, len(data), _ZSTD_PIECE_BYTES):
        inflated += stream.decompress(data[position : position + _ZSTD_PIECE_BYTES])
        if stream.eof or len(inflated) > limit:
            return bytes(inflated)
    raise EOFError


def _lz4(data: bytes, limit: int) -> bytes:
    import lz4.block

    inflated, position = bytearray(), len(LZ4_LEGACY_MAGIC)
    while position < len(data) and len(inflated) <= limit:
        (length,) = struct.unpack_from("<I", data, position)
        block = data[position + 4 : position + 4 + length]
        if len(block) < length:
            raise EOFError
        inflated += lz4.block.decompress(block, uncompressed_size=_LZ4_LEGACY_BLOCK_BYTES)
        position += 4 + length
    return bytes(inflated)


LZ4_LEGACY_MAGIC, GZIP_MAGIC = bytes.fromhex("02214c18"), b"\x1f\x8b"
FORMATS = (
    Format("LZ4", LZ4_LEGACY_MAGIC, _lz4),
    Format("gzip", GZIP_MAGIC, _gzip),
    Format("xz", b"\xfd7zXZ\0", _xz),
    Format("zstd", bytes.fromhex("28b52ffd"), _zstd),
)


def find_format(data: bytes) -> Format | None:
    """The format that `data` begin with, or None."""
    return next((one for one in FORMATS if data.startswith(one.magic)), None)


def decompress(data: bytes, limit_bytes: int) -> bytes:
    """All that `data` inflate to, at most `limit_bytes`.  Damaged for anything else.

    Bytes behind the end of a gzip, xz or zstd stream are left alone; LZ4's legacy frame has no end of its own."""
    found = find_format(data)
    if found is None:
        names = ", ".join(one.name for one in FORMATS[:-1])
        raise Damaged(f"is compressed in an unknown way; {names} and {FORMATS[-1].name} are known")
    try:
        inflated = found.inflate(data, limit_bytes)
    except MemoryError:
        raise
    except Exception as error:  # each library has exceptions of its own
        raise Damaged(f"has damaged {found.name} data") from error
    if len(inflated) > limit_bytes:
        raise Damaged(f"has {found.name} data that inflate to more than the {limit_bytes} bytes allowed")
    return inflated
