"""PVH: kernels that say with an ELF note that they can be entered in 32-bit protected mode with a start info.

The protocol is Xen's x86/HVM direct boot ABI (docs/misc/pvh.pandoc, xen/include/public/arch-x86/hvm/start_info.h);
Linux has it as CONFIG_PVH.  Owns the note and the layout of what such a kernel is told; where it lies is for
`linux.py` to say.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NOTE_OWNER, NOTE_PHYS32_ENTRY = b"Xen", 18
START_MAGIC = 0x336EC578
START_VERSION = 1  # the first with a memory map

_START = struct.Struct("<IIIIQQQQII")
_MODULE = struct.Struct("<QQQQ")
_MAP_ENTRY = struct.Struct("<QQII")
MODULES_OFFSET, RSDP_OFFSET, MAP_ENTRIES_OFFSET = 0x40, 32, 48


class Note(NamedTuple):
    owner: bytes
    kind: int
    description: bytes


def notes(data: bytes) -> Iterator[Note]:
    """The notes in the bytes of a PT_NOTE segment, as far as they are whole (ELF gABI, "Note Section")."""
    position = 0
    while position + 12 <= len(data):
        name_bytes, description_bytes, kind = struct.unpack_from("<III", data, position)
        name = position + 12
        description = name + -(-name_bytes // 4) * 4
        position = description + -(-description_bytes // 4) * 4
        if description + description_bytes > len(data):
            return
        yield Note(
            data[name : name + name_bytes].rstrip(b"\0"), kind, data[description : description + description_bytes]
        )


def entry_point(found: Sequence[Note]) -> int | None:
    """The physical address of the 32-bit entry point, None where no note names one."""
    for note in found:
        if note.owner == NOTE_OWNER and note.kind == NOTE_PHYS32_ENTRY and len(note.description) >= 4:
            return int.from_bytes(note.description[:4], "little")
    return None


def start_info(gpa: int, cmdline_gpa: int, map_gpa: int, map_entries: int, initrd: tuple[int, int] | None) -> bytes:
    """struct hvm_start_info for the address `gpa`, and behind it the list of modules: `initrd` is (gpa, bytes)."""
    modules = [initrd] if initrd else []
    head = _START.pack(
        START_MAGIC, START_VERSION, 0, len(modules), gpa + MODULES_OFFSET if modules else 0, cmdline_gpa, 0,
        map_gpa, map_entries, 0,
    )  # fmt: skip
    return head.ljust(MODULES_OFFSET, b"\0") + b"".join(_MODULE.pack(start, size, 0, 0) for start, size in modules)


def memory_map(entries: Sequence[tuple[int, int, int]]) -> bytes:
    """struct hvm_memmap_table_entry for each (base, length, type of E820)."""
    return b"".join(_MAP_ENTRY.pack(*entry, 0) for entry in entries)
