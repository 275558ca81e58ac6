"""The tables of a board as they lie in RAM, placed by the host's own reading of the table-loader script."""

from __future__ import annotations

import struct

from firmware.acpi import linker, tables
from vmm.boards.pc import platform
from vmm.config import make_config

ADDRESSES = {tables.TABLES_FILE: 0x3FF0000, tables.FACS_FILE: 0x3FF8000, tables.RSDP_FILE: 0xE0000}
DEVICES = ("virtio-balloon-pci", "virtio-rng-pci,addr=9", "virtio-rng-device,slot=2")


def files() -> dict[str, bytes]:
    """The fw_cfg files of a machine with a balloon in slot 3, another device in slot 9 and one on virtio-mmio."""
    return tables.build(platform(make_config("hello", devices=DEVICES)))


class Placed:
    """All of it in its place."""

    def __init__(self) -> None:
        made = files()
        self.contents = linker.carry_out(made[linker.SCRIPT_FILE], made, ADDRESSES)
        self.rsdp = self.contents[tables.RSDP_FILE]

    def read(self, address: int, length: int) -> bytes:
        for name, base in ADDRESSES.items():
            contents = self.contents[name]
            if base <= address and address + length <= base + len(contents):
                return contents[address - base : address - base + length]
        raise AssertionError(f"nothing lies at {address:#x}")

    def table(self, address: int) -> bytes:
        """The whole table at `address`, by the length in its header."""
        return self.read(address, struct.unpack("<4sI", self.read(address, 8))[1])

    def listed(self, signature: bytes) -> list[int]:
        """The addresses in the XSDT or the RSDT."""
        at, size, code = {b"XSDT": (24, 8, "Q"), b"RSDT": (16, 4, "I")}[signature]
        root = self.table(int.from_bytes(self.rsdp[at : at + size], "little"))
        assert root[:4] == signature
        return [address for (address,) in struct.iter_unpack(f"<{code}", root[36:])]

    def find(self, signature: bytes) -> bytes:
        """The table with `signature`, as an operating system finds it."""
        if signature in (b"DSDT", b"FACS"):
            fadt = self.find(b"FACP")
            at, size = (140, 8) if signature == b"DSDT" else (36, 4)
            return self.table(int.from_bytes(fadt[at : at + size], "little"))
        (found,) = [table for table in map(self.table, self.listed(b"XSDT")) if table[:4] == signature]
        return found
