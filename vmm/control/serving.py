"""Everything that attends to one run: the console's input, and a server for each protocol that was asked for.

Owns which protocol is served where, and who must be there before the guest begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmm.control.address import Address
from vmm.control.attendants import Attendant, Attendants
from vmm.control.options import ControlOptions
from vmm.control.sockets import MakeSession, Server

if TYPE_CHECKING:
    from vmm.control.gdb.server import GdbServer
    from vmm.machine import Machine


@contextmanager
def attended(machine: Machine, options: ControlOptions, *others: Attendant) -> Iterator[Attendants]:
    """The attendants of `machine` while it runs: `others`, and the servers that `options` ask for."""
    server = Server()
    server.keeps_alive = bool(options.addresses)
    gdb = _gdb_server(machine) if options.gdb else None
    try:
        for address, make_session, what in _protocols(options, gdb):
            server.listen(address, make_session, what)
        with Attendants(machine, *others, server) as attendants:
            if options.paused:
                machine.pause()
            yield attendants
    finally:
        if gdb is not None:
            gdb.end()
        server.close()


def _protocols(options: ControlOptions, gdb: GdbServer | None) -> Iterator[tuple[Address, MakeSession, str]]:
    """What is served where."""
    if gdb is not None:
        yield from ((address, gdb.make_session, "gdb") for address in options.gdb)


def _gdb_server(machine: Machine) -> GdbServer:
    """Imported only where it is wanted."""
    from vmm.control.gdb.server import GdbServer

    return GdbServer(machine)
