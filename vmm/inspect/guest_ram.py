"""The RAM of a running VMM, mapped into this process: the same pages, nothing copied, nobody stopped.

The VMM's RAM is a memory file whose offsets are guest-physical addresses, so its memory map tells everything: which
file, and which parts of it are RAM.  Of a file in huge pages whole ones are mapped; there its name tells which parts
are RAM.  The mapping made here is read-only; looking cannot change the guest.  It can change what the guest costs,
though: reading a hole through `view` makes the host fill it, and where no huge page is left for that the kernel ends
the process that looks (SIGBUS).  `peek` does not.
"""

from __future__ import annotations

import mmap
import os
import weakref
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from devices import hostcalls
from devices.errors import ConfigError, OutsideRam
from devices.host_memory import layout_in
from vmm.inspect import ptrace_import

_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it only from Python 3.13 on


@dataclass(frozen=True, slots=True)
class RamRegion:
    """`size` bytes of guest RAM at `gpa`, which the VMM itself has at `address` of its own memory."""

    gpa: int
    size: int
    address: int

    @property
    def end(self) -> int:
        return self.gpa + self.size


class GuestRam:
    """The guest RAM of the process `pid`; made by `attach`, usable as a context manager.

    `regions` are ascending; those that adjoin in the VMM's memory too are one.  `pid` and `inode` (of the memory file)
    say what is looked at.
    """

    def __init__(self, pid: int, inode: int, regions: tuple[RamRegion, ...], fd: int) -> None:
        self.pid = pid
        self.inode = inode
        self.regions = regions
        self.fd: int | None = fd
        self._release = weakref.finalize(self, os.close, fd)
        self._arrays: dict[RamRegion, NDArray[np.uint8]] = {}
        self._mappings: dict[RamRegion, mmap.mmap] = {}
        self._page_bytes = os.fstat(fd).st_blksize  # a huge page's size, of a file in huge pages

    @classmethod
    def attach(cls, pid: int, *, name: str = "guest-ram", inode: int | None = None) -> GuestRam:
        """Find and open the RAM of a running VMM.  `name` is its memory file's; `inode` chooses among several.

        ConfigError when there is no such process, when it has no such RAM or several of them, or when the host does not
        allow it."""
        found = memory_file_mappings(ptrace_import.mappings_of(pid), name)
        chosen = _choose(pid, sorted({mapping.inode for mapping in found}), inode, name)
        mine = sorted((mapping for mapping in found if mapping.inode == chosen), key=lambda mapping: mapping.offset)
        regions = tuple(region for mapping in mine for region in _regions_in(mapping, name))
        return cls(pid, chosen, regions, open_memory_file(pid, chosen, mine))

    def view(self, gpa: int, length: int) -> NDArray[np.uint8]:
        """A read-only uint8 array of shape (length,) that aliases the guest's RAM and changes under the reader's eyes.
        OutsideRam unless one region holds it all.  Reading a hole through it allocates host memory: see `peek`."""
        for region in self.regions:
            if region.gpa <= gpa < region.end and 0 <= length <= region.end - gpa:
                start = gpa - region.gpa
                return self._array(region)[start : start + length]
        raise OutsideRam(gpa, length)

    def view_records(self, gpa: int, dtype: DTypeLike, count: int) -> NDArray[Any]:
        """`view` as `count` records of a fixed-size dtype."""
        record = np.dtype(dtype)
        return self.view(gpa, count * record.itemsize).view(record)

    def peek(self, gpa: int, length: int) -> bytes:
        """A copy of `length` bytes at `gpa`, across adjoining regions; holes read as zero and stay holes.
        OutsideRam if any byte is not RAM."""
        reached = gpa
        for region in self.regions:
            if region.gpa <= reached < region.end:
                reached = region.end
        if self.fd is None or reached == gpa or not 0 <= length <= reached - gpa:
            raise OutsideRam(gpa, length)
        return hostcalls.read_file(self.fd, gpa, length)

    def mapping(self, region: RamRegion) -> mmap.mmap:
        """The read-only mapping of one of `regions`, from its `base` on.  OutsideRam after `close`."""
        self._array(region)
        return self._mappings[region]

    def base(self, region: RamRegion) -> int:
        """The guest-physical address at which the mapping of a region begins."""
        return region.gpa // self._page_bytes * self._page_bytes

    def backed_bytes(self) -> int:
        """How much host memory really stands behind the guest's RAM now."""
        return hostcalls.allocated_bytes(self.fd) if self.fd is not None else 0

    def close(self) -> None:
        """Let go; a second time is no error.  Views that are still alive keep their region mapped until they go."""
        self.regions, self._arrays, self._mappings, self.fd = (), {}, {}, None
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _array(self, region: RamRegion) -> NDArray[np.uint8]:
        array = self._arrays.get(region)
        if array is None and self.fd is not None:
            start, end = self.base(region), -(-region.end // self._page_bytes) * self._page_bytes
            end = min(end, os.fstat(self.fd).st_size)
            flags = mmap.MAP_SHARED | _MAP_NORESERVE  # no huge page is set aside for looking
            mapping = mmap.mmap(self.fd, end - start, flags, mmap.PROT_READ, offset=start)
            self._mappings[region] = mapping
            array = np.frombuffer(mapping, np.uint8)[region.gpa - start :][: region.size]
            self._arrays[region] = array
        if array is None:
            raise OutsideRam(region.gpa, region.size)
        return array


def memory_file_mappings(mappings: list[Any], name: str) -> list[Any]:
    """Those of a process's mappings that are of a memory file called `name`, which may tell its layout besides."""
    names = [(mapping, _file_name(mapping.pathname)) for mapping in mappings]
    return [mapping for mapping, file_name in names if file_name == name or layout_in(file_name, name)]


def _file_name(pathname: str | None) -> str:
    """The name that a memory file was given, or nothing."""
    path = (pathname or "").removesuffix(" (deleted)")
    return path.removeprefix("/memfd:") if path.startswith("/memfd:") else ""


def _regions_in(mapping: Any, name: str) -> list[RamRegion]:
    """The regions of RAM that a mapping of the VMM's has: all of it, unless the file's name says more."""
    layout = layout_in(_file_name(mapping.pathname), name)
    length = mapping.end - mapping.start
    if not layout:
        return [RamRegion(mapping.offset, length, mapping.start)]
    inside = ((gpa, size) for gpa, size in layout if 0 <= gpa - mapping.offset < length)
    return [RamRegion(gpa, size, mapping.start + gpa - mapping.offset) for gpa, size in inside]


def _choose(pid: int, inodes: list[int], wanted: int | None, name: str) -> int:
    if not inodes:
        raise ConfigError(f"process {pid} has no guest RAM named {name!r} in its memory map")
    if wanted is None and len(inodes) > 1:
        raise ConfigError(f"process {pid} has {len(inodes)} guest RAMs: inode must be one of {inodes}")
    if wanted is not None and wanted not in inodes:
        raise ConfigError(f"process {pid} has no guest RAM of that inode: inode must be one of {inodes}, not {wanted}")
    return inodes[0] if wanted is None else wanted


def open_memory_file(pid: int, inode: int, mappings: list[Any]) -> int:
    """Open the VMM's memory file for reading: through a descriptor it has open, or through one of its mappings if it
    has closed that (which the host allows to few)."""
    candidates = [f"/proc/{pid}/fd/{number}" for number in _listed(pid)]
    candidates += [f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}" for mapping in mappings]
    failure: OSError = FileNotFoundError("no descriptor and no mapping can be opened")
    for path in candidates:
        try:
            if os.stat(path).st_ino == inode and os.readlink(path).startswith("/memfd:"):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:  # closed meanwhile, or forbidden: another way may be open
            failure = error
    raise ptrace_import.refusal(pid, "open the guest RAM of", failure) from failure


def _listed(pid: int) -> list[str]:
    try:
        return sorted(os.listdir(f"/proc/{pid}/fd"), key=int)
    except OSError:
        return []
