"""The enhanced configuration access mechanism: configuration space as memory (PCI Express 3.0 §7.2.2).

Bits 27 to 20 of the offset are the bus, 19 to 15 the device, 14 to 12 the function, 11 to 0 the register: 4 KiB for
each function.  The functions here have 256 bytes; the extended rest reads as zero and ignores writes.  Where there is
no function, reads give ones.

It owns no state: the host bridge answers, so that both mechanisms see and do the same.  Accesses of every width and
alignment are cut at the border between two functions, and else reach exactly the bytes they cover.
"""

from __future__ import annotations

from dataclasses import dataclass

from devices.effects import NOTHING, Effects
from devices.pci.host_bridge import HostBridge

BUS_BYTES = 1 << 20
FUNCTION_BYTES = 1 << 12
WINDOW_BYTES = 256 * BUS_BYTES


@dataclass(frozen=True, slots=True)
class Ecam:
    """The bus handler of the window of 256 MiB before `bridge`."""

    bridge: HostBridge

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        number, register = divmod(offset, FUNCTION_BYTES)
        inside = min(size, FUNCTION_BYTES - register)
        value, effects = self.bridge.read_function(number, register, inside, now_ns)
        if inside < size:
            rest, more = self.read(offset + inside, size - inside, now_ns)
            value, effects = value | rest << 8 * inside, effects | more
        return value, effects

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        number, register = divmod(offset, FUNCTION_BYTES)
        inside = min(size, FUNCTION_BYTES - register)
        effects = self.bridge.write_function(number, register, inside, value & (1 << 8 * inside) - 1, now_ns)
        if inside < size:
            effects |= self.write(offset + inside, size - inside, value >> 8 * inside, now_ns)
        return effects if effects else NOTHING
