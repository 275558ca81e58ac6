"""The static tables: RSDP, XSDT and RSDT, FADT with FACS, MADT, MCFG, and the DSDT's header (ACPI 6.5 §5.2).

The hardware is always in ACPI mode (there is no SMI command port and no system management mode), the processor knows no
idle state but C1, the board no sleep state but S5.  Whoever reads ACPI 1.0 only follows the RSDT; it names the same
tables as the XSDT.

`build` gives the files and the table-loader script for them.  Addresses are offsets until it is carried out.
"""

from __future__ import annotations

import struct

from firmware.acpi import dsdt
from firmware.acpi.linker import F_SEGMENT, SCRIPT_FILE, Script
from firmware.acpi.platform import Platform

TABLES_FILE, FACS_FILE, RSDP_FILE = "etc/acpi/tables", "etc/acpi/facs", "etc/acpi/rsdp"

OEM_ID, OEM_TABLE_ID, CREATOR_ID = b"BVMM", b"BALLOON", b"BVMM"
_HEADER = struct.Struct("<4sIBB6s8sI4sI")
HEADER_BYTES, CHECKSUM_AT = _HEADER.size, 9
_TABLE_ALIGNMENT = 16
_OEM_REVISION = 1

# Revisions (§5.2.6 and each table's own section).
DSDT_REVISION, FADT_REVISION, FADT_MINOR, MADT_REVISION, MCFG_REVISION = 2, 6, 3, 5, 1
XSDT_REVISION, RSDT_REVISION, RSDP_REVISION, FACS_VERSION = 1, 1, 2, 2

# RSDP (§5.2.5.3)
_RSDP = struct.Struct("<8sB6sBIIQB3x")
RSDP_BYTES, RSDP_CHECKSUM_AT, RSDP_FIRST_BYTES, RSDP_EXTENDED_CHECKSUM_AT = _RSDP.size, 8, 20, 32
RSDT_ADDRESS_AT, XSDT_ADDRESS_AT = 16, 24

# FADT (§5.2.9)
FADT_BYTES = 276
FACS_ADDRESS_AT, DSDT_ADDRESS_AT, X_DSDT_ADDRESS_AT = 36, 40, 140
PM1_EVENT_BYTES, PM1_CONTROL_AT, PM1_CONTROL_BYTES, PM_TIMER_AT, PM_TIMER_BYTES = 4, 4, 2, 8, 4
NO_C2_US, NO_C3_US = 0xFFFF, 0xFFFF  # latencies above 100 and 1000 us: no such state
WBINVD, PROC_C1, NO_SLEEP_BUTTON, NO_FIXED_RTC_WAKE, RESET_REG_SUP, HEADLESS = 0, 2, 5, 6, 10, 12
FADT_FLAGS = sum(1 << bit for bit in (WBINVD, PROC_C1, NO_SLEEP_BUTTON, NO_FIXED_RTC_WAKE, RESET_REG_SUP, HEADLESS))
LEGACY_DEVICES, NO_VGA = 1 << 0, 1 << 2
BOOT_FLAGS = LEGACY_DEVICES | NO_VGA  # the 8042 here only resets: no keyboard controller to look for
_SYSTEM_IO = 1
_BYTE_ACCESS, _WORD_ACCESS, _DWORD_ACCESS = 1, 2, 3
_NO_REGISTER = bytes(12)

# FACS (§5.2.10)
FACS_BYTES, FACS_ALIGNMENT = 64, 64

# MADT (§5.2.12)
PCAT_COMPAT = 1
ACTIVE_HIGH, LEVEL, AS_BUS = 0b01, 0b11 << 2, 0
_ALL_PROCESSORS, _NMI_INPUT = 0xFF, 1


def build(platform: Platform) -> dict[str, bytes]:
    """fw_cfg files by name: the tables, the FACS, the RSDP, and the table-loader script that joins them."""
    blob, script = bytearray(), Script()
    script.allocate(TABLES_FILE, _TABLE_ALIGNMENT)
    script.allocate(FACS_FILE, FACS_ALIGNMENT)
    script.allocate(RSDP_FILE, _TABLE_ALIGNMENT, F_SEGMENT)

    def put(contents: bytes) -> int:
        blob.extend(bytes(-len(blob) % _TABLE_ALIGNMENT))
        blob.extend(contents)
        return len(blob) - len(contents)

    dsdt_at = put(table(b"DSDT", DSDT_REVISION, dsdt.terms(platform)))
    fadt_at = put(table(b"FACP", FADT_REVISION, _fadt_body(platform, dsdt_at)))
    listed = [fadt_at, put(table(b"APIC", MADT_REVISION, _madt_body(platform)))]
    listed.append(put(table(b"MCFG", MCFG_REVISION, _mcfg_body(platform))))
    rsdt_at = put(table(b"RSDT", RSDT_REVISION, struct.pack(f"<{len(listed)}I", *listed)))
    xsdt_at = put(table(b"XSDT", XSDT_REVISION, struct.pack(f"<{len(listed)}Q", *listed)))

    script.add_pointer(TABLES_FILE, fadt_at + FACS_ADDRESS_AT, 4, FACS_FILE)
    script.add_pointer(TABLES_FILE, fadt_at + DSDT_ADDRESS_AT, 4, TABLES_FILE)
    script.add_pointer(TABLES_FILE, fadt_at + X_DSDT_ADDRESS_AT, 8, TABLES_FILE)
    for index in range(len(listed)):
        script.add_pointer(TABLES_FILE, rsdt_at + HEADER_BYTES + 4 * index, 4, TABLES_FILE)
        script.add_pointer(TABLES_FILE, xsdt_at + HEADER_BYTES + 8 * index, 8, TABLES_FILE)
    for at in (fadt_at, rsdt_at, xsdt_at):
        _clear_checksum(blob, at)
        script.add_checksum(TABLES_FILE, at + CHECKSUM_AT, at, int.from_bytes(blob[at + 4 : at + 8], "little"))
    script.add_pointer(RSDP_FILE, RSDT_ADDRESS_AT, 4, TABLES_FILE)
    script.add_pointer(RSDP_FILE, XSDT_ADDRESS_AT, 8, TABLES_FILE)
    script.add_checksum(RSDP_FILE, RSDP_CHECKSUM_AT, 0, RSDP_FIRST_BYTES)
    script.add_checksum(RSDP_FILE, RSDP_EXTENDED_CHECKSUM_AT, 0, RSDP_BYTES)
    rsdp = _RSDP.pack(b"RSD PTR ", 0, OEM_ID.ljust(6), RSDP_REVISION, rsdt_at, RSDP_BYTES, xsdt_at, 0)
    return {TABLES_FILE: bytes(blob), FACS_FILE: _facs(), RSDP_FILE: rsdp, SCRIPT_FILE: script.contents()}


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A table with its header (§5.2.6); all its bytes add up to zero."""
    header = _HEADER.pack(
        signature,
        HEADER_BYTES + len(body),
        revision,
        0,
        OEM_ID.ljust(6),
        OEM_TABLE_ID.ljust(8),
        _OEM_REVISION,
        CREATOR_ID,
        _OEM_REVISION,
    )
    whole = bytearray(header + body)
    whole[CHECKSUM_AT] = -sum(whole) % 256
    return bytes(whole)


def _clear_checksum(blob: bytearray, at: int) -> None:
    """A table that the script completes begins without one."""
    blob[at + CHECKSUM_AT] = 0


# -- FADT and FACS -----------------------------------------------------------------------------------------------------


def _register(port: int, size: int, access: int) -> bytes:
    """A generic address structure (§5.2.3.2) for ports."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, 8 * size, 0, access, port)


def _fadt_body(platform: Platform, dsdt_at: int) -> bytes:
    """Everything behind the header.  The FACS is below 4 GiB, so it has a 32-bit address and no other."""
    base = platform.pm_base
    fields = [
        struct.pack("<II", 0, dsdt_at),  # FIRMWARE_CTRL, DSDT
        struct.pack("<BBHI", 0, 0, platform.sci_line, 0),  # reserved, PM profile "unspecified", SCI_INT, SMI_CMD
        bytes(4),  # ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ, PSTATE_CNT
        struct.pack("<IIII", base, 0, base + PM1_CONTROL_AT, 0),  # PM1a_EVT, PM1b_EVT, PM1a_CNT, PM1b_CNT
        struct.pack("<IIII", 0, base + PM_TIMER_AT, 0, 0),  # PM2_CNT, PM_TMR, GPE0, GPE1
        struct.pack("<BBBBBBBB", PM1_EVENT_BYTES, PM1_CONTROL_BYTES, 0, PM_TIMER_BYTES, 0, 0, 0, 0),  # their lengths
        struct.pack("<HHHHBB", NO_C2_US, NO_C3_US, 0, 0, 0, 0),  # latencies, cache flushing, duty cycle
        struct.pack("<BBB", 0, 0, platform.century_register),  # no alarm by day or month
        struct.pack("<HBI", BOOT_FLAGS, 0, FADT_FLAGS),
        _register(platform.reset_port, 1, _BYTE_ACCESS) + bytes([platform.reset_value]),
        struct.pack("<HB", 0, FADT_MINOR),  # ARM_BOOT_ARCH, minor version
        struct.pack("<QQ", 0, dsdt_at),  # X_FIRMWARE_CTRL, X_DSDT
        _register(base, PM1_EVENT_BYTES, _WORD_ACCESS) + _NO_REGISTER,
        _register(base + PM1_CONTROL_AT, PM1_CONTROL_BYTES, _WORD_ACCESS) + _NO_REGISTER + _NO_REGISTER,
        _register(base + PM_TIMER_AT, PM_TIMER_BYTES, _DWORD_ACCESS) + _NO_REGISTER + _NO_REGISTER,
        _NO_REGISTER + _NO_REGISTER,  # sleep control and status, for boards without PM1
        bytes(8),  # no hypervisor's identity
    ]
    return b"".join(fields)


def _facs() -> bytes:
    """A FACS without a waking vector: the board does not sleep."""
    return struct.pack("<4sI", b"FACS", FACS_BYTES).ljust(32, b"\0") + struct.pack("<B31x", FACS_VERSION)


# -- MADT and MCFG -----------------------------------------------------------------------------------------------------


def _madt_body(platform: Platform) -> bytes:
    """One processor, one I/O APIC, and the two ISA lines that are not the pin of their number, rising."""
    return b"".join(
        [
            struct.pack("<II", platform.local_apic, PCAT_COMPAT),
            struct.pack("<BBBBI", 0, 8, 0, 0, 1),  # local APIC: processor 0, identifier 0, enabled
            struct.pack("<BBBBII", 1, 12, 0, 0, platform.io_apic, 0),  # I/O APIC 0, its pins are interrupts 0 and up
            _override(0, platform.timer_pin, AS_BUS),
            _override(platform.sci_line, platform.sci_line, ACTIVE_HIGH | LEVEL),
            struct.pack("<BBBHB", 4, 6, _ALL_PROCESSORS, AS_BUS, _NMI_INPUT),
        ]
    )


def _override(isa_line: int, pin: int, flags: int) -> bytes:
    """Interrupt source override (§5.2.12.5)."""
    return struct.pack("<BBBBIH", 2, 10, 0, isa_line, pin, flags)


def _mcfg_body(platform: Platform) -> bytes:
    """PCI Firmware Specification 3.0 §4.1.2: segment 0, its first and last bus."""
    return struct.pack("<8xQHBB4x", platform.ecam.first, 0, 0, (platform.ecam.length >> 20) - 1)
