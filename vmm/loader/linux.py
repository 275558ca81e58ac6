"""Linux kernels: the image (bzImage, or vmlinux as an ELF file), the zero page and the initrd.

The boot protocol is the kernel's own (Documentation/arch/x86/boot.rst and zero-page.rst).  The real-mode part of a
bzImage and its decompressor never run: the host decompresses the vmlinux inside, puts its segments at their physical
addresses, and the kernel is entered at its 64-bit entry point, as the protocol has it for a vmlinux.  A vmlinux with
the PVH note (`pvh.py`) is entered there.

Owns what such a kernel finds in RAM: itself, the page with what it is told (`BOOT_DATA_GPA`), its command line, and
its initrd as high as it fits.  The zero page's memory map and the address of the ACPI tables are the firmware's to fill
in, since it knows what it took for itself; what stands there before is the board's map.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from devices.errors import ConfigError
from devices.memory import PAGE_BYTES, GuestMemory
from vmm.loader import pvh
from vmm.loader.checksum import doubt
from vmm.loader.decompress import GZIP_MAGIC, Damaged, decompress
from vmm.loader.image import EXECUTE, READ, WRITE, BootData, Image, Module, Payload, Protocol, Segment, place

HEADER_OFFSET, MAGIC_OFFSET, MAGIC = 0x1F1, 0x202, b"HdrS"
SECTOR_BYTES = 512
OLDEST_PROTOCOL = 0x20C  # 2.12 (Linux 3.8) is the first that tells whether there is a 64-bit entry point
XLF_KERNEL_64, XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 0, 1 << 1
LINUX_NOTE_OWNER = b"Linux"
KASLR_FLAG = 1 << 1  # in loadflags: only the decompressor that is not run here may set it
LOADER_TYPE_UNDEFINED = 0xFF
VIDEO_MODE_NORMAL = 0xFFFF
RSDP_OFFSET, E820_ENTRIES_OFFSET, E820_OFFSET = 0x070, 0x1E8, 0x2D0
E820_MOST_ENTRIES = 128
_E820_ENTRY = struct.Struct("<QQI")
_SIZE_BYTES = 4  # behind the payload, little-endian
FOUR_GIB, MIB = 1 << 32, 1 << 20

BOOT_DATA_GPA = 0x90000  # the zero page or PVH's start info; the command line is in the next page
CMDLINE_GPA = BOOT_DATA_GPA + PAGE_BYTES
MEMORY_MAP_GPA = BOOT_DATA_GPA + 2 * PAGE_BYTES  # PVH's, with room for all that the firmware may make of it
BOOT_DATA_BYTES = 3 * PAGE_BYTES

# what every 64-bit kernel allows, for a vmlinux, which has no setup header (arch/x86/boot/header.S)
_INITRD_MAX, _CMDLINE_BYTES = 0x7FFFFFFF, 2047
_OWN_HEADER = bytes(0x1FE - HEADER_OFFSET) + b"\x55\xaa\0\0" + MAGIC + struct.pack("<H", OLDEST_PROTOCOL)


class Setup(NamedTuple):
    """What a kernel says about itself.  `header` are its bytes for the zero page, from 1F1h on."""

    header: bytes
    initrd_max: int = _INITRD_MAX
    cmdline_bytes: int = _CMDLINE_BYTES


class Bzimage(NamedTuple):
    """What is of use in a bzImage: `payload` is the compressed vmlinux as it lies in the file, `init_bytes` the memory
    that the kernel says it needs to start (init_size), `doubt` whatever speaks against the file."""

    setup: Setup
    payload: bytes
    init_bytes: int
    doubt: str


class Vmlinux(NamedTuple):
    """A kernel as an ELF file: its entry points, and (gpa, bytes from the file, bytes in memory) of its parts."""

    entry: int
    pvh_entry: int | None
    parts: list[tuple[int, bytes, int]]

    @property
    def segment(self) -> Segment:
        """All of it as one: the kernel sets its rights itself, and patches its own code."""
        start = min(gpa for gpa, _, _ in self.parts)
        return Segment(start, max(gpa + size for gpa, _, size in self.parts) - start, EXECUTE | WRITE | READ)


def is_bzimage(data: bytes) -> bool:
    return data[MAGIC_OFFSET : MAGIC_OFFSET + len(MAGIC)] == MAGIC


def is_vmlinux(data: bytes) -> bool:
    """Whether an ELF file is a kernel: it can be entered by PVH, or the notes of Linux's own build are in it."""
    try:
        found = _notes(ELFFile(io.BytesIO(data)), data)
    except (ELFError, ValueError, OverflowError):
        return False
    return pvh.entry_point(found) is not None or any(note.owner == LINUX_NOTE_OWNER for note in found)


def load_bzimage(image: Image, memory: GuestMemory, boot: BootData) -> Payload:
    """Put the kernel in a bzImage, its zero page and its initrd into RAM.  ConfigError with one sentence."""
    found = _read_bzimage(image)
    if found.init_bytes > memory.size_bytes:  # before any work, and before the limit makes it look like damage
        raise ConfigError(
            f"The kernel {image.name!r} needs {-(-found.init_bytes // MIB)} MiB of RAM to start, which this machine "
            "does not have."
        )
    try:
        vmlinux = _inflate(found.payload, min(found.init_bytes, memory.size_bytes))
    except Damaged as error:
        raise ConfigError(f"The kernel {image.name!r} {error}.") from error
    kernel = read_vmlinux(Image(image.name, vmlinux))
    _check_room(image.name, kernel.segment.gpa, found.init_bytes, memory)
    initrd, segments = _place(image.name, kernel, found.setup, memory, boot)
    payload = _tell_zero_page(image.name, "Linux bzImage", kernel, found.setup, memory, boot, initrd, segments)
    return replace(payload, doubt=found.doubt)


def _check_room(name: str, gpa: int, size: int, memory: GuestMemory) -> None:
    """init_size is what a kernel uses before it looks at the memory map: with less it dies before it can say why."""
    if not memory.contains(gpa, size):
        raise ConfigError(
            f"The kernel {name!r} needs RAM at {gpa:#x}-{gpa + size - 1:#x} to start, which this machine does not have."
        )


def load_vmlinux(image: Image, memory: GuestMemory, boot: BootData) -> Payload:
    """Put a vmlinux, what it is told and its initrd into RAM.  ConfigError with one sentence."""
    kernel = read_vmlinux(image)
    setup = Setup(_OWN_HEADER)
    initrd, segments = _place(image.name, kernel, setup, memory, boot)
    if kernel.pvh_entry is None:
        return _tell_zero_page(image.name, "Linux vmlinux", kernel, setup, memory, boot, initrd, segments)
    table = pvh.memory_map(boot.memory_map)
    info = pvh.start_info(BOOT_DATA_GPA, CMDLINE_GPA, MEMORY_MAP_GPA, len(boot.memory_map), initrd)
    place(image.name, BOOT_DATA_GPA, info, PAGE_BYTES, memory)
    place(image.name, MEMORY_MAP_GPA, table, PAGE_BYTES, memory)
    return Payload(image.name, "PVH", kernel.pvh_entry, segments, Protocol.PVH, BOOT_DATA_GPA)


def _place(
    name: str, kernel: Vmlinux, setup: Setup, memory: GuestMemory, boot: BootData
) -> tuple[tuple[int, int] | None, tuple[Segment, ...]]:
    """Write kernel, initrd and command line; where the initrd is (gpa, bytes), and the segments for the firmware."""
    if len(boot.parameter) > setup.cmdline_bytes:
        raise ConfigError(
            f"The kernel {name!r} takes a command line of at most {setup.cmdline_bytes} bytes, "
            f"not {len(boot.parameter)}."
        )
    for gpa, data, size in kernel.parts:
        place(name, gpa, data, size, memory, limit=FOUR_GIB)
    told, whole = Segment(BOOT_DATA_GPA, BOOT_DATA_BYTES, WRITE | READ), kernel.segment
    if whole.gpa < told.gpa + told.size_bytes and told.gpa < whole.gpa + whole.size_bytes:
        raise ConfigError(f"The kernel {name!r} wants the memory at {told.gpa:#x}, where it is told what it needs.")
    segments = [whole, told]
    initrd = _place_initrd(name, boot.modules, setup, segments, memory)
    if initrd is not None:
        segments.append(Segment(initrd[0], -(-initrd[1] // PAGE_BYTES) * PAGE_BYTES, WRITE | READ))
    place(name, CMDLINE_GPA, boot.parameter + b"\0", PAGE_BYTES, memory)
    return initrd, tuple(sorted(segments))


def _tell_zero_page(
    name: str,
    kind: str,
    kernel: Vmlinux,
    setup: Setup,
    memory: GuestMemory,
    boot: BootData,
    initrd: tuple[int, int] | None,
    segments: tuple[Segment, ...],
) -> Payload:
    place(name, BOOT_DATA_GPA, zero_page(setup, initrd, boot.memory_map), PAGE_BYTES, memory)
    return Payload(name, kind, kernel.entry, segments, Protocol.LINUX, BOOT_DATA_GPA)


# -- the bzImage ---------------------------------------------------------------------------------------------------


def _read_bzimage(image: Image) -> Bzimage:
    """The parts of a bzImage.  ConfigError with one sentence for one that is cut off, too old or no 64-bit kernel."""
    data, name = image.data, image.name
    if len(data) < 0x268:
        raise ConfigError(f"The kernel {name!r} is truncated: its setup header is not all in the file.")
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < OLDEST_PROTOCOL:
        raise ConfigError(
            f"The kernel {name!r} has boot protocol {version >> 8}.{version & 0xFF:02}; "
            f"2.12 (Linux 3.8) is the oldest that can be booted."
        )
    (loadflags,) = struct.unpack_from("<H", data, 0x236)
    if not loadflags & XLF_KERNEL_64:
        raise ConfigError(f"The kernel {name!r} is a 32-bit kernel; only 64-bit kernels can be booted.")
    setup_bytes = ((data[0x1F1] or 4) + 1) * SECTOR_BYTES
    (system_paragraphs,) = struct.unpack_from("<I", data, 0x1F4)
    payload_offset, payload_length = struct.unpack_from("<II", data, 0x248)
    start, end = setup_bytes + payload_offset, setup_bytes + payload_offset + payload_length
    image_end = setup_bytes + 16 * system_paragraphs
    if len(data) < max(end, image_end):
        raise ConfigError(f"The kernel {name!r} is truncated: its setup header announces more than the file holds.")
    (init_bytes,) = struct.unpack_from("<I", data, 0x260)
    if payload_length < _SIZE_BYTES or init_bytes < payload_length:
        raise ConfigError(
            f"The kernel {name!r} has a damaged setup header: it announces {payload_length} bytes of compressed data, "
            f"and {init_bytes} bytes of memory to start in."
        )
    initrd_max, cmdline_bytes = struct.unpack_from("<I8xI", data, 0x22C)
    header_end = MAGIC_OFFSET + data[0x201]
    setup = Setup(data[HEADER_OFFSET:header_end], initrd_max, cmdline_bytes)
    return Bzimage(setup, data[start:end], init_bytes, doubt(data[:image_end]))


def _inflate(payload: bytes, limit_bytes: int) -> bytes:
    """The vmlinux in a bzImage's payload.  Damaged unless it is whole, as far as that can be told.

    The kernel's build appends the length to all formats but gzip, which ends with its own.  It is the only check that
    LZ4 has: its legacy frames have no checksum, and damage mostly changes the length, not the verdict."""
    if payload.startswith(GZIP_MAGIC):
        return decompress(payload, limit_bytes)
    inflated = decompress(payload[:-_SIZE_BYTES], limit_bytes)
    announced = int.from_bytes(payload[-_SIZE_BYTES:], "little")
    if len(inflated) != announced:
        raise Damaged(f"is damaged: {len(inflated)} bytes are in it, and not the {announced} that it announces")
    return inflated


def read_vmlinux(image: Image) -> Vmlinux:
    """The loadable segments of a 64-bit ELF kernel at their physical addresses.  ConfigError with one sentence."""
    name, parts = image.name, []
    try:
        elf = ELFFile(io.BytesIO(image.data))
        headers = [segment.header for segment in elf.iter_segments("PT_LOAD")]
        is_64_bit = elf.elfclass == 64 and elf.header["e_machine"] == "EM_X86_64"
        entry, pvh_entry = elf.header["e_entry"], pvh.entry_point(_notes(elf, image.data))
    except (ELFError, ValueError, OverflowError) as error:
        raise ConfigError(f"The kernel {name!r} holds no ELF file that could be read.") from error
    if not is_64_bit:
        raise ConfigError(f"The kernel {name!r} is not for x86-64.")
    for header in headers:
        gpa, in_file, in_memory = header["p_paddr"], header["p_filesz"], header["p_memsz"]
        data = image.data[header["p_offset"] : header["p_offset"] + in_file]
        if len(data) < in_file or in_file > in_memory:
            raise ConfigError(f"The kernel {name!r} is truncated: the segment at {gpa:#x} is not all in the file.")
        if in_memory:
            parts.append((gpa, data, in_memory))
    for address in (entry, entry if pvh_entry is None else pvh_entry):
        if not any(gpa <= address < gpa + size for gpa, _, size in parts):
            raise ConfigError(f"The kernel {name!r} starts at {address:#x}, which is in none of its segments.")
    return Vmlinux(entry, pvh_entry, parts)


def _notes(elf: ELFFile, data: bytes) -> list[pvh.Note]:
    """All notes of an ELF file."""
    places = [(segment["p_offset"], segment["p_filesz"]) for segment in elf.iter_segments("PT_NOTE")]
    return [note for offset, size in places for note in pvh.notes(data[offset : offset + size])]


# -- what it is told -------------------------------------------------------------------------------------------------


def _place_initrd(
    name: str, modules: Sequence[Module], setup: Setup, taken: list[Segment], memory: GuestMemory
) -> tuple[int, int] | None:
    """Write the initrd as high as RAM and the kernel allow: (gpa, bytes)."""
    if not modules:
        return None
    if len(modules) > 1:
        raise ConfigError(f"The kernel {name!r} takes one initrd, not {len(modules)}.")
    module = modules[0]
    if not module.data:
        raise ConfigError(f"The initrd {module.name!r} is empty.")
    gpa = _highest_room(memory, len(module.data), min(setup.initrd_max + 1, FOUR_GIB), taken)
    if gpa is None:
        raise ConfigError(f"There is no room in RAM for the initrd {module.name!r} of {len(module.data)} bytes.")
    memory.write(gpa, module.data)
    return gpa, len(module.data)


def _highest_room(memory: GuestMemory, size: int, limit: int, taken: Sequence[Segment]) -> int | None:
    """The highest page at which `size` bytes are RAM from 1 MiB on, end below `limit` and are nobody else's."""
    for region in reversed(memory.regions):
        gpa = (min(region.end, limit) - size) // PAGE_BYTES * PAGE_BYTES
        for segment in sorted(taken, reverse=True):
            if segment.gpa < gpa + size and gpa < segment.gpa + segment.size_bytes:
                gpa = (segment.gpa - size) // PAGE_BYTES * PAGE_BYTES
        if gpa >= max(region.gpa, MIB):
            return gpa
    return None


def zero_page(setup: Setup, initrd: tuple[int, int] | None, memory_map: Sequence[tuple[int, int, int]]) -> bytes:
    """struct boot_params (zero-page.rst): the setup header with what a loader fills in, and the memory map.

    `initrd` is (gpa, bytes), `memory_map` (base, length, type of E820) in ascending order."""
    page = bytearray(PAGE_BYTES)
    page[HEADER_OFFSET : HEADER_OFFSET + len(setup.header)] = setup.header
    entries = memory_map[:E820_MOST_ENTRIES]
    page[E820_ENTRIES_OFFSET] = len(entries)
    for index, entry in enumerate(entries):
        _E820_ENTRY.pack_into(page, E820_OFFSET + _E820_ENTRY.size * index, *entry)
    struct.pack_into("<H", page, 0x1FA, VIDEO_MODE_NORMAL)
    page[0x210] = LOADER_TYPE_UNDEFINED
    page[0x211] &= ~KASLR_FLAG
    initrd_gpa, initrd_bytes = initrd or (0, 0)
    struct.pack_into("<II", page, 0x218, initrd_gpa, initrd_bytes)
    struct.pack_into("<I", page, 0x228, CMDLINE_GPA)
    return bytes(page)


def complete(memory: GuestMemory, payload: Payload, memory_map: Sequence[tuple[int, int, int]], rsdp_gpa: int) -> None:
    """What our firmware writes before it enters a kernel (firmware/linux.c): the final memory map, and the RSDP."""
    gpa = payload.information
    if payload.protocol is Protocol.PVH:
        memory.write(MEMORY_MAP_GPA, pvh.memory_map(memory_map))
        memory.write_int(gpa + pvh.MAP_ENTRIES_OFFSET, 4, len(memory_map))
        memory.write_int(gpa + pvh.RSDP_OFFSET, 8, rsdp_gpa)
        return
    memory.write(gpa + E820_OFFSET, b"".join(_E820_ENTRY.pack(*entry) for entry in memory_map))
    memory.write_int(gpa + E820_ENTRIES_OFFSET, 1, len(memory_map))
    memory.write_int(gpa + RSDP_OFFSET, 8, rsdp_gpa)
