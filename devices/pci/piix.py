"""The south bridge: the PIIX3's ISA bridge and the PIIX4's power management as PCI functions (Intel 82371SB, 82371AB).

Owns where PIRQA to PIRQD are routed and where the power management ports lie.  Refuses to know who drives a PIRQ and
what the ports do.
"""

from __future__ import annotations

from devices.bus import Handler
from devices.effects import NOTHING, Effects
from devices.pci.config import Field, Identity
from devices.pci.function import BarRegion, PciFunction

SLOT = 1
ISA_FUNCTION, PM_FUNCTION = 0, 3

_SUBSYSTEM_VENDOR, _SUBSYSTEM = 0x1AF4, 0x1100
ISA_IDENTITY = Identity(0x8086, 0x7000, 0, 0x060100, _SUBSYSTEM_VENDOR, _SUBSYSTEM)
PM_IDENTITY = Identity(0x8086, 0x7113, 3, 0x068000, _SUBSYSTEM_VENDOR, _SUBSYSTEM)

PIRQRC = 0x60  # four registers, one for each PIRQ (82371SB §2.3.9)
PIRQRC_OFF = 0x80
PIRQRC_WRITABLE = 0x8F
ROUTABLE = frozenset({3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15})

PMBASE, PM_BYTES = 0x40, 0x40  # 82371AB §7.1.16
IO_SPACE = 1 << 0
DEVACTB_APMC_ENABLED = 1 << 1


class IsaBridge(PciFunction):
    """Function 00:01.0.  After reset no PIRQ is routed to the 8259 pair."""

    def __init__(self) -> None:
        fields = [
            Field(0x4C, 1, "io_recovery", 0x4D, 0x7F),
            Field(0x4E, 2, "x_bus_chip_select", 0x0003, 0x07FF),
            *(Field(PIRQRC + n, 1, f"pirqrc_{n}", PIRQRC_OFF, PIRQRC_WRITABLE) for n in range(4)),
            Field(0x69, 1, "top_of_memory", 0x02, 0xFE),
        ]
        super().__init__(SLOT, "isa-bridge", ISA_IDENTITY, function=ISA_FUNCTION, multifunction=True, fields=fields)

    @property
    def pirq_routes(self) -> tuple[int | None, ...]:
        """The input of the 8259 pair for each PIRQ, None where it is off or routed to an input it may not have."""
        values = self.config.read(PIRQRC, 4).to_bytes(4, "little")
        return tuple(value if value in ROUTABLE else None for value in values)

    def write_config(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        before = self.pirq_routes
        effects = super().write_config(offset, size, value, now_ns)
        return effects | self._changes(before)

    def reset(self) -> Effects:
        before = self.pirq_routes
        return super().reset() | self._changes(before)

    def _changes(self, before: tuple[int | None, ...]) -> Effects:
        return NOTHING if self.pirq_routes == before else Effects(rewired=True)


class PowerManagement(PciFunction):
    """Function 00:01.3.  `ports` answers for the 64 power management ports, which lie where PMBASE says.

    After reset they are at `base` already, so that software which knows no PIIX4 finds them.  DEVACTB says that the SMI
    command port is set up, so that firmware does not look for a system management mode, which this processor lacks.
    """

    def __init__(self, base: int, ports: Handler) -> None:
        fields = [
            Field(PMBASE, 4, "pmbase", base | IO_SPACE, 0xFFC0),
            Field(0x58, 4, "devactb", DEVACTB_APMC_ENABLED << 24),
            Field(0x80, 1, "pmregmisc", IO_SPACE, IO_SPACE),
        ]
        super().__init__(SLOT, "power-management", PM_IDENTITY, function=PM_FUNCTION, fields=fields)
        self._ports = ports

    def bar_regions(self) -> tuple[BarRegion, ...]:
        """The ports, a range like that of a base address register but with an enable bit of its own."""
        if not self.config["pmregmisc"] & IO_SPACE:
            return ()
        base = self.config["pmbase"] & ~(PM_BYTES - 1)
        return (BarRegion("port", base, PM_BYTES, PMBASE, "power management ports", self._ports),)
