"""A host that has huge pages, played at the system-call boundary: its own have nothing to spare for tests.

The files are ordinary memory files of this host.  What is different with huge pages is played over them, as Linux does
it: pages are set aside when a file is mapped; a hole is whole pages (older kernels leave parts of one as they are); the
file cannot be written to, and does not know its holes; the host counts whole pages.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from devices import hostcalls

PAGE = 4096


class HugeHost:
    """`pages` huge pages of `page_bytes`, and of no other size.  `holes` are the numbers of the pages that were punched
    out of a file, in the order of the calls; `calls` counts these."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, page_bytes: int = 2 << 20, pages: int = 1 << 20) -> None:
        self.page_bytes = page_bytes
        self.pages = pages
        self.holes: list[int] = []
        self.calls = 0
        self._set_aside: dict[int, set[int]] = {}
        self._real = {
            name: getattr(hostcalls, name)
            for name in ("punch_hole", "write_file", "data_extents", "allocated_bytes", "present_pages", "watch_writes")
        }
        for name in (*self._real, "create_huge_file", "map_reserved", "huge_page_pools"):
            monkeypatch.setattr(hostcalls, name, getattr(self, name))
        for name in ("discard_file", "discard_file_runs"):
            monkeypatch.setattr(hostcalls, name, self._for_small_files_only(getattr(hostcalls, name)))

    def create_huge_file(self, name: str, size: int, page_bytes: int) -> tuple[int, int]:
        if page_bytes not in (0, self.page_bytes):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(fd, -(-size // self.page_bytes) * self.page_bytes)
        self._set_aside[os.fstat(fd).st_ino] = set()
        return fd, self.page_bytes

    def map_reserved(self, fd: int, offset: int, length: int) -> mmap.mmap:
        assert offset % self.page_bytes == length % self.page_bytes == 0
        mine = self._set_aside[os.fstat(fd).st_ino]
        wanted = set(range(offset // self.page_bytes, (offset + length) // self.page_bytes)) - mine
        if len(wanted) > self.spare:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        mine |= wanted
        return mmap.mmap(fd, length, flags=mmap.MAP_SHARED, offset=offset)

    @property
    def spare(self) -> int:
        """Pages that nobody has or was promised."""
        return self.pages - sum(map(len, self._set_aside.values()))

    def huge_page_pools(self) -> dict[int, tuple[int, int]]:
        return {self.page_bytes: (self.pages, self.spare)}

    def is_huge(self, fd: int) -> bool:
        return os.fstat(fd).st_ino in self._set_aside

    def punch_hole(self, fd: int, offset: int, length: int) -> None:
        if self.is_huge(fd):
            assert length > 0 and offset % self.page_bytes == length % self.page_bytes == 0, (offset, length)
            gone = range(offset // self.page_bytes, (offset + length) // self.page_bytes)
            self._set_aside[os.fstat(fd).st_ino] -= set(gone)
            self.holes += gone
            self.calls += 1
        self._real["punch_hole"](fd, offset, length)

    def write_file(self, fd: int, offset: int, data: bytes) -> None:
        if self.is_huge(fd):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._real["write_file"](fd, offset, data)

    def data_extents(self, fd: int, start: int, end: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = [(start, end - start)]
        return found if self.is_huge(fd) else self._real["data_extents"](fd, start, end)

    def backed(self, fd: int) -> set[int]:
        """The pages of a file that the host has."""
        extents = self._real["data_extents"](fd, 0, os.fstat(fd).st_size)
        size = self.page_bytes
        return {number for start, length in extents for number in range(start // size, -(-(start + length) // size))}

    def allocated_bytes(self, fd: int) -> int:
        small: int = self._real["allocated_bytes"](fd)
        return len(self.backed(fd)) * self.page_bytes if self.is_huge(fd) else small

    def present_pages(self, address: int, length: int) -> NDArray[np.bool_]:
        """All parts of a page are there, or none."""
        assert length % self.page_bytes == 0
        parts = self._real["present_pages"](address, length).reshape(-1, self.page_bytes // PAGE)
        return np.repeat(parts.any(axis=1), self.page_bytes // PAGE)

    def watch_writes(self, fd: int, address: int, length: int) -> None:
        assert length % self.page_bytes == 0, "userfaultfd refuses parts of huge pages"
        self._real["watch_writes"](fd, address, length)

    def _for_small_files_only(self, real: Callable[..., None]) -> Callable[..., None]:
        def discard(fd: int, *arguments: object) -> None:
            assert not self.is_huge(fd), "the kernel would clear parts of a huge page, or leave them, by its version"
            real(fd, *arguments)

        return discard
