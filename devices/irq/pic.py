"""The pair of 8259A interrupt controllers (Intel 8259A data sheet; ELCR of the PIIX, Intel 82371SB data sheet §2.5.3).

Owns sixteen request inputs, their masks, priorities and modes, and the one output INTR.  Refuses to know what is wired
to the inputs and how INTR reaches the processor; `wiring.py` does.

A request lasts as long as its input is high: an edge that is taken back before the acknowledge is forgotten, and an
acknowledge that finds nothing answers with input 7 and puts nothing into service (a spurious interrupt).  The slave's
output is the master's input 2; it goes low during each acknowledge, as on the chip: the next request is an edge again.

Deviations: there is no MCS-80 mode, no buffered mode, and the trigger mode comes from the ELCR and not from ICW1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from devices.effects import NOTHING, Effects
from devices.state import FLAG, PART, Int, Stateful, Table, uint

CASCADE = 2  # the master's input that is the slave's output
SPURIOUS = 7
ELCR_WRITABLE = (0xF8, 0xDE)  # the timer, the keyboard, the cascade, the clock and the coprocessor are always edges

ICW1, ICW1_NEEDS_ICW4, ICW1_SINGLE = 0x10, 0x01, 0x02
ICW4_AUTO_EOI, ICW4_SPECIAL_FULLY_NESTED = 0x02, 0x10
OCW3 = 0x08
OCW3_POLL, OCW3_READ, OCW3_READ_ISR, OCW3_SET_MASK_MODE, OCW3_MASK_MODE = 0x04, 0x02, 0x01, 0x40, 0x20
OCW2_EOI, OCW2_SPECIFIC, OCW2_ROTATE = 0x20, 0x40, 0x80
POLL_REQUESTED = 0x80


@dataclass
class Pic(Stateful):
    """One 8259A.  Its two ports are bytes: command (0) and data (1).

    `lines` are the inputs, `edges` the rising edges not yet acknowledged, `lowest` the input of lowest priority.
    `expected` counts through the initialisation words: 2, 3 or 4 is the word that the data port takes next, 0 none.
    """

    is_master: bool = False
    lines: int = 0
    edges: int = 0
    imr: int = 0
    isr: int = 0
    elcr: int = 0
    base: int = 0
    lowest: int = 7
    expected: int = 0
    icw1: int = 0
    icw3: int = 0
    read_isr: bool = False
    poll: bool = False
    special_mask: bool = False
    auto_eoi: bool = False
    rotate_on_auto_eoi: bool = False
    special_fully_nested: bool = False

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("lines", "edges", "imr", "isr", "elcr", "base", "icw1", "icw3"), uint(8)),
        "lowest": uint(3),
        "expected": Int(0, 4),
        **dict.fromkeys(("read_isr", "poll", "special_mask", "auto_eoi"), FLAG),
        **dict.fromkeys(("rotate_on_auto_eoi", "special_fully_nested"), FLAG),
    }

    def reset(self) -> None:
        """Back to the state after power-on; the inputs stay as they are wired."""
        vars(self).update(vars(Pic(self.is_master, lines=self.lines)))

    # -- inputs and output ---------------------------------------------------------------------------------------------

    def set_line(self, number: int, level: bool) -> None:
        """Move input `number` (0 to 7)."""
        bit = 1 << number
        if level:
            self.edges |= bit & ~self.lines
            self.lines |= bit
        else:
            self.edges &= ~bit
            self.lines &= ~bit

    @property
    def irr(self) -> int:
        """The inputs that request."""
        return self.edges & ~self.elcr | self.lines & self.elcr

    @property
    def intr(self) -> bool:
        """The output: whether a request beats everything in service."""
        return self._pending() is not None

    def _pending(self) -> int | None:
        requested = self._highest(self.irr & ~self.imr)
        if requested is None:
            return None
        in_service = self.isr
        if self.special_mask:
            in_service &= ~self.imr
        if self.special_fully_nested and self.is_master and requested == CASCADE:
            in_service &= ~(1 << CASCADE)  # the slave has looked at the priorities among its own
        blocking = self._highest(in_service)
        return requested if blocking is None or self._rank(requested) < self._rank(blocking) else None

    def _rank(self, number: int) -> int:
        """0 for the highest priority, 7 for the lowest."""
        return number - self.lowest - 1 & 7

    def _highest(self, inputs: int) -> int | None:
        if not inputs:  # the usual answer, which is wanted after every access of the guest to a device
            return None
        return min((n for n in range(8) if inputs >> n & 1), key=self._rank)

    def acknowledge(self) -> int:
        """The input that is taken into service; 7, and no change, when none requests any more."""
        number = self._pending()
        if number is None:
            return SPURIOUS
        self.edges &= ~(1 << number)
        if not self.auto_eoi:
            self.isr |= 1 << number
        elif self.rotate_on_auto_eoi:
            self.lowest = number
        return number

    # -- ports ---------------------------------------------------------------------------------------------------------

    def read_port(self, port: int) -> int:
        if self.poll:
            self.poll = False
            requested = self.intr
            return self.acknowledge() | POLL_REQUESTED if requested else 0
        if port:
            return self.imr
        return self.isr if self.read_isr else self.irr

    def write_port(self, port: int, value: int) -> None:
        if port:
            self._write_data(value)
        elif value & ICW1:
            self._initialise(value)
        elif value & OCW3:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value)

    def _initialise(self, value: int) -> None:
        """ICW1: forget the edges, the masks, what is in service and all modes; ICW2 comes next."""
        kept = Pic(self.is_master, lines=self.lines, elcr=self.elcr, base=self.base, icw1=value, expected=2)
        vars(self).update(vars(kept))

    def _write_data(self, value: int) -> None:
        if self.expected == 0:
            self.imr = value
        elif self.expected == 2:
            self.base = value & 0xF8
            self._expect(4 if self.icw1 & ICW1_SINGLE else 3)
        elif self.expected == 3:
            self.icw3 = value
            self._expect(4)
        else:
            self.auto_eoi = bool(value & ICW4_AUTO_EOI)
            self.special_fully_nested = bool(value & ICW4_SPECIAL_FULLY_NESTED)
            self.expected = 0

    def _expect(self, word: int) -> None:
        self.expected = 0 if word == 4 and not self.icw1 & ICW1_NEEDS_ICW4 else word

    def _write_ocw2(self, value: int) -> None:
        """End of interrupt and rotation, the eight commands of bits 7 to 5."""
        level = value & 7
        if value & OCW2_EOI:
            number = (
                level if value & OCW2_SPECIFIC else self._highest(self.isr & ~(self.imr if self.special_mask else 0))
            )
            if number is None:
                return
            self.isr &= ~(1 << number)
            if value & OCW2_ROTATE:
                self.lowest = number
        elif value & OCW2_SPECIFIC:
            if value & OCW2_ROTATE:
                self.lowest = level
        else:
            self.rotate_on_auto_eoi = bool(value & OCW2_ROTATE)

    def _write_ocw3(self, value: int) -> None:
        if value & OCW3_SET_MASK_MODE:
            self.special_mask = bool(value & OCW3_MASK_MODE)
        if value & OCW3_READ:
            self.read_isr = bool(value & OCW3_READ_ISR)
        self.poll = bool(value & OCW3_POLL)


@dataclass
class PicPair(Stateful):
    """Master and slave as a PC wires them: inputs 0 to 7 and 8 to 15.  Resettable.

    `handler(n)` is the bus handler of chip n's two ports (20h, A0h), `elcr` the one of 4D0h and 4D1h.  All ports are a
    byte wide: wider accesses are bytes in ascending order, bytes beyond the two ports read as FFh and ignore writes.
    """

    master: Pic = field(default_factory=lambda: Pic(is_master=True))
    slave: Pic = field(default_factory=Pic)

    STATE: ClassVar[Table] = {"master": PART, "slave": PART}

    def reset(self) -> Effects:
        self.master.reset()
        self.slave.reset()
        self._cascade()
        return NOTHING

    def set_line(self, number: int, level: bool) -> None:
        """Move input `number`, 0 to 15 without 2."""
        (self.slave if number & 8 else self.master).set_line(number & 7, level)
        self._cascade()

    @property
    def intr(self) -> bool:
        """The level of the output to the processor."""
        return self.master.intr

    def acknowledge(self) -> int:
        """The vector of the request that goes into service, or a spurious one."""
        number = self.master.acknowledge()
        if number != CASCADE:
            return self.master.base | number
        vector = self.slave.base | self.slave.acknowledge()
        self.master.set_line(CASCADE, False)
        self._cascade()
        return vector

    def _cascade(self) -> None:
        self.master.set_line(CASCADE, self.slave.intr)

    def handler(self, chip: int) -> PicPorts:
        """The bus handler of the master's (0) or the slave's (1) ports."""
        return PicPorts(self, chip)

    @property
    def elcr(self) -> ElcrPorts:
        """The bus handler of the edge/level control registers."""
        return ElcrPorts(self)

    def read_port(self, chip: int, port: int) -> int:
        target = self.slave if chip else self.master
        value = target.read_port(port)  # a poll acknowledges
        self._cascade()
        return value

    def write_port(self, chip: int, port: int, value: int) -> None:
        (self.slave if chip else self.master).write_port(port, value)
        self._cascade()

    def write_elcr(self, chip: int, value: int) -> None:
        (self.slave if chip else self.master).elcr = value & ELCR_WRITABLE[chip]
        self._cascade()


@dataclass(frozen=True, slots=True)
class PicPorts:
    """The command and data port of one chip of a `PicPair`."""

    pair: PicPair
    chip: int

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        ports = range(offset, offset + size)
        data = bytes(self.pair.read_port(self.chip, port) if port < 2 else 0xFF for port in ports)
        return int.from_bytes(data, "little"), NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        for port in range(offset, min(offset + size, 2)):
            self.pair.write_port(self.chip, port, value >> 8 * (port - offset) & 0xFF)
        return NOTHING


@dataclass(frozen=True, slots=True)
class ElcrPorts:
    """Ports 4D0h and 4D1h: which inputs of a `PicPair` are levels."""

    pair: PicPair

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        chips = (self.pair.master.elcr, self.pair.slave.elcr)
        data = bytes(chips[port] if port < 2 else 0xFF for port in range(offset, offset + size))
        return int.from_bytes(data, "little"), NOTHING

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        for port in range(offset, min(offset + size, 2)):
            self.pair.write_elcr(port, value >> 8 * (port - offset) & 0xFF)
        return NOTHING
