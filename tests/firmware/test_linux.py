"""How the firmware enters Linux: the machine state of both boot protocols, and what it completes in RAM."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from tests.firmware.lab import EXECUTABLE, HLT, MIB, READABLE, WRITABLE, Lab, Segment, describe

CODE = Segment(MIB, 0x2000, READABLE | WRITABLE | EXECUTABLE, HLT)
INITRD = Segment(15 * MIB, MIB, READABLE | WRITABLE)
ZERO_PAGE, MAP_GPA = 0x90000, 0x92000
LINUX, PVH = 2, 4


def kernel(way: int, told_data: bytes) -> Lab:
    """RAM up to 16 MiB, a kernel that halts at its first instruction, and its initrd at the end."""
    segments = (Segment(ZERO_PAGE, 0x3000, READABLE | WRITABLE, told_data), CODE, INITRD)
    description = describe(MIB, segments, flags=way) + struct.pack("<Q", ZERO_PAGE)
    return Lab(segments=segments, files={"opt/balloon-vmm/payload": description})


def start_info() -> bytes:
    return struct.pack("<IIIIQQQQII", 0x336EC578, 1, 0, 0, 0, 0, 0xBAD, MAP_GPA, 99, 0)


def test_the_64_bit_protocol_s_machine_state() -> None:
    """boot.rst, "64-bit Boot Protocol": long mode, __BOOT_CS 10h and __BOOT_DS 18h, RSI, interrupts off."""
    with kernel(LINUX, b"") as lab:
        lab.run()
        registers = lab.cpu.registers()

        assert registers["rip"] == MIB + 1
        assert registers["rsi"] == ZERO_PAGE
        assert registers["cs"] == 0x10
        assert [registers[name] for name in ("ds", "es", "ss")] == [0x18] * 3
        assert registers["cs_flags"] & 0x20FB00 == 0x209B00, "64-bit code, present, ring 0"
        assert registers["efer"] & 0x400 and registers["cr0"] & 0x80000001 == 0x80000001
        assert not registers["rflags"] & 0x200
        for gpa in (MIB, ZERO_PAGE, 15 * MIB):
            mapped = lab.page(gpa)
            assert mapped is not None and mapped[:2] == (gpa, True), "one to one and writable"
        assert (lab.page(MIB) or (0, 0, 0))[2], "the kernel is executable"


def test_pvh_s_machine_state() -> None:
    """pvh.pandoc: 32-bit protected mode without paging, flat segments, EBX, interrupts off."""
    with kernel(PVH, start_info()) as lab:
        lab.run()
        registers = lab.cpu.registers()

        assert registers["rip"] == MIB + 1
        assert registers["rbx"] == ZERO_PAGE
        assert registers["cr0"] & 0x80000001 == 1 and registers["cr4"] == 0 and registers["efer"] & 0x500 == 0
        assert not registers["rflags"] & 0x20300, "VM, IF and TF are clear"
        assert registers["cs_flags"] & 0x60FB00 == 0x409B00, "32-bit code"
        for name in ("cs", "ds", "es", "ss"):
            assert (registers[f"{name}_base"], registers[f"{name}_limit"]) == (0, 0xFFFFFFFF)


@pytest.mark.parametrize("way", [LINUX, PVH])
def test_the_memory_map_is_the_firmware_s_final_one(way: int) -> None:
    told = bytes(4096) if way == LINUX else start_info()
    with kernel(way, told) as lab:
        lab.run()
        if way == LINUX:
            count = lab.memory.read_int(ZERO_PAGE + 0x1E8, 1)
            found = list(struct.iter_unpack("<QQI", lab.memory.read(ZERO_PAGE + 0x2D0, 20 * count)))
        else:
            count = lab.memory.read_int(ZERO_PAGE + 48, 4)
            found = [entry[:3] for entry in struct.iter_unpack("<QQII", lab.memory.read(MAP_GPA, 24 * count))]

        tables = lab.cpu.registers()["cr3"] & ~0xFFF if way == LINUX else None
        assert found[0] == (0, 0x10000, 2), "the firmware's own"
        assert found[1] == (0x10000, 0x90000, 1), "a kernel knows itself where its own parts lie"
        assert found[-1] == (15 * MIB, MIB, 1), "and so for its initrd"
        for (base, length, kind), following in pairwise(found):
            assert base + length <= following[0], "ascending and disjoint"
            assert base + length < following[0] or kind != following[2], "what belongs together is one"
        reserved = [entry for entry in found if entry[2] == 2 and entry[0] >= MIB]
        assert len(reserved) == 1, "its page tables"
        if tables is not None:
            assert reserved[0][0] <= tables < reserved[0][0] + reserved[0][1]
            assert reserved[0][0] + reserved[0][1] == 15 * MIB, "right below the initrd"


def test_without_acpi_tables_no_address_of_them_is_given() -> None:
    with kernel(LINUX, b"\xff" * 4096) as lab:
        lab.run()
        assert lab.memory.read_int(ZERO_PAGE + 0x70, 8) == 0
    with kernel(PVH, start_info()) as lab:
        lab.run()
        assert lab.memory.read_int(ZERO_PAGE + 32, 8) == 0


def test_a_map_that_would_lie_outside_the_kernel_s_segments_is_refused() -> None:
    info = bytearray(start_info())
    struct.pack_into("<Q", info, 40, ZERO_PAGE + 0x2FF0)
    with kernel(PVH, bytes(info)) as lab:
        lab.run()
        assert "what the firmware tells a kernel must lie in its segments" in lab.console
        assert lab.stop is not None and lab.stop.code == 121
