"""The archive that Linux unpacks into its first file system: cpio in the "newc" format.

The format is the kernel's, Documentation/driver-api/early-userspace/buffer-format.rst: a header of 110 ASCII
characters, the name with a NUL, the data; name and data are padded to 4 bytes.  Nothing of the host gets in but names,
contents and whether a file can be executed: owners are root, times are zero and entries are sorted, so the same
contents give the same bytes anywhere.  The archive knows nothing of modules, busybox or what `/init` is.
"""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import dataclass
from pathlib import Path

from devices.errors import ConfigError

MAGIC = "070701"
TRAILER = "TRAILER!!!"
LONGEST_CHAIN = 40  # links that Linux follows in one path
FIELD_LIMIT = 1 << 32  # a field of the header has eight hexadecimal digits


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: `mode` as in stat(2), kind and permissions; `device` is (major, minor) of a device node."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class Archive:
    """Members by their path below the root, without a leading slash.

    What is added later replaces what was there, so that a user's file wins over a bundled one; only a folder is never
    replaced by something else, nor the other way round.  Folders on the way to a member come by themselves.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def add_file(self, path: str, data: bytes, permissions: int = 0o644) -> None:
        if len(data) >= FIELD_LIMIT:
            raise ConfigError(f"The file {path!r} is too large for an initramfs, which holds files below 4 GiB.")
        self._add(path, Entry(stat.S_IFREG | permissions, data))

    def add_folder(self, path: str, permissions: int = 0o755) -> None:
        self._add(path, Entry(stat.S_IFDIR | permissions))

    def add_link(self, path: str, target: str) -> None:
        """A symbolic link at `path`; `target` is not looked at."""
        self._add(path, Entry(stat.S_IFLNK | 0o777, os.fsencode(target)))

    def add_character_device(self, path: str, major: int, minor: int, permissions: int = 0o600) -> None:
        self._add(path, Entry(stat.S_IFCHR | permissions, device=(major, minor)))

    def add_host_file(self, path: str, source: Path) -> None:
        """The file `source` of the host; executable if its owner may execute it.  ConfigError if it cannot be read."""
        try:
            executable = bool(source.stat().st_mode & stat.S_IXUSR)
            self.add_file(path, source.read_bytes(), 0o755 if executable else 0o644)
        except OSError as error:
            raise ConfigError(f"The file {source} cannot be read: {error.strerror}.") from error

    def add_host_folder(self, path: str, source: Path) -> None:
        """Everything below the host's folder `source`, to the folder `path` ("" is the root).

        Symbolic links stay links.  ConfigError for sockets, pipes and devices, and for what cannot be read."""
        try:
            members = sorted(os.scandir(source), key=lambda member: member.name)
        except OSError as error:
            raise ConfigError(f"The folder {source} cannot be read: {error.strerror}.") from error
        if path:
            self.add_folder(path)
        for member in members:
            inner = f"{path}/{member.name}" if path else member.name
            if member.is_symlink():
                self.add_link(inner, os.readlink(member.path))
            elif member.is_dir():
                self.add_host_folder(inner, Path(member.path))
            elif member.is_file():
                self.add_host_file(inner, Path(member.path))
            else:
                raise ConfigError(f"{member.path} is neither a file, a folder nor a link, and cannot be packed.")

    def _add(self, path: str, entry: Entry) -> None:
        path = self._resolve(clean_path(path))
        before = self.entries.get(path)
        if stat.S_ISDIR(entry.mode) and before is not None and stat.S_ISLNK(before.mode):
            return self._add(self._target(path, before), entry)  # a link to a folder stays one
        if before is not None and stat.S_ISDIR(before.mode) != stat.S_ISDIR(entry.mode):
            raise ConfigError(f"/{path} of the initramfs cannot be both a folder and something else.")
        self.entries[path] = entry
        return None

    def _resolve(self, path: str, depth: int = 0) -> str:
        """`path` with its folders made, and links among them followed as the guest would follow them."""
        if depth > LONGEST_CHAIN:
            raise ConfigError(f"/{path} of the initramfs lies behind links that point to each other.")
        parts = path.split("/")
        for length in range(1, len(parts)):
            folder = "/".join(parts[:length])
            there = self.entries.setdefault(folder, Entry(stat.S_IFDIR | 0o755))
            if stat.S_ISLNK(there.mode):
                return self._resolve("/".join([self._target(folder, there), *parts[length:]]), depth + 1)
            if not stat.S_ISDIR(there.mode):
                raise ConfigError(f"/{folder} of the initramfs cannot be both a folder and something else.")
        return path

    def _target(self, path: str, link: Entry) -> str:
        """Where a link leads, as a path of the archive."""
        return clean_path(posixpath.normpath(posixpath.join("/", posixpath.dirname(path), os.fsdecode(link.data))))

    def to_bytes(self) -> bytes:
        """The whole archive, a multiple of 4 bytes."""
        parts = [
            _member(number, name, entry)
            for number, (name, entry) in enumerate(sorted(self.entries.items(), key=_order), start=1)
        ]
        parts.append(_member(0, TRAILER, Entry(0)))
        return b"".join(parts)


def clean_path(path: str) -> str:
    """`path` without slashes at its ends and doubled ones.  ConfigError for one that is not below the root."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in path or parts == [TRAILER]:
        raise ConfigError(f"A path in the initramfs must name something below its root, not {path!r}.")
    return "/".join(parts)


def _order(item: tuple[str, Entry]) -> list[bytes]:
    """A folder comes before what is in it."""
    return os.fsencode(item[0]).split(b"/")


def _member(number: int, path: str, entry: Entry) -> bytes:
    name = os.fsencode(path) + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = (MAGIC + "".join(f"{field:08X}" for field in fields)).encode("ascii")
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
