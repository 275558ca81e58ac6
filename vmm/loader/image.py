"""What every kind of guest is made of: the file's bytes, their places in RAM, and what the firmware is told.

Owns the description of a loaded guest and the one way to write its bytes.  Refuses to know any file format.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import NamedTuple

from devices.errors import ConfigError
from devices.memory import GuestMemory

FIRMWARE_END = 0x10000  # the firmware's stack and boot information lie below
EXECUTE, WRITE, READ = 1, 2, 4  # ELF's p_flags
MAX_SEGMENTS = 16  # the firmware has room for no more


class Protocol(enum.IntEnum):
    """How the firmware enters a payload; the value is the header's flags."""

    OWN = 0  # boot information of this project, docs/architecture.md
    MULTIBOOT = 1  # Multiboot 0.6.96 §3.2
    LINUX = 2  # the 64-bit boot protocol of Linux (Documentation/arch/x86/boot.rst)
    PVH = 4  # x86/HVM direct boot (Xen's docs/misc/pvh.pandoc)


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

    `information` is the address of what its `protocol` hands over: a Multiboot kernel's boot information, the zero page
    of Linux, the start info of PVH; 0 for any other guest.  `doubt` is what speaks against the file without being
    reason enough to refuse it, as a line, and as the end of a sentence about a guest that died."""

    name: str
    kind: str
    entry: int
    segments: tuple[Segment, ...]
    protocol: Protocol = Protocol.OWN
    information: int = 0
    doubt: str = ""

    def description(self) -> bytes:
        """The fw_cfg file opt/balloon-vmm/payload: a header, 24 bytes for each segment and, for a kernel of a boot
        protocol, the address of what it is told; all little-endian."""
        header = struct.pack("<8sQII", b"BVMMPAY1", self.entry, len(self.segments), self.protocol)
        segments = b"".join(struct.pack("<QQII", s.gpa, s.size_bytes, s.flags, 0) for s in self.segments)
        return header + segments + (struct.pack("<Q", self.information) if self.protocol else b"")


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
