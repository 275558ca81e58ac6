"""What the tables say, read by the offsets of ACPI 6.5 §5.2 and compared with docs/architecture.md, "The board"."""

from __future__ import annotations

import struct

import pytest

from tests.firmware.acpi.board import ADDRESSES, Placed

PM_BASE, SCI = 0x600, 9


@pytest.fixture(scope="module")
def placed() -> Placed:
    return Placed()


def u(table: bytes, offset: int, size: int) -> int:
    return int.from_bytes(table[offset : offset + size], "little")


def address_structure(table: bytes, offset: int) -> tuple[int, int, int, int, int]:
    """(space, bits, first bit, access size, address) of a generic address structure (§5.2.3.2)."""
    space, bits, first, access, address = struct.unpack_from("<BBBBQ", table, offset)
    return space, bits, first, access, address


def test_the_rsdp_has_both_checksums_and_both_lists(placed: Placed) -> None:
    rsdp = placed.rsdp
    assert rsdp[:8] == b"RSD PTR "
    assert (sum(rsdp[:20]) % 256, sum(rsdp) % 256) == (0, 0)
    assert rsdp[15] == 2
    assert u(rsdp, 20, 4) == len(rsdp) == 36
    assert placed.listed(b"RSDT") == placed.listed(b"XSDT")


def test_the_lists_name_each_table_once(placed: Placed) -> None:
    assert [placed.table(at)[:4] for at in placed.listed(b"XSDT")] == [b"FACP", b"APIC", b"MCFG"]


@pytest.mark.parametrize(
    ("signature", "revision"), [(b"FACP", 6), (b"APIC", 5), (b"MCFG", 1), (b"DSDT", 2), (b"XSDT", 1), (b"RSDT", 1)]
)
def test_every_table_has_its_header_and_adds_up_to_zero(placed: Placed, signature: bytes, revision: int) -> None:
    if signature in (b"XSDT", b"RSDT"):
        at, size = (24, 8) if signature == b"XSDT" else (16, 4)
        table = placed.table(u(placed.rsdp, at, size))
    else:
        table = placed.find(signature)
    assert table[:4] == signature
    assert u(table, 4, 4) == len(table)
    assert table[8] == revision
    assert sum(table) % 256 == 0
    assert table[10:16] == b"BVMM  "


def test_the_fadt_says_where_power_management_is(placed: Placed) -> None:
    fadt = placed.find(b"FACP")
    assert len(fadt) == 276
    assert u(fadt, 46, 2) == SCI
    assert u(fadt, 48, 4) == 0, "no SMI command port: always in ACPI mode"
    assert [u(fadt, at, 4) for at in (56, 64, 76)] == [PM_BASE, PM_BASE + 4, PM_BASE + 8]
    assert [fadt[at] for at in (88, 89, 91)] == [4, 2, 4]
    assert [address_structure(fadt, at) for at in (148, 172, 208)] == [
        (1, 32, 0, 2, PM_BASE),
        (1, 16, 0, 2, PM_BASE + 4),
        (1, 32, 0, 3, PM_BASE + 8),
    ]
    for absent in (60, 68, 72, 80, 84):  # PM1b, PM2, general-purpose events
        assert u(fadt, absent, 4) == 0


def test_the_fadt_says_how_to_reset_and_what_is_not_there(placed: Placed) -> None:
    fadt = placed.find(b"FACP")
    assert address_structure(fadt, 116) == (1, 8, 0, 1, 0xCF9)
    assert fadt[128] == 6
    flags = u(fadt, 112, 4)
    assert flags & 1 << 10, "the reset register is there"
    assert not flags & 1 << 4, "the power button is a fixed event"
    assert flags & 1 << 5, "the sleep button is not"
    assert flags & 1 << 6, "nor is the clock's wake event"
    assert not flags & 1 << 8, "the timer has 24 bits"
    assert not flags & 1 << 20, "the hardware is not reduced"
    boot = u(fadt, 109, 2)
    assert boot & 1, "there are ISA devices"
    assert not boot & 1 << 1, "but no keyboard"
    assert boot & 1 << 2, "nor a VGA"
    assert not boot & 1 << 3, "MSI works"
    assert not boot & 1 << 5, "and so does the CMOS clock"
    assert (u(fadt, 96, 2) > 100, u(fadt, 98, 2) > 1000) == (True, True), "neither C2 nor C3"
    assert fadt[108] == 0x32


def test_the_dsdt_and_the_facs_have_their_addresses_in_the_fadt(placed: Placed) -> None:
    fadt = placed.find(b"FACP")
    assert u(fadt, 40, 4) == u(fadt, 140, 8) == ADDRESSES["etc/acpi/tables"]
    assert u(fadt, 36, 4) == ADDRESSES["etc/acpi/facs"]
    assert u(fadt, 132, 8) == 0, "an address of 64 bits only above 4 GiB"
    facs = placed.find(b"FACS")
    assert (facs[:4], len(facs), facs[32]) == (b"FACS", 64, 2)
    assert u(fadt, 36, 4) % 64 == 0


def entries(madt: bytes) -> list[tuple[int, bytes]]:
    """(type, the rest) of each interrupt controller structure."""
    found, at = [], 44
    while at < len(madt):
        found.append((madt[at], madt[at + 2 : at + madt[at + 1]]))
        at += madt[at + 1]
    assert at == len(madt)
    return found


def test_the_madt_describes_the_interrupt_controllers(placed: Placed) -> None:
    madt = placed.find(b"APIC")
    assert u(madt, 36, 4) == 0xFEE00000
    assert u(madt, 40, 4) == 1, "there is an 8259 pair too"
    assert entries(madt) == [
        (0, struct.pack("<BBI", 0, 0, 1)),  # processor 0, APIC 0, enabled
        (1, struct.pack("<BBII", 0, 0, 0xFEC00000, 0)),
        (2, struct.pack("<BBIH", 0, 0, 2, 0)),  # the timer is pin 2
        (2, struct.pack("<BBIH", 0, 9, 9, 0b1101)),  # the SCI is active high and a level
        (4, struct.pack("<BHB", 0xFF, 0, 1)),  # LINT1 is NMI
    ]


def test_the_mcfg_is_the_ecam_window(placed: Placed) -> None:
    mcfg = placed.find(b"MCFG")
    assert struct.unpack("<QHBB4x", mcfg[44:]) == (0xC0000000, 0, 0, 255)
