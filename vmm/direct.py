"""Starting a kernel without firmware: what firmware would have left behind, put there by the host.

PCI and the interrupt controllers are set up as our firmware does (`pci_assignment.py`), the ACPI tables are placed by
the script that firmware would carry out, the memory map is the board's without them, and the processor begins at the
kernel's entry point in the state of its boot protocol.  Only kernels of such a protocol can be started so.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from devices.errors import ConfigError
from devices.memory import GuestMemory
from firmware.acpi import linker, tables
from vmm import pci_assignment
from vmm.loader import linux
from vmm.loader.image import EXECUTE, Payload, Protocol

if TYPE_CHECKING:
    from vmm.boards.pc import PcBoard
    from vmm.pc_platform import PcPlatform

GDT_GPA, PML4_GPA, PDPT_GPA, DIRECTORIES_GPA = 0x1000, 0x2000, 0x3000, 0x4000
MAPPED_GIB = 4
ACPI_GPA, FACS_GPA, RSDP_GPA, ACPI_END = 0x98000, 0x9E000, 0x9F000, 0xA0000
E820_USABLE, E820_ACPI, E820_NVS = 1, 3, 4

PRESENT, WRITABLE, LARGE, NO_EXECUTE = 1, 2, 1 << 7, 1 << 63
LARGE_PAGE_BYTES = 2 << 20

# the descriptors of our ROM (reset.S); a register has bits 8 to 23 of the second word
CODE32, CODE64, DATA = 0x08, 0x10, 0x18
GDT = struct.pack("<4Q", 0, 0x00CF9B000000FFFF, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
_FLAGS = {CODE32: 0xCF9B00, CODE64: 0xAF9B00, DATA: 0xCF9300}
LONG_MODE = {"cr0": 0x80010033, "cr4": 0x620, "cr3": PML4_GPA, "efer": 0xD00}
PROTECTED_MODE = {"cr0": 0x11, "cr4": 0, "efer": 0}


def start(board: PcBoard, platform: PcPlatform) -> None:
    """Set the board up and put its processor at the kernel's entry.  ConfigError for a guest that is no such kernel."""
    payload = board.payload
    if payload is None or payload.protocol not in (Protocol.LINUX, Protocol.PVH):
        raise ConfigError(f"Without firmware only a Linux or PVH kernel can be started; {board.config.name!r} is none.")
    _check_room(payload)
    pci_assignment.assign(platform)
    pci_assignment.start_interrupt_controllers(platform)
    rsdp = _place_tables(board.memory, board.acpi_files)
    linux.complete(board.memory, payload, _without_tables(board.memory_map), rsdp)
    board.memory.write(GDT_GPA, GDT)
    if payload.protocol is Protocol.LINUX:
        _write_page_tables(board.memory, payload)
    platform.cpu.set_registers(_registers(payload))


def _check_room(payload: Payload) -> None:
    for segment in payload.segments:
        if segment.gpa < ACPI_END and segment.gpa + segment.size_bytes > ACPI_GPA:
            raise ConfigError(f"The kernel {payload.name!r} wants the memory at {ACPI_GPA:#x}, where ACPI tables lie.")


def _place_tables(memory: GuestMemory, files: dict[str, bytes]) -> int:
    """The ACPI tables in conventional memory; returns the address of the RSDP."""
    addresses = {tables.TABLES_FILE: ACPI_GPA, tables.FACS_FILE: FACS_GPA, tables.RSDP_FILE: RSDP_GPA}
    for name, contents in linker.carry_out(files[linker.SCRIPT_FILE], files, addresses).items():
        memory.write(addresses[name], contents)
    return RSDP_GPA


def _without_tables(memory_map: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int, int]]:
    """The board's map, whose first range is conventional memory, with the tables taken out of it."""
    (base, _, _), *others = memory_map
    return [
        (base, ACPI_GPA - base, E820_USABLE),
        (ACPI_GPA, FACS_GPA - ACPI_GPA, E820_ACPI),
        (FACS_GPA, RSDP_GPA - FACS_GPA, E820_NVS),
        (RSDP_GPA, ACPI_END - RSDP_GPA, E820_ACPI),
        *others,
    ]


def _write_page_tables(memory: GuestMemory, payload: Payload) -> None:
    """The first 4 GiB one to one in pages of 2 MiB, executable where the kernel is."""
    memory.write_int(PML4_GPA, 8, PDPT_GPA | PRESENT | WRITABLE)
    code = [segment for segment in payload.segments if segment.flags & EXECUTE]
    entries = []
    for gpa in range(0, MAPPED_GIB << 30, LARGE_PAGE_BYTES):
        is_code = any(s.gpa < gpa + LARGE_PAGE_BYTES and gpa < s.gpa + s.size_bytes for s in code)
        entries.append(gpa | PRESENT | WRITABLE | LARGE | (0 if is_code else NO_EXECUTE))
    memory.write(DIRECTORIES_GPA, struct.pack(f"<{len(entries)}Q", *entries))
    directories = [DIRECTORIES_GPA + 4096 * number | PRESENT | WRITABLE for number in range(MAPPED_GIB)]
    memory.write(PDPT_GPA, struct.pack(f"<{MAPPED_GIB}Q", *directories))


def _registers(payload: Payload) -> dict[str, int]:
    """The processor at the kernel's entry: boot.rst, "64-bit Boot Protocol", or pvh.pandoc, "Initial state"."""
    is_long = payload.protocol is Protocol.LINUX
    values = {"rip": payload.entry, "rflags": 2, "gdtr_base": GDT_GPA, "gdtr_limit": len(GDT) - 1}
    values |= LONG_MODE if is_long else PROTECTED_MODE
    values["rsi" if is_long else "rbx"] = payload.information
    for name in ("cs", "ds", "es", "ss"):
        selector = (CODE64 if is_long else CODE32) if name == "cs" else DATA
        values |= {
            name: selector,
            f"{name}_base": 0,
            f"{name}_limit": 0xFFFFFFFF,
            f"{name}_flags": _FLAGS[selector],
        }
    return values
