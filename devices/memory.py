"""Guest RAM: the only file that does arithmetic on guest-physical addresses.

RAM is a list of regions over one memory file in which **the file offset is the guest-physical address**; holes between
regions cost nothing.  The CPU runs on the same pages, the devices see them as numpy views, and another process can map
them (`vmm.inspect`).  Where the host has no memfd the regions are anonymous memory and the last of these is lost.

The law of the ring core: gather once, validate the copy, never read again; the driver may rewrite what is being read.
Looking from outside the guest goes through `peek`, never through a view: reading a hole through a mapping would
allocate it and undo the balloon.

Every write made on the host's side is remembered until `take_writes()`, so that the CPU can drop translations of code
that was overwritten.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from devices import hostcalls
from devices.errors import ConfigError, OutsideRam

PAGE_BYTES = 4096
PAGE_SHIFT = 12

Bytes = NDArray[np.uint8]
U64 = NDArray[np.uint64]


class Run(NamedTuple):
    """`count_pages` consecutive 4096-byte pages from page frame number `pfn` on."""

    pfn: int
    count_pages: int


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """`size` bytes of RAM at `gpa`.  `array` is a uint8 view of all of it; `address` is where the host mapped it."""

    gpa: int
    size: int
    mapping: mmap.mmap
    array: Bytes
    address: int

    @property
    def end(self) -> int:
        return self.gpa + self.size


class GuestMemory:
    """RAM regions at ascending guest-physical addresses.

    `layout` is a sequence of (gpa, size_bytes), page-aligned, ascending and disjoint.  ConfigError when the host cannot
    give that much address space.  `size_bytes` is the sum of the regions.
    """

    def __init__(self, layout: Sequence[tuple[int, int]], name: str = "guest-ram") -> None:
        self.name = name
        self.fd = hostcalls.create_memory_file(name, layout[-1][0] + layout[-1][1])
        self.regions: tuple[Region, ...] = tuple(self._map(gpa, size) for gpa, size in layout)
        self.size_bytes = sum(region.size for region in self.regions)
        self._writes: list[tuple[int, int]] = []

    def _map(self, gpa: int, size: int) -> Region:
        try:
            mapping = hostcalls.map_memory(self.fd, gpa, size)
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"the host cannot map {size >> 20} MiB of guest RAM: {error}") from error
        array = np.frombuffer(mapping, np.uint8)
        return Region(gpa, size, mapping, array, array.ctypes.data)

    # -- finding ---------------------------------------------------------------------------------------------------

    def region_of(self, gpa: int, length: int) -> Region | None:
        """The region that wholly holds `length` bytes at `gpa`, or None."""
        for region in self.regions:
            if region.gpa <= gpa and gpa + length <= region.end:
                return region
        return None

    def contains(self, gpa: int, length: int) -> bool:
        """Whether all `length` bytes at `gpa` are RAM (they may cross adjoining regions)."""
        if length < 0:
            return False
        position, end = gpa, gpa + length
        for region in self.regions:
            if region.gpa <= position < region.end:
                position = min(end, region.end)
        return position >= end and (length > 0 or any(r.gpa <= gpa < r.end for r in self.regions))

    def are_ram_pages(self, pfns: NDArray[np.unsignedinteger]) -> NDArray[np.bool_]:
        """For each page frame number whether the whole page is RAM; shape and order as given."""
        wide = pfns.astype(np.uint64, copy=False)
        result = np.zeros(wide.shape, np.bool_)
        for region in self.regions:
            first, last = region.gpa >> PAGE_SHIFT, region.end >> PAGE_SHIFT
            result |= (wide >= np.uint64(first)) & (wide < np.uint64(last))
        return result

    # -- reading and writing -----------------------------------------------------------------------------------------

    def view(self, gpa: int, length: int) -> Bytes:
        """A uint8 array of shape (length,) that aliases RAM.  OutsideRam unless one region holds it all.

        Reading and writing it is the guest's own view: use it for DMA.  After writing call `wrote`."""
        region = self.region_of(gpa, length)
        if region is None:
            raise OutsideRam(gpa, length)
        start = gpa - region.gpa
        return region.array[start : start + length]

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of `length` bytes at `gpa`, across adjoining regions.  OutsideRam if any is not RAM."""
        return b"".join(piece.tobytes() for piece in self._pieces(gpa, length))

    def write(self, gpa: int, data: bytes | bytearray | memoryview | Bytes) -> None:
        """Store `data` at `gpa`: all of it, or OutsideRam and nothing."""
        source = np.frombuffer(data, np.uint8)
        position = 0
        for piece in self._pieces(gpa, len(source)):
            piece[:] = source[position : position + len(piece)]
            position += len(piece)
        self.wrote(gpa, len(source))

    def read_int(self, gpa: int, size: int) -> int:
        """The little-endian integer of `size` bytes at `gpa`."""
        return int.from_bytes(self.read(gpa, size), "little")

    def write_int(self, gpa: int, size: int, value: int) -> None:
        """Store `value` as a little-endian integer of `size` bytes at `gpa`."""
        self.write(gpa, value.to_bytes(size, "little"))

    def _pieces(self, gpa: int, length: int) -> list[Bytes]:
        if not self.contains(gpa, length):
            raise OutsideRam(gpa, length)
        end = gpa + length
        return [
            region.array[max(gpa, region.gpa) - region.gpa : min(end, region.end) - region.gpa]
            for region in self.regions
            if region.gpa < end and gpa < region.end
        ]

    def fence(self) -> None:
        """Order the stores before it against the loads after it.

        One thread runs the CPU and the devices here, and CPython's own locking is a full barrier besides."""

    # -- giving memory back --------------------------------------------------------------------------------------------

    def discard(self, runs: Iterable[Run]) -> int:
        """Give whole pages back to the host; they read as zero afterwards.  Returns the bytes in `runs`.

        OutsideRam, and nothing done for that run, if a run is not all RAM.  Discarding a hole is no error."""
        total = 0
        for pfn, count_pages in runs:
            gpa, length = pfn << PAGE_SHIFT, count_pages << PAGE_SHIFT
            if not self.contains(gpa, length):
                raise OutsideRam(gpa, length)
            for region in self.regions:
                start, end = max(gpa, region.gpa), min(gpa + length, region.end)
                if start < end:
                    self._discard_in(region, start, end - start)
            self.wrote(gpa, length)
            total += length
        return total

    def _discard_in(self, region: Region, gpa: int, length: int) -> None:
        if self.fd is not None:
            hostcalls.punch_hole(self.fd, gpa, length)
        else:
            region.mapping.madvise(mmap.MADV_DONTNEED, gpa - region.gpa, length)

    def backed_bytes(self) -> int:
        """How much host memory really stands behind the guest's RAM now."""
        if self.fd is not None:
            return hostcalls.allocated_bytes(self.fd)
        raise ConfigError("how much host memory backs anonymous guest RAM cannot be told")

    def peek(self, gpa: int, length: int) -> bytes:
        """`length` bytes at `gpa` without bringing discarded pages back.  OutsideRam if any is not RAM."""
        if not self.contains(gpa, length):
            raise OutsideRam(gpa, length)
        if self.fd is None:
            return self.read(gpa, length)
        return os.pread(self.fd, length, gpa)

    # -- who wrote what ------------------------------------------------------------------------------------------------

    def wrote(self, gpa: int, length: int) -> None:
        """Remember that the host's side changed `length` bytes at `gpa`."""
        self._writes.append((gpa, length))

    def take_writes(self) -> list[tuple[int, int]]:
        """The (gpa, length) of every change since the last call, in order."""
        writes, self._writes = self._writes, []
        return writes

    def close(self) -> None:
        """Give all of it back.  Views that are still alive keep their part mapped until they go."""
        self.regions = ()
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
