"""Debian's real kernel, packed again in every way that the kernel's own build knows: each loads to the same RAM.

Its build (scripts/Makefile.lib) calls `gzip -9`, `xz --check=crc32 --x86 --lzma2`, `zstd --ultra -22` and `lz4 -l -9`;
here the levels are low, for the time it takes, and the formats are the same.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import struct
from collections.abc import Callable
from functools import cache

import lz4.block
import pytest
import zstandard
from elftools.elf.elffile import ELFFile

from devices.errors import ConfigError
from devices.memory import GuestMemory
from tests.boot import debian
from vmm import loader
from vmm.loader import BootData, Image, Payload

pytestmark = debian.needs_debian
MIB = 1 << 20
RAM_BYTES = 128 * MIB
LZMA2 = {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 32 * MIB, "mf": lzma.MF_HC3, "depth": 1, "nice_len": 3}
XZ_FILTERS = [{"id": lzma.FILTER_X86}, LZMA2]


def lz4_legacy(data: bytes) -> bytes:
    packed = bytes.fromhex("02214c18")
    for start in range(0, len(data), 8 * MIB):
        block = lz4.block.compress(data[start : start + 8 * MIB], store_size=False)
        packed += struct.pack("<I", len(block)) + block
    return packed


def zstd_wide(data: bytes) -> bytes:
    """With the window of 128 MiB that --ultra -22 has."""
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    return zstandard.ZstdCompressor(compression_params=settings).compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=XZ_FILTERS),
    "zstd": zstd_wide,
    "LZ4": lz4_legacy,
}
every_format = pytest.mark.parametrize("name", PACKERS)


@cache
def parts() -> tuple[bytes, bytes]:
    """(setup and header, the vmlinux inside) of Debian's bzImage, whose own packing is LZ4."""
    image = debian.kernel().read_bytes()
    setup_bytes = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[setup_bytes + offset : setup_bytes + offset + length]
    assert payload.startswith(bytes.fromhex("02214c18"))
    vmlinux, position, (whole,) = b"", 4, struct.unpack("<I", payload[-4:])
    while len(vmlinux) < whole:
        (size,) = struct.unpack_from("<I", payload, position)
        vmlinux += lz4.block.decompress(payload[position + 4 : position + 4 + size], uncompressed_size=8 * MIB)
        position += 4 + size
    return image[: setup_bytes + offset], vmlinux


@cache
def packed_again(name: str) -> bytes:
    """The bzImage with its vmlinux packed by `name`, and its header telling so."""
    before, vmlinux = parts()
    payload = PACKERS[name](vmlinux) + (b"" if name == "gzip" else struct.pack("<I", len(vmlinux)))
    image = bytearray(before + payload)
    image += bytes(-len(image) % 16)
    setup_bytes = (image[0x1F1] + 1) * 512
    struct.pack_into("<I", image, 0x1F4, (len(image) - setup_bytes) // 16)
    struct.pack_into("<I", image, 0x24C, len(payload))
    return bytes(image)


def load(image: bytes) -> tuple[Payload, str]:
    """What the loader says, and a digest of the kernel's own RAM."""
    with GuestMemory([(0, 0xA0000), (MIB, RAM_BYTES - MIB)]) as memory:
        payload = loader.load(Image("vmlinuz", image), memory, BootData(b"console=ttyS0"))
        whole = max(payload.segments, key=lambda segment: segment.size_bytes)
        return payload, hashlib.sha256(memory.peek(whole.gpa, whole.size_bytes)).hexdigest()


@every_format
def test_every_packing_loads_to_the_same_kernel(name: str) -> None:
    assert load(packed_again(name)) == load(debian.kernel().read_bytes())


def test_the_vmlinux_itself_loads_to_the_same_place() -> None:
    _, vmlinux = parts()
    payload, digest = load(vmlinux)
    assert digest == load(debian.kernel().read_bytes())[1]
    assert payload.kind in ("PVH", "Linux vmlinux")
    entry = ELFFile(io.BytesIO(vmlinux)).header["e_entry"]
    assert payload.kind == "PVH" or payload.entry == entry


@every_format
@pytest.mark.parametrize("kept", [0.3, 0.99])
def test_a_file_that_was_cut_off_is_told_so(name: str, kept: float) -> None:
    image = packed_again(name)
    with pytest.raises(ConfigError) as refusal:
        load(image[: int(len(image) * kept)])
    assert str(refusal.value) == (
        "The kernel 'vmlinuz' is truncated: its setup header announces more than the file holds."
    )


@every_format
def test_a_payload_that_was_cut_off_is_told_as_damaged(name: str) -> None:
    """A file of the right length, as a download leaves it that reserved its space first."""
    image = packed_again(name)
    half = len(image) // 2
    with pytest.raises(ConfigError) as refusal:
        load(image[:half] + bytes(len(image) - half))
    assert str(refusal.value) == f"The kernel 'vmlinuz' has damaged {name} data."
