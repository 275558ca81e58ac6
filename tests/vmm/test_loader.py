"""Images of guests: what is accepted, where it goes, and the one sentence for everything else."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.errors import ConfigError
from devices.memory import GuestMemory
from guests import GUESTS
from vmm import loader
from vmm.loader import Image, Segment

RX, RW = 5, 6


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    ram = GuestMemory([(0, 0xA0000), (0x100000, 0x100000)])
    yield ram
    ram.close()


def elf(
    segments: list[tuple[int, bytes, int, int]],
    *,
    entry: int = 0x10000,
    elf_class: int = 2,
    machine: int = 62,
    elf_type: int = 2,
) -> bytes:
    """An ELF64 file with (gpa, bytes, size in memory, flags) segments, written from the ELF specification."""
    header_bytes = 64 + 56 * len(segments)
    ident = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", elf_type, machine, 1, entry, 64, 0, 0, 64, 56, len(segments), 64, 0, 0
    )
    table, body = b"", b""
    for gpa, data, size, flags in segments:
        table += struct.pack("<IIQQQQQQ", 1, flags, header_bytes + len(body), gpa, gpa, len(data), size, 1)
        body += data
    return header + table + body


def test_an_elf_file_lies_where_its_segments_say(memory: GuestMemory) -> None:
    image = elf([(0x10000, b"code", 4, RX), (0x11000, b"data", 100, RW)])

    payload = loader.load(Image("mine.elf", image), memory)

    assert memory.read(0x10000, 4) == b"code"
    assert memory.read(0x11000, 5) == b"data\0"
    assert payload.entry == 0x10000
    assert payload.segments == (Segment(0x10000, 4, RX), Segment(0x11000, 100, RW))


def test_the_firmware_reads_the_same_description(memory: GuestMemory) -> None:
    payload = loader.load(Image("mine.elf", elf([(0x10000, b"code", 4, RX)])), memory)

    expected = b"BVMMPAY1" + struct.pack("<QII", 0x10000, 1, 0) + struct.pack("<QQII", 0x10000, 4, RX, 0)
    assert payload.description() == expected


def test_a_flat_image_lies_at_1_mib_and_may_do_everything(memory: GuestMemory) -> None:
    payload = loader.load(Image("mine.bin", b"\xf4" * 10), memory)

    assert memory.read(0x100000, 10) == b"\xf4" * 10
    assert (payload.entry, payload.segments) == (0x100000, (Segment(0x100000, 10, 7),))


GOOD = [(0x10000, b"code", 4, RX)]


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (b"", "The guest 'x' is empty."),
        (bytes(0x200000), "The guest 'x' needs RAM at 0x100000-0x2fffff, which this machine does not have."),
        (elf(GOOD, machine=183), "The guest 'x' is for AArch64, not for x86-64."),
        (elf(GOOD, elf_type=3), "The guest 'x' is not a static executable (ELF type EXEC); link it without PIE."),
        (elf([]), "The guest 'x' has no segment to load."),
        (
            elf([(0x10000 + n * 4096, b"code", 4, RX) for n in range(17)]),
            "The guest 'x' has 17 segments to load; at most 16 are supported.",
        ),
        (elf(GOOD)[:-2], "The guest 'x' is truncated: the segment at 0x10000 is not all in the file."),
        (
            elf([(0x8000, b"code", 4, RX)], entry=0x8000),
            "The guest 'x' wants the memory at 0x8000, but the firmware owns everything below 0x10000.",
        ),
        (
            elf([(0x9FFFE, b"code", 4, RX)], entry=0x9FFFE),
            "The guest 'x' needs RAM at 0x9fffe-0xa0001, which this machine does not have.",
        ),
        (
            elf([(0x10000, b"code", 4, RX), (1 << 63, b"data", 1 << 63, RW)]),
            "The guest 'x' needs RAM at 0x8000000000000000-0xffffffffffffffff, which this machine does not have.",
        ),
        (
            elf([(0x10000, b"code", 0x2000, RX), (0x11000, b"data", 4, RW)]),
            "The guest 'x' has overlapping segments at 0x10000 and 0x11000.",
        ),
        (elf(GOOD, entry=0x10004), "The guest 'x' starts at 0x10004, which is in none of its executable segments."),
        (
            elf([(0x10000, b"code", 4, RW)]),
            "The guest 'x' starts at 0x10000, which is in none of its executable segments.",
        ),
    ],
)
def test_everything_else_gets_one_sentence(memory: GuestMemory, image: bytes, sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        loader.load(Image("x", image), memory)
    assert str(refusal.value) == sentence


@pytest.mark.parametrize("length", [4, 16, 40, 63, 64, 80, 119])
def test_a_truncated_elf_file_gets_one_sentence(memory: GuestMemory, length: int) -> None:
    with pytest.raises(ConfigError, match=r"^The guest 'x' is .*[.]$"):
        loader.load(Image("x", elf(GOOD)[:length]), memory)


def test_a_program_header_table_beyond_every_file_gets_one_sentence(memory: GuestMemory) -> None:
    image = bytearray(elf(GOOD))
    struct.pack_into("<Q", image, 32, 0xFFFF_FFFF_FFFF_F000)  # e_phoff

    with pytest.raises(ConfigError, match=r"^The guest 'x' is a damaged ELF file: .*[.]$"):
        loader.load(Image("x", bytes(image)), memory)


def test_a_32_bit_elf_file_gets_one_sentence(memory: GuestMemory) -> None:
    ident = b"\x7fELF" + bytes([1, 1, 1]) + bytes(9)
    image = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 0, 0, 0, 52, 32, 0, 40, 0, 0)

    with pytest.raises(ConfigError, match=r"^The guest 'x' is a 32-bit ELF file; a guest must be ELF64[.]$"):
        loader.load(Image("x", image), memory)


def test_a_bundled_guest_is_found_by_name() -> None:
    assert loader.read_image("hello") == Image("hello", GUESTS["hello"].image())


def test_a_file_is_found_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"mine")
    assert loader.read_image(str(tmp_path / "hello")).data == b"mine"


def test_a_mistyped_guest_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"^There is no guest or file 'helo'; did you mean 'hello'[?]$"):
        loader.read_image("helo")


def test_a_missing_file_and_a_folder_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^There is no file '.*/none.elf'[.]$"):
        loader.read_image(str(tmp_path / "none.elf"))
    with pytest.raises(ConfigError, match=r"^The guest '.*' cannot be read: Is a directory[.]$"):
        loader.read_image(str(tmp_path))
