"""ELF executables, 64 bits for x86-64 and 32 for PowerPC: each PT_LOAD segment goes to its physical address."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from devices.errors import ConfigError
from devices.memory import GuestMemory
from vmm.loader.image import EXECUTE, MAX_SEGMENTS, Image, Payload, Segment, place

ELF_MAGIC = b"\x7fELF"


class _Kind(NamedTuple):
    """What an ELF file for a processor says of itself."""

    elf_class: int
    is_little_endian: bool
    machine: str
    name: str


_KINDS = {"x86_64": _Kind(64, True, "EM_X86_64", "x86-64"), "ppc": _Kind(32, False, "EM_PPC", "32-bit PowerPC")}


def load_elf(image: Image, memory: GuestMemory, arch: str = "x86_64") -> Payload:
    """Put the ELF file `image` into RAM.  ConfigError with one sentence when it cannot be run."""
    name = image.name
    if image.data[:4] != ELF_MAGIC:
        raise ConfigError(f"The guest {name!r} is no ELF file, and the board of {arch!r} takes nothing else.")
    try:
        elf = ELFFile(io.BytesIO(image.data))
        headers = [segment.header for segment in elf.iter_segments("PT_LOAD")]
        refusal = _refusal(elf, headers, _KINDS[arch])
    except (ELFError, ValueError, OverflowError) as error:
        raise ConfigError(f"The guest {name!r} is a damaged ELF file: {error or type(error).__name__}.") from error
    if refusal:
        raise ConfigError(f"The guest {name!r} {refusal}.")
    segments = []
    for header in headers:
        gpa, in_file, in_memory = header["p_paddr"], header["p_filesz"], header["p_memsz"]
        if in_memory == 0:
            continue
        data = image.data[header["p_offset"] : header["p_offset"] + in_file]
        if len(data) < in_file or in_file > in_memory:
            raise ConfigError(f"The guest {name!r} is truncated: the segment at {gpa:#x} is not all in the file.")
        place(name, gpa, data, in_memory, memory)
        segments.append(Segment(gpa, in_memory, header["p_flags"]))
    segments.sort()
    _check_segments(name, elf.header["e_entry"], segments)
    return Payload(name, f"ELF{_KINDS[arch].elf_class}", elf.header["e_entry"], tuple(segments))


def _refusal(elf: ELFFile, headers: list[Any], kind: _Kind) -> str | None:
    """Why this file is no guest, as the end of a sentence, or None."""
    if elf.elfclass != kind.elf_class:
        return f"is a {elf.elfclass}-bit ELF file; a guest must be ELF{kind.elf_class}"
    if elf.header["e_machine"] != kind.machine:
        return f"is for {elf.get_machine_arch()}, not for {kind.name}"
    if elf.little_endian != kind.is_little_endian:
        return "has the wrong order of bytes"
    if elf.header["e_type"] != "ET_EXEC":
        return "is not a static executable (ELF type EXEC); link it without PIE"
    if not headers:
        return "has no segment to load"
    if len(headers) > MAX_SEGMENTS:
        return f"has {len(headers)} segments to load; at most {MAX_SEGMENTS} are supported"
    return None


def _check_segments(name: str, entry: int, segments: list[Segment]) -> None:
    for low, high in pairwise(segments):
        if low.gpa + low.size_bytes > high.gpa:
            raise ConfigError(f"The guest {name!r} has overlapping segments at {low.gpa:#x} and {high.gpa:#x}.")
    if not any(s.gpa <= entry < s.gpa + s.size_bytes and s.flags & EXECUTE for s in segments):
        raise ConfigError(f"The guest {name!r} starts at {entry:#x}, which is in none of its executable segments.")
