"""Everything that attends to one run: the console's input, and a server for each protocol that was asked for.

Owns which protocol is served where, and who must be there before the guest begins.  Every run serves QMP to its user's
other programs besides (`registry`), which keeps no run alive and changes none; what that takes is imported when
somebody comes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.control import registry
from vmm.control.address import Address
from vmm.control.attendants import Attendant, Attendants
from vmm.control.options import ControlOptions
from vmm.control.sockets import Connection, MakeSession, Server, Session

if TYPE_CHECKING:
    from vmm.control.gdb.server import GdbServer
    from vmm.control.monitor import Monitor
    from vmm.control.qmp.context import Context
    from vmm.machine import Machine


@contextmanager
def attended(machine: Machine, options: ControlOptions, *others: Attendant) -> Iterator[Attendants]:
    """The attendants of `machine` while it runs: `others`, and the servers that `options` ask for.  ConfigError where
    one of them cannot be served."""
    server = Server()
    server.keeps_alive = bool(options.addresses)
    protocols = Protocols(machine, server, options.name or machine.config.name)
    try:
        with Attendants(machine, *others, server) as attendants, registry.registered(server, protocols):
            for address, make_session, what in protocols.table(options):  # now, since the run has its name by now
                _say_if_it_waits(server.listen(address, make_session, what), what)
            if options.paused:
                machine.pause()
            with machine.standing_still():  # the guest has not begun, whatever its clock
                while server.is_waiting:
                    attendants.wait(1.0)
                    attendants.serve()
            yield attendants
    finally:
        protocols.end()
        server.close()


def _say_if_it_waits(address: Address, what: str) -> None:
    if address.wait and address.kind != "stdio":
        print(f"vmm: {what} waits for somebody at {address}.", file=sys.stderr, flush=True)


class Protocols:
    """What is spoken about one run, which is called `name`."""

    def __init__(self, machine: Machine, server: Server, name: str) -> None:
        self.name = name
        self._machine = machine
        self._server = server
        self._monitor: Monitor | None = None
        self._gdb: GdbServer | None = None

    def table(self, options: ControlOptions) -> Iterator[tuple[Address, MakeSession, str]]:
        """What is served where."""
        for address in options.qmp:
            yield address, self.qmp, "QMP"
        for address in options.monitor:
            yield address, self.monitor_on_stdio if address.kind == "stdio" else self.monitor, "The monitor"
        if options.gdb:
            from vmm.control.gdb.server import GdbServer

            self._gdb = GdbServer(self._machine, self._made_monitor())
            yield from ((address, self._gdb.make_session, "gdb") for address in options.gdb)
        for address in options.metrics:
            yield address, self.metrics, "The metrics"

    def qmp(self, connection: Connection) -> Session:
        """A client of QMP has come."""
        from vmm.control.qmp.session import QmpSession

        return QmpSession(connection, self.context())

    def monitor(self, connection: Connection) -> Session:
        """Somebody has come to the monitor."""
        from vmm.control.monitor.sessions import MonitorSession

        return MonitorSession(connection, self._made_monitor())

    def monitor_on_stdio(self, connection: Connection) -> Session:
        """The monitor's place is the standard input and output; where that is a terminal it is in raw mode."""
        from vmm.control.monitor.sessions import MonitorSession

        edits = sys.stdin.isatty() and sys.stdout.isatty()
        return MonitorSession(connection, self._made_monitor(), newline=b"\n", edits=edits)

    def metrics(self, connection: Connection) -> Session:
        """Somebody asks for the metrics."""
        from vmm.control.metrics import MetricsSession

        return MetricsSession(connection, self._machine, self.name)

    def context(self) -> Context:
        """What the commands of QMP work on; from the first call on its events are made."""
        return self._made_monitor().context

    def _made_monitor(self) -> Monitor:
        """The one monitor of the run, with what it shares with QMP."""
        if self._monitor is None:
            from vmm.control.monitor import Monitor
            from vmm.control.qmp.events import Events

            events = Events(self._machine)
            self._machine.observers.append(events)
            self._server.timers.append(events)
            self._monitor = Monitor(self._machine, self.name, events)
        return self._monitor

    def end(self) -> None:
        """The run is over: whoever listens hears how."""
        if self._gdb is not None:
            self._gdb.end()
        if self._monitor is not None:
            self._monitor.context.events.end(self._machine.outcome)
