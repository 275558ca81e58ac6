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
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\0\4",
    "a RAR archive": b"Rar!\x1a\x07\x01\0",
    "an RPM package": b"\xed\xab\xee\xdb\3\0",
    "a file system": b"hsqs" + bytes(100),
    "a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a PDF document": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "a PostScript document": b"%!PS-Adobe-3.0\n\4",
    "a database": b"SQLite format 3\0\x10\0",
    "a WebAssembly program": b"\0asm\1\0\0\0",
    "a program for Java or macOS": b"\xca\xfe\xba\xbe\0\0\0\x3d",
    "a program for macOS": b"\xcf\xfa\xed\xfe\7\0\0\1",
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
    "code",
    [
        *(b"\xf4", bytes.fromhex("66baf405 b807000000 ef f4"), b"\xeb\xfe", b"PPPP\xf4", bytes(5000)),
        *("grüße\x1b".encode(), "\x85".encode(), "grüße".encode("latin-1"), "grüße".encode()[:3], b"a\0"),
    ],
)
def test_machine_code_is_left_to_be_run(code: bytes, memory: GuestMemory) -> None:
    assert other_kind(code) is None
    assert loader.load(Image("file", code), memory).kind == "flat"


@pytest.mark.parametrize(
    "text",
    [
        *(b"a", b"\n", b"hello\n", b"no kernel\r\n", b"fifteen letters"),
        *(
            text.encode()
            for text in ("grüße an die welt\n", "Привет, мир\n", "你好\n", "\ufeffhello\n", "a" + "ü" * 4000)
        ),
        *("hello\n".encode(encoding) for encoding in ("utf-16", "utf-32")),
        b"\xfe\xff\0h\0i",
    ],
)
def test_text_in_any_language_and_of_any_length_is_text(text: bytes, memory: GuestMemory) -> None:
    with pytest.raises(ConfigError, match=r"^The guest 'file' is text, and no program for this machine[.]$"):
        loader.load(Image("file", text), memory, BootData(b"console=ttyS0"))


@pytest.mark.parametrize("data", [b"\xff\xd8\xff\xe0\0\x10JFIF", b"GIF89a\1\0\1\0", b"GIF87a\1\0\1\0"])
def test_other_pictures_are_pictures_too(data: bytes) -> None:
    assert other_kind(data) == "a picture"


@pytest.mark.parametrize("data", [b"KDMV\1\0", b"conectix\0\0", b"vhdxfile\0"])
def test_other_disk_images_are_disk_images_too(data: bytes) -> None:
    assert other_kind(data) == "a disk image"


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
