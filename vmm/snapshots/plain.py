"""Plain data as bytes and back: MessagePack for the tree of tables, and beside it all longer bytes in one row.

What `devices.state` calls plain goes in and comes out: None, bool, int of any size, str, bytes, lists and dicts.  Two
extensions of MessagePack carry what it lacks: integers beyond 64 bits, and the places of the longer bytes.  Those are
apart so that the tree, each byte of which may become an object, can be bounded tightly, and each of them stands in it
exactly once, in order: no small tree can name the same megabytes again and again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from devices.state import Plain
from vmm.snapshots.layout import Damaged

INTEGER, BLOB = 1, 2
LONGEST_IN_TREE_BYTES = 255
LARGEST_INTEGER_BYTES = 32
_PLACE_BYTES = 8


def encode(value: Plain) -> tuple[bytes, bytes]:
    """The tree and the longer bytes of `value`."""
    blobs: list[bytes] = []
    tree = msgspec.msgpack.encode(_wrapped(value, blobs))
    return tree, b"".join(blobs)


def _wrapped(value: Plain, blobs: list[bytes]) -> Any:
    """`value` with extensions for what MessagePack cannot say itself."""
    if isinstance(value, dict):
        return {name: _wrapped(each, blobs) for name, each in value.items()}
    if isinstance(value, list):
        return [_wrapped(each, blobs) for each in value]
    if isinstance(value, bytes) and len(value) > LONGEST_IN_TREE_BYTES:
        blobs.append(value)
        return msgspec.msgpack.Ext(BLOB, len(value).to_bytes(_PLACE_BYTES, "little"))
    if type(value) is int and not -(1 << 63) <= value < 1 << 64:
        return msgspec.msgpack.Ext(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    return value


def decode(tree: bytes, blobs: bytes) -> dict[str, Any]:
    """The table that `encode` was given.  Damaged for what it cannot have made; the caller has bounded both."""
    position = 0

    def extension(code: int, data: memoryview) -> Any:
        nonlocal position
        if code == INTEGER and 0 < len(data) <= LARGEST_INTEGER_BYTES:
            return int.from_bytes(data, "little", signed=True)
        if code == BLOB and len(data) == _PLACE_BYTES:
            start, position = position, position + int.from_bytes(data, "little")
            if position <= len(blobs):
                return blobs[start:position]
        raise Damaged("its tree has an extension that means nothing")

    try:
        value = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=extension).decode(tree)
    except (msgspec.MsgspecError, RecursionError, TypeError, ValueError):
        raise Damaged("its tree is no table of fields") from None
    if position != len(blobs):
        raise Damaged("its tree does not name all of its bytes")
    return value
