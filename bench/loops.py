"""The C loops that the device is compared with: compiled once a run with the pinned compiler, called through ctypes.

Owns the shared library and the layout of its `struct batch`.  Refuses to know what is measured.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.memory import PAGE_SHIFT, GuestMemory

SOURCE = Path(__file__).with_name("loops.c")


class Batch(ctypes.Structure):
    """`struct batch` of loops.c."""

    _fields_ = (
        ("ram", ctypes.c_void_p),
        ("first", ctypes.c_uint64),
        ("last", ctypes.c_uint64),
        ("advice", ctypes.c_int32),
        ("count", ctypes.c_uint32),
        ("arrays", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    )


class PreparedBatch:
    """`arrays` of little-endian PFNs that lie in `memory` at `gpas`, as the loops want them.

    All pages must be of the last region.  It refers to the memory by address: close the memory only after it."""

    def __init__(self, memory: GuestMemory, gpas: list[int], lengths: list[int]) -> None:
        region = memory.regions[-1]
        base = region.address - region.gpa
        self._arrays: NDArray[Any] = np.array([base + gpa for gpa in gpas], np.uint64)
        self._lengths: NDArray[Any] = np.array(lengths, np.uint32)
        self._scratch: NDArray[Any] = np.empty(sum(lengths), np.uint32)
        self.batch = Batch(
            base,
            region.gpa >> PAGE_SHIFT,
            (region.end >> PAGE_SHIFT) - 1,
            mmap.MADV_DONTNEED if memory.fd is None else mmap.MADV_REMOVE,
            len(gpas),
            self._arrays.ctypes.data,
            self._lengths.ctypes.data,
            self._scratch.ctypes.data,
        )


class Loops:
    """Both loops, compiled into `folder`."""

    def __init__(self, folder: Path) -> None:
        library = folder / "loops.so"
        words = [sys.executable, "-m", "ziglang", "cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
        subprocess.run(words, check=True)
        self._library = ctypes.CDLL(str(library))
        for name in ("page_by_page", "sort_and_merge"):
            function = getattr(self._library, name)
            function.argtypes, function.restype = [ctypes.POINTER(Batch)], ctypes.c_int64

    def page_by_page(self, prepared: PreparedBatch) -> int:
        """One discard call a page; returns how many calls."""
        return _checked(self._library.page_by_page(ctypes.byref(prepared.batch)))

    def sort_and_merge(self, prepared: PreparedBatch) -> int:
        """One discard call a run of the sorted batch; returns how many calls."""
        return _checked(self._library.sort_and_merge(ctypes.byref(prepared.batch)))


def _checked(calls: int) -> int:
    if calls < 0:
        raise OSError("the host refused a discard")
    return calls
