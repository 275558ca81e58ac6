"""What all clients hear: QEMU's events, made of what the machine's observers hear and of how its run ends.

Owns their data, their timestamps and how often they may come: one of a limited kind is sent at once, and then the
newest of those that came meanwhile when the second is over, by the host's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from vmm.config import PAGE_BYTES
from vmm.machine import SOURCE

if TYPE_CHECKING:
    from devices.effects import Event
    from vmm.machine import Machine
    from vmm.outcome import Outcome

EVENTS: Final = {
    "BALLOON_CHANGE": "BalloonInfo",
    "GUEST_CRASHLOADED": "PanicData",
    "GUEST_PANICKED": "PanicData",
    "POWERDOWN": "Empty",
    "RESET": "CauseData",
    "RESUME": "Empty",
    "SHUTDOWN": "CauseData",
    "STOP": "Empty",
}
"""Each event and the type of its data."""
LIMITED_S: Final = {"BALLOON_CHANGE": 1.0}
"""How long must lie between two of a kind."""

_CAUSES: Final = {
    "powered-off": (True, "guest-shutdown"),
    "quit": (True, "guest-shutdown"),
    "halted": (True, "guest-shutdown"),
    "reset": (True, "guest-reset"),
    "triple-fault": (True, "guest-reset"),
    "guest-panicked": (True, "guest-panic"),
    "device-error": (False, "host-error"),
    "interrupted": (False, "host-signal"),
    "deadline": (False, "host-ui"),
    "host-quit": (False, "host-qmp-quit"),
}
"""How each outcome of a run is told: whether the guest wanted it, and why."""

Send = Callable[[dict[str, Any]], None]


class Events:
    """The events of `machine`, for whoever is in `listeners`; an observer of the machine and a timer of the server.

    `has_ended` says that the end of the run was told already."""

    def __init__(self, machine: Machine) -> None:
        self.listeners: list[Send] = []
        self._machine = machine
        self._held: dict[str, dict[str, Any] | None] = {}  # of each kind that may not come yet: the newest, if any
        self._next_s: dict[str, float] = {}
        self.has_ended = False

    # -- as an observer ----------------------------------------------------------------------------------------------

    def on_event(self, now_ns: int, event: Event) -> None:
        if event.source == SOURCE:
            self._of_machine(event.kind)
        elif event.kind == "actual":
            self._balloon_changed(event.source)
        elif event.kind == "power-button":
            self.emit("POWERDOWN")
        elif event.kind == "crash-loaded":
            self.emit("GUEST_CRASHLOADED", action="run")

    def on_console(self, data: bytes) -> None:
        """No event."""

    def on_stats(self, now_ns: int) -> None:
        """No event in QEMU, and so none here."""

    def on_target(self, now_ns: int) -> None:
        """The same."""

    def _of_machine(self, kind: str) -> None:
        if kind == "paused":
            self.emit("STOP")
        elif kind == "resumed":
            self.emit("RESUME")
        elif kind == "reset":
            self.emit("RESET", guest=False, reason="host-qmp-system-reset")

    def _balloon_changed(self, device: str) -> None:
        found = self._machine.board.balloon
        if found is not None and found[1].name == device:
            self.emit("BALLOON_CHANGE", actual=self._machine.config.memory_bytes - found[1].actual_pages * PAGE_BYTES)

    # -- the end -----------------------------------------------------------------------------------------------------

    def end(self, outcome: Outcome | None) -> None:
        """The run is over, and how.  What was held back comes first; a second time says nothing."""
        if self.has_ended:
            return
        self.has_ended = True
        for name, held in self._held.items():
            if held is not None:
                self._send(held)
                self._held[name] = None
        guest, reason = _CAUSES.get(outcome.kind if outcome is not None else "", (False, "host-error"))
        if reason == "guest-panic":
            self.emit("GUEST_PANICKED", action="poweroff")
            self.emit("STOP")
        self.emit("SHUTDOWN", guest=guest, reason=reason)

    # -- sending -----------------------------------------------------------------------------------------------------

    def emit(self, name: str, **data: Any) -> None:
        """One event, now or as soon as it may come."""
        now_s = time.time()
        stamp = {"seconds": int(now_s), "microseconds": int(now_s * 1e6) % 1_000_000}
        event: dict[str, Any] = {"timestamp": stamp, "event": name} | ({"data": data} if data else {})
        if name not in LIMITED_S:
            self._send(event)
        elif name in self._held:
            self._held[name] = event
        else:
            self._begin(name, event)

    def _begin(self, name: str, event: dict[str, Any]) -> None:
        self._send(event)
        self._held[name] = None
        self._next_s[name] = time.monotonic() + LIMITED_S[name]

    def _send(self, event: dict[str, Any]) -> None:
        for send in list(self.listeners):
            send(event)

    # -- as a timer --------------------------------------------------------------------------------------------------

    @property
    def due_s(self) -> float | None:
        return min(self._next_s.values(), default=None)

    def fire(self) -> None:
        """A kind may come again: send what was held back, or forget that there was one."""
        now_s = time.monotonic()
        for name in [name for name, next_s in self._next_s.items() if next_s <= now_s]:
            del self._next_s[name]
            if (held := self._held.pop(name)) is not None:
                self._begin(name, held)
