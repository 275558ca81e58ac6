"""Guest RAM as a value: what is backed, by extents, so that a hole stays a hole.

Saving reads the memory file, never a mapping; so it changes nothing, and a page that was given back to the host costs
nothing.  Putting back gives back what was a hole, and writes the rest, pages of zeros too: afterwards as much host
memory stands behind the RAM as before.

Everything host-side that was derived from RAM (translated code above all) is out of date afterwards; telling its owner
is the caller's business, the log of writes is part of the state and goes back to what it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from devices import hostcalls
from devices.memory import PAGE_BYTES, PAGE_SHIFT, GuestMemory, Region, Run
from devices.state import Plain, State, refuse, require_fields, require_list

_PIECE_BYTES = 1 << 20


class MemoryState:
    """The state of `memory`: its layout, which must be the same, (gpa, bytes) of each extent, and its log of writes."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def save_state(self) -> State:
        contents: list[Plain] = [[gpa, self._memory.peek(gpa, length)] for gpa, length in self.extents()]
        return {**self.save_outline(), "extents": contents}

    def check_state(self, saved: Any, where: str) -> None:
        require_fields(where, saved, ["regions", "extents", "writes"])
        self.check_outline(saved, where)
        end = 0
        for index, extent in enumerate(require_list(f"{where}.extents", saved["extents"])):
            place = f"{where}.extents[{index}]"
            gpa, data = require_list(place, extent, 2)
            if type(gpa) is not int or type(data) is not bytes:
                raise refuse(place, "an address and bytes", extent)
            if gpa < end or gpa % PAGE_BYTES or len(data) % PAGE_BYTES or not data:
                raise refuse(place, "whole pages behind the extent before it", gpa)
            if self._memory.region_of(gpa, len(data)) is None:
                raise refuse(place, "inside one region of RAM", gpa)
            end = gpa + len(data)

    def restore_state(self, saved: Any) -> None:
        self.make_holes([(gpa, len(data)) for gpa, data in saved["extents"]])
        for gpa, data in saved["extents"]:
            self.fill(gpa, data)
        self.restore_outline(saved)

    # -- in parts, for whoever keeps the contents elsewhere ------------------------------------------------------------

    def save_outline(self) -> State:
        """The state without the contents."""
        regions: list[Plain] = [[region.gpa, region.size] for region in self._memory.regions]
        return {"regions": regions, "writes": self._memory.writes.save_state()}

    def check_outline(self, saved: Any, where: str) -> None:
        """ConfigError unless the layout that is saved is this one, and the log of writes is one."""
        layout = [[region.gpa, region.size] for region in self._memory.regions]
        if saved["regions"] != layout:
            raise refuse(f"{where}.regions", f"{layout}", saved["regions"])
        self._memory.writes.check_state(saved["writes"], f"{where}.writes")

    def restore_outline(self, saved: Any) -> None:
        """The last step: filling in is no write of a device."""
        self._memory.writes.restore_state(saved["writes"])

    def make_holes(self, extents: Sequence[tuple[int, int]]) -> None:
        """Give everything back to the host that is in none of `extents`, (gpa, bytes) in ascending order."""
        self._memory.discard(self._holes(extents))

    def fill(self, gpa: int, data: bytes | memoryview) -> None:
        """Put `data`, whole pages, at `gpa`; not as a device writes."""
        if self._memory.fd is not None and self._memory.backing != "hugepages":
            hostcalls.write_file(self._memory.fd, gpa, data)
        else:  # no file, or one that cannot be written to
            self._memory.write(gpa, data)

    def fill_with_zeros(self, gpa: int, length: int) -> None:
        """Let host memory stand behind whole pages, as it does behind pages of zeros that a guest wrote.

        They are written: pages that fallocate gives a memory file count as holes until somebody has touched them."""
        zeros = memoryview(bytes(min(length, _PIECE_BYTES)))
        for start in range(0, length, _PIECE_BYTES):
            self.fill(gpa + start, zeros[: length - start])

    def extents(self) -> Iterator[tuple[int, int]]:
        """(gpa, bytes) of what is backed by host memory, ascending, none across a border of regions."""
        fd, large = self._memory.fd, self._memory.large
        for region in self._memory.regions:
            if large is not None and self._memory.backing == "hugepages":  # whose file does not tell
                yield from large.held(region)
            else:
                yield from _resident(region) if fd is None else hostcalls.data_extents(fd, region.gpa, region.end)

    def _holes(self, extents: Sequence[tuple[int, int]]) -> Iterator[Run]:
        borders = [(region.gpa, region.end) for region in self._memory.regions]
        for start, end in borders:
            for gpa, length in extents:
                if start <= gpa < end:
                    if start < gpa:
                        yield Run(start >> PAGE_SHIFT, gpa - start >> PAGE_SHIFT)
                    start = gpa + length
            if start < end:
                yield Run(start >> PAGE_SHIFT, end - start >> PAGE_SHIFT)


def _resident(region: Region) -> Iterator[tuple[int, int]]:
    """The same for anonymous memory."""
    present = hostcalls.resident_pages(region.address, region.size).view(np.int8)
    edges = np.flatnonzero(np.diff(present, prepend=0, append=0)) * hostcalls.PAGE_BYTES
    for first, last in edges.reshape(-1, 2).tolist():
        yield region.gpa + first, min(last, region.size) - first
