"""Putting a guest's image into RAM: ELF64 executables and flat images.

The loader owns the question "what is this file and where does it belong".  It writes the bytes into `GuestMemory` and
returns a `Payload`, the description that the firmware reads through fw_cfg; it does not enter the guest, the firmware
does.  Every refusal is a ConfigError with one sentence that names the guest.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from devices.errors import ConfigError
from devices.memory import GuestMemory
from guests import GUESTS
from vmm.models import did_you_mean

FIRMWARE_END = 0x10000  # the firmware's stack and boot information lie below
FLAT_GPA = 0x100000
LARGEST_IMAGE_BYTES = 1 << 30  # a device such as /dev/zero never ends
EXECUTE, WRITE, READ = 1, 2, 4  # ELF's p_flags
MAX_SEGMENTS = 16  # the firmware has room for no more
FIRMWARE_UNIT_BYTES, LARGEST_FIRMWARE_BYTES = 64 << 10, 16 << 20


class Segment(NamedTuple):
    """`size_bytes` of the image's memory at `gpa`, with ELF's permission bits."""

    gpa: int
    size_bytes: int
    flags: int


class Image(NamedTuple):
    """The bytes of a guest's file, and what to call it in a sentence."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Payload:
    """An image that lies in RAM: where to enter it and which rights its parts have."""

    name: str
    kind: str
    entry: int
    segments: tuple[Segment, ...]

    def description(self) -> bytes:
        """The fw_cfg file opt/balloon-vmm/payload: a header and 24 bytes for each segment, little-endian."""
        header = struct.pack("<8sQII", b"BVMMPAY1", self.entry, len(self.segments), 0)
        return header + b"".join(struct.pack("<QQII", s.gpa, s.size_bytes, s.flags, 0) for s in self.segments)


def read_image(guest: str) -> Image:
    """The image of `guest`, the name of a bundled guest or the path of a file.

    A bundled guest's name wins over a file of the same name; ./NAME is the file.  ConfigError when there is neither,
    with the nearest name, or when the file cannot be read.
    """
    if guest in GUESTS:
        return Image(guest, GUESTS[guest].image())
    path = Path(guest)
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_IMAGE_BYTES + 1)
    except FileNotFoundError:
        if path.name == guest:
            raise ConfigError(f"There is no guest or file {guest!r}{did_you_mean(guest, GUESTS)}") from None
        raise ConfigError(f"There is no file {guest!r}.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"The guest {guest!r} cannot be read: {reason}.") from error
    if len(data) > LARGEST_IMAGE_BYTES:
        raise ConfigError(f"The guest {guest!r} is larger than {LARGEST_IMAGE_BYTES >> 20} MiB.")
    return Image(guest, data)


def read_firmware(path: str) -> bytes:
    """The firmware image in the file `path`.  ConfigError unless it can be read and can lie below 4 GiB."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"The firmware {path!r} cannot be read: {reason}.") from error
    if not 0 < len(data) <= LARGEST_FIRMWARE_BYTES or len(data) % FIRMWARE_UNIT_BYTES:
        raise ConfigError(
            f"The firmware {path!r} must have 64 KiB to 16 MiB, in units of 64 KiB, not {len(data)} bytes."
        )
    return data


def load(image: Image, memory: GuestMemory) -> Payload:
    """Put `image` into RAM.  ConfigError when it is no image for this machine or does not fit."""
    if not image.data:
        raise ConfigError(f"The guest {image.name!r} is empty.")
    if image.data[:4] == b"\x7fELF":
        from vmm.loader.elf import load_elf  # pyelftools is only imported when there is an ELF file

        return load_elf(image, memory)
    if image.data[0x202:0x206] == b"HdrS":
        raise ConfigError(f"The guest {image.name!r} is a Linux kernel, which this version cannot boot.")
    place(image.name, FLAT_GPA, image.data, len(image.data), memory)
    segment = Segment(FLAT_GPA, len(image.data), EXECUTE | WRITE | READ)
    return Payload(image.name, "flat", FLAT_GPA, (segment,))


def place(name: str, gpa: int, data: bytes, size_bytes: int, memory: GuestMemory) -> None:
    """Write `data` at `gpa` and see that all `size_bytes` are RAM that the firmware leaves alone."""
    if gpa < FIRMWARE_END:
        raise ConfigError(
            f"The guest {name!r} wants the memory at {gpa:#x}, "
            f"but the firmware owns everything below {FIRMWARE_END:#x}."
        )
    if not memory.contains(gpa, size_bytes):
        raise ConfigError(
            f"The guest {name!r} needs RAM at {gpa:#x}-{gpa + size_bytes - 1:#x}, which this machine does not have."
        )
    memory.write(gpa, data)
