"""Debian's real kernel, packed again in every way that the kernel's own build knows: each loads to the same RAM, and
every way in which a kernel can be entered leads to /init.

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
from pathlib import Path

import lz4.block
import pytest
import zstandard
from elftools.elf.elffile import ELFFile

from devices.errors import ConfigError
from devices.memory import GuestMemory
from tests.boot import debian
from tests.boot.guest import MOUNT, Linux
from tests.vmm import kernels
from vmm import loader
from vmm.loader import BootData, Image, Payload

pytestmark = debian.needs_debian
MIB = 1 << 20
RAM_BYTES = 128 * MIB
LZMA2 = {"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 32 * MIB, "mf": lzma.MF_HC3, "depth": 1, "nice_len": 3}
PVH_ENTRY_BYTES = 8
XZ_FILTERS = [{"id": lzma.FILTER_X86}, LZMA2]


def zstd_wide(data: bytes) -> bytes:
    """With the window of 128 MiB that --ultra -22 has."""
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    return zstandard.ZstdCompressor(compression_params=settings).compress(data)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=XZ_FILTERS),
    "zstd": zstd_wide,
    "LZ4": kernels.lz4_legacy,
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
    payload = PACKERS[name](vmlinux)
    payload = payload if name == "gzip" else kernels.sized(payload, vmlinux)
    image = bytearray(before + payload)
    image += bytes(-(len(image) + 4) % 16)
    setup_bytes = (image[0x1F1] + 1) * 512
    struct.pack_into("<I", image, 0x1F4, (len(image) + 4 - setup_bytes) // 16)
    struct.pack_into("<I", image, 0x24C, len(payload))
    return kernels.signed(kernels.with_checksum(kernels.unsigned(bytes(image))))


def load(image: bytes) -> tuple[Payload, str]:
    """What the loader says, and a digest of the kernel's own RAM."""
    with GuestMemory([(0, 0xA0000), (MIB, RAM_BYTES - MIB)]) as memory:
        payload = loader.load(Image("vmlinuz", image), memory, BootData(b"console=ttyS0"))
        whole = max(payload.segments, key=lambda segment: segment.size_bytes)
        return payload, hashlib.sha256(memory.peek(whole.gpa, whole.size_bytes)).hexdigest()


@every_format
def test_every_packing_loads_to_the_same_kernel(name: str) -> None:
    assert load(packed_again(name)) == load(debian.kernel().read_bytes())


def without_pvh(vmlinux: bytes) -> bytes:
    """A vmlinux whose PVH note (owner Xen, type 18) is one of somebody else."""
    name = struct.pack("<III4s", 4, PVH_ENTRY_BYTES, 18, b"Xen\0")
    assert vmlinux.count(name) == 1
    return vmlinux.replace(name, name[:12] + b"Nex\0")


def test_the_vmlinux_itself_is_entered_by_its_pvh_note() -> None:
    _, vmlinux = parts()
    payload, digest = load(vmlinux)
    assert (payload.kind, payload.protocol) == ("PVH", 4)
    at = vmlinux.index(struct.pack("<III4s", 4, PVH_ENTRY_BYTES, 18, b"Xen\0")) + 16
    assert payload.entry == int.from_bytes(vmlinux[at : at + PVH_ENTRY_BYTES], "little")
    assert payload.entry != ELFFile(io.BytesIO(vmlinux)).header["e_entry"]
    assert digest == load(debian.kernel().read_bytes())[1]


def test_without_that_note_it_is_entered_as_the_bzimage_is() -> None:
    vmlinux = without_pvh(parts()[1])
    payload, _ = load(vmlinux)
    assert (payload.kind, payload.protocol) == ("Linux vmlinux", 2)
    assert payload.entry == ELFFile(io.BytesIO(vmlinux)).header["e_entry"]
    assert payload.entry == load(debian.kernel().read_bytes())[0].entry


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


@pytest.mark.parametrize("at", [0.3, 0.7])
def test_zeros_in_the_middle_are_told_though_the_decompressor_takes_them(at: float) -> None:
    """LZ4 has no checksum, and a hole of zeros in its data is sequences like others."""
    image = bytearray(debian.kernel().read_bytes())
    start = int(len(image) * at)
    image[start : start + 100_000] = bytes(100_000)
    with pytest.raises(ConfigError, match=r"^The kernel 'vmlinuz' (has damaged LZ4 data|is damaged: \d+ bytes are in)"):
        load(bytes(image))


def test_debians_own_file_is_not_doubted_and_a_single_changed_bit_is() -> None:
    image = bytearray(debian.kernel().read_bytes())
    assert load(bytes(image))[0].doubt == ""
    image[0x3000] ^= 1  # in the real-mode code, which never runs
    assert "its checksum does not match" in load(bytes(image))[0].doubt


# -- each is entered, and comes to /init -------------------------------------------------------------------------------

# What Linux has for its boot loader (boot.rst, type_of_loader): what the zero page says, or, entered by PVH outside
# Xen, what it gives itself, QEMU's number.
UNDEFINED_LOADER, ENTERED_BY_PVH = str(0xFF), str(0xB0)
INIT = """echo "loader: $(cat /proc/sys/kernel/bootloader_type)."
echo "driver: $(ls /sys/bus/virtio/drivers/virtio_balloon | grep virtio)."
echo "assigned anew: $(dmesg | grep -c 'BAR [0-9].*assigned')."
poweroff -f
"""
BOOTED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "bzImage without firmware": (lambda: debian.kernel().read_bytes(), "none", UNDEFINED_LOADER),
    "PVH": (lambda: parts()[1], "", ENTERED_BY_PVH),
    "PVH without firmware": (lambda: parts()[1], "none", ENTERED_BY_PVH),
    "vmlinux by the 64-bit protocol": (lambda: without_pvh(parts()[1]), "", UNDEFINED_LOADER),
    "bzImage with zstd": (lambda: packed_again("zstd"), "", UNDEFINED_LOADER),
}


@pytest.mark.parametrize("name", BOOTED)
def test_it_boots_to_init_and_its_own_driver_finds_the_balloon(name: str, tmp_path: Path) -> None:
    image, bios, loader_type = BOOTED[name]
    (tmp_path / "kernel").write_bytes(image())
    load_modules = "".join(f"insmod /lib/{module}.ko\n" for module in debian.VIRTIO_MODULES)
    archive = debian.initramfs(MOUNT + load_modules + INIT, debian.VIRTIO_MODULES)
    with Linux(tmp_path, archive, "quiet panic=-1", kernel=tmp_path / "kernel", bios=bios) as guest:
        outcome = guest.run_to_the_end()
        assert (outcome.kind, outcome.exit_code) == ("powered-off", 0), guest.tail()
        assert f"loader: {loader_type}." in guest.console
        assert "driver: virtio0." in guest.console
        assert "assigned anew: 0." in guest.console, "PCI is as it was set up, and the kernel changes nothing"
        assert "entering the guest" not in guest.console if bios else "entering the guest" in guest.console
        assert guest.complaints == []
