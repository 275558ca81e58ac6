"""The frame of a snapshot file: a header, then four parts without a gap between them.

    header | chunks of RAM | blobs | tree | description

Owns where each part begins, its checksum and its greatest size.  Refuses to know what a part means.  Every byte of the
file is under some SHA-256: the header under its own, the description under the header's, tree and blobs under the
description's, the table of the chunks is a blob, and each chunk is under that table's.

Numbers are little-endian.  A file may have been made by anybody: nothing is read, allocated or decompressed before its
size is known to be within a bound.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass

import zstandard

from devices.errors import ConfigError

MAGIC = b"BVMMSNAP"
FORMAT = 1
LARGEST_DESCRIPTION_BYTES = 1 << 20
LARGEST_WINDOW_BYTES = 8 << 20
DIGEST_BYTES = 32
_FIELDS = struct.Struct("<8sIIQQ32s")  # magic, format, bytes of the description, its offset, bytes of the file, SHA-256
HEADER_BYTES = _FIELDS.size + DIGEST_BYTES
_LEVEL = 1


class Damaged(Exception):
    """Why a file that calls itself a snapshot is none; half a sentence."""


def digest(data: bytes) -> bytes:
    """The SHA-256 of `data`."""
    return hashlib.sha256(data).digest()


@dataclass(frozen=True, slots=True)
class Header:
    """Where the description is, and its checksum."""

    description_offset: int
    description_bytes: int
    file_bytes: int
    description_sha256: bytes

    def to_bytes(self) -> bytes:
        fields = _FIELDS.pack(
            MAGIC,
            FORMAT,
            self.description_bytes,
            self.description_offset,
            self.file_bytes,
            self.description_sha256,
        )
        return fields + digest(fields)


def read_header(fd: int, path: str) -> Header:
    """The header of the file `fd`, which a user calls `path`.  ConfigError for what is no snapshot of this format,
    Damaged for one that is not as it was written."""
    data = os.pread(fd, HEADER_BYTES, 0)
    if not data.startswith(MAGIC):
        raise ConfigError(f"{path!r} is no snapshot of a machine.")
    size = os.fstat(fd).st_size
    if len(data) < HEADER_BYTES:
        raise Damaged(f"it ends after {size} bytes, within its header")
    _, format_, description_bytes, offset, file_bytes, sha256 = _FIELDS.unpack_from(data)
    if format_ != FORMAT:
        raise ConfigError(f"The snapshot {path!r} must be of format {FORMAT}, not {format_}.")
    if digest(data[: _FIELDS.size]) != data[_FIELDS.size :]:
        raise Damaged("its header does not have its checksum")
    if size != file_bytes:
        raise Damaged(f"it must have {file_bytes} bytes, not {size}")
    if not 0 < description_bytes <= LARGEST_DESCRIPTION_BYTES or offset + description_bytes != file_bytes:
        raise Damaged(f"its description cannot be {description_bytes} bytes at {offset}")
    return Header(offset, description_bytes, file_bytes, sha256)


def read_part(fd: int, offset: int, length: int, sha256: bytes, what: str) -> bytes:
    """`length` bytes of the file, which must have that checksum; the caller has bounded them."""
    data = os.pread(fd, length, offset)
    if len(data) != length:
        raise Damaged(f"{what} is cut off")
    if digest(data) != sha256:
        raise Damaged(f"{what} does not have its checksum")
    return data


def compress(data: bytes) -> bytes:
    """One Zstandard frame that tells its contents' size."""
    return zstandard.ZstdCompressor(level=_LEVEL).compress(data)


def decompress(frame: bytes, size: int, what: str) -> bytes:
    """The contents of one frame, which must be `size` bytes; the caller has bounded them."""
    try:
        found = zstandard.get_frame_parameters(frame)
        if found.content_size != size or found.window_size > max(LARGEST_WINDOW_BYTES, size):
            raise Damaged(f"{what} must be {size} bytes, not {found.content_size}")
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError:
        raise Damaged(f"{what} cannot be decompressed") from None
    if len(data) != size:
        raise Damaged(f"{what} must be {size} bytes, not {len(data)}")
    return data
