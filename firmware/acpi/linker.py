"""QEMU's table-loader: files with tables, and the script by which firmware puts them into RAM.

Tables hold addresses of other tables and checksums over both, and only the firmware knows where memory is free.  So the
host hands over files and a script, `etc/table-loader`, of entries of 128 bytes: ALLOCATE a file's bytes somewhere,
ADD_POINTER the address of one file to a little-endian field in another, ADD_CHECKSUM of a range into one of its bytes.

`Script` writes one, `carry_out` does what it says, for hosts that place tables themselves; firmware/acpi.c is the same
in the guest.  Neither knows what a table is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import NamedTuple

SCRIPT_FILE = "etc/table-loader"
ENTRY_BYTES = 128
ALLOCATE, ADD_POINTER, ADD_CHECKSUM = 1, 2, 3
HIGH, F_SEGMENT = 1, 2
"""Zones: anywhere below 4 GiB, or below 1 MiB where a search finds it."""

_ALLOCATE = struct.Struct("<I56sIB")
_ADD_POINTER = struct.Struct("<I56s56sIB")
_ADD_CHECKSUM = struct.Struct("<I56sIII")
_COMMAND = struct.Struct("<I")
MAX_NAME_BYTES = 55


class Script:
    """Builds the contents of `etc/table-loader`.  ValueError for a file name that does not fit."""

    def __init__(self) -> None:
        self._entries: list[bytes] = []

    def allocate(self, file: str, alignment: int, zone: int = HIGH) -> None:
        """`alignment` is a power of two."""
        self._entries.append(_ALLOCATE.pack(ALLOCATE, _encode_name(file), alignment, zone))

    def add_pointer(self, file: str, offset: int, size: int, target: str) -> None:
        """The field of `size` bytes (1, 2, 4 or 8) at `offset` of `file` holds an offset into `target` so far."""
        names = _encode_name(file), _encode_name(target)
        self._entries.append(_ADD_POINTER.pack(ADD_POINTER, *names, offset, size))

    def add_checksum(self, file: str, offset: int, start: int, length: int) -> None:
        """The byte at `offset` of `file`, zero so far, makes the sum of `length` bytes from `start` on zero."""
        self._entries.append(_ADD_CHECKSUM.pack(ADD_CHECKSUM, _encode_name(file), offset, start, length))

    def contents(self) -> bytes:
        return b"".join(entry.ljust(ENTRY_BYTES, b"\0") for entry in self._entries)


def _encode_name(name: str) -> bytes:
    if not name.isascii() or not 0 < len(name) <= MAX_NAME_BYTES or "\0" in name:
        raise ValueError(f"table-loader: a file name must be 1 to {MAX_NAME_BYTES} ASCII characters, not {name!r}")
    return name.encode("ascii")


class Allocation(NamedTuple):
    """What a script asks room for."""

    file: str
    alignment: int
    zone: int


def allocations(script: bytes) -> list[Allocation]:
    """The files that `script` places, in its order."""
    found = []
    for entry in _entries(script):
        if _COMMAND.unpack_from(entry)[0] == ALLOCATE:
            _, name, alignment, zone = _ALLOCATE.unpack_from(entry)
            found.append(Allocation(_decode_name(name), alignment, zone))
    return found


def carry_out(script: bytes, files: Mapping[str, bytes], addresses: Mapping[str, int]) -> dict[str, bytes]:
    """Every placed file as it must lie in RAM if it begins at `addresses[name]`.

    ValueError if the script names a file that is not there, or a field that is not in its file."""
    placed = {name: bytearray(files[name]) for name in addresses}
    for entry in _entries(script):
        command = _COMMAND.unpack_from(entry)[0]
        try:
            if command == ADD_POINTER:
                _add_pointer(entry, placed, addresses)
            elif command == ADD_CHECKSUM:
                _add_checksum(entry, placed)
        except (KeyError, IndexError) as error:
            raise ValueError(f"table-loader: {error.args[0]!r} is no file, or a field is outside its file") from error
    return {name: bytes(contents) for name, contents in placed.items()}


def _entries(script: bytes) -> list[bytes]:
    return [script[at : at + ENTRY_BYTES] for at in range(0, len(script) - ENTRY_BYTES + 1, ENTRY_BYTES)]


def _decode_name(name: bytes) -> str:
    return name.split(b"\0")[0].decode("ascii", "replace")


def _add_pointer(entry: bytes, placed: dict[str, bytearray], addresses: Mapping[str, int]) -> None:
    _, name, target, offset, size = _ADD_POINTER.unpack_from(entry)
    contents, base = placed[_decode_name(name)], addresses[_decode_name(target)]
    field = slice(offset, offset + size)
    if size not in (1, 2, 4, 8) or len(contents[field]) != size:
        raise IndexError(offset)
    value = int.from_bytes(contents[field], "little") + base
    contents[field] = (value % (1 << 8 * size)).to_bytes(size, "little")


def _add_checksum(entry: bytes, placed: dict[str, bytearray]) -> None:
    _, name, offset, start, length = _ADD_CHECKSUM.unpack_from(entry)
    contents = placed[_decode_name(name)]
    covered = contents[start : start + length]
    if len(covered) != length:
        raise IndexError(start)
    contents[offset] = (contents[offset] - sum(covered)) % 256
