"""Putting a guest's image into RAM: ELF executables, Linux, Multiboot and PVH kernels, and flat images.

The loader owns the question "what is this file and where does it belong".  It writes the bytes into `GuestMemory` and
returns a `Payload`, the description that the firmware reads through fw_cfg; it does not enter the guest, the firmware
does.  Every refusal is a ConfigError with one sentence that names the guest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from devices.errors import ConfigError
from devices.memory import GuestMemory
from guests import GUESTS
from guests.debian import DEBIAN
from guests.table import X86_64
from vmm.files import read_file
from vmm.loader.foreign import other_kind
from vmm.loader.image import EXECUTE, FIRMWARE_END, READ, WRITE, BootData, Image, Module, Payload, Segment, place
from vmm.models import suggest

__all__ = [
    "FIRMWARE_END",
    "BootData",
    "Image",
    "Module",
    "Payload",
    "Segment",
    "is_linux",
    "load",
    "read_firmware",
    "read_image",
    "read_modules",
]

FLAT_GPA = 0x100000
ELF_MAGIC, LINUX_MAGIC = b"\x7fELF", b"HdrS"
MULTIBOOT_MAGIC, MULTIBOOT_SEARCHED_BYTES = bytes.fromhex("02b0ad1b"), 8192
LARGEST_IMAGE_BYTES = 1 << 30  # a device such as /dev/zero never ends
FIRMWARE_UNIT_BYTES, LARGEST_FIRMWARE_BYTES = 64 << 10, 16 << 20


def read_image(guest: str, arch: str = X86_64) -> Image:
    """The image of `guest`, the name of a bundled guest or the path of a file, for the processor `arch`.

    A bundled guest's name wins over a file of the same name; ./NAME is the file.  ConfigError when there is neither,
    with the nearest name, or when the file cannot be read.
    """
    if guest in GUESTS:
        if arch not in GUESTS[guest].architectures:
            others = [name for name, row in GUESTS.items() if arch in row.architectures]
            raise ConfigError(f"The guest {guest!r} is not made for {arch!r}; {' and '.join(others)} are.")
        return Image(guest, GUESTS[guest].image(arch))
    path = Path(guest)
    if path.name == guest and not path.exists():
        found = suggest(guest, (*GUESTS, DEBIAN.name))
        hint = "`vmm guests` lists the guests." if found is None else f"did you mean {found!r}?"
        raise ConfigError(f"There is no guest or file {guest!r}; {hint}")
    return Image(guest, _read_file("guest", guest, LARGEST_IMAGE_BYTES))


def is_linux(guest: str) -> bool:
    """Whether `guest` is the path of a bzImage, by its first bytes; a pipe is left alone, it can be read once only."""
    try:
        if guest in GUESTS or not Path(guest).is_file():
            return False
        with open(guest, "rb") as file:
            return file.read(0x206)[0x202:] == LINUX_MAGIC
    except (OSError, ValueError):
        return False


def _read_file(what: str, path: str, largest_bytes: int) -> bytes:
    """The contents of a file that the user names.  ConfigError with one sentence."""
    try:
        data = read_file(path, largest_bytes + 1)
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path!r}.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"The {what} {path!r} cannot be read: {reason}.") from error
    if len(data) > largest_bytes:
        raise ConfigError(f"The {what} {path!r} is larger than {largest_bytes >> 20} MiB.")
    return data


def read_firmware(path: str) -> bytes:
    """The firmware image in the file `path`.  ConfigError unless it can be read and can lie below 4 GiB."""
    data = _read_file("firmware", path, LARGEST_FIRMWARE_BYTES)
    if not data or len(data) % FIRMWARE_UNIT_BYTES:
        raise ConfigError(f"The firmware {path!r} must have a multiple of 64 KiB, not {len(data)} bytes.")
    return data


def read_modules(texts: Sequence[str]) -> tuple[Module, ...]:
    """The files that "FILE" or "FILE WORDS" name, several in one text behind commas, as QEMU has it.

    The words reach the guest with the file's name before them."""
    modules = []
    for text in ",".join(texts).split(",") if texts else []:
        path, _, _ = text.partition(" ")
        modules.append(
            Module(path, _read_file("module", path, LARGEST_IMAGE_BYTES), text.encode("utf-8", "surrogateescape"))
        )
    return tuple(modules)


def load(image: Image, memory: GuestMemory, boot: BootData | None = None, *, arch: str = X86_64) -> Payload:
    """Put `image` into RAM.  ConfigError when it is no image for this machine or does not fit.

    `boot` is for kernels of a boot protocol; the others learn nothing from it.  Only ELF files are for another
    processor than x86-64."""
    boot = boot or BootData()
    if not image.data:
        raise ConfigError(f"The guest {image.name!r} is empty.")
    if arch != X86_64:
        from vmm.loader.elf import load_elf

        return load_elf(image, memory, arch)
    if MULTIBOOT_MAGIC in image.data[:MULTIBOOT_SEARCHED_BYTES]:
        from vmm.loader import multiboot  # only where it may be needed: it imports pyelftools

        header = multiboot.find_header(image.data)
        if header is not None:
            return multiboot.load_multiboot(image, header, memory, boot)
    if image.data[0x202:0x206] == LINUX_MAGIC or image.data[:4] == ELF_MAGIC:
        from vmm.loader import linux  # pyelftools is only imported when there is an ELF file

        if linux.is_bzimage(image.data):
            return linux.load_bzimage(image, memory, boot)
        if linux.is_vmlinux(image.data):
            return linux.load_vmlinux(image, memory, boot)
    other = None if image.data[:4] == ELF_MAGIC else other_kind(image.data)
    if other is not None:
        raise ConfigError(f"The guest {image.name!r} is {other}, and no program for this machine.")
    if boot.modules:
        raise ConfigError(
            f"The guest {image.name!r} is no Linux or Multiboot kernel: it takes no initrd and no modules."
        )
    if image.data[:4] == ELF_MAGIC:
        from vmm.loader.elf import load_elf

        return load_elf(image, memory)
    place(image.name, FLAT_GPA, image.data, len(image.data), memory)
    segment = Segment(FLAT_GPA, len(image.data), EXECUTE | WRITE | READ)
    return Payload(image.name, "flat", FLAT_GPA, (segment,))
