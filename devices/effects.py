"""What a device wants to happen elsewhere, as a value.

A device never calls upwards.  Every access and every host command returns an `Effects`, and whoever made the call
carries it out: the bus hands it up to the machine, a test simply looks at it.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Message(NamedTuple):
    """A bus write that a device makes on its own: a message-signalled interrupt (PCI 3.0 §6.8) is one.

    `address` is any address, `data` a 32-bit value; a test may point it at RAM.
    """

    address: int
    data: int


class Line(NamedTuple):
    """A new level of an interrupt line; `name` is the board's name for it, e.g. "isa4" or "00:03.0 INTA"."""

    name: str
    level: bool


class StopKind(Enum):
    """Why a device asks the machine to stop."""

    POWERED_OFF = "powered-off"
    RESET = "reset"
    QUIT = "quit"
    PANICKED = "guest-panicked"


class Stop(NamedTuple):
    """A request to end the run; `code` is the guest's own exit code, 0 to 255, for `StopKind.QUIT`."""

    kind: StopKind
    code: int = 0


class Event(NamedTuple):
    """Something a watcher may want to know.  `source` is the device's name, `kind` a stable word to select by,
    `text` a sentence for people."""

    source: str
    kind: str
    text: str


class Shadow(NamedTuple):
    """What the processor finds from now on at `length` addresses from `gpa` on, between C0000h and FFFFFh: reads come
    from RAM or else from the ROM, writes go to RAM or else vanish."""

    gpa: int
    length: int
    reads_ram: bool
    writes_ram: bool


class Effects(NamedTuple):
    """Everything one call asks for, in the order in which it is to happen within each field.

    `deadline` says that `next_deadline_ns()` of the device may now answer differently, `rewired` that the PCI interrupt
    lines are routed in another way.  `ended_vectors` are level-triggered vectors whose service has ended.
    """

    messages: tuple[Message, ...] = ()
    lines: tuple[Line, ...] = ()
    deadline: bool = False
    stop: Stop | None = None
    events: tuple[Event, ...] = ()
    ended_vectors: tuple[int, ...] = ()
    rewired: bool = False
    shadows: tuple[Shadow, ...] = ()

    def __or__(self, later: Effects) -> Effects:
        """Both effects, this one first; the first request to stop wins."""
        if self is NOTHING:
            return later
        if later is NOTHING:
            return self
        return Effects(
            self.messages + later.messages,
            self.lines + later.lines,
            self.deadline or later.deadline,
            self.stop or later.stop,
            self.events + later.events,
            self.ended_vectors + later.ended_vectors,
            self.rewired or later.rewired,
            self.shadows + later.shadows,
        )

    def __bool__(self) -> bool:
        return self != NOTHING


NOTHING = Effects()
