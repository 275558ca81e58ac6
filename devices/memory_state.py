"""Guest RAM as a value: what is backed, by extents, so that a hole stays a hole.

Saving reads the memory file, never a mapping; so it changes nothing, and a page that was given back to the host costs
nothing.  Putting back gives back what was a hole, and writes the rest, pages of zeros too: afterwards as much host
memory stands behind the RAM as before.

Everything host-side that was derived from RAM (translated code above all) is out of date afterwards; telling its owner
is the caller's business, the log of writes is part of the state and goes back to what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from devices import hostcalls
from devices.memory import PAGE_BYTES, PAGE_SHIFT, GuestMemory, Region, Run
from devices.state import State, refuse, require_fields, require_list


class MemoryState:
    """The state of `memory`: its layout, which must be the same, (gpa, bytes) of each extent, and its log of writes."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def save_state(self) -> State:
        memory = self._memory
        return {
            "regions": [[region.gpa, region.size] for region in memory.regions],
            "extents": [[gpa, memory.peek(gpa, length)] for gpa, length in self._extents()],
            "writes": memory.writes.save_state(),
        }

    def check_state(self, saved: Any, where: str) -> None:
        require_fields(where, saved, ["regions", "extents", "writes"])
        layout = [[region.gpa, region.size] for region in self._memory.regions]
        if saved["regions"] != layout:
            raise refuse(f"{where}.regions", f"{layout}", saved["regions"])
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
        self._memory.writes.check_state(saved["writes"], f"{where}.writes")

    def restore_state(self, saved: Any) -> None:
        memory = self._memory
        memory.discard(self._holes(saved["extents"]))
        for gpa, data in saved["extents"]:
            if memory.fd is not None and memory.backing != "hugepages":
                hostcalls.write_file(memory.fd, gpa, data)
            else:  # no file, or one that cannot be written to
                memory.write(gpa, data)
        memory.writes.restore_state(saved["writes"])

    def _extents(self) -> Iterator[tuple[int, int]]:
        """(gpa, bytes) of what is backed by host memory, ascending, none across a border of regions."""
        fd, large = self._memory.fd, self._memory.large
        for region in self._memory.regions:
            if large is not None and self._memory.backing == "hugepages":  # whose file does not tell
                yield from large.held(region)
            else:
                yield from _resident(region) if fd is None else hostcalls.data_extents(fd, region.gpa, region.end)

    def _holes(self, extents: list[tuple[int, bytes]]) -> Iterator[Run]:
        borders = [(region.gpa, region.end) for region in self._memory.regions]
        for start, end in borders:
            for gpa, data in extents:
                if start <= gpa < end:
                    if start < gpa:
                        yield Run(start >> PAGE_SHIFT, gpa - start >> PAGE_SHIFT)
                    start = gpa + len(data)
            if start < end:
                yield Run(start >> PAGE_SHIFT, end - start >> PAGE_SHIFT)


def _resident(region: Region) -> Iterator[tuple[int, int]]:
    """The same for anonymous memory."""
    present = hostcalls.resident_pages(region.address, region.size).view(np.int8)
    edges = np.flatnonzero(np.diff(present, prepend=0, append=0)) * hostcalls.PAGE_BYTES
    for first, last in edges.reshape(-1, 2).tolist():
        yield region.gpa + first, min(last, region.size) - first
