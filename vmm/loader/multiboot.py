"""Multiboot 1 kernels: the header, the two ways to load one, and the boot information (Multiboot 0.6.96).

Owns what such a kernel finds in RAM: its own segments, its modules at page borders behind it, and the information
structure with everything that it points to, as high in conventional memory as it fits.  It does not enter the kernel;
the firmware does, when its own work is done, so the whole memory map is the kernel's.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from devices.errors import ConfigError
from devices.memory import PAGE_BYTES, GuestMemory
from vmm.loader.image import EXECUTE, MAX_SEGMENTS, READ, WRITE, BootData, Image, Payload, Protocol, Segment, place

HEADER_MAGIC = 0x1BADB002
SEARCHED_BYTES = 8192
FOUR_GIB = 1 << 32
CONVENTIONAL_END, EXTENDED_BASE = 0x9FC00, 0x100000  # the firmware's extended data area takes the last KiB

PAGE_ALIGN, MEMORY_INFO, VIDEO_MODE = 1 << 0, 1 << 1, 1 << 2
MUST_UNDERSTAND = 0xFFFF
ADDRESS_FIELDS = 1 << 16

INFO_MEMORY, INFO_CMDLINE, INFO_MODULES, INFO_MEMORY_MAP, INFO_LOADER = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
INFO_BYTES = 120
LOADER_NAME = b"balloon-vmm\0"
_OWN_SEGMENTS = 2  # the modules together, and the boot information
_MODULE = struct.Struct("<IIII")
_MAP_ENTRY = struct.Struct("<IQQI")


class Header(NamedTuple):
    """A kernel's header: `position` is its place in the file, `addresses` the five address fields of a flat kernel."""

    position: int
    flags: int
    addresses: tuple[int, ...]


def find_header(data: bytes) -> Header | None:
    """The header in the first 8192 bytes (§3.1.1), None when this is no Multiboot kernel."""
    searched = data[:SEARCHED_BYTES]
    position = searched.find(struct.pack("<I", HEADER_MAGIC))
    while position >= 0:
        if position % 4 == 0 and position + 12 <= len(searched):
            magic, flags, checksum = struct.unpack_from("<III", searched, position)
            if (magic + flags + checksum) % FOUR_GIB == 0:
                addresses = searched[position + 12 : position + 32]
                return Header(
                    position, flags, struct.unpack(f"<{len(addresses) // 4}I", addresses[: len(addresses) // 4 * 4])
                )
        position = searched.find(struct.pack("<I", HEADER_MAGIC), position + 1)
    return None


class Kernel(NamedTuple):
    """Where to enter a kernel, and its parts: (gpa, bytes from the file, bytes in memory)."""

    entry: int
    parts: list[tuple[int, bytes, int]]


def load_multiboot(image: Image, header: Header, memory: GuestMemory, boot: BootData) -> Payload:
    """Put the kernel, its modules and the boot information into RAM.  ConfigError with one sentence if that fails."""
    name = image.name
    unknown = header.flags & MUST_UNDERSTAND & ~(PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE)
    if unknown:
        raise ConfigError(
            f"The Multiboot kernel {name!r} needs what flag bits {unknown:#x} stand for, which is unknown."
        )
    kernel = _flat_kernel(image, header) if header.flags & ADDRESS_FIELDS else _elf_kernel(image)
    if len(kernel.parts) > MAX_SEGMENTS - _OWN_SEGMENTS:
        raise ConfigError(
            f"The guest {name!r} has {len(kernel.parts)} segments to load; "
            f"at most {MAX_SEGMENTS - _OWN_SEGMENTS} are supported."
        )
    segments = []
    for gpa, data, size in kernel.parts:
        place(name, gpa, data, size, memory, limit=FOUR_GIB)
        segments.append(Segment(gpa, size, EXECUTE | WRITE | READ))
    if not any(s.gpa <= kernel.entry < s.gpa + s.size_bytes for s in segments):
        raise ConfigError(f"The guest {name!r} starts at {kernel.entry:#x}, which is in none of its segments.")
    modules = _place_modules(boot, segments, memory)
    info = _place_information(image, boot, modules, segments, memory)
    return Payload(name, "Multiboot", kernel.entry, tuple(sorted(segments)), Protocol.MULTIBOOT, info)


def _flat_kernel(image: Image, header: Header) -> Kernel:
    """The "a.out kludge" (§3.1.3): the header itself says where the file's bytes belong."""
    if len(header.addresses) < 5:
        raise ConfigError(f"The Multiboot kernel {image.name!r} is truncated: its header has no address fields.")
    header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr = header.addresses
    start = header.position - (header_addr - load_addr)
    length = load_end_addr - load_addr if load_end_addr else len(image.data) - start
    if not 0 <= start <= header.position or length < 0 or start + length > len(image.data):
        raise ConfigError(f"The Multiboot kernel {image.name!r} has address fields that do not fit its file.")
    data = image.data[start : start + length]
    size = max(bss_end_addr - load_addr, length) if bss_end_addr else length
    return Kernel(entry_addr, [(load_addr, data, size)])


def _elf_kernel(image: Image) -> Kernel:
    """The loadable segments of a 32- or 64-bit ELF file at their physical addresses."""
    name, parts = image.name, []
    try:
        elf = ELFFile(io.BytesIO(image.data))
        headers = [segment.header for segment in elf.iter_segments("PT_LOAD")]
        machine, entry = elf.header["e_machine"], elf.header["e_entry"]
    except (ELFError, ValueError, OverflowError) as error:
        raise ConfigError(f"The Multiboot kernel {name!r} is neither an ELF file nor has it address fields.") from error
    if machine not in ("EM_386", "EM_X86_64"):
        raise ConfigError(f"The guest {name!r} is for {elf.get_machine_arch()}, not for x86.")
    start = entry
    for header in headers:
        in_file, in_memory, gpa = header["p_filesz"], header["p_memsz"], header["p_paddr"]
        data = image.data[header["p_offset"] : header["p_offset"] + in_file]
        if len(data) < in_file or in_file > in_memory:
            raise ConfigError(f"The guest {name!r} is truncated: the segment at {gpa:#x} is not all in the file.")
        if in_memory:
            parts.append((gpa, data, in_memory))
        if header["p_vaddr"] <= entry < header["p_vaddr"] + in_memory:
            start = entry - header["p_vaddr"] + gpa  # a kernel linked high: entered before it pages
    return Kernel(start, parts)


def _place_modules(boot: BootData, segments: list[Segment], memory: GuestMemory) -> list[tuple[int, int, bytes]]:
    """Each module at a page border behind everything else: (start, end, its command line).

    For the firmware they are one segment, so that any number of them fits into its table."""
    placed = []
    first = position = -(-max(EXTENDED_BASE, *(s.gpa + s.size_bytes for s in segments)) // PAGE_BYTES) * PAGE_BYTES
    for module in boot.modules:
        position = -(-position // PAGE_BYTES) * PAGE_BYTES
        place(module.name, position, module.data, max(len(module.data), 1), memory, limit=FOUR_GIB)
        placed.append((position, position + len(module.data), module.cmdline))
        position += max(len(module.data), 1)
    if placed:
        segments.append(Segment(first, position - first, WRITE | READ))
    return placed


def _place_information(
    image: Image, boot: BootData, modules: list[tuple[int, int, bytes]], segments: list[Segment], memory: GuestMemory
) -> int:
    """Write the information structure and what it points to; returns its address."""
    size = len(information(0, image.name, boot, modules))
    gpa = (CONVENTIONAL_END - size) // PAGE_BYTES * PAGE_BYTES
    while gpa > 0 and any(s.gpa < gpa + size and gpa < s.gpa + s.size_bytes for s in segments):
        gpa -= PAGE_BYTES
    place(image.name, gpa, information(gpa, image.name, boot, modules), size, memory, limit=FOUR_GIB)
    segments.append(Segment(gpa, size, WRITE | READ))
    return gpa


def information(gpa: int, name: str, boot: BootData, modules: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The boot information (§3.3) for the address `gpa`: the structure, then memory map, module list and strings."""
    tail = bytearray()

    def put(data: bytes) -> int:
        address = gpa + INFO_BYTES + len(tail)
        tail.extend(data + bytes(-len(data) % 4))
        return address

    entries = b"".join(_MAP_ENTRY.pack(_MAP_ENTRY.size - 4, *entry) for entry in boot.memory_map)
    map_gpa = put(entries)
    strings = [put(cmdline + b"\0") for _, _, cmdline in modules]
    records = zip(modules, strings, strict=True)
    modules_gpa = put(b"".join(_MODULE.pack(start, end, string, 0) for (start, end, _), string in records))
    words = PurePath(name).name.encode("utf-8", "surrogateescape")
    cmdline_gpa = put((words + b" " + boot.parameter if boot.parameter else words) + b"\0")
    loader_gpa = put(LOADER_NAME)
    flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER
    lower_kib, upper_kib = _memory_kib(boot.memory_map)
    head = struct.pack("<IIIIIII", flags, lower_kib, upper_kib, 0, cmdline_gpa, len(modules), modules_gpa)
    head += bytes(16) + struct.pack("<IIIIII", len(entries), map_gpa, 0, 0, 0, loader_gpa)
    return head.ljust(INFO_BYTES, b"\0") + bytes(tail)


def _memory_kib(memory_map: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """mem_lower and mem_upper: the usable memory from 0 and from 1 MiB on, up to the first hole."""
    ends = {base: base + length for base, length, kind in memory_map if kind == 1 and base < FOUR_GIB}
    return ends.get(0, 0) >> 10, ends.get(EXTENDED_BASE, EXTENDED_BASE) - EXTENDED_BASE >> 10
