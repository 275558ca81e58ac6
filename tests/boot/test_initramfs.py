"""`vmm initramfs` with Debian's real modules, compressed as elsewhere, and without a modules.dep."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest
import zstandard

import vmm
from tests.boot import debian
from vmm.cli import main

pytestmark = debian.needs_debian


def compressed(kind: str, data: bytes) -> bytes:
    """As the kernel's `make modules_install` does it: xz with CRC32 and a small dictionary, zstd as a stream."""
    if kind == "xz":
        return lzma.compress(data, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}])
    return zstandard.ZstdCompressor(level=19, write_content_size=False, write_checksum=True).compress(data)


@pytest.mark.parametrize("kind", ["xz", "zst"])
def test_linux_loads_modules_that_were_compressed(kind: str, tmp_path: Path) -> None:
    release = debian.kernel().name.removeprefix("vmlinuz-")
    folder = tmp_path / "lib/modules" / release / "kernel"
    folder.mkdir(parents=True)
    for name in debian.VIRTIO_MODULES:
        (folder / f"{name}.ko.{kind}").write_bytes(compressed(kind, debian.module(name)))
    script = tmp_path / "main"
    script.write_text("#!/bin/sh\nlsmod\nls /sys/bus/virtio/drivers/virtio_balloon\npoweroff -f\n", encoding="utf-8")
    archive = tmp_path / "initrd"
    words = ["--busybox", str(debian.BUSYBOX), "--kernel-modules", str(tmp_path), "--module", "virtio_balloon"]
    assert main(["initramfs", "-o", str(archive), *words, "--module", "virtio-pci", "--main", str(script)]) == 0

    parameter = "console=ttyS0 quiet panic=-1"
    with vmm.boot(debian.kernel(), memory="160M", parameter=parameter, modules=[str(archive)]) as machine:
        outcome = machine.run("60s")
        console = machine.console.decode()
        assert outcome is not None, console[-2000:]
        assert outcome.kind == "powered-off", console[-2000:]
        words = console.split()
        assert set(debian.VIRTIO_MODULES) <= set(words)
        assert "virtio0" in words  # the driver has the device
