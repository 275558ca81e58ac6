"""Debian's cloud kernel and busybox as tools/debian-package has unpacked them, and initramfs archives made of them.

The archives are written here from the format's description (the kernel's buffer-format.rst), independent of what the
project itself can pack.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parents[2] / ".venv/packages"
KERNEL_PACKAGE, BUSYBOX_PACKAGE = PACKAGES / "linux-image-cloud-amd64", PACKAGES / "busybox-static"
BUSYBOX = BUSYBOX_PACKAGE / "bin/busybox"
VIRTIO_MODULES = (
    "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_balloon",
)  # fmt: skip

DIRECTORY, FILE, LINK, DEVICE = 0o040755, 0o100755, 0o120777, 0o020600

needs_debian = pytest.mark.skipif(
    not (KERNEL_PACKAGE.is_dir() and BUSYBOX.is_file()),
    reason="Debian's packages linux-image-cloud-amd64 and busybox-static are not unpacked; "
    "see what tools/debian-package says",
)


def kernel() -> Path:
    """The bzImage of the package."""
    (image,) = (KERNEL_PACKAGE / "boot").glob("vmlinuz-*")
    return image


def module(name: str) -> bytes:
    """A kernel module's file."""
    (path,) = KERNEL_PACKAGE.glob(f"lib/modules/*/kernel/**/{name}.ko")
    return path.read_bytes()


def newc(entries: Mapping[str, tuple[int, bytes]]) -> bytes:
    """An archive of {name: (mode, contents)}; devices are the console, 5:1."""
    archive = bytearray()
    for number, (name, (mode, data)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b""))], 1):
        major, minor = (5, 1) if mode == DEVICE else (0, 0)
        text = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(text), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + text
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def initramfs(init: str, modules: tuple[str, ...] = (), files: Mapping[str, bytes] | None = None) -> bytes:
    """An archive with busybox under its own names, the modules in /lib, more files, and the script `init`."""
    entries = dict.fromkeys(("bin", "dev", "lib", "proc", "sys", "tmp"), (DIRECTORY, b""))
    entries |= {"dev/console": (DEVICE, b""), "bin/busybox": (FILE, BUSYBOX.read_bytes())}
    entries |= {"bin/sh": (LINK, b"busybox"), "init": (FILE, init.encode())}
    entries |= {f"lib/{name}.ko": (FILE, module(name)) for name in modules}
    return newc(entries | {name: (FILE, data) for name, data in (files or {}).items()})
