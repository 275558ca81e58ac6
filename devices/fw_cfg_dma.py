"""fw_cfg's DMA interface: an item goes to RAM at once instead of byte by byte (QEMU's docs/specs/fw_cfg).

Eight ports, big-endian, take the address of a request in RAM: be32 control, be32 length, be64 address.  Writing the low
half (the second four ports) carries it out, and the guest finds control zero, or the error bit alone.  A request may
select an item (bit 3, the key in the upper half), and then read from it (bit 1) or skip (bit 2); past the item's end it
reads zeros.  Items cannot be written (bit 4 is an error).  The ports read as "QEMU CFG".

Nothing here believes the guest: a request outside RAM vanishes, one whose data would not lie in RAM, or would be more
than 16 MiB, is an error and moves nothing.  It knows no item; `fw_cfg.FwCfg` does.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from devices.effects import NOTHING, Effects
from devices.fw_cfg import FwCfg
from devices.memory import GuestMemory
from devices.state import Stateful, Table, uint

PORTS = 8  # from 514h on
SIGNATURE = b"QEMU CFG"
HIGH, LOW = 0, 4

ERROR, READ, SKIP, SELECT, WRITE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
KEY_SHIFT = 16
REQUEST = struct.Struct(">IIQ")  # control, length, address
LONGEST_BYTES = 16 << 20  # a transfer holds up everything else; more comes in parts


class FwCfgDma(Stateful):
    """The ports before the items of `fw_cfg`, with `memory` to read requests from and to write to.

    A bus handler, resettable.  Writes count when they are of four bytes, each half by itself."""

    STATE: ClassVar[Table] = {"address_high": uint(32)}

    def __init__(self, fw_cfg: FwCfg, memory: GuestMemory) -> None:
        self._fw_cfg = fw_cfg
        self._memory = memory
        self.address_high = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FwCfgDma) and self.address_high == other.address_high

    def reset(self) -> Effects:
        self.address_high = 0
        return NOTHING

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return int.from_bytes(SIGNATURE[offset : offset + size], "little"), NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        if size != 4:
            return NOTHING
        half = int.from_bytes(value.to_bytes(4, "little"), "big")
        if offset == HIGH:
            self.address_high = half
        elif offset == LOW:
            gpa, self.address_high = self.address_high << 32 | half, 0
            self._carry_out(gpa)
        return NOTHING

    def _carry_out(self, gpa: int) -> None:
        if not self._memory.contains(gpa, REQUEST.size):
            return
        control, length, address = REQUEST.unpack(self._memory.read(gpa, REQUEST.size))
        if control & SELECT:
            self._fw_cfg.select(control >> KEY_SHIFT)
        done = self._transfer(control, length, address)
        self._memory.write(gpa, struct.pack(">I", 0 if done else ERROR))

    def _transfer(self, control: int, length: int, address: int) -> bool:
        """Move what is asked for; whether that was possible."""
        if control & READ:
            if length > LONGEST_BYTES or (length and not self._memory.contains(address, length)):
                return False
            if length:
                self._memory.write(address, self._fw_cfg.take(length).ljust(length, b"\0"))
            return True
        if control & WRITE:
            return False
        if control & SKIP:
            self._fw_cfg.take(length)
        return True
