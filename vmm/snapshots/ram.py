"""Guest RAM in a snapshot file: only pages that are backed and not all zeros, in compressed chunks.

Three tables stand in the state instead of the contents: `extents`, what host memory stood behind, so that as much does
again; `runs`, which of these pages are not all zeros; `chunks`, the pieces of the file that have their contents, in the
same order.  A chunk has whole runs, at most `CHUNK_BYTES` of contents, and is a Zstandard frame under a SHA-256 of its
own.  So whoever writes or reads needs a few chunks of memory at a time, and can work on several at once: compression,
checksums and the host's calls let other threads run.

Writing reads the memory file and no mapping: what the balloon gave back stays given back.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from devices import hostcalls
from devices.memory import PAGE_BYTES, PAGE_SHIFT, GuestMemory
from devices.memory_state import MemoryState
from devices.state import State, require_fields
from vmm.snapshots.layout import DIGEST_BYTES, HEADER_BYTES, Damaged, compress, decompress, digest, read_part

CHUNK_BYTES = 4 << 20
EXTENT = np.dtype([("gpa", "<u8"), ("bytes", "<u8")])
RUN = np.dtype([("pfn", "<u8"), ("pages", "<u4")])
CHUNK = np.dtype([("stored", "<u4"), ("runs", "<u4"), ("pages", "<u4"), ("sha256", f"V{DIGEST_BYTES}")])
TABLES = {"extents": EXTENT, "runs": RUN, "chunks": CHUNK}
END_OF_RAM = 1 << 52
MOST_WORKERS = 8
_NO_LAYOUT = "its RAM is laid out like no machine's"
_SWITCH_INTERVAL_S = 0.0005  # how long a thread waits for another that runs Python: it has little to do then

Table = NDArray[np.void]
Progress = Callable[[int, int], None]
Piece = tuple[int, int]


class SavedRam:
    """Stands for a machine's memory while its state is saved: the contents go to `fd`, behind the header.

    `progress` is called after each chunk with the bytes of RAM that are done, and all of them.  `stored_bytes` is what
    the chunks take in the file."""

    def __init__(self, memory: GuestMemory, fd: int, progress: Progress | None = None) -> None:
        self._memory = memory
        self._state = MemoryState(memory)
        self._fd = fd
        self._progress = progress
        self.stored_bytes = 0

    def save_state(self) -> State:
        extents = list(self._state.extents())
        runs, chunks = self._write(extents)
        return {
            **self._state.save_outline(),
            "extents": np.array(extents, EXTENT).tobytes(),
            "runs": runs,
            "chunks": chunks,
        }

    def check_state(self, saved: Any, where: str) -> None:
        raise NotImplementedError("this is for saving only")

    def restore_state(self, saved: Any) -> None:
        raise NotImplementedError("this is for saving only")

    def _write(self, extents: list[Piece]) -> tuple[bytes, bytes]:
        """Write all chunks; returns the tables of runs and of chunks."""
        runs: list[bytes] = []
        rows: list[tuple[int, int, int, bytes]] = []
        waiting: deque[tuple[int, Table, Future[tuple[bytes, bytes]]]] = deque()
        total, done = sum(length for _, length in extents), 0
        count = workers()
        with ThreadPoolExecutor(count) as pool:

            def write_first() -> None:
                nonlocal done
                size, found, packing = waiting.popleft()
                frame, sha256 = packing.result()
                if len(found):
                    self._append(frame)
                    runs.append(found.tobytes())
                    rows.append((len(frame), len(found), int(found["pages"].sum()), sha256))
                done += size
                if self._progress is not None:
                    self._progress(done, total)

            for pieces in _groups(extents):
                if len(waiting) > count:
                    write_first()
                found, contents = _without_zeros(self._memory, pieces)
                waiting.append((sum(length for _, length in pieces), found, pool.submit(_packed, contents)))
            while waiting:
                write_first()
        return b"".join(runs), np.array(rows, CHUNK).tobytes()

    def _append(self, frame: bytes) -> None:
        write_all(self._fd, frame, HEADER_BYTES + self.stored_bytes)
        self.stored_bytes += len(frame)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write `data` at `offset` of the file.  OSError where it cannot be."""
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        offset, rest = offset + done, rest[done:]


def workers() -> int:
    """How many chunks are worked on at once."""
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def _packed(contents: bytes) -> tuple[bytes, bytes]:
    frame = compress(contents)
    return frame, digest(frame)


def _groups(extents: Sequence[Piece]) -> Iterator[list[Piece]]:
    """The extents in their order, cut and put together into groups of at most CHUNK_BYTES."""
    group, room = [], CHUNK_BYTES
    for gpa, length in extents:
        while length:
            size = min(length, room)
            group.append((gpa, size))
            gpa, length, room = gpa + size, length - size, room - size
            if not room:
                yield group
                group, room = [], CHUNK_BYTES
    if group:
        yield group


def _without_zeros(memory: GuestMemory, pieces: list[Piece]) -> tuple[Table, bytes]:
    """The runs of pages among `pieces` that are not all zeros, none across a border of pieces, and their contents."""
    contents = b"".join([memory.peek(gpa, length) for gpa, length in pieces])
    pages = np.frombuffer(contents, np.uint64).reshape(-1, PAGE_BYTES // 8)
    there = pages.any(axis=1)
    counts = [length >> PAGE_SHIFT for _, length in pieces]
    pfns = np.concatenate(
        [np.arange(gpa >> PAGE_SHIFT, gpa + length >> PAGE_SHIFT, dtype=np.uint64) for gpa, length in pieces]
    )[there]
    owners = np.repeat(np.arange(len(pieces)), counts)[there]
    begins = np.ones(len(pfns), np.bool_)
    begins[1:] = (pfns[1:] != pfns[:-1] + np.uint64(1)) | (owners[1:] != owners[:-1])
    firsts = np.flatnonzero(begins)
    runs = np.empty(len(firsts), RUN)
    runs["pfn"] = pfns[firsts]
    runs["pages"] = np.diff(firsts, append=len(pfns))
    return runs, contents if there.all() else pages[there].tobytes()


# -- back ----------------------------------------------------------------------------------------------------------


class StoredRam:
    """The contents of RAM in the file `fd`, after the tables of the state `saved`; `stored_bytes` are its chunks.

    Damaged unless the tables fit each other and the file: at most `memory_bytes` of RAM, ascending, every run within an
    extent and within a chunk."""

    def __init__(self, fd: int, saved: Any, stored_bytes: int, memory_bytes: int) -> None:
        fields = require_fields("memory", saved, ["regions", "writes", *TABLES])
        self._fd = fd
        self._memory_bytes = memory_bytes
        self._tables = {name: _table(fields[name], dtype) for name, dtype in TABLES.items()}
        self.outline = {name: fields[name] for name in ("regions", "writes")}
        self._check_extents(memory_bytes)
        self._check_runs()
        self._check_chunks(stored_bytes)

    def _check_extents(self, memory_bytes: int) -> None:
        gpas, lengths = self._tables["extents"]["gpa"], self._tables["extents"]["bytes"]
        if not _are_ascending(gpas, lengths, END_OF_RAM) or int(lengths.sum()) > memory_bytes:
            raise Damaged("its pages are no RAM of this machine")
        if ((gpas | lengths) % np.uint64(PAGE_BYTES)).any():
            raise Damaged("its RAM is not in whole pages")

    def _check_runs(self) -> None:
        gpas, lengths = self._bytes_of_runs()
        starts, sizes = self._tables["extents"]["gpa"], self._tables["extents"]["bytes"]
        if not _are_ascending(gpas, lengths, END_OF_RAM):
            raise Damaged("its pages are no RAM of this machine")
        owners = np.searchsorted(starts, gpas, "right") - 1
        if len(gpas) and (owners.min() < 0 or (gpas + lengths > (starts + sizes)[owners]).any()):
            raise Damaged("it has pages that nothing was behind")

    def _check_chunks(self, stored_bytes: int) -> None:
        chunks, runs = self._tables["chunks"], self._tables["runs"]
        ends = np.cumsum(chunks["runs"], dtype=np.int64)
        firsts = ends - chunks["runs"]
        if (len(ends) and int(ends[-1])) != len(runs) or (chunks["runs"] == 0).any():
            raise Damaged("its chunks do not have its pages")
        pages = np.add.reduceat(runs["pages"].astype(np.uint64), firsts) if len(ends) else np.empty(0, np.uint64)
        if (pages != chunks["pages"]).any() or (pages > CHUNK_BYTES >> PAGE_SHIFT).any():
            raise Damaged("its chunks do not have its pages")
        if int(chunks["stored"].sum(dtype=np.uint64)) != stored_bytes or (chunks["stored"] > 2 * CHUNK_BYTES).any():
            raise Damaged("its chunks are not as long as it says")
        self._firsts = firsts

    def _bytes_of_runs(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        runs = self._tables["runs"]
        bad = runs["pfn"] >= np.uint64(END_OF_RAM >> PAGE_SHIFT)
        if bad.any():
            raise Damaged("its pages are no RAM of this machine")
        shift = np.uint64(PAGE_SHIFT)
        return runs["pfn"] << shift, runs["pages"].astype(np.uint64) << shift

    @property
    def extents(self) -> list[Piece]:
        """(gpa, bytes) of what was backed, ascending."""
        return [(gpa, length) for gpa, length in self._tables["extents"].tolist()]

    def zeros(self) -> list[Piece]:
        """(gpa, bytes) of what was backed and all zeros, ascending."""
        gpas, lengths = self._bytes_of_runs()
        extents = self._tables["extents"]
        # Everything that begins or ends, in order: between an end of pages (or a begin of an extent) and what comes
        # next (a begin of pages, or the end of the extent) there are zeros.
        begins = np.concatenate((extents["gpa"], gpas + lengths))
        ends = np.concatenate((gpas, extents["gpa"] + extents["bytes"]))
        begins.sort()
        ends.sort()
        found = begins < ends
        return list(zip(begins[found].tolist(), (ends - begins)[found].tolist(), strict=True))

    @property
    def layout(self) -> list[Piece]:
        """(gpa, bytes) of each region of RAM.  Damaged where it is no layout of so much RAM."""
        regions = self.outline["regions"]
        found, end, total = [], 0, 0
        for region in regions if isinstance(regions, list) else []:
            gpa, size = region if isinstance(region, list) and len(region) == 2 else (None, None)
            if type(gpa) is not int or type(size) is not int or not end <= gpa < END_OF_RAM or size <= 0:
                raise Damaged(_NO_LAYOUT)
            found.append((gpa, size))
            end, total = gpa + size, total + size
        if not found or (total | sum(gpa for gpa, _ in found)) % PAGE_BYTES or total > self._memory_bytes:
            raise Damaged(_NO_LAYOUT)
        return found

    def read(self, pool: ThreadPoolExecutor, put: Callable[[int, memoryview], None]) -> list[Future[None]]:
        """Have `pool` call `put` with the address and the contents of each run, from several threads at once.  A job
        for each chunk, whose result is Damaged if it is not what was written."""
        offsets = HEADER_BYTES + np.cumsum(self._tables["chunks"]["stored"], dtype=np.int64)
        offsets -= self._tables["chunks"]["stored"]

        def read_chunk(index: int) -> None:
            for gpa, data in self._chunk(index, int(offsets[index])):
                put(gpa, data)

        return [pool.submit(read_chunk, index) for index in range(len(offsets))]

    def _chunk(self, index: int, offset: int) -> Iterator[tuple[int, memoryview]]:
        chunk = self._tables["chunks"][index]
        frame = read_part(self._fd, offset, int(chunk["stored"]), bytes(chunk["sha256"]), "a chunk of its RAM")
        data = memoryview(decompress(frame, int(chunk["pages"]) << PAGE_SHIFT, "a chunk of its RAM"))
        first, position = int(self._firsts[index]), 0
        for pfn, pages in self._tables["runs"][first : first + int(chunk["runs"])].tolist():
            size = pages << PAGE_SHIFT
            yield pfn << PAGE_SHIFT, data[position : position + size]
            position += size


def _table(data: Any, dtype: np.dtype[np.void]) -> Table:
    if type(data) is not bytes or len(data) % dtype.itemsize:
        raise Damaged("a table of its RAM is none")
    return np.frombuffer(data, dtype)


def _are_ascending(starts: NDArray[np.uint64], sizes: NDArray[np.uint64], end: int) -> bool:
    """Whether ranges are not empty, lie below `end`, and each begins where the one before it has ended, or later."""
    if not len(starts):
        return True
    limit = np.uint64(end)
    if (starts > limit).any() or (sizes > limit).any() or not sizes.all():
        return False
    ends = starts + sizes
    return bool((starts[1:] >= ends[:-1]).all() and ends[-1] <= limit)


class RestoredRam:
    """Memory that is being filled with the contents of `stored`, by threads, from now on: meanwhile the machine around
    it may be built, which is as much work.  It stands for that machine's memory while the state is put back.

    A context manager: at its end nobody writes to `memory` any more, which is the machine's to close."""

    def __init__(self, stored: StoredRam) -> None:
        self.memory = GuestMemory(stored.layout)
        self._state = MemoryState(self.memory)
        self._stored = stored
        # A descriptor of their own: the machine may close its memory while they write, and its number get another file.
        self._fd = None if self.memory.fd is None else os.dup(self.memory.fd)
        self._pool = ThreadPoolExecutor(workers())
        self._jobs = stored.read(self._pool, self._put)
        self._interval_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)

    def _put(self, gpa: int, data: memoryview) -> None:
        if self._fd is None:
            self._state.fill(gpa, data)
        else:
            hostcalls.write_file(self._fd, gpa, data)

    def save_state(self) -> State:
        raise NotImplementedError("this is for restoring only")

    def check_state(self, saved: Any, where: str) -> None:
        self._state.check_outline(self._stored.outline, where)
        for gpa, length in self._stored.extents:
            if self.memory.region_of(gpa, length) is None:
                raise Damaged("its pages are no RAM of this machine")

    def restore_state(self, saved: Any) -> None:
        """Damaged where the contents are not what was written; the machine is then of no use."""
        state, stored = self._state, self._stored
        state.make_holes(stored.extents)
        for gpa, length in stored.zeros():
            state.fill_with_zeros(gpa, length)
        for job in self._jobs:
            job.result()
        state.restore_outline(stored.outline)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        sys.setswitchinterval(self._interval_s)
        if self._fd is not None:
            os.close(self._fd)


def contents(stored: StoredRam) -> State:
    """The state of the memory as `MemoryState.save_state` gives it, with all contents in memory."""
    extents = stored.extents
    buffers = [bytearray(length) for _, length in extents]
    starts = np.array([gpa for gpa, _ in extents], np.uint64)

    def put(gpa: int, data: memoryview) -> None:
        index = int(np.searchsorted(starts, np.uint64(gpa), "right")) - 1
        start = gpa - extents[index][0]
        buffers[index][start : start + len(data)] = data

    with ThreadPoolExecutor(workers()) as pool:
        for job in stored.read(pool, put):
            job.result()
    pieces: Any = [[gpa, bytes(buffer)] for (gpa, _), buffer in zip(extents, buffers, strict=True)]
    return {**stored.outline, "extents": pieces}
