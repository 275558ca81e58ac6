"""What a snapshot says of itself: the machine that it can be put into, when it was taken, and the sizes of its parts.

It is read before anything else, and decides how large the rest may be.  The machine is written down as a user would ask
for it, and goes through the same checks again: nothing of it is trusted.  Names of files are bytes, as the host has
them; no such file is opened again.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta

from devices.errors import ConfigError
from vmm import __version__
from vmm.config import ArchName, ClockName, MachineConfig
from vmm.models import parse_devices
from vmm.snapshots.layout import Damaged
from vmm.state import SCHEMA, VERSION

LARGEST_TREE_BYTES = 8 << 20
LARGEST_BLOBS_BYTES = 64 << 20
MOST_FOR_RAM = 128  # both may grow with the machine's RAM, by a byte for so many of it
LONGEST_NAME_BYTES, LONGEST_WORD, LONGEST_DEVICE, MOST_DEVICES = 4096, 40, 2000, 64

_Size = Annotated[int, Meta(ge=0)]
_Name = Annotated[bytes, Meta(max_length=LONGEST_NAME_BYTES)]
_Word = Annotated[str, Meta(max_length=LONGEST_WORD)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the file: its bytes there and decompressed, and the SHA-256 of what is in the file."""

    stored: _Size
    size: _Size
    sha256: bytes


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`clock_ns` is the guest time at which it was taken, `chunks_bytes` what the RAM takes in the file; `for_ns` and
    what is called as in `MachineConfig` are the machine's."""

    schema: str
    version: int
    written_by: _Word
    clock_ns: _Size
    guest: _Name
    title: _Name
    bios: _Name
    parameter: _Name
    memory_bytes: _Size
    clock: _Word
    for_ns: Annotated[int, Meta(ge=1)] | None
    reset_status: Annotated[int, Meta(ge=0, le=255)]
    arch: _Word
    watch_driver: bool
    devices: Annotated[list[Annotated[str, Meta(max_length=LONGEST_DEVICE)]], Meta(max_length=MOST_DEVICES)]
    chunks_bytes: _Size
    blobs: Part
    tree: Part

    def config(self) -> MachineConfig:
        """The machine.  ConfigError where it cannot be, on this host or on any."""
        return MachineConfig(
            guest=os.fsdecode(self.guest),
            title=os.fsdecode(self.title),
            bios=os.fsdecode(self.bios),
            parameter=self.parameter.decode("utf-8", "surrogateescape"),
            memory_bytes=self.memory_bytes,
            clock=cast(ClockName, self.clock),
            for_ns=self.for_ns,
            reset_status=self.reset_status,
            arch=cast(ArchName, self.arch),
            watch_driver=self.watch_driver,
            devices=parse_devices(self.devices),
        )


def describe(config: MachineConfig, clock_ns: int, chunks_bytes: int, blobs: Part, tree: Part) -> bytes:
    """The description of a machine made after `config`, encoded."""
    return msgspec.msgpack.encode(
        Description(
            schema=SCHEMA,
            version=VERSION,
            written_by=__version__,
            clock_ns=clock_ns,
            guest=os.fsencode(config.guest),
            title=os.fsencode(config.title),
            bios=os.fsencode(config.bios),
            parameter=config.parameter_bytes,
            memory_bytes=config.memory_bytes,
            clock=config.clock,
            for_ns=config.for_ns,
            reset_status=config.reset_status,
            arch=config.arch,
            watch_driver=config.watch_driver,
            devices=[device.words for device in config.devices],
            chunks_bytes=chunks_bytes,
            blobs=blobs,
            tree=tree,
        )
    )


def parse(data: bytes, path: str) -> Description:
    """The description in `data`, of the snapshot that a user calls `path`.  ConfigError for a state of another version,
    which may be described otherwise; Damaged for what nobody has written."""
    try:
        fields = msgspec.msgpack.decode(data, type=dict[str, Any])
        if fields.get("schema") != SCHEMA:
            raise Damaged("it is no snapshot of this kind of machine")
        if fields.get("version") != VERSION:
            by = fields.get("written_by")
            raise ConfigError(
                f"The snapshot {path!r} must have a state of version {VERSION}, not {fields.get('version')!s:.20}; "
                f"vmm {by!s:.20} has written it."
            )
        return msgspec.convert(fields, Description)
    except (msgspec.MsgspecError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise Damaged("its description cannot be read") from None


def check_sizes(blobs: int, tree: int, memory_bytes: int) -> None:
    """Damaged unless parts of so many bytes can belong to a machine with so much RAM."""
    more = memory_bytes // MOST_FOR_RAM
    if not 0 <= blobs <= LARGEST_BLOBS_BYTES + more or not 0 < tree <= LARGEST_TREE_BYTES + more:
        raise Damaged(f"its state is larger than that of any machine ({blobs} and {tree} bytes)")
