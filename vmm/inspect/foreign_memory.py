"""The RAM of another process as the devices' code wants it, to be looked at and never changed.

`ForeignMemory` stands where `GuestMemory` stands, so that the rings of a VMM are walked from outside by the code that
walks them inside.  What is looked at stands still.  A view is zero-copy where all of it has memory behind it; where
there is a hole it is a copy, since reading a hole through a mapping would make the host fill it.  Everything else is
read from the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np

from devices import hostcalls
from devices.memory import Buffer, Bytes, GuestMemory, Integers, Region, Run, spans_of
from devices.writes import WriteLog
from vmm.inspect.guest_ram import GuestRam


class ForeignMemory(GuestMemory):
    """`ram` as a `GuestMemory` that can only be read; it is `ram`'s to close."""

    def __init__(self, ram: GuestRam) -> None:
        layout = [(region.gpa, region.size) for region in ram.regions]
        self.name = "foreign-ram"
        self.size_bytes = sum(size for _, size in layout)
        self.regions = tuple(
            Region(
                *(each.gpa, each.size, ram.mapping(each), ram.view(each.gpa, each.size), each.address),
                *(each.end, ram.base(each)),
            )
            for each in ram.regions
        )
        self.fd = ram.fd
        self.writes = WriteLog()
        self._release = None
        self._spans = spans_of(layout)

    def view(self, gpa: int, length: int) -> Bytes:
        view = super().view(gpa, length)
        if self.fd is None or hostcalls.data_extents(self.fd, gpa, gpa + length) == [(gpa, length)]:
            return view
        return np.frombuffer(self.peek(gpa, length), np.uint8)

    def read(self, gpa: int, length: int) -> bytes:
        return self.peek(gpa, length)

    def read_together(self, ranges: Sequence[tuple[int, int]]) -> bytes:
        return b"".join(self.peek(gpa, length) for gpa, length in ranges)

    def gather(self, gpas: Integers, lengths: Integers) -> Bytes:
        places = zip(map(int, gpas), map(int, lengths), strict=True)
        return np.frombuffer(b"".join(self.peek(gpa, length) for gpa, length in places), np.uint8)

    def write(self, gpa: int, data: Buffer) -> NoReturn:
        raise _refusal()

    def scatter(self, gpas: Integers, lengths: Integers, data: Buffer) -> NoReturn:
        raise _refusal()

    def discard(self, runs: Iterable[Run] | Integers, counts_pages: Integers | None = None) -> NoReturn:
        raise _refusal()

    def discard_run(self, pfn: int, count_pages: int) -> NoReturn:
        raise _refusal()


def _refusal() -> RuntimeError:
    return RuntimeError("the memory of another process is only looked at")
