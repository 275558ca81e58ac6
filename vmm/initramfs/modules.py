"""Kernel modules: where they are, what each needs first, and the order in which a guest can load them.

Two sources tell what a module needs.  `modules.dep`, where depmod has run, names files.  Without it, as in a package
that was only unpacked, each module's own section `.modinfo` tells `depends`; `softdep` stands only there: modules that
should come before it (pre) or after it (post) where the kernel has them.  The folder's layout is the kernel's own,
`lib/modules/VERSION`; only names of files are believed, not where they lie in it.

Nothing here knows what the modules do, or the archive they go into.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from devices.errors import ConfigError
from vmm.initramfs.compression import SUFFIXES, decompress
from vmm.models import did_you_mean

MODULE_FILE = re.compile(r"(.+)\.ko(" + "|".join(map(re.escape, SUFFIXES)) + r")?")


@dataclass(frozen=True, slots=True)
class Module:
    """One module: `path` as it lies below lib/modules/VERSION (without the suffix of a compression), `data` the ELF
    file, and what its .modinfo says; names have "_" for "-"."""

    name: str
    path: str
    data: bytes
    version: str
    depends: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


def module_name(text: str) -> str:
    """The kernel's name of a module or a module's file: "-" and "_" are the same to it."""
    match = MODULE_FILE.fullmatch(PurePosixPath(text).name)
    return (match[1] if match else text).replace("-", "_")


class ModuleTree:
    """The modules below `folder`: lib/modules/VERSION, or any folder above it that has one kernel's modules only.

    ConfigError when there are none, or those of several kernels."""

    def __init__(self, folder: Path) -> None:
        self._root = _version_folder(folder)
        self._files = {module_name(path.name): path for path in sorted(self._root.rglob("*.ko*")) if _is_module(path)}
        if not self._files:
            raise ConfigError(f"The folder {folder} has no kernel modules.")
        self._loaded: dict[str, Module] = {}

    @cached_property
    def _depends(self) -> dict[str, tuple[str, ...]] | None:
        """Name -> names it needs, from modules.dep; None where depmod has not run."""
        text = _text(self._root / "modules.dep")
        if not text.strip():
            return None
        lines = (line.partition(":") for line in text.splitlines() if ":" in line)
        return {module_name(path): tuple(map(module_name, needs.split())) for path, _, needs in lines}

    @cached_property
    def _builtin(self) -> frozenset[str]:
        """Modules that the kernel has inside: nothing is to be loaded for them."""
        return frozenset(map(module_name, _text(self._root / "modules.builtin").split()))

    def order(self, names: Iterable[str]) -> list[Module]:
        """The modules `names` and all they need, each after what it needs; otherwise in the order of `names`.

        ConfigError for a name that is not there, a module that needs itself, one that is no module or is one for
        another kernel."""
        order: dict[str, Module] = {}
        for name in names:
            if not self._is_known(name):
                raise ConfigError(f"There is no module {name!r} in {self._root}{did_you_mean(name, self._files)}")
            self._visit(module_name(name), (), order)
        modules = list(order.values())
        self._check_version(modules)
        return modules

    def _is_known(self, name: str) -> bool:
        return module_name(name) in self._files or module_name(name) in self._builtin

    def _visit(self, name: str, above: tuple[str, ...], order: dict[str, Module]) -> None:
        """Add `name` to `order` after all it needs; `above` are those that need it, the first asked for first.

        Recursion ends: each level adds a name to `above`, and none twice."""
        if name in order or (name in self._builtin and name not in self._files):
            return
        if name in above:
            circle = [*above[above.index(name) :], name]
            raise ConfigError(f"Modules need each other in a circle: {' -> '.join(circle)}.")
        if name not in self._files:
            raise ConfigError(
                f"The module {above[-1]} needs {name}, which is neither in {self._root} nor built into the kernel."
            )
        module = self._load(name)
        above = (*above, name)
        for needed in module.depends:
            self._visit(needed, above, order)
        for wished in module.before:
            if self._is_known(wished) and wished not in above:  # a wish never makes a circle
                self._visit(wished, above, order)
        order[name] = module
        for wished in module.after:
            if self._is_known(wished) and wished not in above:
                self._visit(wished, (), order)

    def _load(self, name: str) -> Module:
        if name not in self._loaded:
            depends = None if self._depends is None else self._depends.get(name)
            self._loaded[name] = read_module(self._files[name], self._root, depends)
        return self._loaded[name]

    def _check_version(self, modules: Sequence[Module]) -> None:
        """All for one kernel, and for the one that the folder is named after if it lies where kernels look."""
        if not modules:
            return
        version = self._root.name if self._root.parent.name == "modules" else modules[0].version
        for module in modules:
            if module.version != version:
                raise ConfigError(
                    f"The module {module.name} is for the kernel {module.version or '(unknown)'}, not for {version}."
                )


def read_module(path: Path, root: Path, depends: tuple[str, ...] | None = None) -> Module:
    """The module in the file `path` below `root`.  `depends`, from modules.dep, overrides what the file says.

    ConfigError if it cannot be read, or is no module."""
    data = decompress(path)
    fields = list(_modinfo(data, path))
    values = dict(fields)
    softdeps = [_softdep(value) for key, value in fields if key == "softdep"]
    own = tuple(module_name(name) for name in values.get("depends", "").split(",") if name)
    vermagic = values.get("vermagic", "").split()
    return Module(
        module_name(path.name),
        f"{path.relative_to(root).with_name(_stem(path))}.ko",
        data,
        vermagic[0] if vermagic else "",
        # modules.dep lists the nearest first and the deepest last.
        own if depends is None else tuple(reversed(depends)),
        tuple(name for pre, _ in softdeps for name in pre),
        tuple(name for _, post in softdeps for name in post),
    )


def _modinfo(data: bytes, path: Path) -> Iterator[tuple[str, str]]:
    """The strings "key=value" of the section .modinfo, in order."""
    try:
        elf = ELFFile(io.BytesIO(data))
        section = elf.get_section_by_name(".modinfo") if elf["e_type"] == "ET_REL" else None
        contents: bytes = b"" if section is None else section.data()
    except (ELFError, ValueError, KeyError, AttributeError, OverflowError) as error:  # hostile files, any of these
        raise ConfigError(f"The file {path} is not a kernel module: it is no complete ELF file.") from error
    if section is None:
        raise ConfigError(f"The file {path} is not a kernel module: it has no section .modinfo.")
    for line in contents.decode("utf-8", "replace").split("\0"):
        key, equals, value = line.partition("=")
        if equals:
            yield key, value


def _softdep(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """("pre: a b post: c") -> ((a, b), (c,)), as modprobe.d(5) defines it."""
    found: dict[str, list[str]] = {"pre:": [], "post:": []}
    current: list[str] | None = None
    for word in text.split():
        if word in found:
            current = found[word]
        elif current is not None:
            current.append(module_name(word))
    return tuple(found["pre:"]), tuple(found["post:"])


# -- the folder ----------------------------------------------------------------------------------------------------


def _is_module(path: Path) -> bool:
    return MODULE_FILE.fullmatch(path.name) is not None and path.is_file()


def _stem(path: Path) -> str:
    """The file's name without .ko and what follows it."""
    match = MODULE_FILE.fullmatch(path.name)
    assert match is not None, path
    return match[1]


def _version_folder(folder: Path) -> Path:
    """The folder lib/modules/VERSION that `folder` is or contains; `folder` itself where there is no such layout."""
    if not folder.is_dir():
        raise ConfigError(f"The folder {folder} with the kernel modules does not exist.")
    for above in (folder / "usr" / "lib" / "modules", folder / "lib" / "modules", folder):
        versions = sorted(inner for inner in _subfolders(above) if (inner / "kernel").is_dir())
        if len(versions) > 1:
            raise ConfigError(
                f"The folder {folder} has modules of several kernels ({', '.join(inner.name for inner in versions)}); "
                "name the folder of one."
            )
        if versions:
            return versions[0]
    return folder


def _subfolders(folder: Path) -> list[Path]:
    return [inner for inner in folder.iterdir() if inner.is_dir()] if folder.is_dir() else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(f"The file {path} cannot be read: {error.strerror}.") from error
