"""Files that are named as a guest by mistake: each gets one sentence, and real programs are left alone."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterator

import lz4.frame
import pytest
import zstandard

from devices.errors import ConfigError
from devices.memory import GuestMemory
from guests import GUESTS
from tests.vmm.kernels import bzimage, vmlinux
from vmm import loader
from vmm.loader import BootData, Image, Module
from vmm.loader.foreign import other_kind

MIB = 1 << 20


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    ram = GuestMemory([(0, 0xA0000), (MIB, 63 * MIB)])
    yield ram
    ram.close()


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    return out.getvalue()


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("file", "text")
    return out.getvalue()


OTHERS = {
    "gzip data": gzip.compress(vmlinux()),
    "xz data": lzma.compress(vmlinux()),
    "zstd data": zstandard.ZstdCompressor().compress(vmlinux()),
    "LZ4 data": lz4.frame.compress(vmlinux()),
    "bzip2 data": bz2.compress(vmlinux()),
    "an initramfs, which goes with a kernel": b"070701" + b"0" * 104,
    "an archive, such as a Debian package": b"!<arch>\ndebian-binary   ",
    "a zip archive": zipped(),
    "a tar archive": tar(),
    "a kernel for ARM": bytes(56) + b"ARM\x64" + bytes(100),
    "a disk image": bytes(0x8001) + b"CD001\x01",
    "a script": b"#!/bin/sh\necho \xff\n",
    "text": b"root:x:0:0:root:/root:/bin/bash\n",
    "the beginning of a kernel or an EFI program": bzimage()[:400],
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("modules", [(), (Module("initrd", b"x", b"initrd"),)], ids=["alone", "with an initrd"])
def test_what_is_surely_something_else_is_named(kind: str, modules: tuple[Module, ...], memory: GuestMemory) -> None:
    with pytest.raises(ConfigError) as refusal:
        loader.load(Image("file", OTHERS[kind]), memory, BootData(b"", modules, ()))
    assert str(refusal.value) == f"The guest 'file' is {kind}, and no program for this machine."


@pytest.mark.parametrize(
    "code", [b"\xf4", bytes.fromhex("66baf405 b807000000 ef f4"), b"\xeb\xfe", b"PPPP\xf4", bytes(5000)]
)
def test_machine_code_is_left_to_be_run(code: bytes, memory: GuestMemory) -> None:
    assert other_kind(code) is None
    assert loader.load(Image("file", code), memory).kind == "flat"


@pytest.mark.parametrize("text", [b"a", b"\n", b"hello\n", b"no kernel\r\n", b"fifteen letters"])
def test_a_short_text_is_text_too(text: bytes, memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match=r"^The guest 'file' is text, and no program for this machine[.]$"):
        loader.load(Image("file", text), memory, BootData(b"console=ttyS0"))


def test_what_is_run_as_a_flat_image_takes_a_parameter_and_no_initrd(memory: GuestMemory) -> None:
    image = Image("file", bytes(range(0x80, 0x100)))
    assert loader.load(image, memory, BootData(b"console=ttyS0")).kind == "flat"
    with pytest.raises(ConfigError) as refusal:
        loader.load(image, memory, BootData(b"", (Module("initrd", b"x", b"initrd"),), ()))
    sentence = "The guest 'file' is no Linux or Multiboot kernel: it takes no initrd and no modules."
    assert str(refusal.value) == sentence


def test_no_bundled_guest_and_no_kernel_is_taken_for_something_else() -> None:
    assert [name for name, row in GUESTS.items() if other_kind(row.image())] == []
    assert bzimage().startswith(b"MZ") and other_kind(bzimage()) is None
