"""Register blocks as tables, and the one place for access width, straddling and read-only bits.

A block is a list of `Register`s whose names are attributes of the object that owns it.  A `read_NAME(now_ns)` method
exists only where reading has a side effect or the value is computed (it returns the value, or the value and its
`Effects`); a `write_NAME(value, now_ns)` method only where writing does (it returns `Effects`).
An access may have any width and alignment: it is cut at register borders, each register it touches is read or written
once, and a partial write merges with what the register reads as.  Gaps read as zero and ignore writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from devices.effects import NOTHING, Effects

Access = Literal["ro", "rw", "wo"]


class Register(NamedTuple):
    """`size` bytes at `offset`; "ro" ignores writes, "wo" reads as zero."""

    offset: int
    size: int
    name: str
    access: Access


class RegisterMap:
    """A checked table of registers over a block of `size` bytes.

    ValueError at construction when registers overlap, are out of order or leave the block.
    """

    def __init__(self, name: str, size: int, registers: Iterable[Register]) -> None:
        self.name = name
        self.size = size
        self.registers = tuple(registers)
        self._at: dict[int, Register] = {}
        end = 0
        for register in self.registers:
            if register.offset < end or register.offset + register.size > size:
                raise ValueError(
                    f"{name}: register {register.name} at {register.offset:#x} overlaps or leaves the block"
                )
            end = register.offset + register.size
            self._at.update(dict.fromkeys(range(register.offset, end), register))

    def read(self, owner: object, offset: int, size: int, now_ns: int = 0) -> tuple[int, Effects]:
        """The little-endian value of `size` bytes at `offset` of `owner`'s registers, and what reading brought about."""
        value, effects = 0, NOTHING
        for register, skip, take, shift in self._pieces(offset, size):
            if register.access != "wo":
                whole, more = _read_register(owner, register, now_ns)
                value |= (whole >> 8 * skip & (1 << 8 * take) - 1) << shift
                effects |= more
        return value, effects

    def write(self, owner: object, offset: int, size: int, value: int, now_ns: int = 0) -> Effects:
        """Write the low `size` bytes of `value` at `offset` of `owner`'s registers."""
        effects = NOTHING
        for register, skip, take, shift in self._pieces(offset, size):
            if register.access != "ro":
                part = value >> shift & (1 << 8 * take) - 1
                if take != register.size:
                    # Merge with the stored value: a partial write must not trigger a read's side effect.
                    old = int(getattr(owner, register.name, 0))
                    part = old & ~((1 << 8 * take) - 1 << 8 * skip) | part << 8 * skip
                effects |= _write_register(owner, register, part, now_ns)
        return effects

    def _pieces(self, offset: int, size: int) -> Iterator[tuple[Register, int, int, int]]:
        """Cut an access at register borders: (register, first byte in it, bytes, bit position in the access)."""
        position = offset
        while position < offset + size:
            register = self._at.get(position)
            if register is None:
                position += 1
                continue
            skip = position - register.offset
            take = min(register.size - skip, offset + size - position)
            yield register, skip, take, 8 * (position - offset)
            position += take


def _read_register(owner: object, register: Register, now_ns: int) -> tuple[int, Effects]:
    reader = getattr(owner, "read_" + register.name, None)
    if reader is None:
        return int(getattr(owner, register.name)), NOTHING
    result = reader(now_ns)
    return result if isinstance(result, tuple) else (int(result), NOTHING)


def _write_register(owner: object, register: Register, value: int, now_ns: int) -> Effects:
    writer = getattr(owner, "write_" + register.name, None)
    if writer is None:
        setattr(owner, register.name, value)
        return NOTHING
    effects: Effects = writer(value, now_ns)
    return effects
