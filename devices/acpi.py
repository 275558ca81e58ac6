"""ACPI's fixed power management events and timer (ACPI §4.8.3.1, §4.8.3.3): PM1a_EVT at 600h and PM_TMR at 608h.

Owns two status bits with their enables, the 24-bit counter of 3.579545 MHz, and the SCI ("isa9") that follows from
them.  Two more enables can be set though nothing ever sets their status: GBL_EN, since no firmware shares the global
lock, and RTC_EN, since the clock wakes nobody.  Operating systems take an enable that stays clear for broken hardware.

The counter is a function of guest time, so nothing happens between two changes of its highest bit.  PM1a_CNT between
the two is `power.Pm1aControl`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from devices.effects import NOTHING, Effects, Event, Line
from devices.registers import Register, RegisterMap
from devices.state import COUNTER, FLAG, Stateful, Table, uint

HZ = 3_579_545
COUNTER_BITS = 24
TIMER_STATUS, POWER_BUTTON_STATUS = 1 << 0, 1 << 8  # at the same places of PM1_STS and PM1_EN
GLOBAL_LOCK_ENABLE, CLOCK_ENABLE = 1 << 5, 1 << 10
ENABLES = TIMER_STATUS | GLOBAL_LOCK_ENABLE | POWER_BUTTON_STATUS | CLOCK_ENABLE

_NS_PER_S = 1_000_000_000
_HALF = COUNTER_BITS - 1  # the bit whose change is an event

EVENT_REGISTERS = RegisterMap("PM1a events", 4, [Register(0, 2, "status", "rw"), Register(2, 2, "enable", "rw")])
TIMER_REGISTERS = RegisterMap("PM timer", 4, [Register(0, 4, "counter", "ro")])


def ticks_at(now_ns: int) -> int:
    """How often the counter has counted by `now_ns`."""
    return now_ns * HZ // _NS_PER_S


@dataclass
class PmEvents(Stateful):
    """PM1_STS and PM1_EN, a bus handler for four ports; timed, resettable.  Status bits are cleared by writing ones.

    Accesses are cut at register borders as `RegisterMap` does it; a byte written to PM1_STS clears in that byte only.
    """

    line: str = "isa9"
    status: int = 0
    enable: int = 0
    level: bool = False
    seen_halves: int = 0

    STATE: ClassVar[Table] = {"status": uint(16), "enable": uint(16), "level": FLAG, "seen_halves": COUNTER}

    def reset(self) -> Effects:
        """Back to the state after power-on."""
        lines = (Line(self.line, False),) if self.level else ()
        vars(self).update(vars(PmEvents(self.line)))
        return Effects(lines=lines, deadline=True)

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        effects = self.advance(now_ns)
        value, more = EVENT_REGISTERS.read(self, offset, size, now_ns)
        return value, effects | more

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        effects = self.advance(now_ns)
        # A status register merges with zeros, not with what it holds: the bytes beside a write must not clear anything.
        data = (value & (1 << 8 * size) - 1) << 8 * offset
        covered = ((1 << 8 * size) - 1) << 8 * offset
        self.status &= ~(data & 0xFFFF)
        self.enable = self.enable & ~(covered >> 16) | data >> 16 & ENABLES
        return effects | self._update() | Effects(deadline=True)

    def press_power_button(self, now_ns: int) -> Effects:
        """The host's side: somebody presses the button.  An `Event` says so, and whether the guest will hear of it."""
        effects = self.advance(now_ns)
        self.status |= POWER_BUTTON_STATUS
        listens = self.enable & POWER_BUTTON_STATUS
        text = "it is pressed" if listens else "it is pressed; the guest has not enabled its interrupt"
        return effects | self._update() | Effects(events=(Event("power button", "power-button", text),))

    def _update(self) -> Effects:
        level = bool(self.status & self.enable)
        if level == self.level:
            return NOTHING
        self.level = level
        return Effects(lines=(Line(self.line, level),))

    def advance(self, now_ns: int) -> Effects:
        """Set TMR_STS if the counter's highest bit has changed by `now_ns`."""
        halves = ticks_at(now_ns) >> _HALF
        if halves == self.seen_halves:
            return NOTHING
        self.seen_halves = halves
        self.status |= TIMER_STATUS
        return self._update() | Effects(deadline=True)

    def next_deadline_ns(self) -> int | None:
        """When TMR_STS is set next; None unless that would interrupt."""
        if self.level or not self.enable & TIMER_STATUS:
            return None
        return -(-((self.seen_halves + 1) << _HALF) * _NS_PER_S // HZ)


@dataclass
class PmTimer:
    """PM_TMR, a bus handler for four read-only ports.  Resettable: it has no state but guest time."""

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return TIMER_REGISTERS.read(self, offset, size, now_ns)

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return NOTHING

    def read_counter(self, now_ns: int) -> int:
        return ticks_at(now_ns) & (1 << COUNTER_BITS) - 1

    def reset(self) -> Effects:
        return NOTHING
