"""The CMOS: clock, alarm and 114 bytes of battery-backed memory (Motorola MC146818 data sheet; ports 70h and 71h).

The clock's time is the start given at construction plus guest time plus what the guest has set it off by; the device
never asks a host for the time.  Its registers are made from that sum when they are read, so nothing happens between
two interrupts, and a clock that jumps costs the same whatever it jumps over.  While the guest holds the clock (SET in
register B, or a divider that does not run) the registers are plain bytes, and their values become the time when it
lets go.

The flags of register C are brought up to date at each look: periodic, alarm and update-ended are set if at least one
such event lay in between.  There are deadlines only for enabled interrupts, and none while the interrupt ("isa8") is
pending: reading register C allows the next, so a guest cannot ask for more than it serves.

Deviations: the day of the week follows from the date, a value written to it lasts only while the clock is held.  No
daylight saving, no square wave.  A reset is a new battery: the clock goes back to its start plus guest time.  Bit 7
of port 70h, the NMI mask, is remembered; the board has no NMI.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import ClassVar

from devices.effects import NOTHING, Effects, Line
from devices.state import FLAG, TIME_NS, Bytes, Int, Maybe, Stateful, Table, uint

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, REG_A, REG_B, REG_C, REG_D = range(6, 14)
CENTURY = 0x32
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY)

A_UPDATE_IN_PROGRESS, A_DIVIDER, A_DIVIDER_RUNS, A_RATE = 0x80, 0x70, 0x20, 0x0F
B_SET, B_24_HOURS, B_BINARY = 0x80, 0x02, 0x04
PERIODIC, ALARM, UPDATE = 0x40, 0x20, 0x10  # the flags of register C and, at the same places, their enables in B
C_IRQ = 0x80
D_VALID = 0x80
HOURS_PM = 0x80
ALARM_DONT_CARE = 0xC0

DIVIDER_HZ = 32_768
UPDATE_NS = 244_000 + 1_984_000  # the warning before an update of the registers, and the update itself
_NS_PER_S = 1_000_000_000
_EPOCH = date(1970, 1, 1).toordinal()
_LAST_DAY = date.max.toordinal()


def _memory_sizes(below_4g_bytes: int, above_4g_bytes: int) -> dict[int, int]:
    """Where PC firmware looks for the size of RAM, as QEMU and SeaBIOS have it: index to byte."""
    base_kib = min(below_4g_bytes >> 10, 640)
    extended_kib = min(max(below_4g_bytes - (1 << 20), 0) >> 10, 0xFFFF)
    above_16m = min(max(below_4g_bytes - (16 << 20), 0) >> 16, 0xFFFF)
    sizes = {}
    for index, value, count in (
        (0x15, base_kib, 2),
        (0x17, extended_kib, 2),
        (0x30, extended_kib, 2),
        (0x34, above_16m, 2),
        (0x5B, min(above_4g_bytes >> 16, 0xFF_FFFF), 3),
    ):
        sizes.update({index + i: value >> 8 * i & 0xFF for i in range(count)})
    return sizes


@dataclass
class Rtc(Stateful):
    """One clock.  A bus handler for the ports 70h (index) and 71h (data); timed; resettable.

    `start_s` is the Unix time at guest time 0, the two sizes are the RAM below and above 4 GiB, `line` is the board's
    name of the interrupt.  The ports are a byte wide: wider accesses are bytes in ascending order.  The index port,
    and bytes beyond the data port, read as FFh.  `stored` is what the 128 registers hold; those of the time count only
    while the clock is held.
    """

    start_s: int
    below_4g_bytes: int
    above_4g_bytes: int = 0
    line: str = "isa8"
    index: int = 0
    nmi_masked: bool = False
    offset_ns: int = 0
    flags: int = 0
    level: bool = False
    seen_ns: int | None = None  # up to when the flags are known; None after reset
    stored: bytearray = field(default_factory=lambda: bytearray(128))

    STATE: ClassVar[Table] = {
        "start_s": Int(0, 1 << 40),
        "index": uint(7),
        "nmi_masked": FLAG,
        "offset_ns": Int(-TIME_NS.high, TIME_NS.high),
        "flags": uint(8),
        "level": FLAG,
        "seen_ns": Maybe(TIME_NS),
        "stored": Bytes(),
    }

    def __post_init__(self) -> None:
        self.stored[REG_A] = A_DIVIDER_RUNS | 6
        self.stored[REG_B] = B_24_HOURS
        for index, value in _memory_sizes(self.below_4g_bytes, self.above_4g_bytes).items():
            self.stored[index] = value

    def reset(self) -> Effects:
        """Back to the state after construction."""
        lines = (Line(self.line, False),) if self.level else ()
        vars(self).update(vars(Rtc(self.start_s, self.below_4g_bytes, self.above_4g_bytes, self.line)))
        return Effects(lines=lines, deadline=True)

    # -- ports ---------------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        effects = self.advance(now_ns)
        value = 0
        for i in range(size):
            byte = 0xFF
            if offset + i == 1:
                byte, more = self._read_register(self.index, now_ns)
                effects |= more
            value |= byte << 8 * i
        return value, effects

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        effects = self.advance(now_ns)
        for i in range(size):
            byte = value >> 8 * i & 0xFF
            if offset + i == 0:
                self.index, self.nmi_masked = byte & 0x7F, bool(byte & 0x80)
            elif offset + i == 1:
                effects |= self._write_register(self.index, byte, now_ns)
        return effects

    def _read_register(self, index: int, now_ns: int) -> tuple[int, Effects]:
        if index in TIME_REGISTERS and not self.held:
            return self._time_registers(self._clock_ns(now_ns) // _NS_PER_S)[index], NOTHING
        if index == REG_A:
            return self.stored[REG_A] | (A_UPDATE_IN_PROGRESS if self._is_updating(now_ns) else 0), NOTHING
        if index == REG_C:
            value = self.flags | (C_IRQ if self._interrupts else 0)
            self.flags = 0
            return value, self._update_line() | Effects(deadline=True)
        return (D_VALID if index == REG_D else self.stored[index]), NOTHING

    def _write_register(self, index: int, value: int, now_ns: int) -> Effects:
        if index in (REG_C, REG_D):
            return NOTHING
        was_held = self.held
        if not was_held:
            self._hold(now_ns)
        if index == REG_A:
            self._write_divider(value & 0x7F, now_ns)
        elif index == REG_B:
            self.stored[REG_B] = value & ~UPDATE if value & B_SET else value
        else:
            self.stored[index] = value
        # Only what touches the time may change it: nothing is lost by rounding, whatever the format of register B.
        if not self.held and (was_held or index in TIME_REGISTERS):
            self._let_go(now_ns)
        return self._update_line() | Effects(deadline=True)

    def _write_divider(self, value: int, now_ns: int) -> None:
        starts = self._divider_runs
        self.stored[REG_A] = value
        if self._divider_runs and not starts:
            # The first update comes half a second after the divider starts.
            self.offset_ns += _NS_PER_S // 2 - self._clock_ns(now_ns) % _NS_PER_S

    # -- the time ------------------------------------------------------------------------------------------------------

    @property
    def _divider_runs(self) -> bool:
        return self.stored[REG_A] & A_DIVIDER == A_DIVIDER_RUNS

    @property
    def held(self) -> bool:
        """Whether the time stands still, for the guest to set it."""
        return bool(self.stored[REG_B] & B_SET) or not self._divider_runs

    def _clock_ns(self, now_ns: int) -> int:
        return self.start_s * _NS_PER_S + self.offset_ns + now_ns

    def _is_updating(self, now_ns: int) -> bool:
        return not self.held and self._clock_ns(now_ns) % _NS_PER_S >= _NS_PER_S - UPDATE_NS

    def _hold(self, now_ns: int) -> None:
        """Turn the time into bytes."""
        for index, value in self._time_registers(self._clock_ns(now_ns) // _NS_PER_S).items():
            self.stored[index] = value

    def _let_go(self, now_ns: int) -> None:
        """Turn the bytes into the time; fractions of a second go on as the divider has them."""
        self.offset_ns += (self._seconds_from_registers() - self._clock_ns(now_ns) // _NS_PER_S) * _NS_PER_S

    def _time_registers(self, clock_s: int) -> dict[int, int]:
        """The clock's registers at a Unix time, in the format that register B selects."""
        days, second = divmod(clock_s, 86_400)
        day = date.fromordinal((days + _EPOCH - 1) % _LAST_DAY + 1)  # the year after 9999 is the year 1
        return {
            SECONDS: self._encode(second % 60),
            MINUTES: self._encode(second // 60 % 60),
            HOURS: self._encode_hours(second // 3600),
            DAY_OF_WEEK: self._encode(day.isoweekday() % 7 + 1),
            DAY_OF_MONTH: self._encode(day.day),
            MONTH: self._encode(day.month),
            YEAR: self._encode(day.year % 100),
            CENTURY: self._encode(day.year // 100),
        }

    def _seconds_from_registers(self) -> int:
        """The Unix time in the registers.  The guest may have written anything: a month or year that does not exist
        becomes the nearest that does, days, hours, minutes and seconds that are too large carry over."""
        raw = self.stored
        year = self._decode(raw[CENTURY]) * 100 + self._decode(raw[YEAR])
        month = min(max(self._decode(raw[MONTH]), 1), 12)
        first = date(min(max(year, 1), 9999), month, 1).toordinal()
        days = first + self._decode(raw[DAY_OF_MONTH]) - 1 - _EPOCH
        hours = days * 24 + self._decode_hours(raw[HOURS])
        return (hours * 60 + self._decode(raw[MINUTES])) * 60 + self._decode(raw[SECONDS])

    def _encode(self, value: int) -> int:
        return value if self.stored[REG_B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, raw: int) -> int:
        return raw if self.stored[REG_B] & B_BINARY else (raw >> 4) * 10 + (raw & 0xF)

    def _encode_hours(self, hours: int) -> int:
        if self.stored[REG_B] & B_24_HOURS:
            return self._encode(hours)
        return self._encode(hours % 12 or 12) | (HOURS_PM if hours >= 12 else 0)

    def _decode_hours(self, raw: int) -> int:
        if self.stored[REG_B] & B_24_HOURS:
            return self._decode(raw)
        return self._decode(raw & ~HOURS_PM) % 12 + (12 if raw & HOURS_PM else 0)

    # -- flags and the interrupt ---------------------------------------------------------------------------------------

    @property
    def _interrupts(self) -> bool:
        return bool(self.flags & self.stored[REG_B] & (PERIODIC | ALARM | UPDATE))

    def _update_line(self) -> Effects:
        if self._interrupts == self.level:
            return NOTHING
        self.level = self._interrupts
        return Effects(lines=(Line(self.line, self.level),))

    def advance(self, now_ns: int) -> Effects:
        """Set the flags of everything that has happened by `now_ns`."""
        if self.seen_ns is not None:
            for flag in (PERIODIC, ALARM, UPDATE):
                event_ns = self._next_event_ns(flag, self.seen_ns)
                if event_ns is not None and event_ns <= now_ns:
                    self.flags |= flag
        self.seen_ns = now_ns
        effects = self._update_line()
        return effects | Effects(deadline=True) if effects else NOTHING

    def next_deadline_ns(self) -> int | None:
        """When the next enabled interrupt is due; None while one is pending."""
        if self._interrupts or self.seen_ns is None:
            return None
        enabled = (flag for flag in (PERIODIC, ALARM, UPDATE) if self.stored[REG_B] & flag)
        events = (self._next_event_ns(flag, self.seen_ns) for flag in enabled)
        return min((event_ns for event_ns in events if event_ns is not None), default=None)

    def _next_event_ns(self, flag: int, after_ns: int) -> int | None:
        """The guest time of the first event of a kind after `after_ns`, None if none will come."""
        if flag == PERIODIC:
            return self._next_period_ns(after_ns)
        if self.held:
            return None
        after_s = self._clock_ns(after_ns) // _NS_PER_S
        event_s = self._next_alarm_s(after_s) if flag == ALARM else after_s + 1
        return None if event_s is None else event_s * _NS_PER_S - self._clock_ns(0)

    def _next_period_ns(self, after_ns: int) -> int | None:
        rate = self.stored[REG_A] & A_RATE
        if not rate or not self._divider_runs:
            return None
        shift = rate - 1 if rate > 2 else rate + 6  # rates 1 and 2 are those of 8 and 9
        period = (after_ns * DIVIDER_HZ // _NS_PER_S >> shift) + 1
        return -(-(period << shift) * _NS_PER_S // DIVIDER_HZ)

    def _next_alarm_s(self, after_s: int) -> int | None:
        """The first Unix time after `after_s` that matches the alarm; a value out of range never does."""
        raw_hours = self.stored[HOURS_ALARM]
        hours = None if raw_hours >= ALARM_DONT_CARE else self._decode_hours(raw_hours)
        minutes, seconds = (
            None if raw >= ALARM_DONT_CARE else self._decode(raw)
            for raw in (self.stored[MINUTES_ALARM], self.stored[SECONDS_ALARM])
        )
        clock_s = after_s + 1
        # Each step goes to the start of the next matching hour, minute or second and may carry into what matched
        # before.  A second carries only in the first round, a minute in the first two; the third always fits.
        for unit_s, limit, wanted in 3 * ((3600, 24, hours), (60, 60, minutes), (1, 60, seconds)):
            if wanted is None:
                continue
            if wanted >= limit:
                return None
            units = clock_s // unit_s
            if units % limit != wanted:
                clock_s = (units + (wanted - units) % limit) * unit_s
        return clock_s
