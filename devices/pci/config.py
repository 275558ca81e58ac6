"""PCI configuration space as a table of fields (PCI 3.0 §6.1 and §6.2).

Owns the 256 bytes of one function: which bits they hold after reset and which of them software may change.  Refuses to
know what any bit means; `function.py` looks at the fields after each write and acts on them.

A field's `writable` mask is the only rule for writes, so every width, alignment and straddle has the same answer: each
bit stands alone.  Bytes beyond the 256 read as zero and ignore writes, as do bytes that no field covers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, NamedTuple

from devices.state import Bytes, Stateful, Table

CONFIG_BYTES = 256
FIRST_CAPABILITY = 0x40

# Command register, PCI 3.0 §6.2.2
COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
COMMAND_INTX_DISABLE = 1 << 10
COMMAND_WRITABLE = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE

# Status register, PCI 3.0 §6.2.3
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4

HEADER_MULTIFUNCTION = 1 << 7  # header type, PCI 3.0 §6.2.1


class Field(NamedTuple):
    """`size` bytes at `offset`: `value` after reset, of which software may change the bits of `writable`."""

    offset: int
    size: int
    name: str
    value: int = 0
    writable: int = 0


class ConfigSpace(Stateful):
    """The 256 bytes that `fields` describe.

    ValueError at construction when two fields overlap, one leaves the space, or a value does not fit its size.
    `config["command"]` is the device's own side of a field, which no mask binds.
    """

    STATE: ClassVar[Table] = {"_bytes": Bytes()}

    def __init__(self, fields: Iterable[Field]) -> None:
        self._fields: dict[str, Field] = {}
        self._initial = bytearray(CONFIG_BYTES)
        self._writable = bytearray(CONFIG_BYTES)
        taken: set[int] = set()
        for field in fields:
            span = range(field.offset, field.offset + field.size)
            if field.name in self._fields or taken.intersection(span) or span.stop > CONFIG_BYTES:
                raise ValueError(f"config field {field.name} at {field.offset:#x} overlaps another or leaves the space")
            taken.update(span)
            self._fields[field.name] = field
            self._initial[span.start : span.stop] = field.value.to_bytes(field.size, "little")
            self._writable[span.start : span.stop] = field.writable.to_bytes(field.size, "little")
        self._bytes = bytearray(self._initial)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigSpace) and vars(self) == vars(other)

    def __getitem__(self, name: str) -> int:
        field = self._fields[name]
        return self.read(field.offset, field.size)

    def __setitem__(self, name: str, value: int) -> None:
        field = self._fields[name]
        self._bytes[field.offset : field.offset + field.size] = value.to_bytes(field.size, "little")

    def field(self, name: str) -> Field:
        """The description of the field called `name`; KeyError when there is none."""
        return self._fields[name]

    def read(self, offset: int, size: int) -> int:
        """The little-endian value of `size` bytes at `offset`, any of either."""
        return int.from_bytes(self._bytes[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Software's write of the low `size` bytes of `value` at `offset`, any of either."""
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        for position, byte in zip(range(offset, min(offset + size, CONFIG_BYTES)), data, strict=False):
            writable = self._writable[position]
            self._bytes[position] = self._bytes[position] & ~writable | byte & writable

    def reset(self) -> None:
        """Every field back to its value after reset."""
        self._bytes[:] = self._initial


class BarKind(Enum):
    """What a base address register maps; the value is its read-only low bits (PCI 3.0 §6.2.5.1)."""

    MEMORY32 = 0b0000
    MEMORY64 = 0b0100
    IO = 0b0001


@dataclass(frozen=True, slots=True)
class Bar:
    """Base address register `index` (0 to 5; a 64-bit one takes the next as well) that maps `size` bytes."""

    index: int
    size: int
    kind: BarKind

    @property
    def name(self) -> str:
        return f"bar{self.index}"

    @property
    def bits(self) -> int:
        """The width of the register."""
        return 64 if self.kind is BarKind.MEMORY64 else 32

    @property
    def type_mask(self) -> int:
        """The low bits that are no address."""
        return 0x3 if self.kind is BarKind.IO else 0xF

    def field(self) -> Field:
        """The register as a field: because the bits below the size are fixed, writing all ones reads back the size.

        ValueError unless the size is a power of two that the register can express."""
        smallest = self.type_mask + 1
        if self.size < smallest or self.size & self.size - 1 or self.index + self.bits // 32 > 6:
            raise ValueError(f"BAR{self.index} of {self.size:#x} bytes cannot be expressed")
        writable = (1 << self.bits) - self.size
        return Field(0x10 + 4 * self.index, self.bits // 8, self.name, self.kind.value, writable)

    def base(self, value: int) -> int | None:
        """The address that `value` asks for; None for the all-ones pattern, which only asks for the size."""
        base = value & ~self.type_mask
        return None if base + self.size == 1 << self.bits else base


class Identity(NamedTuple):
    """Who a function says it is; `class_code` is base class, subclass and interface in 24 bits."""

    vendor_id: int
    device_id: int
    revision: int
    class_code: int
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0


class Capability(NamedTuple):
    """An entry of the capability list: `size` bytes with the identifier and the link in front.

    The `fields` count offsets from its start; in the configuration space each is called "NAME.FIELD"."""

    name: str
    identifier: int
    size: int
    fields: tuple[Field, ...]


def header_fields(
    identity: Identity,
    bars: Iterable[Bar],
    capabilities: Iterable[Capability],
    interrupt_pin: int,
    *,
    multifunction: bool = False,
) -> list[Field]:
    """The type 0 header (PCI 3.0 §6.1) and the capability list (§6.7) behind it, in the order given.

    There is no expansion ROM, so its base address register is fixed at zero (§6.2.5.2)."""
    linked = list(_lay_out(capabilities))
    pointer = linked[0].offset if linked else 0
    return [
        Field(0x00, 2, "vendor_id", identity.vendor_id),
        Field(0x02, 2, "device_id", identity.device_id),
        Field(0x04, 2, "command", 0, COMMAND_WRITABLE),
        Field(0x06, 2, "status", STATUS_CAPABILITIES if linked else 0),
        Field(0x08, 1, "revision_id", identity.revision),
        Field(0x09, 3, "class_code", identity.class_code),
        Field(0x0C, 1, "cache_line_size", 0, 0xFF),
        Field(0x0E, 1, "header_type", HEADER_MULTIFUNCTION if multifunction else 0),
        *(bar.field() for bar in bars),
        Field(0x2C, 2, "subsystem_vendor_id", identity.subsystem_vendor_id),
        Field(0x2E, 2, "subsystem_id", identity.subsystem_id),
        Field(0x30, 4, "expansion_rom_base"),
        Field(0x34, 1, "capabilities_pointer", pointer),
        Field(0x3C, 1, "interrupt_line", 0, 0xFF),
        Field(0x3D, 1, "interrupt_pin", interrupt_pin),
        *linked,
    ]


def _lay_out(capabilities: Iterable[Capability]) -> Iterable[Field]:
    entries = list(capabilities)
    start = FIRST_CAPABILITY
    for index, capability in enumerate(entries):
        following = start + (capability.size + 3 & ~3)
        yield Field(start, 1, f"{capability.name}.cap_id", capability.identifier)
        yield Field(start + 1, 1, f"{capability.name}.cap_next", following if index + 1 < len(entries) else 0)
        for field in capability.fields:
            yield field._replace(offset=start + field.offset, name=f"{capability.name}.{field.name}")
        start = following
