"""The local APIC's timer: a count that falls with guest time (Intel SDM volume 3, "APIC Timer").

The timer stores when it was started, never how far it has come: the current count is computed from the guest time at
which it is asked for.  So nothing happens between two deadlines, and a clock that jumps over a million periods costs
the same as one that moves by one.

Ticks: the bus runs at 1 GHz, so that one tick is one nanosecond times the divisor of the divide configuration.

A periodic timer keeps its exact phase, but its interrupts come at most every `MIN_INTERVAL_NS`: where the programmed
period is shorter, only every n-th expiry is reported.  Otherwise an initial count of 1 would ask for an interrupt per
nanosecond, and a guest could bring its machine to a stop with one store.

The timer knows nothing of vectors, masks or the rest of the APIC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from devices.state import FLAG, TIME_NS, Maybe, Stateful, Table, uint

MIN_INTERVAL_NS = 10_000


@dataclass
class ApicTimer(Stateful):
    """`initial_count` and `divide_configuration` as the guest wrote them; `periodic` is the mode, else one-shot.

    `due_ns` is the guest time of the next expiry worth reporting, None when there is none.
    """

    initial_count: int = 0
    divide_configuration: int = 0
    periodic: bool = False
    base_ns: int = 0
    base_count: int = 0
    due_ns: int | None = None

    STATE: ClassVar[Table] = {
        "initial_count": uint(32),
        "divide_configuration": uint(4),
        "periodic": FLAG,
        "base_ns": TIME_NS,
        "base_count": uint(32),
        "due_ns": Maybe(TIME_NS),
    }

    @property
    def tick_ns(self) -> int:
        """Nanoseconds per count: bits 3, 1 and 0 of the divide configuration select 2, 4, ... 128, and 1."""
        code = self.divide_configuration >> 1 & 4 | self.divide_configuration & 3
        return 1 if code == 7 else 2 << code

    def current_count(self, now_ns: int) -> int:
        """What the current-count register shows at `now_ns`: never 0 in a running periodic timer."""
        ticks = (now_ns - self.base_ns) // self.tick_ns
        if ticks < self.base_count:
            return self.base_count - max(ticks, 0)
        if self.periodic and self.base_count:
            return self.initial_count - (ticks - self.base_count) % self.initial_count
        return 0

    def start(self, initial_count: int, now_ns: int) -> None:
        """Count down from `initial_count`, from `now_ns` on; 0 stops the timer."""
        self.initial_count = initial_count
        self._restart(initial_count, now_ns)

    def configure(self, now_ns: int, *, periodic: bool | None = None, divide_configuration: int | None = None) -> None:
        """Change mode or divisor without losing the count that has been reached; what has expired stays stopped."""
        count = self.current_count(now_ns)
        if periodic is not None:
            self.periodic = periodic
        if divide_configuration is not None:
            self.divide_configuration = divide_configuration
        self._restart(count, now_ns)

    def advance(self, now_ns: int) -> bool:
        """Whether the timer expired at or before `now_ns` (once, however often); arms the next expiry."""
        if self.due_ns is None or now_ns < self.due_ns:
            return False
        self._arm(now_ns)
        return True

    def _restart(self, count: int, now_ns: int) -> None:
        self.base_ns, self.base_count = now_ns, count
        self._arm(now_ns)

    def _arm(self, now_ns: int) -> None:
        """Set `due_ns` to the first reported expiry after `now_ns`."""
        first_ns = self.base_ns + self.base_count * self.tick_ns
        if self.base_count and now_ns < first_ns:
            self.due_ns = first_ns
        elif self.base_count and self.periodic:
            period_ns = self.initial_count * self.tick_ns
            interval_ns = -(-MIN_INTERVAL_NS // period_ns) * period_ns
            self.due_ns = first_ns + ((now_ns - first_ns) // interval_ns + 1) * interval_ns
        else:
            self.due_ns = None
