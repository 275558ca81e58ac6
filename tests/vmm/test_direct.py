"""Kernels started without firmware find the board, the processor and the tables as firmware leaves them."""

from __future__ import annotations

import gzip
import re
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import vmm
from devices.errors import ConfigError
from tests.vmm.boards import pc_board
from tests.vmm.kernels import KERNEL_GPA, bzimage, lz4_legacy, note, sized, vmlinux
from vmm.machine import Machine

PVH = vmlinux(notes=note(b"Xen", 18, struct.pack("<I", KERNEL_GPA)))
KERNELS = {"Linux": bzimage(), "PVH": PVH}

BALLOON = ("virtio-balloon-pci,id=balloon0",)
MANY = ("virtio-rng-pci,addr=9", *BALLOON, "virtio-rng-pci,id=second", "virtio-rng-pci,addr=1f")


def boot(folder: Path, image: bytes, bios: str, devices: tuple[str, ...] = BALLOON, **options: Any) -> Machine:
    """A machine whose kernel has halted at its first instruction."""
    path = folder / "kernel"
    path.write_bytes(image)
    machine = vmm.boot(path, bios=bios, devices=devices, memory="64M", **options)
    outcome = machine.run("1s")
    assert outcome is not None and outcome.kind == "halted"
    return machine


def spaces(machine: Machine) -> dict[str, bytes]:
    """Each function's configuration space, but for the host bridge's shadow RAM, which is the ROM's business."""
    found = {}
    for function in pc_board(machine).host_bridge.functions.values():
        data = bytearray(function.read_config(offset, 1, 0)[0] for offset in range(256))
        if function.address == "00:00.0":
            data[0x59:0x60] = bytes(7)
        found[function.address] = bytes(data)
    return found


@pytest.mark.parametrize("devices", [BALLOON, MANY, ()], ids=["balloon", "many", "none"])
def test_pci_is_as_our_firmware_sets_it_up(tmp_path: Path, devices: tuple[str, ...]) -> None:
    with boot(tmp_path, bzimage(), "", devices) as ours, boot(tmp_path, bzimage(), "none", devices) as direct:
        assert spaces(direct) == spaces(ours)
        assert len(spaces(direct)) == 3 + len(devices)
        for function in pc_board(direct).host_bridge.functions.values():
            other = pc_board(ours).host_bridge.functions[function.devfn]
            mine, theirs = ([(r.space, r.base, r.length) for r in f.bar_regions()] for f in (function, other))
            assert mine == theirs


def test_the_interrupt_controllers_are_as_our_firmware_sets_them_up(tmp_path: Path) -> None:
    with boot(tmp_path, bzimage(), "") as ours, boot(tmp_path, bzimage(), "none") as direct:
        assert pc_board(direct).interrupts.save_state() == pc_board(ours).interrupts.save_state()
        assert pc_board(direct).lapic.save_state() == pc_board(ours).lapic.save_state()


@pytest.mark.parametrize("kind", KERNELS)
def test_the_processor_is_as_our_firmware_leaves_it(tmp_path: Path, kind: str) -> None:
    image = KERNELS[kind]
    with boot(tmp_path, image, "") as ours, boot(tmp_path, image, "none") as direct:
        theirs, mine = ours.registers(), direct.registers()

        told = ("rsi",) if kind == "Linux" else ("rbx",)
        tables = {"cr3", "gdtr_base", "gdtr_limit"}  # each has its own
        segments = [f"{name}{part}" for name in ("cs", "ds", "es", "ss") for part in ("", "_base", "_limit", "_flags")]
        for name in ("rip", "cr0", "cr4", "efer", *told, *segments):
            assert mine[name] == theirs[name], name
        assert not mine["rflags"] & 0x200
        assert tables <= mine.keys()


@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_finds_the_acpi_tables_and_a_map_without_them(tmp_path: Path, kind: str) -> None:
    with boot(tmp_path, KERNELS[kind], "none") as m:
        told = m.registers()["rsi" if kind == "Linux" else "rbx"]
        if kind == "Linux":
            rsdp, count = m.memory.read_int(told + 0x70, 8), m.memory.read_int(told + 0x1E8, 1)
            entries = list(struct.iter_unpack("<QQI", m.memory.read(told + 0x2D0, 20 * count)))
        else:
            rsdp, map_gpa = m.memory.read_int(told + 32, 8), m.memory.read_int(told + 40, 8)
            count = m.memory.read_int(told + 48, 4)
            entries = [e[:3] for e in struct.iter_unpack("<QQII", m.memory.read(map_gpa, 24 * count))]

        root = m.memory.read(rsdp, 36)
        xsdt = int.from_bytes(root[24:32], "little")
        assert root[:8] == b"RSD PTR " and sum(root[:20]) % 256 == sum(root) % 256 == 0
        length = m.memory.read_int(xsdt + 4, 4)
        assert m.memory.read(xsdt, 4) == b"XSDT" and sum(m.memory.read(xsdt, length)) % 256 == 0
        for place in (rsdp, xsdt):
            kinds = [kind for base, size, kind in entries if base <= place < base + size]
            assert kinds == [3], "ACPI reclaimable"
        assert all(low[0] + low[1] <= high[0] for low, high in pairwise(entries))
        assert (0x100000, 63 << 20, 1) in entries


def test_all_below_4_gib_is_mapped_one_to_one(tmp_path: Path) -> None:
    with boot(tmp_path, bzimage(), "none") as m:
        for gpa in (0x1000, 0x90000, KERNEL_GPA, 0x3FFFFFF, 0xE0000000, 0xFEE00000):
            assert m.platform.cpu.translate(gpa) == gpa


@pytest.mark.parametrize("guest", ["hello", "stats"])
def test_a_guest_that_is_no_such_kernel_needs_firmware(guest: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^Without firmware only a Linux or PVH kernel can be started; '{guest}' is"
    ):
        vmm.boot(guest, bios="none")


def test_without_firmware_there_must_be_a_kernel() -> None:
    with pytest.raises(ConfigError, match=r"^Without firmware there must be a kernel to start: "):
        vmm.boot(bios="none")


def test_a_kernel_where_the_tables_must_lie_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bzimage(gzip.compress(vmlinux(((0x98000, b"\xf4", 16),), entry=0x98000)), init_bytes=0x1000))
    with pytest.raises(ConfigError, match="wants the memory at 0x98000, where ACPI tables lie"):
        vmm.boot(path, bios="none")


def test_a_cut_run_goes_on_the_same(tmp_path: Path) -> None:
    with boot(tmp_path, bzimage(), "none") as first, boot(tmp_path, bzimage(), "none") as second:
        second.restore(first.save())
        assert second.registers() == first.registers()


DOUBT = "the kernel's file may be damaged: its checksum does not match (Linux 6.15 and later have none)"
OWN_TABLE = bytes.fromhex("0f011d02000000 0f0b 0000 0100")  # lidt [rip + 2]; ud2; a table of one byte at 1
UNDEFINED = bytes.fromhex("0f0b 90 01")  # ud2; nop; and something that does not matter
# lidt [rip + 8]; mov dx, 505h; mov al, 1; out dx, al; nop; a table at 1000000h
PANICS = bytes.fromhex("0f011d08000000 66ba0505 b001 ee 90 0000 00000001")

# mov esi, the text; mov ecx, its length; mov dx, 3f8h; rep outsb; mov dx, 64h; mov al, feh; out dx, al; hlt; the text
PANICS_ALOUD = bytes.fromhex("be18000001 b922000000 66baf803 f36e 66ba6400 b0fe ee f4") + (
    b"Kernel panic - not syncing: ouch\r\n\x01"
)


@pytest.mark.parametrize(
    ("bios", "code", "kind", "exit_code", "detail"),
    [
        ("", OWN_TABLE, "triple-fault", 4, "exception 6 at 00..:0000000001000007 could not be delivered"),
        ("none", OWN_TABLE, "triple-fault", 4, "exception 6 at 00..:0000000001000007 could not be delivered"),
        ("none", UNDEFINED, "triple-fault", 4, "exception 6 at 00..:0000000001000000 could not be delivered"),
        ("", UNDEFINED, "guest-panicked", 3, "the guest reported a panic"),
        ("", PANICS, "guest-panicked", 3, "the guest reported a panic"),
        ("", PANICS_ALOUD, "guest-panicked", 3, "the guest's kernel panicked and reset the machine: ouch"),
    ],
    ids=["firmware", "no firmware", "no table", "the firmware's table", "a panic of its own", "a panic on the console"],
)
def test_a_kernel_that_dies_is_told_with_what_speaks_against_its_file(
    tmp_path: Path, bios: str, code: bytes, kind: str, exit_code: int, detail: str
) -> None:
    """One byte is changed, where LZ4 has what it could not pack and nothing but the checksum can tell."""
    contents = vmlinux(((KERNEL_GPA, code, 0x2000),))
    whole = bzimage(sized(lz4_legacy(contents), contents))
    assert whole.count(code) == 1
    last = code.rindex(1)
    for image, doubt in (
        (whole, ""),
        (whole.replace(code, code[:last] + b"\x02" + code[last + 1 :]), f", and {DOUBT}"),
    ):
        (tmp_path / "kernel").write_bytes(image)
        with vmm.boot(tmp_path / "kernel", bios=bios, memory="64M") as m:
            outcome = m.run("1s")
            assert outcome is not None and (outcome.kind, outcome.exit_code) == (kind, exit_code)
            assert re.fullmatch(detail + re.escape(doubt), outcome.detail.partition("; ")[0])
