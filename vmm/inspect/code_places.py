"""What a place in another process's code is: a file and a symbol, and on whose behalf it runs.

Of a VMM three things write to guest RAM: the guest's CPU, as code that Unicorn translated (it lies in anonymous memory)
or as a helper in Unicorn's library; the device, which is Python, and what Python is made of; and the kernel, for a
system call, which shows nowhere here.  The C library works for anybody: there the caller decides.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmm.inspect import ptrace_import

_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
_FUNCTIONS = (2, 10)  # STT_FUNC, STT_GNU_IFUNC
_WORD_BYTES = 8
_STACK_WORDS = 64
_SHARED_CODE = ("libc.so", "libc-", "ld-linux", "ld-2", "libpthread", "libm.so", "ld-musl", "[vdso]")


class Place(NamedTuple):
    """`side` is "guest" (its CPU), "device" (the VMM) or "unknown"; `file` and `symbol` are "" where there are none,
    `offset` is counted from the symbol, or in the file where there is none; `caller` is the same of who called."""

    side: str
    file: str
    symbol: str
    offset: int
    caller: str = ""

    @property
    def where(self) -> str:
        """ "libc.so.6 memmove+0x1c"."""
        if not self.file:
            return "translated code" if self.side == "guest" else "unknown code"
        return f"{self.file} {self.symbol}+{self.offset:#x}" if self.symbol else f"{self.file}+{self.offset:#x}"

    def sentence(self) -> str:
        """Who it is, in words."""
        who = {"guest": "the guest's CPU", "device": "the device"}.get(self.side, "somebody")
        made_of = {"guest": "Unicorn: ", "device": "VMM code: "}.get(self.side, "")
        called = f", called from {self.caller}" if self.caller else ""
        return f"{who} ({made_of}{self.where}{called})"


@dataclass(frozen=True)
class _Symbols:
    """Functions of a file by ascending address; `segments` are (file offset, bytes, address) of what is loaded."""

    values: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    names: list[str]
    segments: list[tuple[int, int, int]]

    def find(self, file_offset: int) -> tuple[str, int]:
        """The function that holds the byte at `file_offset` and how far in it that is; "" if none is known."""
        for offset, size, address in self.segments:
            if offset <= file_offset < offset + size:
                value = file_offset - offset + address
                index = int(np.searchsorted(self.values, np.uint64(value), "right")) - 1
                if index >= 0 and value < int(self.values[index]) + int(self.sizes[index]):
                    return self.names[index], value - int(self.values[index])
        return "", file_offset


class CodePlaces:
    """The code of the process `pid`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._mappings: list[Any] = []

    def find(self, pc: int, stack: bytes = b"") -> Place:
        """What the instruction that ends before `pc` is part of.  `stack` is what lies on the thread's stack: where the
        C library was found the first return address there tells who called it."""
        place = self._place(pc - 1)
        if place.side != "shared":
            return place
        for word in np.frombuffer(stack[: len(stack) // _WORD_BYTES * _WORD_BYTES], "<u8").tolist():
            caller = self._place(word - 1) if word else place
            if caller.side in ("guest", "device"):
                return place._replace(side=caller.side, caller=caller.where)
        return place._replace(side="unknown")

    def _place(self, address: int) -> Place:
        mapping = self._mapping(address)
        if mapping is None or "x" not in mapping.permissions:
            return Place("unknown", "", "", 0)
        path = mapping.pathname or ""
        if not path or path.startswith("/memfd:"):
            return Place("guest", "", "", address - mapping.start)
        file = os.path.basename(path.removesuffix(" (deleted)"))
        symbol, offset = _symbols(path).find(address - mapping.start + mapping.offset)
        if file.startswith("libunicorn"):
            return Place("guest", file, symbol, offset)
        side = "shared" if file.startswith(_SHARED_CODE) else "device"
        return Place(side, file, symbol, offset)

    def _mapping(self, address: int) -> Any:
        """The mapping of an address; the map is read again where it is not known: Unicorn may have made a new one."""
        for fresh in (False, True):
            if fresh or not self._mappings:
                self._mappings = ptrace_import.mappings_of(self._pid)
            for mapping in self._mappings:
                if mapping.start <= address < mapping.end:
                    return mapping
        return None


def stack_words(pid: int, pointer: int) -> bytes:
    """What lies on a thread's stack, the nearest 64 words of it, if it can be read."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), _STACK_WORDS * _WORD_BYTES, pointer)
    except OSError:
        return b""


@lru_cache(maxsize=32)
def _symbols(path: str) -> _Symbols:
    """The functions of an ELF file; none where it cannot be read, or is none."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    nothing = _Symbols(np.empty(0, np.uint64), np.empty(0, np.uint64), [], [])
    try:
        with open(path, "rb") as file:
            elf = ELFFile(file)
            headers = [segment.header for segment in elf.iter_segments("PT_LOAD")]
            segments = [(each["p_offset"], each["p_filesz"], each["p_vaddr"]) for each in headers]
            section = elf.get_section_by_name(".symtab") or elf.get_section_by_name(".dynsym")
            if section is None or elf.elfclass != 64:
                return nothing
            rows = np.frombuffer(section.data(), _SYMBOL)
            text = elf.get_section(section["sh_link"]).data()
    except (OSError, ELFError):
        return nothing
    rows = rows[np.isin(rows["info"] & 15, _FUNCTIONS) & (rows["value"] != 0)]
    rows = rows[np.argsort(rows["value"], kind="stable")]
    names = [text[start : text.index(b"\0", start)].decode(errors="replace") for start in rows["name"].tolist()]
    return _Symbols(rows["value"].astype(np.uint64), rows["size"].astype(np.uint64), names, segments)
