"""Writing a snapshot, so that under its name there is always a whole one: the one before it, or this one.

The file has no name while it is written, where the host can do that (O_TMPFILE), and a hidden one beside its place
elsewhere.  When all of it is on the disk it is moved to its name in one step.  Whoever is killed in between, by kill -9
too, leaves the older snapshot as it was.  Only its owner may read it: it has everything that the guest knew.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from devices.errors import ConfigError
from devices.state import Plain
from vmm.snapshots.description import Part, check_sizes, describe
from vmm.snapshots.layout import HEADER_BYTES, Damaged, Header, compress, digest
from vmm.snapshots.plain import encode
from vmm.snapshots.ram import Progress, SavedRam, write_all
from vmm.state import save
from vmm.streams import guarded

if TYPE_CHECKING:
    from vmm.machine import Machine

MODE = 0o600


def write_snapshot(machine: Machine, path: str | os.PathLike[str], progress: Progress | None = None) -> int:
    """Write the whole state of `machine`, which does not run now and is not changed; returns the file's bytes.

    To be called on the thread that runs the machine, between two steps of it.  `progress` is called there as well, with
    the bytes of RAM that are done and all of them; what it raises ends the writing.  An older file at `path` is
    replaced when, and only when, the new one is complete and on the disk.  ConfigError when it cannot be written."""
    place = Path(os.path.realpath(path))
    check_place(path)
    with guarded(f"The snapshot {path}"), _draft(place) as draft, machine.standing_still():
        size = _write(machine, draft.fd, progress)
        os.fsync(draft.fd)
        draft.move(place)
        return size


def check_place(path: str | os.PathLike[str]) -> None:
    """ConfigError unless a snapshot may be written to `path`: to a new file, or in the place of an ordinary one."""
    place = Path(os.path.realpath(path))
    with guarded(f"The snapshot {path}"):
        if place.exists() and not stat.S_ISREG(place.stat().st_mode):
            raise ConfigError(f"The snapshot {path} cannot be written: it is no ordinary file.")
        with _draft(place):
            pass


def _write(machine: Machine, fd: int, progress: Progress | None) -> int:
    ram = SavedRam(machine.memory, fd, progress)
    state: Plain = {"rom": machine.board.rom, "state": save(machine, ram).data}
    tree, blobs = encode(state)
    try:
        check_sizes(len(blobs), len(tree), machine.config.memory_bytes)
    except Damaged as error:  # nobody could read it
        raise ConfigError(f"No snapshot can be taken of this machine: {error}.") from None
    offset = HEADER_BYTES + ram.stored_bytes
    parts = []
    for data in (blobs, tree):
        frame = compress(data)
        write_all(fd, frame, offset)
        parts.append(Part(len(frame), len(data), digest(frame)))
        offset += len(frame)
    description = describe(machine.config, machine.now_ns, ram.stored_bytes, *parts)
    write_all(fd, description, offset)
    size = offset + len(description)
    write_all(fd, Header(offset, len(description), size, digest(description)).to_bytes(), 0)
    return size


@dataclass(slots=True)
class _Draft:
    """A file in `folder` that is being written; `name` is None while it has none."""

    fd: int
    folder: int
    name: str | None

    def move(self, place: Path) -> None:
        """Give it its name, in the place of what is there, so that a power failure cannot take it back."""
        if self.name is None:
            name = _hidden(place)
            # Python takes linkat, which follows the link of /proc, only where a folder is given.
            os.link(f"/proc/self/fd/{self.fd}", name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
            self.name = name
        os.rename(self.name, place.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        self.name = None
        os.fsync(self.folder)


@contextmanager
def _draft(place: Path) -> Iterator[_Draft]:
    """A new file in the folder of `place`, which is gone afterwards unless it was moved."""
    folder = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        draft = _open_draft(place, folder)
        try:
            yield draft
        finally:
            os.close(draft.fd)
            if draft.name is not None:
                with suppress(OSError):
                    os.unlink(draft.name, dir_fd=folder)
    finally:
        os.close(folder)


def _open_draft(place: Path, folder: int) -> _Draft:
    with suppress(OSError, AttributeError):  # not every file system and kernel has files without a name
        os.stat("/proc/self/fd")
        return _Draft(os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, MODE, dir_fd=folder), folder, None)
    name = _hidden(place)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return _Draft(os.open(name, flags, MODE, dir_fd=folder), folder, name)


def _hidden(place: Path) -> str:
    """A name beside `place` that nobody else has."""
    return f".{place.name}.{secrets.token_hex(8)}"
