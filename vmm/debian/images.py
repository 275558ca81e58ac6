"""The cache: Debian's newest cloud kernel, its modules and busybox, ready to be booted.

Below the user's cache folder each pair of packages has a folder of its own, and the link `current` names the one to
use.  A folder is filled beside its place and renamed when it is complete, and the link is replaced in one step, so an
interrupted fetch leaves nothing half; a lock lets one process fetch while others that want the same wait for it.  Who
only uses the cache needs no lock, no apt and no network.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devices.errors import ConfigError
from vmm.debian.apt import Apt, AptError, Package, unpack

KERNEL_PACKAGE = "linux-image-cloud-amd64"
KERNEL_PATTERN = r"linux-image-.+-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"
CURRENT, PACKAGES, DRAFT = "current", "PACKAGES", ".fetch-"
WITHOUT = (
    "with a kernel and an initramfs of your own, write: vmm boot --kernel FILE --initrd FILE --append console=ttyS0"
)


@dataclass(frozen=True, slots=True)
class DebianImages:
    """Where everything lies: the bzImage, the folder lib/modules/VERSION, a static busybox, and what they came from as
    "NAME VERSION"."""

    kernel: Path
    modules: Path
    busybox: Path
    packages: tuple[str, ...]


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/balloon-vmm/debian, by default below ~/.cache (XDG base directory specification)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path("~/.cache").expanduser()
    return base / "balloon-vmm" / "debian"


def debian_images(tell: Callable[[str], None], *, fetch: bool = False) -> DebianImages:
    """What is in the cache; fetched first if there is nothing, or with `fetch`.

    `tell` gets a line about each step that takes time.  ConfigError, with what can be done instead, when apt cannot be
    used."""
    folder = cache_folder()
    if not fetch and (folder / CURRENT).exists():
        images = _images(folder / CURRENT)
        tell(f"{' and '.join(images.packages)}, from the cache {folder}; --fetch looks for newer ones")
        return images
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder, tell) as waited:
            if not (waited and (folder / CURRENT).exists()):
                _fetch(folder, tell)
            images = _images(folder / CURRENT)
    except AptError as error:
        raise ConfigError(f"{str(error).removesuffix('.')}; {WITHOUT}.") from error
    except OSError as error:
        raise ConfigError(f"The cache {folder} cannot be used: {error.strerror}.") from error
    tell(f"{' and '.join(images.packages)}, now in {folder}")
    return images


def _fetch(folder: Path, tell: Callable[[str], None]) -> None:
    """Make `current` the newest there is.  Nobody else fetches now, so what an interrupted fetch left can go."""
    for left in folder.glob(f"{DRAFT}*"):
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=folder))
    try:
        packages = _download(draft / "apt", tell)
        name = "+".join(f"{package.name}_{package.version}" for package in packages)
        if not (folder / name).exists():
            tell("unpacking them")
            _unpack(packages, draft / "tree")
            (draft / "tree").rename(folder / name)
        _make_current(folder, name, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _download(folder: Path, tell: Callable[[str], None]) -> list[Package]:
    folder.mkdir()
    apt = Apt(folder)
    tell("reading what apt's sources offer")
    apt.update()
    kernel = apt.newest_dependency(KERNEL_PACKAGE, KERNEL_PATTERN)
    tell(f"downloading {kernel} and {BUSYBOX_PACKAGE}, about 30 MB")
    return apt.download([kernel, BUSYBOX_PACKAGE])


def _unpack(packages: list[Package], tree: Path) -> None:
    tree.mkdir()
    for package in packages:
        unpack(package, tree)
    lines = "".join(f"{package.name} {package.version}\n" for package in packages)
    (tree / PACKAGES).write_text(lines, encoding="utf-8")
    _images_below(tree)  # packages without what we need are never put in place


def _make_current(folder: Path, name: str, draft: Path) -> None:
    """Replace the link, and remove what is neither the new one nor the one before: that may still be in use."""
    link = folder / CURRENT
    before = os.readlink(link) if link.is_symlink() else name
    (draft / CURRENT).symlink_to(name)
    (draft / CURRENT).replace(link)
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink() and old not in (folder / name, folder / before, draft):
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _lock(folder: Path, tell: Callable[[str], None]) -> Iterator[bool]:
    """Holds the right to fetch; yields whether somebody else had it first.  The kernel takes it back if we die."""
    with open(folder / "lock", "w", encoding="utf-8") as file:
        waited = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            tell("waiting for another process that fetches the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield waited


def _images(folder: Path) -> DebianImages:
    """The images of the cache's folder.  ConfigError if something has been taken away."""
    try:
        return _images_below(folder.resolve(strict=True))
    except (AptError, OSError) as error:
        raise ConfigError(f"The cache {folder.parent} is not complete: remove it, and it is fetched again.") from error


def _images_below(tree: Path) -> DebianImages:
    """What a tree of unpacked packages has; AptError if it has not."""
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    modules = sorted((*(tree / "lib/modules").glob("*"), *(tree / "usr/lib/modules").glob("*")))
    busybox = [path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.is_file()]
    if not kernels or not modules or not busybox:
        raise AptError("The packages have no kernel, no modules or no busybox where Debian's have them.")
    packages = (tree / PACKAGES).read_text(encoding="utf-8").splitlines()
    return DebianImages(kernels[0], modules[0], busybox[0], tuple(packages))
