"""Guest RAM: the only file that does arithmetic on guest-physical addresses.

RAM is a list of regions over one memory file in which **the file offset is the guest-physical address**; holes between
regions cost nothing.  The CPU runs on the same pages, the devices see them as numpy views, and another process can map
them (`vmm.inspect`).  Where the host has no memfd, or anonymous memory was asked for (`devices.backing`), the last of
these is lost.  The host's pages may be larger than the guest's; `devices.large_pages` has what is different then.

The law of the ring core: gather once, validate the copy, never read again; the driver may rewrite what is being read.
Looking from outside the guest goes through `peek`, never through a view: reading a hole through a mapping would
allocate it and undo the balloon.

Every address and length may be hostile.  Nothing is added to a number that was not found to be inside RAM before.
Arrays are measured from the start of a region, modulo 2^64: what lies below it becomes larger than any region, since
RAM ends below 2^63.

Every write made on the host's side is remembered until `take_writes()`, so that the CPU can drop translations of code
that was overwritten.
"""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeAlias, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from devices import hostcalls
from devices.backing import MEMFD, Backing
from devices.errors import ConfigError, OutsideRam
from devices.host_memory import OpenBacking, open_backing, too_few_pages
from devices.large_pages import LargePages
from devices.write_tracking import WriteTracking
from devices.writes import WriteLog

PAGE_BYTES = 4096
PAGE_SHIFT = 12

Bytes: TypeAlias = NDArray[np.uint8]
U64: TypeAlias = NDArray[np.uint64]
Integers: TypeAlias = NDArray[np.unsignedinteger[Any]] | Sequence[int]
Buffer: TypeAlias = bytes | bytearray | memoryview | NDArray[Any]

_SHIFT = np.uint64(PAGE_SHIFT)


class Run(NamedTuple):
    """`count_pages` consecutive 4096-byte pages from page frame number `pfn` on."""

    pfn: int
    count_pages: int


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """`size` bytes of RAM at `gpa`.  `array` is a uint8 view of all of it; `address` is where the host mapped it;
    `end` is the first address behind it; `mapping` begins at `base`, which is `gpa` unless the host's pages are larger
    than the space between two regions: these share one mapping then."""

    gpa: int
    size: int
    mapping: mmap.mmap
    array: Bytes
    address: int
    end: int
    base: int


class GuestMemory:
    """RAM regions at ascending guest-physical addresses.

    `layout` is a sequence of (gpa, size_bytes), ascending, disjoint and in whole pages of the host, huge ones apart
    (ValueError otherwise).  ConfigError when the host is not little-endian, or cannot give that much address space, or
    so many huge pages where `backing` asks for them.  `size_bytes` is the sum of the regions, `backing` what stands
    behind them, `fd` the memory file or None, `host_page_bytes` how large the pages are in which memory goes back to
    the host.  Usable as a context manager.
    """

    def __init__(self, layout: Sequence[tuple[int, int]], name: str = "guest-ram", backing: Backing = MEMFD) -> None:
        _check_layout(layout)
        if sys.byteorder != "little":
            raise ConfigError("the host must be little-endian, as the guest's memory is")
        self.name = name
        self.size_bytes = sum(size for _, size in layout)
        self.regions: tuple[Region, ...] = ()
        opened = open_backing(backing, name, layout)
        self.backing, self.fd, self.host_page_bytes = opened.kind, opened.fd, opened.page_bytes
        self._release = weakref.finalize(self, os.close, self.fd) if self.fd is not None else None
        try:
            self.regions = tuple(region for group in _groups(layout, opened) for region in self._map(group, opened))
        except ConfigError:
            self.close()
            raise
        self.large: LargePages | None = None
        if self.host_page_bytes > PAGE_BYTES:
            self.large = LargePages(self.regions, opened)
        self._small_fd = self.fd if self.large is None else None
        if self.fd is None:
            hostcalls.process_madvise_works()  # tried now, so that no request of a guest waits for the answer
        self._spans = spans_of(layout)
        self.writes = WriteLog()

    def _map(self, group: Sequence[tuple[int, int]], opened: OpenBacking) -> list[Region]:
        """Regions that share a mapping, which is whole pages of the host's."""
        unit = opened.page_bytes
        base, end = group[0][0] // unit * unit, -(-sum(group[-1]) // unit) * unit
        try:
            if opened.kind == "hugepages" and opened.fd is not None:
                mapping = hostcalls.map_reserved(opened.fd, base, end - base)
            else:
                mapping = hostcalls.map_memory(opened.fd, base, end - base)
        except (OSError, ValueError, OverflowError) as error:
            if opened.kind == "hugepages" and isinstance(error, OSError):
                raise too_few_pages((end - base) // unit, unit, error) from error
            size = sum(size for _, size in group)
            raise ConfigError(f"the host cannot map {size >> 20} MiB of guest RAM: {error}") from error
        whole = np.frombuffer(mapping, np.uint8)
        arrays = [(gpa, size, whole[gpa - base : gpa - base + size]) for gpa, size in group]
        return [Region(gpa, size, mapping, array, array.ctypes.data, gpa + size, base) for gpa, size, array in arrays]

    # -- finding ---------------------------------------------------------------------------------------------------

    def region_of(self, gpa: int, length: int) -> Region | None:
        """The region that wholly holds `length` bytes at `gpa`, or None.  `gpa` must be RAM even if length is 0."""
        for region in self.regions:
            if region.gpa <= gpa < region.end:
                return region if 0 <= length <= region.end - gpa else None
        return None

    def contains(self, gpa: int, length: int) -> bool:
        """Whether all `length` bytes at `gpa` are RAM (they may cross adjoining regions).  `gpa` must be RAM even for
        no bytes at all."""
        return any(start <= gpa < end and 0 <= length <= end - gpa for start, end in self._spans)

    def are_ram(self, gpas: U64, lengths: U64) -> NDArray[np.bool_]:
        """`contains` for arrays of one shape, element by element."""
        result = np.zeros(gpas.shape, np.bool_)
        for start, end in self._spans:
            offsets, size = gpas - np.uint64(start), np.uint64(end - start)
            result |= (offsets < size) & (lengths <= size - offsets)
        return result

    def are_ram_pages(self, pfns: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.bool_]:
        """For each page frame number whether the whole page is RAM; shape and order as given."""
        result = np.zeros(pfns.shape, np.bool_)
        wide = pfns.astype(np.uint64, copy=False)
        for start, end in self._spans:
            result |= wide - np.uint64(start >> PAGE_SHIFT) < np.uint64((end - start) >> PAGE_SHIFT)
        return result

    # -- one place ---------------------------------------------------------------------------------------------------

    def view(self, gpa: int, length: int) -> Bytes:
        """A uint8 array of shape (length,) that aliases RAM.  OutsideRam unless one region holds it all.

        Reading and writing it is the guest's own view: use it for DMA.  After writing call `wrote`."""
        for region in self.regions:
            if region.gpa <= gpa < region.end and 0 <= length <= region.end - gpa:
                start = gpa - region.gpa
                return region.array[start : start + length]
        raise OutsideRam(gpa, length)

    def view_records(self, gpa: int, dtype: DTypeLike, count: int) -> NDArray[Any]:
        """An array of shape (count,) of any fixed-size `dtype` that aliases RAM; the byte order is the dtype's.
        OutsideRam unless one region holds it all.  After writing call `wrote`."""
        record = np.dtype(dtype)
        return self.view(gpa, count * record.itemsize).view(record)

    def gather_records(self, gpa: int, dtype: DTypeLike, count: int) -> NDArray[Any]:
        """A copy of `count` records of `dtype` at `gpa`, across adjoining regions; nobody else sees or changes it."""
        record = np.dtype(dtype)
        return np.frombuffer(bytearray(self.read(gpa, count * record.itemsize)), record)

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of `length` bytes at `gpa`, across adjoining regions.  OutsideRam if any is not RAM."""
        region = self.region_of(gpa, length)
        if region is not None:
            start = gpa - region.base
            return region.mapping[start : start + length]
        return b"".join(piece.tobytes() for piece in self._pieces(gpa, length))

    def read_together(self, ranges: Sequence[tuple[int, int]]) -> bytes:
        """`read` of each (gpa, length_bytes), one after the other, which is quicker where one region holds them all."""
        region = self.region_of(*ranges[0]) if ranges else None
        if region is not None:
            view, start, end = region.array.data, region.gpa, region.end
            found = [view[gpa - start : gpa - start + size] for gpa, size in ranges if start <= gpa <= end - size]
            if len(found) == len(ranges):
                return b"".join(found)
        return b"".join([self.read(gpa, length) for gpa, length in ranges])

    def write(self, gpa: int, data: Buffer) -> None:
        """Store the bytes of `data` (contiguous) at `gpa`: all of them, or OutsideRam and nothing."""
        if isinstance(data, bytes) and (region := self.region_of(gpa, len(data))) is not None:
            start = gpa - region.base
            region.mapping[start : start + len(data)] = data
            self.writes.add(gpa, len(data))
            return
        source = _as_bytes(data)
        _fill(self._pieces(gpa, len(source)), source)
        self.writes.add(gpa, len(source))

    def read_int(self, gpa: int, size: int) -> int:
        """The little-endian integer of `size` bytes at `gpa`."""
        return int.from_bytes(self.read(gpa, size), "little")

    def write_int(self, gpa: int, size: int, value: int) -> None:
        """Store `value` as a little-endian integer of `size` bytes at `gpa`."""
        self.write(gpa, value.to_bytes(size, "little"))

    def _pieces(self, gpa: int, length: int) -> list[Bytes]:
        """Views that together are `length` bytes at `gpa`, one a region.  OutsideRam if any byte is not RAM."""
        region = self.region_of(gpa, length)
        if region is not None:
            return [region.array[gpa - region.gpa : gpa - region.gpa + length]]
        return [region.array[start : start + size] for region, start, size in self._places(gpa, length)]

    def _places(self, gpa: int, length: int) -> list[tuple[Region, int, int]]:
        """A range cut at region borders: (region, offset in it, bytes).  OutsideRam if any byte is not RAM."""
        region = self.region_of(gpa, length)
        if region is not None:
            return [(region, gpa - region.gpa, length)]
        if not self.contains(gpa, length):
            raise OutsideRam(gpa, length)
        cuts = ((region, max(gpa, region.gpa), min(gpa + length, region.end)) for region in self.regions)
        return [(region, start - region.gpa, end - start) for region, start, end in cuts if start < end]

    # -- many places at once -------------------------------------------------------------------------------------------

    def gather(self, gpas: Integers, lengths: Integers) -> Bytes:
        """A copy of `lengths[i]` bytes at `gpas[i]`, one after the other: shape (sum(lengths),), dtype uint8.

        OutsideRam names the first that is not all RAM.  The caller bounds the sum.  Equal lengths in one region are one
        numpy operation; take records out of them with `.view(dtype)`."""
        starts, sizes = _pair(gpas, lengths)
        parts = self._rows(starts, sizes)
        if not parts:
            pieces = [piece for place in _zip(starts, sizes) for piece in self._pieces(*place)]
            return np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
        if len(parts) == 1:
            _, rows, offsets = parts[0]
            picked: Bytes = rows[offsets].view(np.uint8)
            return picked
        result = np.empty(len(starts), f"V{sizes[0]}")
        for chosen, rows, offsets in parts:
            result[chosen] = rows[offsets]
        return result.view(np.uint8)

    def scatter(self, gpas: Integers, lengths: Integers, data: Buffer) -> None:
        """Store `data` piece by piece: the first `lengths[0]` bytes at `gpas[0]`, and so on; where pieces overlap the
        later one stays.  All of it, or OutsideRam (naming the first that is not all RAM) and nothing.

        ValueError unless `data` is sum(lengths) bytes; it must not alias RAM."""
        starts, sizes = _pair(gpas, lengths)
        places, source = _zip(starts, sizes), _as_bytes(data)
        if len(source) != sum(length for _, length in places):
            raise ValueError(f"data must be {sum(length for _, length in places)} bytes, not {len(source)}")
        parts = self._rows(starts, sizes)
        if len(parts) == 1:
            _, rows, offsets = parts[0]
            rows[offsets] = source.view(rows.dtype)
        else:
            _fill([piece for place in places for piece in self._pieces(*place)], source)
        self.writes.add_many(places)

    def _rows(self, gpas: U64, sizes: U64) -> list[tuple[NDArray[np.bool_], NDArray[np.void], U64]]:
        """Regions as overlapping rows, one starting at each byte, with which pieces are rows of that region and where.
        Picking rows is one numpy operation without an index for each byte.

        Nothing where that does not fit: different sizes, large ones, or a piece that no single region holds."""
        length = int(sizes[0]) if len(sizes) > 1 else 0
        if not 0 < length <= PAGE_BYTES or (sizes != length).any():
            return []
        parts, left = [], len(gpas)
        for region in self.regions:
            offsets = gpas - np.uint64(region.gpa)
            chosen = offsets <= np.uint64(region.size - length)
            count = int(np.count_nonzero(chosen))
            if count:
                rows = np.ndarray((region.size - length + 1,), np.dtype(f"V{length}"), region.array, strides=(1,))
                parts.append((chosen, rows, offsets if count == len(gpas) else offsets[chosen]))
                left -= count
        return parts if left == 0 else []

    def fence(self) -> None:
        """Order the stores before it against the loads after it.

        One thread runs the CPU and the devices here, and CPython's own locking is a full barrier besides."""

    # -- giving memory back --------------------------------------------------------------------------------------------

    def discard(self, runs: Iterable[Run] | Integers, counts_pages: Integers | None = None) -> int:
        """Give whole pages back to the host; they read as zero afterwards.  Returns the bytes in all runs; where the
        host's pages are larger, the bytes in those of them that went back: what else is in the runs is cleared.

        `runs` are `Run`s; or, with `counts_pages`, the first page frame numbers and the counts are two arrays of shape
        (n,).  OutsideRam, and nothing done, if any run is not all RAM.  Discarding a hole is no error, an empty run
        neither."""
        if counts_pages is None:
            return self._discard_few(
                [(pfn << PAGE_SHIFT, count << PAGE_SHIFT) for pfn, count in cast(Iterable[Run], runs)]
            )
        pfns, counts = _pair(cast(Integers, runs), counts_pages)
        parts = self._by_region(pfns, counts)
        if not parts:
            return self.discard(map(Run, pfns.tolist(), counts.tolist()))
        for region, offsets, sizes in parts:
            if self._small_fd is not None:
                hostcalls.discard_file_runs(self._small_fd, region.mapping, region.gpa, offsets, sizes)
            elif self.large is None:
                hostcalls.discard_anonymous_runs(region.mapping, region.address, offsets, sizes)
            else:
                return self._discard_large(pfns, counts)
        self.writes.add_arrays(pfns << _SHIFT, counts << _SHIFT)
        return int(counts.sum()) << PAGE_SHIFT

    def discard_run(self, pfn: int, count_pages: int) -> int:
        """`discard` for the usual single run, which lies in one region."""
        gpa, length = pfn << PAGE_SHIFT, count_pages << PAGE_SHIFT
        region = self.region_of(gpa, length)
        if region is None:
            return self._discard_few([(gpa, length)])
        offset = gpa - region.gpa
        if self._small_fd is not None:
            hostcalls.discard_file(self._small_fd, region.mapping, gpa, offset, length)
        elif self.large is None:
            hostcalls.discard_anonymous(region.mapping, offset, length)
        else:
            return self._discard_large(*_pair([pfn], [count_pages]))
        self.writes.add(gpa, length)
        return length

    def _discard_few(self, ranges: list[tuple[int, int]]) -> int:
        """The same for (gpa, length_bytes) ranges: no arrays are made of them."""
        places = [place for gpa, length in ranges for place in self._places(gpa, length)]
        if self.large is not None:
            return self._discard_large(
                *_pair([gpa >> PAGE_SHIFT for gpa, _ in ranges], [n >> PAGE_SHIFT for _, n in ranges])
            )
        for region, offset, length in places:
            if self.fd is None:
                hostcalls.discard_anonymous(region.mapping, offset, length)
            else:
                hostcalls.discard_file(self.fd, region.mapping, region.gpa + offset, offset, length)
        self.writes.add_many(ranges)
        return sum(length for _, length in ranges)

    def _discard_large(self, pfns: U64, counts: U64) -> int:
        """The same where the host's pages are larger, for runs that are all RAM."""
        done = self.large.discard(pfns, counts) if self.large is not None else 0
        self.writes.add_arrays(pfns << _SHIFT, counts << _SHIFT)
        return done

    def _by_region(self, pfns: U64, counts: U64) -> list[tuple[Region, U64, U64]]:
        """Runs of pages by the region that holds them: offsets and bytes.  Nothing if any is not in a single one."""
        parts, left = [], len(pfns)
        for region in self.regions:
            offsets, pages = pfns - np.uint64(region.gpa >> PAGE_SHIFT), np.uint64(region.size >> PAGE_SHIFT)
            inside = (offsets < pages) & (counts <= pages - offsets)
            found = int(np.count_nonzero(inside))
            if found == len(pfns):
                return [(region, offsets << _SHIFT, counts << _SHIFT)]
            if found:
                parts.append((region, offsets[inside] << _SHIFT, counts[inside] << _SHIFT))
                left -= found
        return parts if left == 0 else []

    def backed_bytes(self) -> int:
        """How much host memory really stands behind the guest's RAM now."""
        if self.fd is not None:
            return hostcalls.allocated_bytes(self.fd)
        pages = sum(int(hostcalls.resident_pages(region.address, region.size).sum()) for region in self.regions)
        return pages * hostcalls.PAGE_BYTES

    def peek(self, gpa: int, length: int) -> bytes:
        """`length` bytes at `gpa` without bringing discarded pages back.  OutsideRam if any is not RAM."""
        places = self._places(gpa, length)
        if self.fd is not None:
            return hostcalls.read_file(self.fd, gpa, length)
        return b"".join(
            hostcalls.peek_anonymous(region.mapping, region.address, offset, size) for region, offset, size in places
        )

    # -- who wrote what ------------------------------------------------------------------------------------------------

    def wrote(self, gpa: int, length: int) -> None:
        """Remember that the host's side changed `length` bytes at `gpa`."""
        self.writes.add(gpa, length)

    @property
    def has_writes(self) -> bool:
        """Whether `take_writes` would give anything."""
        return bool(self.writes)

    def take_writes(self) -> list[tuple[int, int]]:
        """(gpa, length) ranges that cover every change since the last call.

        Ranges that touch are joined.  If nobody asked for long, the list names what lies between them too."""
        return self.writes.take()

    def track_writes(self) -> WriteTracking:
        """Something that can tell which pages nobody wrote, host, device or CPU, since it was started.  At most one may
        be active."""
        return WriteTracking(self.regions)

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give all of it back; a second time is no error.  Nothing is RAM afterwards.  Views that are still alive keep
        their region mapped, and the memory file with it, until they go."""
        self.regions = self._spans = ()
        self.fd = None
        if self._release is not None:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _check_layout(layout: Sequence[tuple[int, int]]) -> None:
    end = 0
    for gpa, size in layout:
        if gpa % hostcalls.PAGE_BYTES or size % hostcalls.PAGE_BYTES:
            raise ValueError(
                f"RAM at {gpa:#x} must be whole pages of {hostcalls.PAGE_BYTES} bytes, not {size:#x} bytes"
            )
        if size <= 0 or gpa < end:
            raise ValueError(f"RAM at {gpa:#x} must follow what ends at {end:#x} and not be empty")
        end = gpa + size
    if not 0 < end <= 1 << 63:
        raise ValueError(f"RAM must end between 1 byte and 8 EiB, not at {end:#x}")


def _groups(layout: Sequence[tuple[int, int]], opened: OpenBacking) -> list[list[tuple[int, int]]]:
    """The regions that share a page of the host's, together."""
    unit = opened.page_bytes
    groups: list[list[tuple[int, int]]] = []
    for gpa, size in layout:
        if groups and gpa // unit < -(-sum(groups[-1][-1]) // unit):
            groups[-1].append((gpa, size))
        else:
            groups.append([(gpa, size)])
    return groups


def spans_of(layout: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ascending (start, end) of RAM without a hole: adjoining regions are one span."""
    spans: list[tuple[int, int]] = []
    for gpa, size in layout:
        start = spans.pop()[0] if spans and spans[-1][1] == gpa else gpa
        spans.append((start, gpa + size))
    return tuple(spans)


def _pair(gpas: Integers, lengths: Integers) -> tuple[U64, U64]:
    starts, sizes = np.asarray(gpas, np.uint64), np.asarray(lengths, np.uint64)
    if starts.shape != sizes.shape or starts.ndim != 1:
        raise ValueError(f"gpas and lengths must be two lists of one length, not {starts.shape} and {sizes.shape}")
    return starts, sizes


def _zip(starts: U64, sizes: U64) -> list[tuple[int, int]]:
    return list(zip(starts.tolist(), sizes.tolist(), strict=True))


def _as_bytes(data: Buffer) -> Bytes:
    return np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)


def _fill(pieces: list[Bytes], source: Bytes) -> None:
    position = 0
    for piece in pieces:
        piece[:] = source[position : position + len(piece)]
        position += len(piece)
