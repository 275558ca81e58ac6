"""A timer for boards without a PC's: the time since power-on, and a line that rises at the end of each interval.

Registers of 32 bits, little-endian: NowLow at 0 and NowHigh at 4, the time in nanoseconds (reading the low half keeps
the high one until it is read); Interval at 8, in microseconds, 0 for none, which begins when it is written; Expired at
Ch, 1 when an interval has ended, and writing 1 there takes it back.  The line is high while it reads 1: an interval
that ends meanwhile leaves no trace, and the next one ends when it would have.

It knows the time only as what it is told.  Resettable and timed.
"""

from __future__ import annotations

from typing import ClassVar

from devices.effects import NOTHING, Effects, Line
from devices.registers import Register, RegisterMap
from devices.state import FLAG, TIME_NS, Maybe, Stateful, Table, uint

BLOCK_BYTES = 16
_MICROSECOND_NS = 1000


class IntervalTimer(Stateful):
    """`line` is the board's name of its interrupt."""

    REGISTERS: ClassVar[RegisterMap] = RegisterMap(
        "interval timer",
        BLOCK_BYTES,
        (
            Register(0, 4, "now_low", "ro"),
            Register(4, 4, "now_high", "ro"),
            Register(8, 4, "interval_us", "rw", whole=True),
            Register(12, 4, "expired", "rw", whole=True),
        ),
    )
    STATE: ClassVar[Table] = {
        **dict.fromkeys(("now_high", "interval_us"), uint(32)),
        "expired": FLAG,
        "end_ns": Maybe(TIME_NS),
    }

    def __init__(self, line: str) -> None:
        self.line = line
        self._clear()

    def _clear(self) -> None:
        self.now_high = self.interval_us = 0
        self.expired = False
        self.end_ns: int | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IntervalTimer) and vars(self) == vars(other)

    # -- the bus -------------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return self.REGISTERS.read(self, offset, size, now_ns)

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return self.REGISTERS.write(self, offset, size, value, now_ns)

    def read_now_low(self, now_ns: int) -> int:
        self.now_high = now_ns >> 32 & 0xFFFFFFFF
        return now_ns & 0xFFFFFFFF

    def write_interval_us(self, value: int, now_ns: int) -> Effects:
        self.interval_us = value
        self.end_ns = now_ns + value * _MICROSECOND_NS if value else None
        return Effects(deadline=True)

    def write_expired(self, value: int, now_ns: int) -> Effects:
        return self._set_expired(False) if value & 1 else NOTHING

    def _set_expired(self, expired: bool) -> Effects:
        before, self.expired = self.expired, expired
        return Effects(lines=(Line(self.line, expired),)) if before != expired else NOTHING

    # -- time ----------------------------------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """The end of the present interval, in absolute guest time."""
        return self.end_ns

    def advance(self, now_ns: int) -> Effects:
        """Let intervals end that were due by now; where several were, they count as one."""
        if self.end_ns is None or now_ns < self.end_ns:
            return NOTHING
        interval_ns = self.interval_us * _MICROSECOND_NS
        self.end_ns += (now_ns - self.end_ns) // interval_ns * interval_ns + interval_ns
        return self._set_expired(True) | Effects(deadline=True)

    def reset(self) -> Effects:
        effects = self._set_expired(False)
        self._clear()
        return effects | Effects(deadline=True)
