"""The 8254 interval timer and port B of the PC (Intel 8254 data sheet; ports 40h-43h and 61h).

Guest time is counted in ticks of 1193182 Hz with exact integers: tick t begins at the first nanosecond at which
`now_ns * 1193182 // 10**9` is t, so nothing drifts however long the machine runs.

A counter stores when it was loaded, never how far it has come: its output and its count are functions of the tick.  So
nothing happens between two edges, and a clock that jumps costs the same whatever it jumps over.

Only counter 0's output interrupts ("isa0").  Every rising edge since the last look is reported as one, and the level
reported last is always the present one.  Two edges that are less than `MIN_TICKS` apart have no deadline of their own:
the short low pulse of modes 2 and 4 is reported together with its end, and reload values below `MIN_TICKS` interrupt
once in that time instead of on every reload.  Otherwise a guest could ask for 600,000 interrupts a second.

There is no speaker: its gate bit is only remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from devices.effects import NOTHING, Effects, Line
from devices.state import FLAG, PART, TIME_NS, Bytes, Int, Many, Maybe, Stateful, Table, uint

HZ = 1_193_182
MIN_TICKS = 12  # about 10 microseconds
REFRESH_TOGGLE_NS = 15_085  # how often a PC's memory refresh flips bit 4 of port B

_NS_PER_S = 1_000_000_000
_READ_BACK = 3
_STATUS_OUT, _STATUS_NULL_COUNT = 0x80, 0x40
PORT_B_GATE_2, PORT_B_STORED, PORT_B_REFRESH, PORT_B_OUT_2 = 0x01, 0x0F, 0x10, 0x20


def ticks_at(now_ns: int) -> int:
    """The tick that is current at `now_ns`."""
    return now_ns * HZ // _NS_PER_S


def tick_start_ns(tick: int) -> int:
    """The first nanosecond of a tick."""
    return -(-tick * _NS_PER_S // HZ)


@dataclass
class Counter(Stateful):
    """One of the three counters.  `control` is the low six bits of its control word: access, mode, BCD.

    `count` is the number loaded, 1 to 65536, None after a control word.  How many ticks ago it was loaded is
    `base_elapsed`, plus the ticks since `base_tick` while `running`; -1 means that the next tick loads it.
    """

    gate: bool = True
    control: int = 0x30
    count: int | None = None
    next_count: int | None = None  # written while the old one still runs, in modes 1, 2, 3 and 5 ...
    next_count_tick: int = 0  # ... and in modes 2 and 3 loaded at this tick
    running: bool = False
    base_tick: int = 0
    base_elapsed: int = 0
    written_low: int | None = None  # the first byte of two
    read_high_next: bool = False
    latched_count: bytes = b""
    latched_status: int | None = None

    STATE: ClassVar[Table] = {
        "gate": FLAG,
        "control": uint(6),
        "count": Maybe(Int(1, 0x1_0000)),
        "next_count": Maybe(Int(1, 0x1_0000)),
        "next_count_tick": TIME_NS,
        "running": FLAG,
        "base_tick": TIME_NS,
        "base_elapsed": Int(-1, TIME_NS.high),
        "written_low": Maybe(uint(8)),
        "read_high_next": FLAG,
        "latched_count": Bytes(2),
        "latched_status": Maybe(uint(8)),
    }

    @property
    def mode(self) -> int:
        mode = self.control >> 1 & 7
        return mode if mode < 6 else mode - 4

    @property
    def access(self) -> int:
        """1 low byte, 2 high byte, 3 low then high byte."""
        return self.control >> 4 & 3

    @property
    def modulus(self) -> int:
        return 10_000 if self.control & 1 else 0x1_0000

    def elapsed(self, tick: int) -> int:
        return self.base_elapsed + (tick - self.base_tick if self.running else 0)

    # -- what can be seen of it ----------------------------------------------------------------------------------------

    def output(self, tick: int) -> bool:
        """The level of OUT."""
        if self.count is None:
            return self.mode != 0
        elapsed = self.elapsed(tick)
        if self.mode == 0:
            return elapsed >= self.count
        if not self.running or elapsed < 0:
            return True
        if self.mode == 1:
            return elapsed >= self.count
        if self.mode == 2:
            return elapsed % self.count != self.count - 1
        if self.mode == 3:
            return elapsed % self.count < (self.count + 1) // 2
        return elapsed != self.count

    def value(self, tick: int) -> int:
        """The counting element as it reads, 16 bits, binary or BCD; 0 before anything is loaded."""
        if self.count is None:
            return 0
        elapsed = max(self.elapsed(tick), 0)
        if self.mode == 2:
            value = self.count - elapsed % self.count
        elif self.mode == 3:  # by twos, once for each half of the square wave
            phase, half = elapsed % self.count, (self.count + 1) // 2
            value = (self.count & ~1) - 2 * (phase if phase < half else phase - half)
        else:
            value = self.count - elapsed
        value %= self.modulus
        return int(str(value), 16) if self.control & 1 else value

    def next_rise(self, tick: int) -> int | None:
        """The first tick after `tick` at which OUT rises, None if it stays as it is."""
        if self.count is None or not self.running:
            return None
        elapsed = self.elapsed(tick)
        if self.mode in (2, 3):
            target = (max(elapsed, 0) // self.count + 1) * self.count
        else:
            target = self.count if self.mode in (0, 1) else self.count + 1
        return tick + target - elapsed if target > elapsed else None

    def next_fall(self, tick: int) -> int | None:
        """The first tick after `tick` at which mode 3's square wave falls; None in the modes that only pulse low."""
        if self.count is None or not self.running or self.mode != 3:
            return None
        half = (self.count + 1) // 2
        return tick + 1 + (half - self.elapsed(tick) - 1) % self.count

    # -- what changes it -----------------------------------------------------------------------------------------------

    def program(self, control: int) -> None:
        """Take a control word: nothing is loaded any more, the byte order starts anew."""
        vars(self).update(vars(Counter(self.gate, control)))

    def settle(self, tick: int) -> None:
        """Load the count that waited for the end of a period of mode 2 or 3, if that has come by `tick`."""
        if self.next_count is not None and self.mode in (2, 3) and self.running and tick >= self.next_count_tick:
            self._load(self.next_count, self.next_count_tick, elapsed=0)

    def _load(self, count: int, tick: int, elapsed: int = -1) -> None:
        """Run with `count` from `tick` on, or from the tick after it."""
        self.count, self.next_count = count, None
        self.running, self.base_tick, self.base_elapsed = True, tick, elapsed

    def write(self, byte: int, tick: int) -> None:
        """Take one byte of a new count."""
        if self.access == 3 and self.written_low is None:
            self.written_low = byte
            if self.mode == 0:
                self.count, self.running = None, False  # the first byte stops the count, OUT falls
            return
        number = byte if self.access == 1 else byte << 8 | (self.written_low or 0)
        self.written_low = None
        self._take_count(self._decode(number), tick)

    def _decode(self, number: int) -> int:
        """The count that a written number stands for: 0 is the largest.  Modes 2 and 3 cannot count a period of 1."""
        if self.control & 1:
            number = sum((number >> 4 * digit & 0xF) * 10**digit for digit in range(4))
        count = number or self.modulus
        return max(count, 2) if self.mode in (2, 3) else count

    def _take_count(self, count: int, tick: int) -> None:
        if self.mode in (1, 5):
            if self.running:
                self.next_count = count
            else:
                self.count = count  # and wait for the gate
        elif self.mode in (2, 3) and self.running and self.elapsed(tick) >= 0:
            end_tick = self.next_rise(tick)
            if end_tick is not None:
                self.next_count, self.next_count_tick = count, end_tick
        elif self.gate:
            self._load(count, tick)
        else:
            self.count, self.next_count, self.base_elapsed = count, None, 0

    def set_gate(self, gate: bool, tick: int) -> None:
        """Move the gate input: a level holds modes 0, 2, 3 and 4, a rising edge starts modes 1, 2, 3 and 5."""
        if gate == self.gate:
            return
        self.gate = gate
        if self.count is None:
            return
        if gate and self.mode in (1, 2, 3, 5):
            self._load(self.next_count or self.count, tick)
        elif self.mode not in (1, 5):
            self.base_elapsed = max(self.elapsed(tick), 0)
            self.running, self.base_tick = gate, tick

    def latch_count(self, tick: int) -> None:
        """Hold the count for the next reads, unless one is held already."""
        if not self.latched_count:
            low, high = self.value(tick).to_bytes(2, "little")
            self.latched_count = bytes([low] if self.access == 1 else [high] if self.access == 2 else [low, high])

    def latch_status(self, tick: int) -> None:
        """Hold the status byte for the next read, unless one is held already."""
        if self.latched_status is None:
            waiting = self.count is None or self.next_count is not None or self.elapsed(tick) < 0
            output = _STATUS_OUT if self.output(tick) else 0
            self.latched_status = output | (_STATUS_NULL_COUNT if waiting else 0) | self.control

    def read(self, tick: int) -> int:
        """One byte: the held status, else the held count, else the count as it is."""
        if self.latched_status is not None:
            status, self.latched_status = self.latched_status, None
            return status
        if self.latched_count:
            byte, self.latched_count = self.latched_count[0], self.latched_count[1:]
            return byte
        high = self.access == 2 or self.read_high_next
        self.read_high_next = self.access == 3 and not high
        return self.value(tick) >> 8 if high else self.value(tick) & 0xFF


def _counters() -> list[Counter]:
    return [Counter(), Counter(), Counter(gate=False)]  # the gates of 0 and 1 are wired high, port B has the third


@dataclass
class Timer8254(Stateful):
    """Ports 40h-43h: three counters and the control word; a bus handler, timed, resettable.

    The ports are a byte wide: wider accesses are bytes in ascending order.  The control port, and bytes beyond it,
    read as FFh.  `line` is the board's name of counter 0's output; port B is the handler `PortB`.
    """

    line: str = "isa0"
    counters: list[Counter] = field(default_factory=_counters)
    port_b: int = 0
    level: bool = False
    seen_tick: int = 0
    last_rise_tick: int = 0

    STATE: ClassVar[Table] = {
        "counters": Many(PART),
        "port_b": uint(8),
        "level": FLAG,
        "seen_tick": TIME_NS,
        "last_rise_tick": TIME_NS,
    }

    def reset(self) -> Effects:
        """Back to the state after power-on: nothing programmed, the output low."""
        lines = (Line(self.line, False),) if self.level else ()
        vars(self).update(vars(Timer8254(self.line)))
        return Effects(lines=lines, deadline=True)

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        effects = self.advance(now_ns)
        value = 0
        for i in range(size):
            port = offset + i
            value |= (self.counters[port].read(self.seen_tick) if port < 3 else 0xFF) << 8 * i
        return value, effects

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        effects = self.advance(now_ns)
        for i in range(size):
            port, byte = offset + i, value >> 8 * i & 0xFF
            if port < 3:
                self.counters[port].write(byte, self.seen_tick)
            elif port == 3:
                self._control(byte)
            effects |= self._report(rose=False)
        return effects | Effects(deadline=True)

    def _control(self, word: int) -> None:
        select, tick = word >> 6, self.seen_tick
        if select == _READ_BACK:
            for i, counter in enumerate(self.counters):
                if word & 2 << i:
                    if not word & 0x20:
                        counter.latch_count(tick)
                    if not word & 0x10:
                        counter.latch_status(tick)
        elif word & 0x30:
            self.counters[select].program(word & 0x3F)
        else:
            self.counters[select].latch_count(tick)

    # -- time ----------------------------------------------------------------------------------------------------------

    def next_deadline_ns(self) -> int | None:
        """The next edge of counter 0's output that is worth a call, as explained above; None when there is none."""
        counter = self.counters[0]
        rise, fall = counter.next_rise(self.seen_tick), counter.next_fall(self.seen_tick)
        if self.level and fall is not None and (rise is None or rise - fall >= MIN_TICKS):
            return tick_start_ns(fall)
        earliest = self.last_rise_tick + MIN_TICKS
        if rise is not None and rise < earliest:
            rise = counter.next_rise(earliest - 1)
        return None if rise is None else tick_start_ns(rise)

    def advance(self, now_ns: int) -> Effects:
        """Report what counter 0's output has done by `now_ns`."""
        tick = ticks_at(now_ns)
        # Asked before a waiting count is loaded: the end of its predecessor's period is a rising edge in any case.
        rise = self.counters[0].next_rise(self.seen_tick)
        for counter in self.counters:
            counter.settle(tick)
        self.seen_tick = tick
        return self._report(rose=rise is not None and rise <= tick)

    def _report(self, *, rose: bool) -> Effects:
        """The line's changes: through a rising edge if there was one, and to the present level."""
        present = self.counters[0].output(self.seen_tick)
        path = ([False, True] if rose else []) + [present]
        lines: list[Line] = []
        for level in path:
            if level != self.level:
                self.level = level
                lines.append(Line(self.line, level))
        if not lines:
            return NOTHING
        if any(line.level for line in lines):
            self.last_rise_tick = self.seen_tick
        return Effects(lines=tuple(lines), deadline=True)


class PortB:
    """Port 61h of a `Timer8254`, which holds its state.  Bits 3:0 read back; bit 0 is counter 2's gate, bit 4 toggles
    with the memory refresh, bit 5 is counter 2's output.  Bytes beyond the port read as zero and ignore writes."""

    def __init__(self, timer: Timer8254) -> None:
        self._timer = timer

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        effects = self._timer.advance(now_ns)
        if offset:
            return 0, effects
        value = self._timer.port_b
        if now_ns // REFRESH_TOGGLE_NS & 1:
            value |= PORT_B_REFRESH
        if self._timer.counters[2].output(self._timer.seen_tick):
            value |= PORT_B_OUT_2
        return value, effects

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        effects = self._timer.advance(now_ns)
        if offset == 0:
            self._timer.port_b = value & PORT_B_STORED
            self._timer.counters[2].set_gate(bool(value & PORT_B_GATE_2), self._timer.seen_tick)
        return effects
