"""The host system calls behind guest RAM, and nothing else.

Everything here can fail or be absent on some host; each function says what it does then.  Tests put a fake in place of
these functions to play a host that they do not run on.
"""

from __future__ import annotations

import ctypes
import mmap
import os

PAGE_BYTES = mmap.PAGESIZE

_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it only from Python 3.13 on
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    _fallocate.restype = ctypes.c_int


def create_memory_file(name: str, size: int) -> int | None:
    """A descriptor of a sparse in-memory file of `size` bytes, or None where the host has no memfd_create."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    except OSError:
        return None
    os.ftruncate(fd, size)
    return fd


def map_memory(fd: int | None, offset: int, length: int) -> mmap.mmap:
    """Map `length` bytes, of the file from `offset` on or anonymous when `fd` is None.  OSError when the host refuses."""
    if fd is None:
        return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    return mmap.mmap(fd, length, flags=mmap.MAP_SHARED | _MAP_NORESERVE, offset=offset)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the file's pages back to the host; they read as zero afterwards.  OSError when the host refuses."""
    if _fallocate is None:
        raise OSError(38, "no fallocate")
    if _fallocate(fd, _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length):
        raise OSError(error := ctypes.get_errno(), os.strerror(error))


def allocated_bytes(fd: int) -> int:
    """What the host has really allocated for the file."""
    return os.fstat(fd).st_blocks * 512
