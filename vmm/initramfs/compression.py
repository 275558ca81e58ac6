"""Kernel modules as distributions compress them, by the end of the file's name: .ko.gz, .ko.xz, .ko.zst.

The libraries do the work; here a file that is not what its name says becomes one sentence, and one that unpacks to
more than any module has is refused before it fills the host's memory.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

import zstandard

from devices.errors import ConfigError

LARGEST_BYTES = 256 << 20  # unpacked; the largest module of a distribution has less than 20 MiB


def _gzip(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    return _complete(unpacker.decompress(data, LARGEST_BYTES + 1), unpacker.eof)


def _xz(data: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    return _complete(unpacker.decompress(data, LARGEST_BYTES + 1), unpacker.eof)


def _zstd(data: bytes) -> bytes:
    unpacker = zstandard.ZstdDecompressor(max_window_size=128 << 20).decompressobj()
    chunk_bytes, parts, size = 1 << 12, list[bytes](), 0  # small: each may unpack to a hundred MiB
    for start in range(0, len(data), chunk_bytes):
        if unpacker.eof or size > LARGEST_BYTES:
            break
        parts.append(unpacker.decompress(data[start : start + chunk_bytes]))
        size += len(parts[-1])
    return _complete(b"".join(parts), unpacker.eof)


def _complete(data: bytes, at_end: bool) -> bytes:
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"it unpacks to more than {LARGEST_BYTES >> 20} MiB")
    if not at_end:
        raise ValueError("it is cut off")
    return data


_UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": _gzip, ".xz": _xz, ".zst": _zstd}
SUFFIXES = tuple(_UNPACK)


def decompress(path: Path) -> bytes:
    """The contents of `path`, unpacked if its name ends in one of SUFFIXES.  ConfigError if that cannot be."""
    try:
        data = path.read_bytes()
        unpack = _UNPACK.get(path.suffix)
        return data if unpack is None else unpack(data)
    except OSError as error:
        raise ConfigError(f"The file {path} cannot be read: {error.strerror}.") from error
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, ValueError) as error:
        raise ConfigError(f"The file {path} cannot be decompressed: {error}.") from error
