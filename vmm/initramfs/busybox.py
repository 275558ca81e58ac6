"""A static busybox, and the names under which it can be called.

The list is read out of the program, not asked from it: nothing that a user names is run on the host, and the host need
not be of the guest's kind.  Busybox keeps its names sorted, one after the other, each with a NUL; nearly every build
begins with "[" and "[[".
"""

from __future__ import annotations

import io
from itertools import takewhile
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from devices.errors import ConfigError

FIRST_NAMES = b"\0[\0[[\0"


def read_busybox(path: Path) -> tuple[bytes, list[str]]:
    """The program's bytes and its names.  ConfigError unless it is a static x86-64 program that has such a list."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"The file {path} cannot be read: {error.strerror}.") from error
    _check_static(data, path)
    names = applet_names(data)
    if not names:
        raise ConfigError(f"The file {path} is not busybox: it has no list of commands.")
    return data, names


def applet_names(data: bytes) -> list[str]:
    """Busybox's names for itself, sorted; empty if there is no such list."""
    start = data.find(FIRST_NAMES)
    if start < 0:
        return []
    names: list[str] = []
    rest = data[start + 1 : start + (1 << 16)].split(b"\0")
    for name in takewhile(lambda word: word and word.isascii(), rest):
        if names and name.decode() <= names[-1]:
            break  # the order ends where the list does
        names.append(name.decode())
    return names


def _check_static(data: bytes, path: Path) -> None:
    try:
        elf = ELFFile(io.BytesIO(data))
        fits = elf["e_machine"] == "EM_X86_64" and elf["e_type"] in ("ET_EXEC", "ET_DYN")
        static = all(segment["p_type"] != "PT_INTERP" for segment in elf.iter_segments())
    except (ELFError, ValueError, KeyError, OverflowError) as error:
        raise ConfigError(f"The file {path} is not busybox: it is no ELF file.") from error
    if not fits:
        raise ConfigError(f"The file {path} is no program for x86-64.")
    if not static:
        raise ConfigError(
            f"The file {path} is linked dynamically, and an initramfs has no libraries; Debian's busybox-static fits."
        )
