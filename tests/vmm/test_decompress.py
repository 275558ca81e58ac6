"""Compressed kernels: every format inflates, nothing inflates beyond its limit, damage is one sentence."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable

import pytest
import zstandard

from tests.vmm.kernels import lz4_legacy
from vmm.loader.decompress import Damaged, decompress

MIB = 1 << 20
CONTENTS = b"".join(struct.pack("<I", n * n) for n in range(0x8000)) * 72 + b"end"  # 9 MiB: two blocks of LZ4


def zstd_unsized(data: bytes) -> bytes:
    """As from a pipe: the frame does not tell how much it holds."""
    return zstandard.ZstdCompressor(level=1, write_content_size=False).compress(data)


Pack = Callable[[bytes], bytes]
FORMATS: dict[str, Pack] = {
    "LZ4": lz4_legacy,
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, preset=0, check=lzma.CHECK_CRC32),
    "zstd": lambda data: zstandard.ZstdCompressor(level=1).compress(data),
    "zstd, unsized": zstd_unsized,
}
PACKED = {name: pack(CONTENTS) for name, pack in FORMATS.items()}
every_format = pytest.mark.parametrize("name", FORMATS)


@every_format
@pytest.mark.parametrize("spare", [0, 1, MIB])
def test_what_was_packed_comes_out_where_there_is_room_for_it(name: str, spare: int) -> None:
    assert decompress(PACKED[name], len(CONTENTS) + spare) == CONTENTS


@every_format
@pytest.mark.parametrize("missing", [1, MIB, len(CONTENTS) - 1])
def test_nothing_inflates_beyond_the_limit(name: str, missing: int) -> None:
    limit = len(CONTENTS) - missing
    with pytest.raises(Damaged, match=rf"^has {name.split(',')[0]} data that inflate to more than the {limit} bytes"):
        decompress(PACKED[name], limit)


@every_format
@pytest.mark.parametrize("kept", [6, 100, 0.5, -1])
def test_a_stream_that_is_cut_off_is_damaged(name: str, kept: float) -> None:
    packed = PACKED[name]
    end = int(len(packed) * kept) if isinstance(kept, float) else kept
    with pytest.raises(Damaged, match=rf"^has damaged {name.split(',')[0]} data$"):
        decompress(packed[:end], len(CONTENTS))


@pytest.mark.parametrize("name", ["gzip", "xz"])
def test_a_changed_byte_is_found_by_the_checksum(name: str) -> None:
    packed = bytearray(PACKED[name])
    packed[len(packed) // 2] ^= 0x40
    with pytest.raises(Damaged, match=rf"^has damaged {name} data$"):
        decompress(bytes(packed), len(CONTENTS))


@pytest.mark.parametrize("name", ["gzip", "xz", "zstd"])
def test_what_follows_the_stream_is_left_alone(name: str) -> None:
    assert decompress(PACKED[name] + b"\x12\x34\x56\x78", len(CONTENTS)) == CONTENTS


@pytest.mark.parametrize("data", [b"", b"BZh9rest", b"\x1f"])
def test_any_other_format_is_named_as_unknown(data: bytes) -> None:
    with pytest.raises(Damaged, match=r"^is compressed in an unknown way; LZ4, gzip, xz and zstd are known$"):
        decompress(data, MIB)


def test_a_small_file_that_would_inflate_for_ever_costs_only_its_limit() -> None:
    bomb = gzip.compress(bytes(256 * MIB))
    with pytest.raises(Damaged, match="more than the 1048576 bytes"):
        decompress(bomb, MIB)
