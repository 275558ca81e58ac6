"""What every kind of guest is made of: the file's bytes, their places in RAM, and what the firmware is told.

Owns the description of a loaded guest and the one way to write its bytes.  Refuses to know any file format.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from devices.errors import ConfigError
from devices.memory import GuestMemory

FIRMWARE_END = 0x10000  # the firmware's stack and boot information lie below
EXECUTE, WRITE, READ = 1, 2, 4  # ELF's p_flags
PAYLOAD_MULTIBOOT = 1
MAX_SEGMENTS = 16  # the firmware has room for no more


class Segment(NamedTuple):
    """`size_bytes` of the image's memory at `gpa`, with ELF's permission bits."""

    gpa: int
    size_bytes: int
    flags: int


class Image(NamedTuple):
    """The bytes of a guest's file, and what to call it in a sentence."""

    name: str
    data: bytes


class Module(NamedTuple):
    """A file for the guest beside its kernel, and the words that go with it."""

    name: str
    data: bytes
    cmdline: bytes


class BootData(NamedTuple):
    """What a kernel is told when it starts: its parameter, its modules, and the memory map as (base, length, type)."""

    parameter: bytes = b""
    modules: tuple[Module, ...] = ()
    memory_map: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Payload:
    """An image that lies in RAM: where to enter it and which rights its parts have.

    `multiboot_info` is the address of the boot information of a Multiboot kernel, None for any other guest."""

    name: str
    kind: str
    entry: int
    segments: tuple[Segment, ...]
    multiboot_info: int | None = None

    def description(self) -> bytes:
        """The fw_cfg file opt/balloon-vmm/payload: a header, 24 bytes for each segment and, for a Multiboot kernel, the
        address of its boot information; all little-endian."""
        flags = 0 if self.multiboot_info is None else PAYLOAD_MULTIBOOT
        header = struct.pack("<8sQII", b"BVMMPAY1", self.entry, len(self.segments), flags)
        segments = b"".join(struct.pack("<QQII", s.gpa, s.size_bytes, s.flags, 0) for s in self.segments)
        return header + segments + (b"" if self.multiboot_info is None else struct.pack("<Q", self.multiboot_info))


def place(name: str, gpa: int, data: bytes, size_bytes: int, memory: GuestMemory, *, limit: int = 1 << 64) -> None:
    """Write `data` at `gpa` and see that all `size_bytes` are RAM below `limit` that the firmware leaves alone."""
    if gpa < FIRMWARE_END:
        raise ConfigError(
            f"The guest {name!r} wants the memory at {gpa:#x}, "
            f"but the firmware owns everything below {FIRMWARE_END:#x}."
        )
    if gpa + size_bytes > limit or not memory.contains(gpa, size_bytes):
        raise ConfigError(
            f"The guest {name!r} needs RAM at {gpa:#x}-{gpa + size_bytes - 1:#x}, which this machine does not have."
        )
    memory.write(gpa, data)
