"""The i440FX host bridge as a PCI function: its identity and its PAM registers (Intel 82441FX data sheet §3.2.18).

Owns what lies behind C0000h to FFFFFh: seven registers say for each of thirteen ranges whether reads and writes go to
RAM.  Refuses to know who carries that out: every change comes back as a `Shadow`.

The subsystem is the one by which firmware written for virtual machines recognises its board.
"""

from __future__ import annotations

from typing import NamedTuple

from devices.effects import Effects, Shadow
from devices.pci.config import Field, Identity
from devices.pci.function import PciFunction

IDENTITY = Identity(
    vendor_id=0x8086,
    device_id=0x1237,
    revision=2,
    class_code=0x060000,
    subsystem_vendor_id=0x1AF4,
    subsystem_id=0x1100,
)

PAM_BASE = 0x59
PAM_COUNT = 7
READ_ENABLE, WRITE_ENABLE = 1, 2
SMRAM, SMRAM_NO_SMM = 0x72, 0x02  # there is no system management mode, so the register says that its RAM is closed


class PamRange(NamedTuple):
    """Two bits of a PAM register and the addresses that they rule."""

    register: int
    shift: int
    gpa: int
    length: int


PAM_RANGES = (
    *(PamRange(PAM_BASE + 1 + n // 2, 4 * (n % 2), 0xC0000 + 0x4000 * n, 0x4000) for n in range(12)),
    PamRange(PAM_BASE, 4, 0xF0000, 0x10000),
)


class I440fx(PciFunction):
    """Function 00:00.0.  After reset the processor finds the ROM everywhere."""

    def __init__(self) -> None:
        fields = [Field(PAM_BASE, 1, "pam0", 0, 0x30)]
        fields += [Field(PAM_BASE + n, 1, f"pam{n}", 0, 0x33) for n in range(1, PAM_COUNT)]
        fields.append(Field(SMRAM, 1, "smram", SMRAM_NO_SMM))
        super().__init__(0, "host-bridge", IDENTITY, fields=fields)

    def shadows(self) -> tuple[Shadow, ...]:
        """What every range is now, in ascending order."""
        return tuple(self._shadow(place) for place in PAM_RANGES)

    def _shadow(self, place: PamRange) -> Shadow:
        bits = self.config.read(place.register, 1) >> place.shift
        return Shadow(place.gpa, place.length, bool(bits & READ_ENABLE), bool(bits & WRITE_ENABLE))

    def write_config(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        before = self.shadows()
        effects = super().write_config(offset, size, value, now_ns)
        return effects | self._changes(before)

    def reset(self) -> Effects:
        before = self.shadows()
        return super().reset() | self._changes(before)

    def _changes(self, before: tuple[Shadow, ...]) -> Effects:
        return Effects(shadows=tuple(now for old, now in zip(before, self.shadows(), strict=True) if now != old))
