"""Which bytes of RAM the host's side has changed, for whoever holds something derived from them.

It forgets nothing and may name more than was written: ranges that touch are joined, and when nobody asks for a long
time the closest ones are joined over the gap between them, so that the list stays bounded.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from devices.state import Many, Stateful, Table, Tuple, uint

MAX_RANGES = 4096
"""More than this many ranges are never kept."""


class WriteLog(Stateful):
    """(gpa, length_bytes) ranges in the order in which they were written, as long as there are few."""

    __slots__ = ("_ranges",)
    STATE: ClassVar[Table] = {"_ranges": Many(Tuple(uint(64), uint(64)), longest=MAX_RANGES)}

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def add(self, gpa: int, length: int) -> None:
        """Remember `length` bytes at `gpa`; none at all leaves no trace."""
        ranges = self._ranges
        if ranges:
            last_gpa, last_length = ranges[-1]
            if last_gpa <= gpa <= last_gpa + last_length:  # a ring or a buffer being filled from bottom to top
                ranges[-1] = (last_gpa, max(last_length, gpa + length - last_gpa))
                return
        if length:
            ranges.append((gpa, length))
            if len(ranges) > MAX_RANGES:
                self._ranges = _joined(np.array(ranges, np.uint64), MAX_RANGES // 2)

    def add_many(self, ranges: list[tuple[int, int]]) -> None:
        """Remember several (gpa, length_bytes) ranges."""
        if len(ranges) == 1:
            self.add(*ranges[0])
            return
        self._ranges += [entry for entry in ranges if entry[1]]
        if len(self._ranges) > MAX_RANGES:
            self._ranges = _joined(np.array(self._ranges, np.uint64), MAX_RANGES // 2)

    def add_arrays(self, gpas: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> None:
        """Remember several ranges, given as two arrays of shape (n,)."""
        if len(gpas) + len(self._ranges) <= MAX_RANGES:
            self.add_many(list(zip(gpas.tolist(), lengths.tolist(), strict=True)))
            return
        kept = np.array(self._ranges, np.uint64).reshape(-1, 2)
        together = np.concatenate((kept, np.stack((gpas, lengths), axis=1)[lengths != 0]))
        self._ranges = _joined(together, MAX_RANGES // 2)

    def take(self) -> list[tuple[int, int]]:
        """All ranges since the last call."""
        ranges, self._ranges = self._ranges, []
        return ranges


def _joined(ranges: NDArray[np.uint64], limit: int) -> list[tuple[int, int]]:
    """At most `limit` ascending ranges that cover all of `ranges`, shape (n, 2); the smallest gaps go first."""
    ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
    starts = ranges[:, 0]
    reached = np.maximum.accumulate(starts + ranges[:, 1])  # the highest end so far
    apart = np.flatnonzero(starts[1:] > reached[:-1]) + 1  # where a range begins that touches none before it
    if len(apart) >= limit:
        gaps = starts[apart] - reached[apart - 1]
        apart = np.sort(apart[np.argsort(gaps, kind="stable")[len(apart) - limit + 1 :]])
    firsts = starts[np.concatenate(([0], apart))]
    ends = reached[np.concatenate((apart - 1, [len(starts) - 1]))]
    return list(zip(firsts.tolist(), (ends - firsts).tolist(), strict=True))
