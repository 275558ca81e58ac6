"""An address space: which device answers at which address.

There are two of them, ports (16 bits) and memory (everything that is not RAM).  An access that lies wholly inside one
range goes to its owner unchanged; one that straddles a range's edge is split into bytes.  Where nobody answers, reads
give all ones and writes vanish, as on a PC.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

from devices.effects import NOTHING, Effects


class Handler(Protocol):
    """Something that answers accesses.  `offset` counts bytes from the start of its range, `size` is 1, 2, 4 or 8,
    `value` is unsigned and little-endian, `now_ns` the guest time in nanoseconds."""

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]: ...

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects: ...


class OverlapError(ValueError):
    """Two owners claim the same address; the message names both."""


@dataclass(frozen=True, slots=True)
class Range:
    """`length` addresses from `base` on, answered by `handler` and named after their `owner`."""

    base: int
    length: int
    handler: Handler
    owner: str

    @property
    def end(self) -> int:
        return self.base + self.length


class AddressSpace:
    """Sorted, disjoint ranges.  `bits` bounds the addresses: 16 for ports, 52 for memory."""

    def __init__(self, name: str, bits: int) -> None:
        self.name = name
        self.size = 1 << bits
        self._ranges: list[Range] = []
        self._bases: list[int] = []
        self._ends: list[int] = []

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The claimed ranges in ascending order."""
        return tuple(self._ranges)

    def add(self, base: int, length: int, handler: Handler, owner: str) -> Range:
        """Claim `length` addresses from `base` on.  OverlapError names the present owner and the newcomer."""
        new = Range(base, length, handler, owner)
        if length <= 0 or base < 0 or new.end > self.size:
            raise ValueError(f"{owner}: the range {base:#x}+{length:#x} is not inside the {self.name} space")
        index = bisect_right(self._bases, base)
        for other in self._ranges[max(index - 1, 0) : index + 1]:
            if other.base < new.end and new.base < other.end:
                raise OverlapError(
                    f"{owner} at {base:#x}-{new.end - 1:#x} overlaps {other.owner} "
                    f"at {other.base:#x}-{other.end - 1:#x} in the {self.name} space"
                )
        self._ranges.insert(index, new)
        self._bases.insert(index, base)
        self._ends.insert(index, new.end)
        return new

    def remove(self, claimed: Range) -> None:
        """Give a range back that `add` returned; ValueError if it is not claimed."""
        index = self._ranges.index(claimed)
        del self._ranges[index], self._bases[index], self._ends[index]

    def find(self, address: int) -> Range | None:
        """The range that holds `address`, if any."""
        index = bisect_right(self._bases, address) - 1
        return self._ranges[index] if index >= 0 and address < self._ends[index] else None

    def read(self, address: int, size: int, now_ns: int) -> tuple[int, Effects]:
        """The little-endian value of `size` bytes at `address`, and what reading it brought about."""
        index = bisect_right(self._bases, address) - 1
        if index >= 0 and address + size <= self._ends[index]:
            return self._ranges[index].handler.read(address - self._bases[index], size, now_ns)
        if size == 1:
            return 0xFF, NOTHING
        value, effects = 0, NOTHING
        for i in range(size):
            byte, more = self.read(address + i, 1, now_ns)
            value |= byte << 8 * i
            effects |= more
        return value, effects

    def write(self, address: int, size: int, value: int, now_ns: int) -> Effects:
        """Write the low `size` bytes of `value` at `address`."""
        index = bisect_right(self._bases, address) - 1
        if index >= 0 and address + size <= self._ends[index]:
            return self._ranges[index].handler.write(address - self._bases[index], size, value, now_ns)
        effects = NOTHING
        if size > 1:
            for i in range(size):
                effects |= self.write(address + i, 1, value >> 8 * i & 0xFF, now_ns)
        return effects
