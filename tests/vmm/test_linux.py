"""Linux kernels in RAM: what the zero page and PVH's start info say, where things lie, and what is refused."""

from __future__ import annotations

import gzip
import lzma
import random
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import zstandard

from devices.errors import ConfigError
from devices.memory import GuestMemory
from tests.vmm.kernels import ENTRY_CODE, KERNEL_GPA, bzimage, lz4_legacy, note, signed, sized, vmlinux
from vmm import loader
from vmm.loader import BootData, Image, Module, Payload
from vmm.loader.decompress import Damaged, decompress

MIB = 1 << 20
RAM_END = 64 * MIB
MAP = ((0, 0xA0000, 1), (0xF0000, 0x10000, 2), (MIB, RAM_END - MIB, 1))
ZERO_PAGE = 0x90000
PVH_NOTE = note(b"Linux", 256, b"salt") + note(b"Xen", 18, struct.pack("<Q", KERNEL_GPA + 0x40))


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    ram = GuestMemory([(0, 0xA0000), (MIB, RAM_END - MIB)])
    yield ram
    ram.close()


def load(memory: GuestMemory, image: bytes, parameter: bytes = b"", initrd: bytes | None = None) -> Payload:
    modules = () if initrd is None else (Module("initrd", initrd, b"initrd"),)
    return loader.load(Image("vmlinuz", image), memory, BootData(parameter, modules, MAP))


@pytest.mark.parametrize(
    "payload",
    [
        gzip.compress(vmlinux()),
        sized(lz4_legacy(vmlinux()), vmlinux()),
        sized(lzma.compress(vmlinux()), vmlinux()),
        sized(zstandard.ZstdCompressor().compress(vmlinux()), vmlinux()),
    ],
    ids=["gzip", "LZ4", "xz", "zstd"],
)
def test_the_kernel_inside_a_bzimage_lies_at_its_physical_address(memory: GuestMemory, payload: bytes) -> None:
    loaded = load(memory, bzimage(payload))

    assert memory.read(KERNEL_GPA, 2) == ENTRY_CODE + b"\0"
    assert (loaded.entry, loaded.protocol, loaded.information) == (KERNEL_GPA, 2, ZERO_PAGE)
    assert loaded.description()[8:24] == struct.pack("<QII", KERNEL_GPA, len(loaded.segments), 2)
    assert loaded.description()[-8:] == struct.pack("<Q", ZERO_PAGE)


def test_its_own_setup_header_is_in_the_zero_page_with_what_a_loader_fills_in(memory: GuestMemory) -> None:
    image = bzimage()
    load(memory, image, b"console=ttyS0 quiet")
    page = memory.read(ZERO_PAGE, 4096)

    assert page[0x1F1] == image[0x1F1]
    assert page[0x202:0x208] == b"HdrS" + struct.pack("<H", 0x20F)
    assert page[0x230:0x26C] == image[0x230:0x26C]
    assert not any(page[0x290:0x2D0]), "what lies behind the header is not copied"
    assert page[0x210] == 0xFF, "type_of_loader: none that has a number"
    assert page[0x211] == 0x01, "loadflags: KASLR_FLAG is the decompressor's to set"
    assert struct.unpack_from("<H", page, 0x1FA) == (0xFFFF,)
    (cmdline,) = struct.unpack_from("<I", page, 0x228)
    assert memory.read(cmdline, 20) == b"console=ttyS0 quiet\0"
    assert struct.unpack_from("<II", page, 0x218) == (0, 0), "no initrd"


def test_the_zero_page_has_the_memory_map(memory: GuestMemory) -> None:
    load(memory, bzimage())
    page = memory.read(ZERO_PAGE, 4096)

    assert page[0x1E8] == len(MAP)
    assert tuple(struct.iter_unpack("<QQI", page[0x2D0 : 0x2D0 + 20 * len(MAP)])) == MAP


@pytest.mark.parametrize("size", [1, 4096, 4097, 5 * MIB])
@pytest.mark.parametrize("image", [bzimage(), vmlinux(notes=PVH_NOTE)], ids=["bzImage", "PVH"])
def test_the_initrd_lies_at_a_page_as_high_as_it_fits(memory: GuestMemory, image: bytes, size: int) -> None:
    data = bytes(n % 251 for n in range(size))
    loaded = load(memory, image, initrd=data)

    if loaded.protocol == 2:
        gpa, length = struct.unpack_from("<II", memory.read(ZERO_PAGE, 4096), 0x218)
    else:
        (list_gpa,) = struct.unpack_from("<Q", memory.read(ZERO_PAGE, 64), 16)
        gpa, length = struct.unpack_from("<QQ", memory.read(list_gpa, 32))
    assert (gpa, length) == ((RAM_END - size) & ~0xFFF, size)
    assert memory.read(gpa, size) == data
    assert any(s.gpa <= gpa and gpa + size <= s.gpa + s.size_bytes for s in loaded.segments)


@pytest.mark.parametrize(("highest", "expected"), [(0x1FFFFFF, 0x1FF0000), (0x1005000 + 0xFFFF, 0x1005000)])
def test_the_initrd_ends_where_the_kernel_says(memory: GuestMemory, highest: int, expected: int) -> None:
    load(memory, bzimage(initrd_max=highest), initrd=bytes(0x10000))
    assert struct.unpack_from("<I", memory.read(ZERO_PAGE, 4096), 0x218) == (expected,)


def test_the_initrd_goes_below_the_kernel_where_there_is_no_room_above(memory: GuestMemory) -> None:
    load(memory, bzimage(initrd_max=KERNEL_GPA + 0x4FFF), initrd=bytes(0x10000))
    assert struct.unpack_from("<I", memory.read(ZERO_PAGE, 4096), 0x218) == (KERNEL_GPA - 0x10000,)


def test_no_two_segments_share_a_page_and_the_kernel_is_one_that_may_do_everything(memory: GuestMemory) -> None:
    parts = ((KERNEL_GPA, ENTRY_CODE, 0x1800), (KERNEL_GPA + 0x400000, b"data", 0x300000))
    loaded = load(memory, bzimage(gzip.compress(vmlinux(parts))), initrd=bytes(100))

    for low, high in pairwise(loaded.segments):
        assert (low.gpa + low.size_bytes - 1) >> 12 < high.gpa >> 12
    assert (KERNEL_GPA, 0x700000, 7) in loaded.segments


def test_a_vmlinux_with_the_pvh_note_is_entered_there_with_a_start_info(memory: GuestMemory) -> None:
    loaded = load(memory, vmlinux(notes=PVH_NOTE), b"console=ttyS0")

    assert (loaded.entry, loaded.protocol) == (KERNEL_GPA + 0x40, 4)
    fields = struct.unpack("<IIIIQQQQII", memory.read(loaded.information, 56))
    magic, version, _, modules, _, cmdline, rsdp, map_gpa, entries, _ = fields
    assert (magic, version, modules, rsdp, entries) == (0x336EC578, 1, 0, 0, len(MAP))
    assert memory.read(cmdline, 14) == b"console=ttyS0\0"
    assert [entry[:3] for entry in struct.iter_unpack("<QQII", memory.read(map_gpa, 24 * entries))] == list(MAP)


def test_a_vmlinux_without_it_is_entered_by_the_64_bit_protocol(memory: GuestMemory) -> None:
    loaded = load(memory, vmlinux(notes=note(b"Linux", 256, b"salt")), b"quiet", bytes(100))
    page = memory.read(ZERO_PAGE, 4096)

    assert (loaded.entry, loaded.protocol, loaded.information) == (KERNEL_GPA, 2, ZERO_PAGE)
    assert page[0x202:0x206] == b"HdrS" and page[0x1FE:0x200] == b"\x55\xaa"
    assert struct.unpack_from("<II", page, 0x218) == (RAM_END - 0x1000, 100)


def test_a_guest_without_such_notes_is_no_kernel(memory: GuestMemory) -> None:
    assert load(memory, vmlinux(notes=note(b"GNU", 3, bytes(20)))).kind == "ELF64"


@pytest.mark.parametrize("pack", [lz4_legacy, lzma.compress, zstandard.ZstdCompressor().compress])
@pytest.mark.parametrize("wrong", [-1, 1, 1 << 24], ids=str)
def test_a_payload_must_be_as_long_as_the_kernels_build_says_behind_it(
    memory: GuestMemory, pack: Callable[[bytes], bytes], wrong: int
) -> None:
    contents = vmlinux()
    image = bzimage(pack(contents) + struct.pack("<I", len(contents) + wrong))
    with pytest.raises(ConfigError) as refusal:
        load(memory, image)
    told = f"{len(contents)} bytes are in it, and not the {len(contents) + wrong} that it announces"
    assert str(refusal.value) == f"The kernel 'vmlinuz' is damaged: {told}."


def test_damage_that_an_lz4_decompressor_takes_is_seen_by_the_length(memory: GuestMemory) -> None:
    """Zeros are sequences too: their frames have no checksum, and what comes out is just shorter."""
    words = random.Random(4).choices([b"push", b"pop", b"call", b"return", b"jump"], k=2000)
    contents = vmlinux(((KERNEL_GPA, b" ".join(words), 0x4000),))
    packed, refused = lz4_legacy(contents), 0
    for at in range(1000, 1200):
        damaged = packed[:at] + bytes(30) + packed[at + 30 :]
        try:
            unnoticed = len(decompress(damaged, MIB)) != len(contents)
        except Damaged:
            continue
        if unnoticed:
            refused += 1
            with pytest.raises(
                ConfigError, match=rf"^The kernel 'vmlinuz' is damaged: .* not the {len(contents)} that"
            ):
                load(memory, bzimage(sized(damaged, contents)))
    assert refused > 10


@pytest.mark.parametrize("sign", [bytes, signed], ids=["as built", "signed"])
def test_a_kernel_whose_checksum_matches_is_not_doubted(memory: GuestMemory, sign: Callable[[bytes], bytes]) -> None:
    assert load(memory, sign(bzimage())).doubt == ""


@pytest.mark.parametrize("at", [0x20, 0x250, -5, -1], ids=["stub", "header", "payload", "checksum"])
@pytest.mark.parametrize("sign", [bytes, signed], ids=["as built", "signed"])
def test_one_whose_checksum_does_not_is_booted_and_doubted(
    memory: GuestMemory, sign: Callable[[bytes], bytes], at: int
) -> None:
    image = bytearray(bzimage())
    image[at] ^= 0x10
    loaded = load(memory, sign(bytes(image)))
    assert (loaded.kind, loaded.entry) == ("Linux bzImage", KERNEL_GPA)
    assert loaded.doubt == (
        "the kernel's file may be damaged: its checksum does not match (Linux 6.15 and later have none)"
    )


@pytest.mark.parametrize(
    ("version", "is_doubted"),
    [
        (b"6.1.0-50-cloud-amd64 (debian-kernel@lists.debian.org)", True),
        (b"6.14.11 (me@here)", True),
        (b"5.20.1", True),
        (b"6.15.0-rc1 (me@here)", False),
        (b"6.15", False),
        (b"6.100.2", False),
        (b"7.0.1", False),
        (b"vendor", True),
        (b"6.1555 and no version", True),
    ],
)
def test_a_version_that_is_built_without_a_checksum_is_not_doubted(
    memory: GuestMemory, version: bytes, is_doubted: bool
) -> None:
    image = bytearray(bzimage(version=version))
    image[-1] ^= 0x10
    assert bool(load(memory, bytes(image)).doubt) is is_doubted


def test_a_version_that_is_said_to_be_outside_the_file_is_none(memory: GuestMemory) -> None:
    image = bytearray(bzimage())
    image[0x20E:0x210] = b"\xff\xff"
    assert "its checksum does not match" in load(memory, bytes(image)).doubt


GOOD_ELF = vmlinux()
HEADER_DAMAGED = "has a damaged setup header: it announces"


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (bzimage()[:0x250], "is truncated: its setup header is not all in the file."),
        (bzimage()[:-20], "is truncated: its setup header announces more than the file holds."),
        (bzimage(b""), f"{HEADER_DAMAGED} 0 bytes of compressed data, and 16777216 bytes of memory to start in."),
        (bzimage(b"ab"), f"{HEADER_DAMAGED} 2 bytes of compressed data, and 16777216 bytes of memory to start in."),
        (
            bzimage(bytes(500), init_bytes=0),
            f"{HEADER_DAMAGED} 500 bytes of compressed data, and 0 bytes of memory to start in.",
        ),
        (bzimage(protocol=0x20B), "has boot protocol 2.11; 2.12 (Linux 3.8) is the oldest that can be booted."),
        (bzimage(xloadflags=0x7E), "is a 32-bit kernel; only 64-bit kernels can be booted."),
        (bzimage(b"what is this?"), "is compressed in an unknown way; LZ4, gzip, xz and zstd are known."),
        (bzimage(gzip.compress(GOOD_ELF)[:-9]), "has damaged gzip data."),
        (
            bzimage(init_bytes=len(GOOD_ELF) - 1),
            f"has gzip data that inflate to more than the {len(GOOD_ELF) - 1} bytes allowed.",
        ),
        (
            bzimage(gzip.compress(bytes(70 * MIB), 1), init_bytes=0xFFFFFFFF),
            "needs 4096 MiB of RAM to start, which this machine does not have.",
        ),
        (bzimage(gzip.compress(b"no ELF file")), "holds no ELF file that could be read."),
        (bzimage(gzip.compress(vmlinux(machine=183))), "is not for x86-64."),
        (
            bzimage(gzip.compress(GOOD_ELF[:-1])),
            "is truncated: the segment at 0x1000000 is not all in the file.",
        ),
        (
            bzimage(gzip.compress(vmlinux(entry=KERNEL_GPA + 0x2000))),
            "starts at 0x1002000, which is in none of its segments.",
        ),
        (
            vmlinux(notes=note(b"Xen", 18, struct.pack("<I", 0x90000))),
            "starts at 0x90000, which is in none of its segments.",
        ),
    ],
)
def test_everything_else_gets_one_sentence(memory: GuestMemory, image: bytes, sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(memory, image)
    assert str(refusal.value) == f"The kernel 'vmlinuz' {sentence}"


def test_a_kernel_that_the_ram_cannot_hold_is_told_where_it_wanted_to_be(memory: GuestMemory) -> None:
    image = vmlinux(((KERNEL_GPA, ENTRY_CODE, RAM_END),), notes=PVH_NOTE)
    with pytest.raises(ConfigError, match="needs RAM at 0x1000000-0x4ffffff, which this machine does not have"):
        load(memory, image)


def test_a_kernel_must_have_the_ram_that_it_needs_to_start(memory: GuestMemory) -> None:
    assert load(memory, bzimage(init_bytes=RAM_END - KERNEL_GPA)).kind == "Linux bzImage"
    with pytest.raises(ConfigError, match=r"needs RAM at 0x1000000-0x4000fff to start, which this machine does not"):
        load(memory, bzimage(init_bytes=RAM_END - KERNEL_GPA + 0x1000))


def test_a_kernel_that_wants_the_place_of_what_it_is_told_is_refused(memory: GuestMemory) -> None:
    image = bzimage(gzip.compress(vmlinux(((0x8F000, ENTRY_CODE, 0x2000),), entry=0x8F000)), init_bytes=0x2000)
    with pytest.raises(ConfigError, match=r"^The kernel 'vmlinuz' wants the memory at 0x90000, where it is told"):
        load(memory, image)


@pytest.mark.parametrize(
    ("parameter", "initrd", "sentence"),
    [
        (b"x" * 256, None, "The kernel 'vmlinuz' takes a command line of at most 255 bytes, not 256."),
        (b"", b"", "The initrd 'initrd' is empty."),
        (b"", bytes(60 * MIB), "There is no room in RAM for the initrd 'initrd' of 62914560 bytes."),
    ],
)
def test_what_goes_with_it_must_fit(memory: GuestMemory, parameter: bytes, initrd: bytes | None, sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(memory, bzimage(cmdline_bytes=255), parameter, initrd)
    assert str(refusal.value) == sentence


def test_there_is_one_initrd(memory: GuestMemory) -> None:
    modules = (Module("a", b"a", b"a"), Module("b", b"b", b"b"))
    with pytest.raises(ConfigError, match=r"^The kernel 'vmlinuz' takes one initrd, not 2[.]$"):
        loader.load(Image("vmlinuz", bzimage()), memory, BootData(b"", modules, MAP))
