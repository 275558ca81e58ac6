"""Where the fields of a virtqueue lie, as the driver computes them from §2.7 and §2.8 alone.

Pure arithmetic over `struct` formats: no state, no memory.  The driver uses it to write its rings, raw tests use it to
write wrong ones.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from devices.virtio import spec

_DESCRIPTOR: dict[spec.ByteOrder, struct.Struct] = {"<": struct.Struct("<QIHH"), ">": struct.Struct(">QIHH")}
DESCRIPTOR_BYTES = _DESCRIPTOR["<"].size


class Descriptor(NamedTuple):
    """One 16-byte entry of a descriptor table (§2.7.5); fields wrap to their widths when packed."""

    addr: int
    len: int
    flags: int = 0
    next: int = 0

    def pack(self, order: spec.ByteOrder = "<") -> bytes:
        return _DESCRIPTOR[order].pack(self.addr % 2**64, self.len % 2**32, self.flags % 2**16, self.next % 2**16)


class PackedDescriptor(NamedTuple):
    """One 16-byte descriptor of a packed ring (§2.8.13); fields wrap to their widths when packed."""

    addr: int
    len: int
    id: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        return _DESCRIPTOR["<"].pack(self.addr % 2**64, self.len % 2**32, self.id % 2**16, self.flags % 2**16)

    @staticmethod
    def unpack(data: bytes) -> PackedDescriptor:
        return PackedDescriptor(*_DESCRIPTOR["<"].unpack(data))


class Piece(NamedTuple):
    """`length` bytes of guest memory at `gpa`, one element of a buffer; `writable` says by the device."""

    gpa: int
    length: int
    writable: bool = False


def chain(pieces: list[Piece], slots: list[int]) -> dict[int, Descriptor]:
    """The descriptors that chain `pieces` through the table entries `slots`, by slot (§2.7.13.1)."""
    table = {}
    for position, (piece, slot) in enumerate(zip(pieces, slots, strict=True)):
        flags = spec.VIRTQ_DESC_F_WRITE if piece.writable else 0
        following = 0
        if position + 1 < len(pieces):
            flags |= spec.VIRTQ_DESC_F_NEXT
            following = slots[position + 1]
        table[slot] = Descriptor(piece.gpa, piece.length, flags, following)
    return table


def indirect_table(pieces: list[Piece], order: spec.ByteOrder = "<") -> bytes:
    """The bytes of an indirect descriptor table that chains `pieces` in order (§2.7.5.3)."""
    return b"".join(entry.pack(order) for entry in chain(pieces, list(range(len(pieces)))).values())


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Guest-physical addresses of the three parts of a queue of `size` entries (§2.7)."""

    size: int
    desc_gpa: int
    driver_gpa: int
    device_gpa: int

    @staticmethod
    def bytes_needed(size: int, legacy_align: int = 0) -> int:
        """Bytes for all three parts laid out by `at` from a page of 4096 bytes on, padding included."""
        layout = RingLayout.at(0, size, legacy_align)
        return layout.device_gpa + layout.used_bytes + max(legacy_align - 4096, 0)

    @staticmethod
    def at(gpa: int, size: int, legacy_align: int = 0) -> RingLayout:
        """The three parts one after the other from `gpa` on, each with the alignment of §2.7.1.

        With `legacy_align` the used ring has that one, and `gpa` too (§2.7.2)."""
        desc_gpa = _align(gpa, legacy_align or spec.VIRTQ_DESC_ALIGN)
        driver_gpa = _align(desc_gpa + DESCRIPTOR_BYTES * size, spec.VIRTQ_AVAIL_ALIGN)
        device_gpa = _align(driver_gpa + 6 + 2 * size, legacy_align or spec.VIRTQ_USED_ALIGN)
        return RingLayout(size, desc_gpa, driver_gpa, device_gpa)

    @property
    def used_bytes(self) -> int:
        return 6 + 8 * self.size

    def descriptor(self, index: int) -> int:
        return self.desc_gpa + DESCRIPTOR_BYTES * index

    @property
    def avail_flags(self) -> int:
        return self.driver_gpa

    @property
    def avail_idx(self) -> int:
        return self.driver_gpa + 2

    def avail_ring(self, position: int) -> int:
        return self.driver_gpa + 4 + 2 * (position % self.size)

    @property
    def used_event(self) -> int:
        return self.driver_gpa + 4 + 2 * self.size

    @property
    def used_flags(self) -> int:
        return self.device_gpa

    @property
    def used_idx(self) -> int:
        return self.device_gpa + 2

    def used_ring(self, position: int) -> int:
        return self.device_gpa + 4 + 8 * (position % self.size)

    @property
    def avail_event(self) -> int:
        return self.device_gpa + 4 + 8 * self.size


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Guest-physical addresses of the three parts of a packed queue of `size` descriptors (§2.8.10.1, §2.8.14)."""

    size: int
    desc_gpa: int
    driver_gpa: int
    device_gpa: int

    @staticmethod
    def bytes_needed(size: int) -> int:
        """Bytes for all three parts laid out by `at`, padding included."""
        layout = PackedLayout.at(0, size)
        return layout.device_gpa + layout.used_bytes

    @staticmethod
    def at(gpa: int, size: int) -> PackedLayout:
        """The ring at `gpa`, and the two event suppression structures behind it."""
        desc_gpa = _align(gpa, spec.PVIRTQ_DESC_ALIGN)
        driver_gpa = _align(desc_gpa + DESCRIPTOR_BYTES * size, spec.PVIRTQ_EVENT_ALIGN)
        return PackedLayout(size, desc_gpa, driver_gpa, driver_gpa + 4)

    @property
    def used_bytes(self) -> int:
        """Bytes of the device area."""
        return 4

    def descriptor(self, index: int) -> int:
        return self.desc_gpa + DESCRIPTOR_BYTES * (index % self.size)

    def flags(self, index: int) -> int:
        return self.descriptor(index) + 14

    @property
    def driver_off_wrap(self) -> int:
        return self.driver_gpa

    @property
    def driver_flags(self) -> int:
        return self.driver_gpa + 2

    @property
    def device_off_wrap(self) -> int:
        return self.device_gpa

    @property
    def device_flags(self) -> int:
        return self.device_gpa + 2


def _align(value: int, alignment: int) -> int:
    return (value + alignment - 1) // alignment * alignment
