"""What goes where in an initramfs: a root with busybox, kernel modules, the user's files and `/init`.

The layout is the one that busybox and modprobe expect: commands in /bin, modules in /lib/modules/VERSION with a
`modules.dep`.  /etc/modules.load holds the modules' paths, one a line, in an order in which insmod can load them; the
bundled init follows it.  The user's files come last, so they win.
"""

from __future__ import annotations

import gzip
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.errors import ConfigError
from vmm.initramfs.busybox import read_busybox
from vmm.initramfs.modules import Module, ModuleTree
from vmm.initramfs.newc import Archive, clean_path

FOLDERS = ("bin", "dev", "etc", "lib", "mnt", "proc", "root", "run", "sys", "usr", "var")
LINKS = (("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("var/run", "../run"), ("var/log", "../run"))
DEVICES = (("console", 5, 1), ("kmsg", 1, 11), ("null", 1, 3), ("tty", 5, 0), ("ttyS0", 4, 64), ("zero", 1, 5))
MODULES_LOAD = "etc/modules.load"


@dataclass(frozen=True, slots=True)
class Contents:
    """What is asked for.  `program` are files by their path in the archive, made executable; `files` are (source,
    path) and `folders` are (source, path), path "" being the root."""

    busybox: Path | None = None
    kernel_modules: Path | None = None
    modules: Sequence[str] = ()
    programs: Sequence[tuple[str, bytes]] = ()
    files: Sequence[tuple[Path, str]] = ()
    folders: Sequence[tuple[Path, str]] = ()


def pack(contents: Contents) -> Archive:
    """The archive with `contents`.  ConfigError, one sentence, for what cannot be found or does not fit together."""
    archive = Archive()
    _add_skeleton(archive)
    if contents.busybox is not None:
        _add_busybox(archive, contents.busybox)
    if contents.modules:
        _add_modules(archive, contents)
    for path, data in contents.programs:
        archive.add_file(path, data, 0o755)
    for source, path in contents.folders:
        archive.add_host_folder(path, source)
    for source, path in contents.files:
        archive.add_host_file(path, source)
    _check_init(archive)
    return archive


def write_initramfs(archive: Archive, place: Path) -> int:
    """Write the archive to `place`, compressed if that ends in .gz; returns the bytes written."""
    data = archive.to_bytes()
    if place.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    try:
        place.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"The initramfs {place} cannot be written: {error.strerror}.") from error
    return len(data)


def parse_file(text: str) -> tuple[Path, str]:
    """(source, path) of "SRC" or "SRC:DST"; a DST that ends in a slash is the folder for it, and none is the root."""
    source, path = _split(text)
    if not path or path.endswith("/"):
        path += source.name
    return source, clean_path(path)


def parse_folder(text: str) -> tuple[Path, str]:
    """(source, path) of "DIR" or "DIR:DST": its contents go to the root, or to DST."""
    source, path = _split(text)
    if source.exists() and not source.is_dir():
        raise ConfigError(f"What is to be added must be a folder, which {source} is not.")
    if not source.is_dir():
        raise ConfigError(f"The folder {source} to be added does not exist.")
    return source, clean_path(path) if path.strip("/") else ""


def _split(text: str) -> tuple[Path, str]:
    source, colon, path = text.rpartition(":")
    if not colon or Path(text).exists():  # a name may have a colon of its own
        source, path = text, ""
    if not source:  # a shell's variable that is not set; as a path it would be the folder that one is in
        raise ConfigError(f"There is no name of what to add in {text!r}.")
    return Path(source), path


def _add_skeleton(archive: Archive) -> None:
    for path in FOLDERS:
        archive.add_folder(path)
    archive.add_folder("tmp", 0o1777)
    for path, target in LINKS:
        archive.add_link(path, target)
    for name, major, minor in DEVICES:
        archive.add_character_device(f"dev/{name}", major, minor, 0o600 if name in ("console", "kmsg") else 0o666)


def _add_busybox(archive: Archive, path: Path) -> None:
    data, names = read_busybox(path)
    archive.add_file("bin/busybox", data, 0o755)
    for name in names:
        if name != "busybox":
            archive.add_link(f"bin/{name}", "busybox")


def _add_modules(archive: Archive, contents: Contents) -> None:
    if contents.kernel_modules is None:
        raise ConfigError("Modules need the folder that they are in, such as /lib/modules/VERSION.")
    modules = ModuleTree(contents.kernel_modules).order(contents.modules)
    for module in modules:
        archive.add_file(f"{_folder(module)}/{module.path}", module.data)
    for version_folder in sorted({_folder(module) for module in modules}):
        archive.add_file(f"{version_folder}/modules.dep", _modules_dep(modules).encode())
    archive.add_file(MODULES_LOAD, "".join(f"/{_folder(module)}/{module.path}\n" for module in modules).encode())


def _folder(module: Module) -> str:
    return f"lib/modules/{module.version}"


def _modules_dep(modules: Sequence[Module]) -> str:
    """As depmod writes it: each module's path and the paths of all it needs, the nearest first."""
    by_name = {module.name: module for module in modules}
    lines = []
    for module in modules:
        needs: dict[str, None] = {}
        waiting = list(module.depends)
        while waiting:
            name = waiting.pop(0)
            if name in by_name:  # what is built into the kernel has no file
                needs.pop(name, None)  # the last place wins: what is needed by many comes last
                needs[name] = None
                waiting += by_name[name].depends
        lines.append(f"{module.path}:{''.join(f' {by_name[name].path}' for name in needs)}\n")
    return "".join(lines)


def _check_init(archive: Archive) -> None:
    init = archive.entries.get("init")
    if init is None or stat.S_ISDIR(init.mode):
        raise ConfigError("An initramfs needs a file /init: name one, or busybox for the bundled one.")
