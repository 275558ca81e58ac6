"""Who may debug the machine: one gdb at a time.  A second one is let go at once; the first does not notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.effects import Event
from devices.errors import ConfigError
from vmm.control.gdb.session import GdbSession, Monitor
from vmm.control.sockets import Connection, Session

if TYPE_CHECKING:
    from vmm.machine import Machine


class _Refused:
    """The session of a peer that is not heard."""

    def received(self, data: bytes) -> None:
        """Nobody listens."""

    def ended(self) -> None:
        """There is nothing to end."""


class GdbServer:
    """Makes the sessions of gdb, and is the observer that tells the present one when the machine stands still.

    ConfigError for a machine whose processor has no debugger."""

    def __init__(self, machine: Machine, monitor: Monitor | None = None) -> None:
        if machine.config.arch != "x86_64":
            raise ConfigError(
                f"gdb can debug the x86-64 processor only, and this machine has another: {machine.config.arch}."
            )
        self._machine = machine
        self._monitor = monitor
        self._session: GdbSession | None = None
        machine.observers.append(self)

    def make_session(self, connection: Connection) -> Session:
        """What a peer gets that has connected."""
        debugger = self._machine.platform.cpu.debugger
        if self._session is not None or debugger is None:
            connection.close()
            return _Refused()
        self._session = GdbSession(connection, self._machine, debugger, self._monitor, self._let_go)
        return self._session

    def _let_go(self) -> None:
        self._session = None

    def end(self) -> None:
        """The run is over, or is given up: tell gdb of its exit status."""
        outcome = self._machine.outcome
        if self._session is not None and outcome is not None:
            self._session.over(outcome.exit_code)

    # -- as an observer ------------------------------------------------------------------------------------------------

    def on_event(self, now_ns: int, event: Event) -> None:
        if self._session is not None and event.kind == "paused" and self._machine.is_paused:
            self._session.paused()

    def on_console(self, data: bytes) -> None:
        """Nothing that gdb wants to know."""

    def on_stats(self, now_ns: int) -> None:
        """The same."""

    def on_target(self, now_ns: int) -> None:
        """The same."""
