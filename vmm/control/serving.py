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
        for address, make_session, what in protocols.table(options):
            _say_if_it_waits(server.listen(address, make_session, what), what)
        with Attendants(machine, *others, server) as attendants, registry.registered(server, protocols):
            if options.paused:
                machine.pause()
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
        self._context: Context | None = None
        self._gdb: GdbServer | None = None

    def table(self, options: ControlOptions) -> Iterator[tuple[Address, MakeSession, str]]:
        """What is served where."""
        for address in options.qmp:
            yield address, self.qmp, "QMP"
        if options.gdb:
            from vmm.control.gdb.server import GdbServer

            self._gdb = GdbServer(self._machine, self.context().monitor)
            yield from ((address, self._gdb.make_session, "gdb") for address in options.gdb)
        for address in options.metrics:
            yield address, self.metrics, "The metrics"

    def qmp(self, connection: Connection) -> Session:
        """A client of QMP has come."""
        from vmm.control.qmp.session import QmpSession

        return QmpSession(connection, self.context())

    def metrics(self, connection: Connection) -> Session:
        """Somebody asks for the metrics."""
        from vmm.control.metrics import MetricsSession

        return MetricsSession(connection, self._machine, self.name)

    def context(self) -> Context:
        """What the commands of QMP work on; from the first call on its events are made."""
        if self._context is None:
            from vmm.control.monitor import Monitor
            from vmm.control.qmp.context import Context
            from vmm.control.qmp.events import Events

            events = Events(self._machine)
            self._machine.observers.append(events)
            self._server.timers.append(events)
            self._context = Context(self._machine, self.name, events, Monitor(self._machine))
        return self._context

    def end(self) -> None:
        """The run is over: whoever listens hears how."""
        if self._gdb is not None:
            self._gdb.end()
        if self._context is not None:
            self._context.events.end(self._machine.outcome)
