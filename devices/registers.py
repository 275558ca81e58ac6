"""Register blocks as tables, and the one place for access width, straddling and read-only bits.

A block is a list of `Register`s whose names are attributes of the object that owns it.  A `read_NAME(now_ns)` method
exists only where reading has a side effect or the value is computed (it returns the value, or the value and its
`Effects`); a `write_NAME(value, now_ns)` method only where writing does (it returns `Effects`).
An access may have any width and alignment: it is cut at register borders, and each register it touches is read or
written once, in ascending order.  A partial write merges with the attribute NAME, never with what `read_NAME` gives,
since reading may have a side effect; where there is no such attribute the other bytes are zero.  A register that acts
on what is written, and for which half a value would be a wrong one, is `whole`: a write that covers only a part of it
is ignored.  Gaps and whatever lies outside the block read as zero and ignore writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from devices.effects import NOTHING, Effects

Access = Literal["ro", "rw", "wo"]


class Register(NamedTuple):
    """`size` bytes at `offset`; "ro" ignores writes, "wo" reads as zero, a `whole` one ignores partial writes."""

    offset: int
    size: int
    name: str
    access: Access
    whole: bool = False


class RegisterMap:
    """A checked table of registers over a block of `size` bytes.

    ValueError at construction when registers overlap, are out of order or leave the block.
    """

    def __init__(self, name: str, size: int, registers: Iterable[Register]) -> None:
        self.name = name
        self.size = size
        self.registers = tuple(registers)
        self._at: dict[int, _Entry] = {}
        self._exact: dict[tuple[int, int], _Entry] = {}
        end = 0
        for register in self.registers:
            if register.size <= 0 or register.offset < end or register.offset + register.size > size:
                raise ValueError(
                    f"{name}: {register.name} at {register.offset:#x} is empty, overlaps or leaves the block"
                )
            end = register.offset + register.size
            entry = _Entry(*register, "read_" + register.name, "write_" + register.name, (1 << 8 * register.size) - 1)
            self._at.update(dict.fromkeys(range(register.offset, end), entry))
            self._exact[register.offset, register.size] = entry

    def find(self, name: str) -> Register:
        """The register called `name`; KeyError when there is none."""
        for register in self.registers:
            if register.name == name:
                return register
        raise KeyError(name)

    def read(self, owner: object, offset: int, size: int, now_ns: int = 0) -> tuple[int, Effects]:
        """The little-endian value of `size` bytes at `offset` of `owner`'s registers, and the effects of reading."""
        exact = self._exact.get((offset, size))
        if exact is not None:
            return exact.read(owner, now_ns)
        value, effects = 0, NOTHING
        for entry, skip, take, shift in self._pieces(offset, size):
            whole, more = entry.read(owner, now_ns)
            value |= (whole >> 8 * skip & (1 << 8 * take) - 1) << shift
            effects |= more
        return value, effects

    def write(self, owner: object, offset: int, size: int, value: int, now_ns: int = 0) -> Effects:
        """Write the low `size` bytes of `value` at `offset` of `owner`'s registers."""
        exact = self._exact.get((offset, size))
        if exact is not None:
            return exact.write(owner, value & exact.mask, now_ns)
        effects = NOTHING
        for entry, skip, take, shift in self._pieces(offset, size):
            part = value >> shift & (1 << 8 * take) - 1
            if take != entry.size:
                if entry.whole:
                    continue
                old = int(getattr(owner, entry.name, 0)) & entry.mask
                part = old & ~((1 << 8 * take) - 1 << 8 * skip) | part << 8 * skip
            effects |= entry.write(owner, part, now_ns)
        return effects

    def _pieces(self, offset: int, size: int) -> Iterator[tuple[_Entry, int, int, int]]:
        """Cut an access at register borders: (register, first byte in it, bytes, bit position in the access)."""
        position = offset
        while position < offset + size:
            entry = self._at.get(position)
            if entry is None:
                position += 1
                continue
            skip = position - entry.offset
            take = min(entry.size - skip, offset + size - position)
            yield entry, skip, take, 8 * (position - offset)
            position += take


class _Entry(NamedTuple):
    """A register with what every access to it needs."""

    offset: int
    size: int
    name: str
    access: Access
    whole: bool
    reader: str
    writer: str
    mask: int

    def read(self, owner: object, now_ns: int) -> tuple[int, Effects]:
        if self.access == "wo":
            return 0, NOTHING
        reader = getattr(owner, self.reader, None)
        if reader is None:
            return int(getattr(owner, self.name)) & self.mask, NOTHING
        result = reader(now_ns)
        if isinstance(result, tuple):
            return result[0] & self.mask, result[1]
        return int(result) & self.mask, NOTHING

    def write(self, owner: object, value: int, now_ns: int) -> Effects:
        if self.access == "ro":
            return NOTHING
        writer = getattr(owner, self.writer, None)
        if writer is None:
            setattr(owner, self.name, value)
            return NOTHING
        effects: Effects = writer(value, now_ns)
        return effects
