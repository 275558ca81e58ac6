"""Listening, and the connections that come of it: bytes in and out without ever blocking the machine.

Owns the sockets, how much is read and kept, and what becomes of a peer that is slow or gone.  Refuses to know what the
bytes mean: a `Session` does.

Nothing that a peer does can hold the machine up.  A turn takes one piece of each connection; a peer that does not read
its answers is not read from until it does; one that still makes us keep more (by events) is let go.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from devices.errors import ConfigError
from vmm.control.address import Address

READ_BYTES = 4096
"""So much is read of one connection in one turn: what it takes to understand it is what the machine waits for."""
UNREAD_BYTES = 1 << 16
"""With more than this unsent, nothing more is read."""
MOST_UNSENT_BYTES = 1 << 22
"""A peer that leaves more than this unread is let go."""
MOST_CONNECTIONS = 64
BACKLOG = 16
LOOK_EVERY_S = 0.001
"""Between two runs of the CPU the sockets are looked at so often, while nobody sleeps."""
LINGER_S = 1.0
"""At the end so long is waited for peers to take what was sent."""
_PRIVATE = 0o077


class Session(Protocol):
    """What somebody says over one connection, and what is answered."""

    def received(self, data: bytes) -> None:
        """The next bytes that came, cut anywhere; never empty."""
        ...

    def ended(self) -> None:
        """The peer sends no more, or is gone."""
        ...


class Connection:
    """One peer.  `send` never blocks; `is_open` until `close`."""

    def __init__(self, read_fd: int, write_fd: int, owner: socket.socket | None = None) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._owner = owner
        self._unsent = bytearray()
        self._closing = False
        self.at_end = False
        self.is_open = True
        self.session: Session | None = None

    def send(self, data: bytes) -> None:
        """Send `data` as soon as the peer takes it; what cannot be sent any more is forgotten."""
        if self.is_open:
            self._unsent += data
            if len(self._unsent) > MOST_UNSENT_BYTES:
                self.close()

    def finish(self) -> None:
        """Close as soon as everything is sent."""
        self._closing = True
        if not self._unsent:
            self.close()

    def close(self) -> None:
        """Now; a second time is no error."""
        if self.is_open:
            self.is_open = False
            if self._owner is not None:
                self._owner.close()
            if self.session is not None:
                self.session.ended()

    @property
    def has_unsent(self) -> bool:
        """Whether something waits to be sent."""
        return self.is_open and bool(self._unsent)

    def awaited(self) -> Iterable[tuple[int, int]]:
        """What it waits for, as file descriptors with events of poll."""
        if self.is_open:
            reading = select.POLLIN if self._may_read() else 0
            writing = select.POLLOUT if self._unsent else 0
            if self._read_fd == self._write_fd:
                yield self._read_fd, reading | writing
            else:
                if reading:
                    yield self._read_fd, reading
                if writing:
                    yield self._write_fd, writing

    def _may_read(self) -> bool:
        return not self.at_end and not self._closing and len(self._unsent) <= UNREAD_BYTES

    def ready(self, fd: int, events: int) -> None:
        """Poll found `events` on `fd`, which is one of this connection's."""
        if fd == self._read_fd and events & (select.POLLIN | select.POLLHUP | select.POLLERR) and self._may_read():
            self._read()
        elif events & (select.POLLERR | select.POLLNVAL) or (events & select.POLLHUP and self.at_end):
            self.close()
        if self.is_open and fd == self._write_fd and self._unsent:
            self.flush()

    def _read(self) -> None:
        try:
            data = os.read(self._read_fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if data and self.session is not None:
            self.session.received(data)
        elif not data:
            self.at_end = True  # it may still read what it has asked for
            self.finish()

    def flush(self) -> None:
        """Send what the peer takes now."""
        try:
            sent = os.write(self._write_fd, self._unsent[: select.PIPE_BUF] if self._owner is None else self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        if self._closing and not self._unsent:
            self.close()


MakeSession = Callable[[Connection], Session]


class Listener:
    """Where peers come in; `make_session` is what they get.  `address` has the port that it became."""

    def __init__(self, address: Address, make_session: MakeSession, what: str) -> None:
        self.address = address
        self.make_session = make_session
        self.socket = _listen(address, what)
        if address.kind == "tcp":
            self.address = Address("tcp", host=address.host, port=self.socket.getsockname()[1], wait=address.wait)

    def close(self) -> None:
        self.socket.close()
        if self.address.kind == "unix":
            with suppress(OSError):
                os.unlink(self.address.path)


class Server:
    """Every listener and every connection: an attendant of the machine.

    `keeps_alive` says that a guest which sleeps without a deadline shall not be over, since somebody may still say what
    to do; it is for listeners that the user asked for."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.connections: list[Connection] = []
        self.keeps_alive = False
        self._look_at_s = 0.0

    # -- what is served --------------------------------------------------------------------------------------------

    def listen(self, address: Address, make_session: MakeSession, what: str) -> Address:
        """Serve `make_session` at `address`; returns it with the port that it became.  ConfigError when that cannot
        be; `what` names the protocol in it."""
        if address.kind == "stdio":
            self._begin(Connection(0, 1), make_session)
            return address
        self.listeners.append(Listener(address, make_session, what))
        return self.listeners[-1].address

    def _begin(self, connection: Connection, make_session: MakeSession) -> None:
        self.connections.append(connection)
        connection.session = make_session(connection)

    def close(self) -> None:
        """Let the peers take what was sent, for a moment, and close everything."""
        for connection in self.connections:
            connection.finish()
        end_s = time.monotonic() + LINGER_S
        while any(each.has_unsent for each in self.connections) and (left_s := end_s - time.monotonic()) > 0:
            self._look(left_s)
        for connection in self.connections:
            connection.close()
        for listener in self.listeners:
            listener.close()
        self.connections, self.listeners = [], []

    # -- as an attendant -------------------------------------------------------------------------------------------

    @property
    def can_wake(self) -> bool:
        return self.keeps_alive

    def awaited(self) -> Iterable[tuple[int, int]]:
        self._look_at_s = 0.0  # whatever ends the sleep may have come from here
        return [*((each.socket.fileno(), select.POLLIN) for each in self.listeners), *self._connections_awaited()]

    def _connections_awaited(self) -> Iterable[tuple[int, int]]:
        for connection in self.connections:
            yield from connection.awaited()

    def serve(self) -> None:
        """Look at the sockets, at most every `LOOK_EVERY_S` while the machine is busy."""
        now_s = time.monotonic()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + LOOK_EVERY_S
            self._look(0)

    def _look(self, seconds: float) -> None:
        poll = select.poll()
        owners: dict[int, Listener | Connection] = {each.socket.fileno(): each for each in self.listeners}
        for fd in owners:
            poll.register(fd, select.POLLIN)
        for connection in self.connections:
            for fd, events in connection.awaited():
                poll.register(fd, events)
                owners[fd] = connection
        for fd, events in poll.poll(seconds * 1000):
            owner = owners[fd]
            if isinstance(owner, Listener):
                self._accept(owner)
            elif owner.is_open:
                owner.ready(fd, events)
        for connection in self.connections:
            if connection.has_unsent:
                connection.flush()
        self.connections = [each for each in self.connections if each.is_open]

    def _accept(self, listener: Listener) -> None:
        try:
            peer, _ = listener.socket.accept()
        except OSError:  # it is gone already, or there are no descriptors left: the next turn tries again
            return
        if len(self.connections) >= MOST_CONNECTIONS:
            peer.close()
            return
        peer.setblocking(False)
        self._begin(Connection(peer.fileno(), peer.fileno(), peer), listener.make_session)


def _listen(address: Address, what: str) -> socket.socket:
    """A socket that listens.  ConfigError, one sentence, when it cannot."""
    try:
        if address.kind == "unix":
            return _listen_unix(address.path)
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        made = socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
        made.setblocking(False)
        return made
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{what} cannot be served at {address}: {why}.") from error


def _listen_unix(path: str) -> socket.socket:
    """A socket file that only its owner can use.  What an ended run left behind is replaced; what a living one serves,
    or what is no socket, is not."""
    if _is_stale(path):
        os.unlink(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(_PRIVATE)  # from the first moment on, not only after a chmod
    try:
        made.bind(path)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    finally:
        os.umask(before)
    made.setblocking(False)
    return made


def _is_stale(path: str) -> bool:
    """Whether there is a socket at `path` at which nobody listens."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
