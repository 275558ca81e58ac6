"""Kernels that cannot be booted, as users of `vmm boot --kernel FILE` meet it: one sentence, status 2, no output."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from tests.vmm.kernels import KERNEL_GPA, bzimage, lz4_legacy, note, sized, vmlinux
from vmm.cli import main

NOTES = note(b"Linux", 256, b"salt")
ELF32 = (
    b"\x7fELF\x01\x01\x01"
    + bytes(9)
    + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0x100000, 52, 0, 0, 52, 32, 1, 40, 0, 0)
    + struct.pack("<IIIIIIII", 1, 84, 0x100000, 0x100000, 16, 16, 7, 4096)
    + bytes(16)
)
KERNELS = {
    "32-bit-only": (
        bzimage(xloadflags=0),
        "The kernel 'kernel' is a 32-bit kernel; only 64-bit kernels can be booted.",
    ),
    "32-bit vmlinux": (ELF32, "The guest 'kernel' is a 32-bit ELF file; a guest must be ELF64."),
    "truncated": (
        bzimage()[:-100],
        "The kernel 'kernel' is truncated: its setup header announces more than the file holds.",
    ),
    "truncated header": (
        bzimage()[:0x240],
        "The kernel 'kernel' is truncated: its setup header is not all in the file.",
    ),
    "truncated vmlinux": (
        vmlinux(((KERNEL_GPA, bytes(0x1000), 0x2000),), notes=NOTES)[:0x800],
        "The guest 'kernel' is truncated: the segment at 0x1000000 is not all in the file.",
    ),
    "damaged": (
        bzimage(sized(lz4_legacy(vmlinux()), vmlinux() + b"x")),
        f"The kernel 'kernel' is damaged: {len(vmlinux())} bytes are in it, "
        f"and not the {len(vmlinux()) + 1} that it announces.",
    ),
    "too large to start": (
        bzimage(init_bytes=0x8000_0000),
        "The kernel 'kernel' needs 2048 MiB of RAM to start, which this machine does not have.",
    ),
    "too large": (
        vmlinux(((KERNEL_GPA, b"\xf4", 0x4000_0000),), notes=NOTES),
        "The guest 'kernel' needs RAM at 0x1000000-0x40ffffff, which this machine does not have.",
    ),
    "compressed": (gzip.compress(vmlinux()), "The guest 'kernel' is gzip data, and no program for this machine."),
    "text": (b"no kernel\n", "The guest 'kernel' is text, and no program for this machine."),
    "empty": (b"", "The guest 'kernel' is empty."),
}


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("more", [[], ["--firmware", "none"]], ids=["", "without firmware"])
def test_it_is_one_sentence_and_status_2(
    kind: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image, sentence = KERNELS[kind]
    monkeypatch.chdir(tmp_path)
    Path("kernel").write_bytes(image)
    assert main(["boot", "--kernel", "kernel", "-m", "64M", "--append", "console=ttyS0", *more]) == 2
    assert capsys.readouterr() == ("", f"vmm: {sentence}\n")


def test_random_bytes_with_an_initrd_are_no_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kernel").write_bytes(bytes(range(0x80, 0x100)) * 8)
    Path("initrd").write_bytes(b"x")
    assert main(["boot", "--kernel", "kernel", "--initrd", "initrd"]) == 2
    sentence = "The guest 'kernel' is no Linux or Multiboot kernel: it takes no initrd and no modules."
    assert capsys.readouterr() == ("", f"vmm: {sentence}\n")
