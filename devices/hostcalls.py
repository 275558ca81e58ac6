"""The host system calls behind guest RAM, and nothing else.

Everything here can fail or be absent on some host; each function says what it does then.  Tests put a fake in place of
these functions to play a host that they do not run on.  Offsets and lengths are bytes and multiples of 4096; the host's
own pages may be larger, and then the calls that cannot cut one in two are not used.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import mmap
import os
import platform
import struct

import numpy as np
from numpy.typing import NDArray

PAGE_BYTES = mmap.PAGESIZE

_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it only from Python 3.13 on
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_SYS_PROCESS_MADVISE = 440  # the same number on every architecture
_MFD_HUGETLB, _MFD_HUGE_SHIFT = 0x4, 26
_HUGE_POOLS = "/sys/kernel/mm/hugepages"
_UIO_MAXIOV = 1024
_FEW_RUNS = 8  # up to here one madvise a run is cheaper than process_madvise
_PM_OURS = np.uint64(1 << 63 | 1 << 56)  # a /proc/PID/pagemap entry: present, and mapped by nobody else
_PM_SWAPPED = np.uint64(1 << 62)
_PAGEMAP_CHUNK_PAGES = 1 << 18

_SYS_USERFAULTFD = {"x86_64": 323, "ppc64le": 364}  # 282 on the architectures that came after the common table
_UFFD_USER_MODE_ONLY = 1  # what an ordinary user is allowed; writes by the kernel are followed all the same
_UFFD_API = 0xAA
_UFFD_WP_ASYNC = 1 << 12 | 1 << 13 | 1 << 15  # of memory files, of pages not there yet, without a handler
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0xC018AA06
_UFFD_MODE_WP = 2
_PAGEMAP_SCAN, _PAGEMAP_SCAN_ARGUMENTS = 0xC0606610, struct.Struct("=12Q")
_PAGE_IS_WPALLOWED, _PAGE_IS_WRITTEN, _PAGE_IS_PRESENT, _PAGE_IS_SWAPPED = 1, 2, 8, 16
_SCANNED_RUNS = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_fallocate = getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    _fallocate.restype = ctypes.c_int


def _last_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


# -- a memory file -------------------------------------------------------------------------------------------------


def create_memory_file(name: str, size: int) -> int | None:
    """A descriptor of a sparse in-memory file of `size` bytes, or None where the host offers no usable one:
    memfd_create is missing or refused, the size is beyond it, or holes cannot be punched into it."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    except OSError:
        return None
    try:
        os.ftruncate(fd, size)
        punch_hole(fd, 0, PAGE_BYTES)
    except OSError:
        os.close(fd)
        return None
    return fd


def map_memory(fd: int | None, offset: int, length: int) -> mmap.mmap:
    """Map `length` bytes: of the file from `offset` on, or anonymous ones.  OSError when the host refuses."""
    if fd is not None:
        return mmap.mmap(fd, length, flags=mmap.MAP_SHARED | _MAP_NORESERVE, offset=offset)
    mapping = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    with contextlib.suppress(OSError):
        # A huge page gives nothing back until all of it is discarded.  A kernel without huge pages answers EINVAL.
        mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return mapping


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the file's pages back to the host; they read as zero afterwards.  OSError when the host refuses."""
    if _fallocate is None:
        raise OSError(errno.ENOSYS, "no fallocate")
    if _fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length):
        raise _last_error()


def discard_file(fd: int, mapping: mmap.mmap, file_offset: int, offset: int, length: int) -> None:
    """Give pages of the memory file back: those at `file_offset`, which `mapping` has at `offset`.

    MADV_REMOVE ends in the same kernel code as a punched hole and saves 1.5 µs of ctypes a call.  It refuses locked
    pages and parts of the host's pages; fallocate does both."""
    if PAGE_BYTES == 4096:
        try:
            mapping.madvise(mmap.MADV_REMOVE, offset, length)
        except OSError:
            pass  # the other way is tried
        else:
            return
    punch_hole(fd, file_offset, length)


def discard_file_runs(
    fd: int, mapping: mmap.mmap, file_offset: int, offsets: NDArray[np.uint64], lengths: NDArray[np.uint64]
) -> None:
    """`discard_file` for many ranges of one mapping, which begins at `file_offset`; both arrays have shape (n,)."""
    runs = list(zip(offsets.tolist(), lengths.tolist(), strict=True))
    if PAGE_BYTES == 4096:
        advise, remove = mapping.madvise, mmap.MADV_REMOVE
        with contextlib.suppress(OSError):
            for offset, length in runs:
                advise(remove, offset, length)
            return
    for offset, length in runs:  # all of them: what is a hole already stays one
        punch_hole(fd, file_offset + offset, length)


# -- a memory file in huge pages -------------------------------------------------------------------------------------


def create_huge_file(name: str, size: int, page_bytes: int) -> tuple[int, int]:
    """A descriptor of an empty memory file of at least `size` bytes in huge pages of `page_bytes` (0: the host's usual
    ones), and how large these are.  OSError where the host has none of that size."""
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, "no memfd_create")
    kind = max(page_bytes.bit_length() - 1, 0) << _MFD_HUGE_SHIFT
    fd = os.memfd_create(name, os.MFD_CLOEXEC | _MFD_HUGETLB | kind)
    try:
        page_bytes = os.fstat(fd).st_blksize
        os.ftruncate(fd, -(-size // page_bytes) * page_bytes)
    except OSError:
        os.close(fd)
        raise
    return fd, page_bytes


def map_reserved(fd: int, offset: int, length: int) -> mmap.mmap:
    """Map `length` bytes of a file in huge pages, all of which are set aside for it now: OSError (ENOMEM) where there
    are not so many.  A page that is given back is no longer set aside."""
    return mmap.mmap(fd, length, flags=mmap.MAP_SHARED, offset=offset)


def huge_page_pools() -> dict[int, tuple[int, int]]:
    """How many huge pages the host has, by their size in bytes: all of them, and those that nobody has or was promised.
    Empty where the host has no such thing, or does not tell."""
    pools = {}
    with contextlib.suppress(OSError, ValueError):
        for entry in os.listdir(_HUGE_POOLS):
            every, free, promised = (
                _read_number(f"{_HUGE_POOLS}/{entry}/{what}_hugepages") for what in ("nr", "free", "resv")
            )
            pools[int(entry.removeprefix("hugepages-").removesuffix("kB")) << 10] = every, free - promised
    return pools


def _read_number(path: str) -> int:
    with open(path) as file:
        return int(file.read())


def present_pages(address: int, length: int) -> NDArray[np.bool_]:
    """For each 4096 bytes of a mapped memory file whether host memory stands behind them.

    A file in huge pages does not know SEEK_DATA; what this process never touched of it counts as absent."""
    answer = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
    if _libc.mincore(address, length, answer.ctypes.data):
        raise _last_error()
    return np.repeat((answer & 1).astype(np.bool_), mmap.PAGESIZE // 4096)


# -- a memory file as a file -----------------------------------------------------------------------------------------


def read_file(fd: int, offset: int, length: int) -> bytes:
    """`length` bytes of the memory file, which gains no page by it.  One pread stops short of 2 GiB."""
    pieces = []
    while length > 0:
        piece = os.pread(fd, length, offset)
        if not piece:
            raise OSError(errno.EIO, f"the memory file ends before {offset + length:#x}")
        pieces.append(piece)
        offset, length = offset + len(piece), length - len(piece)
    return b"".join(pieces)


def write_file(fd: int, offset: int, data: bytes | memoryview) -> None:
    """Store `data` in the memory file.  One pwrite stops short of 2 GiB."""
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        offset, rest = offset + done, rest[done:]


def data_extents(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    """(offset, length) of what is allocated of the file between two offsets, ascending."""
    extents = []
    while start < end:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but holes up to the end of the file
                raise
            break
        if first >= end:
            break
        start = min(os.lseek(fd, first, os.SEEK_HOLE), end)
        extents.append((first, start - first))
    return extents


def allocated_bytes(fd: int) -> int:
    """What the host has really allocated for the file."""
    return os.fstat(fd).st_blocks * 512


# -- anonymous memory ------------------------------------------------------------------------------------------------


def discard_anonymous(mapping: mmap.mmap, offset: int, length: int) -> None:
    """Give private pages back; they read as zero afterwards.  Where the host's pages are larger, only whole ones are
    given back, and the rest is cleared."""
    if PAGE_BYTES == 4096:
        mapping.madvise(mmap.MADV_DONTNEED, offset, length)
        return
    first = -(-offset // PAGE_BYTES) * PAGE_BYTES
    last = (offset + length) // PAGE_BYTES * PAGE_BYTES
    if first >= last:
        mapping[offset : offset + length] = bytes(length)
        return
    mapping.madvise(mmap.MADV_DONTNEED, first, last - first)
    mapping[offset:first] = bytes(first - offset)
    mapping[last : offset + length] = bytes(offset + length - last)


def discard_anonymous_runs(
    mapping: mmap.mmap, address: int, offsets: NDArray[np.uint64], lengths: NDArray[np.uint64]
) -> None:
    """`discard_anonymous` for many ranges of one mapping, which is at `address`; both arrays have shape (n,)."""
    if len(offsets) > _FEW_RUNS and discard_anonymous_ranges(offsets + np.uint64(address), lengths):
        return
    for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
        discard_anonymous(mapping, offset, length)


def discard_anonymous_ranges(addresses: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> bool:
    """Give many ranges of this process's private memory back in few calls, or say False: then some or all of them are
    still there."""
    if PAGE_BYTES != 4096 or not process_madvise_works():
        return False
    return _process_madvise(np.stack((addresses, lengths), axis=1))


@functools.cache
def process_madvise_works() -> bool:
    """Whether process_madvise takes MADV_DONTNEED for oneself, tried once on a page of our own.  Kernels before 6.13
    answer EINVAL."""
    page = np.frombuffer(map_memory(None, 0, PAGE_BYTES), np.uint8)
    page[0] = 1
    return _process_madvise(np.array([[page.ctypes.data, PAGE_BYTES]], np.uint64)) and not page[0]


def _process_madvise(vectors: NDArray[np.uint64]) -> bool:
    """Discard (address, length) ranges, shape (n, 2), or say False.

    The descriptor is opened anew each time: an inherited one would name the parent."""
    if not hasattr(os, "pidfd_open"):
        return False
    try:
        pidfd = os.pidfd_open(os.getpid())
    except OSError:
        return False
    try:
        for start in range(0, len(vectors), _UIO_MAXIOV):
            part = vectors[start : start + _UIO_MAXIOV]
            pointer, count = ctypes.c_void_p(part.ctypes.data), ctypes.c_size_t(len(part))
            done = _libc.syscall(_SYS_PROCESS_MADVISE, pidfd, pointer, count, mmap.MADV_DONTNEED, 0)
            if done != int(part[:, 1].sum()):
                return False
    finally:
        os.close(pidfd)
    return True


def resident_pages(address: int, length: int) -> NDArray[np.bool_]:
    """For each of the host's pages in this process's private memory whether host memory stands behind it.

    A hole that was only read shows the one shared page of zeros: /proc/self/pagemap tells it apart (it is present and
    yet not exclusively ours).  mincore, for hosts without a pagemap, counts it."""
    pages = -(-length // PAGE_BYTES)
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            return _read_pagemap(pagemap.fileno(), address // PAGE_BYTES, pages)
    except OSError:
        answer = np.zeros(pages, np.uint8)
        if _libc.mincore(address, pages * PAGE_BYTES, answer.ctypes.data):
            raise _last_error() from None
        return (answer & 1).astype(np.bool_)


def peek_anonymous(mapping: mmap.mmap, address: int, offset: int, length: int) -> bytes:
    """A copy of private memory mapped at `address`: only of the pages that are there.  What is not reads as zero and
    stays away."""
    first = offset // PAGE_BYTES * PAGE_BYTES
    answer = bytearray(offset + length - first)
    present = resident_pages(address + first, len(answer))
    for index in np.flatnonzero(present).tolist():
        end = min((index + 1) * PAGE_BYTES, len(answer))
        answer[index * PAGE_BYTES : end] = mapping[first + index * PAGE_BYTES : first + end]
    return bytes(answer[offset - first :])


def _read_pagemap(fd: int, first: int, pages: int) -> NDArray[np.bool_]:
    result = np.empty(pages, np.bool_)
    for start in range(0, pages, _PAGEMAP_CHUNK_PAGES):
        wanted = min(_PAGEMAP_CHUNK_PAGES, pages - start)
        entries = np.frombuffer(os.pread(fd, 8 * wanted, 8 * (first + start)), np.uint64)
        if len(entries) != wanted:
            raise OSError(errno.EIO, "/proc/self/pagemap ended early")
        ours = (entries & _PM_OURS) == _PM_OURS
        result[start : start + wanted] = ours | ((entries & _PM_SWAPPED) != 0)
    return result


# -- who wrote since ---------------------------------------------------------------------------------------------------


def open_write_watch() -> int:
    """A descriptor that watches writes to this process's memory as long as it is open.  OSError where the kernel cannot
    (it takes Linux 6.7) or must not."""
    number = _SYS_USERFAULTFD.get(platform.machine(), 282)
    fd = int(_libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY))
    if fd < 0:
        raise _last_error()
    try:
        fcntl.ioctl(fd, _UFFDIO_API, struct.pack("=3Q", _UFFD_API, _UFFD_WP_ASYNC, 0))
    except OSError:
        os.close(fd)
        raise
    return fd


def watch_writes(fd: int, address: int, length: int) -> None:
    """From now on remember which pages of a mapping are written: by the CPU, by this process, by the kernel for it.

    Each first write to a page costs one fault, about 1 µs.  OSError when the host refuses, or watches already."""
    fcntl.ioctl(fd, _UFFDIO_REGISTER, bytearray(struct.pack("=4Q", address, length, _UFFD_MODE_WP, 0)))
    fcntl.ioctl(fd, _UFFDIO_WRITEPROTECT, bytearray(struct.pack("=3Q", address, length, 1)))


def open_pagemap() -> int:
    """A descriptor for `unwritten_runs`.  OSError where there is no /proc."""
    return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)


def unwritten_runs(pagemap: int, address: int, length: int) -> NDArray[np.uint64]:
    """(start, end) addresses, shape (n, 2), ascending, of the pages that are proved unwritten since `watch_writes`.
    OSError where the kernel cannot tell.

    "Not written" alone would prove nothing: a page of a memory file that was written and then paged out leaves an empty
    entry, which looks the same.  So an entry must be there, and still have its protection."""
    vector = np.empty((_SCANNED_RUNS, 3), np.uint64)
    wanted = _PAGE_IS_WPALLOWED | _PAGE_IS_WRITTEN
    there = _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED  # an entry without a page counts as swapped
    found, end = [], address + length
    while address < end:
        head = (_PAGEMAP_SCAN_ARGUMENTS.size, 0, address, end, 0, vector.ctypes.data, len(vector), 0)
        arguments = bytearray(_PAGEMAP_SCAN_ARGUMENTS.pack(*head, _PAGE_IS_WRITTEN, wanted, there, wanted))
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, arguments)
        found.append(vector[:count, :2].copy())
        # A full vector is not all of it.  Its own end counts: the one that Linux 6.18 reports can be a smaller one.
        address = int(vector[-1, 1]) if count == len(vector) else end
    return np.concatenate(found) if found else np.empty((0, 2), np.uint64)
