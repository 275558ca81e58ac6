"""The I/O APIC: 24 interrupt inputs, each with a table entry that says what message it becomes (Intel 82093AA).

Owns the redirection table and who is waiting for an end of interrupt.  Refuses to know what is wired to a pin, and who
takes the message: it is a write to FEExxxxxh like any device's.

- An edge is one message, or nothing while the entry is masked: it is not remembered.
- A level is one message; the entry's remote IRR then holds back the next until the local APIC has told the vector's end
  (`end_of_interrupt`).  If the pin is still asserted by then, the message is sent again.
- Making an entry edge-triggered clears its remote IRR.

Pins are asserted or not, whatever voltage that is on a board: the polarity bit is remembered and means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from devices.effects import NOTHING, Effects, Message
from devices.registers import Register, RegisterMap
from devices.state import Many, Stateful, Table, uint

PINS = 24
VERSION = 0x11 | PINS - 1 << 16
MESSAGE_BASE = 0xFEE0_0000

INDEX_ID, INDEX_VERSION, INDEX_ARBITRATION, INDEX_TABLE = 0x00, 0x01, 0x02, 0x10

VECTOR, DELIVERY_MODE = 0xFF, 0x700
DESTINATION_LOGICAL = 1 << 11
REMOTE_IRR = 1 << 14
LEVEL_TRIGGERED = 1 << 15
MASKED = 1 << 16
DESTINATION_SHIFT = 56
WRITABLE = VECTOR | DELIVERY_MODE | DESTINATION_LOGICAL | 1 << 13 | LEVEL_TRIGGERED | MASKED | 0xFF << DESTINATION_SHIFT

_MESSAGE_LEVEL = 1 << 15 | 1 << 14  # level-triggered, asserted

REGISTERS = RegisterMap("I/O APIC", 0x20, [Register(0x00, 4, "index", "rw"), Register(0x10, 4, "window", "rw")])


@dataclass
class IoApic(Stateful):
    """One I/O APIC.  A bus handler for its registers at FEC00000h: IOREGSEL at 0, IOWIN at 10h; resettable.

    Accesses are cut at register borders as `RegisterMap` does it.  `levels` has a bit for each asserted pin.
    """

    index: int = 0
    apic_id: int = 0
    levels: int = 0
    table: list[int] = field(default_factory=lambda: [MASKED] * PINS)

    STATE: ClassVar[Table] = {
        "index": uint(8),
        "apic_id": uint(4),
        "levels": uint(PINS),
        "table": Many(uint(64)),
    }

    def reset(self) -> Effects:
        """Every entry masked; the pins stay as they are wired."""
        vars(self).update(vars(IoApic(levels=self.levels)))
        return NOTHING

    # -- registers -----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return REGISTERS.read(self, offset, size, now_ns)

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return REGISTERS.write(self, offset, size, value, now_ns)

    def write_index(self, value: int, now_ns: int) -> Effects:
        self.index = value & 0xFF
        return NOTHING

    @property
    def window(self) -> int:
        """The register that IOREGSEL selects; 0 where there is none."""
        if self.index == INDEX_VERSION:
            return VERSION
        if self.index in (INDEX_ID, INDEX_ARBITRATION):
            return self.apic_id << 24
        pin, high = divmod(self.index - INDEX_TABLE, 2)
        return self.table[pin] >> 32 * high & 0xFFFF_FFFF if 0 <= pin < PINS else 0

    def write_window(self, value: int, now_ns: int) -> Effects:
        if self.index == INDEX_ID:
            self.apic_id = value >> 24 & 0xF
            return NOTHING
        pin, high = divmod(self.index - INDEX_TABLE, 2)
        if not 0 <= pin < PINS:
            return NOTHING
        mask = (0xFFFF_FFFF << 32 * high) & WRITABLE
        entry = self.table[pin] & ~mask | value << 32 * high & mask
        self.table[pin] = entry if entry & LEVEL_TRIGGERED else entry & ~REMOTE_IRR
        return self._deliver_level(pin)

    # -- pins ----------------------------------------------------------------------------------------------------------

    def set_pin(self, pin: int, level: bool) -> Effects:
        """Assert pin `pin` (0 to 23) or let it go."""
        rises = level and not self.levels >> pin & 1
        self.levels = self.levels & ~(1 << pin) | level << pin
        if self.table[pin] & LEVEL_TRIGGERED:
            return self._deliver_level(pin)
        return self._send(pin) if rises and not self.table[pin] & MASKED else NOTHING

    def end_of_interrupt(self, vector: int) -> Effects:
        """The local APIC has ended the service of a level-triggered `vector`: its pins may ask again."""
        effects = NOTHING
        for pin, entry in enumerate(self.table):
            if entry & REMOTE_IRR and entry & VECTOR == vector:
                self.table[pin] = entry & ~REMOTE_IRR
                effects |= self._deliver_level(pin)
        return effects

    def _deliver_level(self, pin: int) -> Effects:
        entry = self.table[pin]
        waits = entry & (MASKED | REMOTE_IRR) or not entry & LEVEL_TRIGGERED
        if waits or not self.levels >> pin & 1:
            return NOTHING
        self.table[pin] |= REMOTE_IRR
        return self._send(pin)

    def _send(self, pin: int) -> Effects:
        entry = self.table[pin]
        address = MESSAGE_BASE | entry >> DESTINATION_SHIFT << 12 | bool(entry & DESTINATION_LOGICAL) << 2
        data = entry & (VECTOR | DELIVERY_MODE) | (_MESSAGE_LEVEL if entry & LEVEL_TRIGGERED else 0)
        return Effects(messages=(Message(address, data),))
