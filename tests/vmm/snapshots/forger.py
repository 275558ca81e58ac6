"""Snapshot files taken apart and put together after docs/snapshot.md, independent of the code that writes them: what is
changed in between has right checksums everywhere."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zstandard

MAGIC = b"BVMMSNAP"
HEADER = struct.Struct("<8sIIQQ32s32s")
CHUNK = struct.Struct("<III32s")
EXTENT, RUN = struct.Struct("<QQ"), struct.Struct("<QI")


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def pack(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def unpack(frame: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(frame)


@dataclass
class Forger:
    """The parts of a file.  `tree`, `blobs` and `chunks` are as in the file, compressed; `description` as a table;
    with `fixes_sizes` it gets the sizes and checksums of what there is when the file is put together."""

    description: dict[str, Any]
    chunks: bytes
    blobs: bytes
    tree: bytes
    format: int = 1
    fixes_sizes: bool = True
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes) -> Forger:
        magic, format_, length, offset, size, digest, own = HEADER.unpack_from(data)
        assert (magic, format_, size, offset + length) == (MAGIC, 1, len(data), len(data))
        assert (digest, own) == (sha256(data[offset:]), sha256(data[:64]))
        description = msgspec.msgpack.decode(data[offset:])
        parts, place = [], HEADER.size
        for stored in (description["chunks_bytes"], description["blobs"]["stored"], description["tree"]["stored"]):
            parts.append(data[place : place + stored])
            place += stored
        assert place == offset, "there is no gap"
        chunks, blobs, tree = parts
        return cls(description, chunks, blobs, tree)

    def to_bytes(self) -> bytes:
        if self.fixes_sizes:
            self.description["chunks_bytes"] = len(self.chunks)
            for name, frame in (("blobs", self.blobs), ("tree", self.tree)):
                size = self.sizes.get(name)
                found = {"stored": len(frame), "size": len(unpack(frame)) if size is None else size}
                self.description[name] = {**found, "sha256": sha256(frame)}
        description = msgspec.msgpack.encode(self.description)
        offset = HEADER.size + len(self.chunks) + len(self.blobs) + len(self.tree)
        head = HEADER.pack(
            MAGIC, self.format, len(description), offset, offset + len(description), sha256(description), bytes(32)
        )[:64]
        return head + sha256(head) + self.chunks + self.blobs + self.tree + description

    # -- the state in the tree -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The table of the tree, with the blobs in their places."""
        blobs, place = unpack(self.blobs), 0

        def extension(code: int, data: memoryview) -> Any:
            nonlocal place
            if code == 1:
                return int.from_bytes(data, "little", signed=True)
            length = int.from_bytes(data, "little")
            place += length
            return blobs[place - length : place]

        return msgspec.msgpack.decode(unpack(self.tree), type=dict[str, Any], ext_hook=extension)

    def put_state(self, state: Any) -> Forger:
        """A tree without any blobs: bytes of every length may stand in it."""
        self.tree, self.blobs = pack(msgspec.msgpack.encode(_with_extensions(state))), pack(b"")
        return self

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """The three tables of RAM."""
        memory = self.state()["state"]["memory"]
        kinds = {"extents": EXTENT, "runs": RUN, "chunks": CHUNK}
        return {name: list(kind.iter_unpack(memory[name])) for name, kind in kinds.items()}

    def put_tables(self, **tables: list[tuple[Any, ...]]) -> Forger:
        state = self.state()
        for name, rows in tables.items():
            kind = {"extents": EXTENT, "runs": RUN, "chunks": CHUNK}[name]
            state["state"]["memory"][name] = b"".join(kind.pack(*row) for row in rows)
        return self.put_state(state)


def _with_extensions(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_extensions(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_extensions(each) for each in value]
    if type(value) is int and not -(1 << 63) <= value < 1 << 64:
        return msgspec.msgpack.Ext(1, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    return value
