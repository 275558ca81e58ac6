"""Listening, and the connections that come of it: bytes in and out without ever blocking the machine.

Owns the sockets, how much is read and kept, and what becomes of a peer that is slow or gone.  Refuses to know what the
bytes mean: a `Session` does.

Nothing that a peer does can hold the machine up.  A turn takes one piece of each connection, and stops after `WORK_S`:
the others come first in the next, which comes the later the longer this one took.  A session that cannot do all that a
piece asks for says so (`Connection.go_on`) and is not read from until it has done it.  A peer that does not read its
answers is not read from until it does; one that still makes us keep more (by events) is let go.
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
BACKLOG = 128
ACCEPTED_A_TURN = 16
LOOK_EVERY_S = 0.001
"""Between two runs of the CPU the sockets are looked at so often, while nobody sleeps."""
WORK_S = 0.001
"""A turn that has taken so long is over; what is left waits for the next."""
REST = 4
"""While the machine is busy, so many times what a turn took is its own before the next."""
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
        self._work: Callable[[], None] | None = None
        self.at_end = False
        self.is_open = True
        self.session: Session | None = None

    def send(self, data: bytes) -> None:
        """Send `data` as soon as the peer takes it; what cannot be sent any more is forgotten."""
        if self.is_open:
            self._unsent += data
            if len(self._unsent) > MOST_UNSENT_BYTES:
                self.close()

    def go_on(self, work: Callable[[], None]) -> None:
        """Have the session's `work` called in the next turn, unless the peer does not read; nothing is read before."""
        self._work = work

    @property
    def has_work(self) -> bool:
        """Whether the session wants to go on, and may."""
        return self.is_open and self._work is not None and self._may_answer()

    def work(self) -> None:
        """Let the session go on."""
        work, self._work = self._work, None
        if work is not None:
            work()
        if self._closing or self.at_end:
            self.finish()

    def finish(self) -> None:
        """Close as soon as everything is done and sent."""
        self._closing = True
        if not self._unsent and self._work is None:
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
        return not self.at_end and not self._closing and self._work is None and self._may_answer()

    def _may_answer(self) -> bool:
        return len(self._unsent) <= UNREAD_BYTES

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
        if self._owner is None and not _takes(self._write_fd):
            return  # it is shared with others, and so may not be made one that never blocks
        try:
            sent = os.write(self._write_fd, self._unsent[: select.PIPE_BUF] if self._owner is None else self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self._unsent[:sent]
        if self._closing:
            self.finish()


def _takes(fd: int) -> bool:
    """Whether a pipe or terminal takes a piece of PIPE_BUF bytes now."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


class Timer(Protocol):
    """Something to do at a time of the host's monotonic clock."""

    @property
    def due_s(self) -> float | None: ...

    def fire(self) -> None: ...


MakeSession = Callable[[Connection], Session]


class Listener:
    """Where peers come in; `make_session` is what they get.  `address` has the port that it became."""

    def __init__(self, address: Address, make_session: MakeSession, what: str) -> None:
        self.address = address
        self.make_session = make_session
        self.had_peer = False
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
        self.timers: list[Timer] = []
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

    @property
    def is_waiting(self) -> bool:
        """Whether a listener still waits for its first peer, as it was told to."""
        return any(each.address.wait and not each.had_peer for each in self.listeners)

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

    @property
    def due_s(self) -> float | None:
        """When the first timer is due."""
        return min((each.due_s for each in self.timers if each.due_s is not None), default=None)

    def awaited(self) -> Iterable[tuple[int, int]] | None:
        self._look_at_s = 0.0  # whatever ends the sleep may have come from here
        if any(each.has_work for each in self.connections):
            return None
        return [*((each.socket.fileno(), select.POLLIN) for each in self.listeners), *self._connections_awaited()]

    def _connections_awaited(self) -> Iterable[tuple[int, int]]:
        for connection in self.connections:
            yield from connection.awaited()

    def serve(self) -> None:
        """Look at the sockets, at most every `LOOK_EVERY_S` while the machine is busy."""
        now_s = time.monotonic()
        for timer in self.timers:
            if timer.due_s is not None and timer.due_s <= now_s:
                timer.fire()
        if now_s >= self._look_at_s:
            self._look(0)
            took_s = time.monotonic() - now_s
            self._look_at_s = now_s + took_s + max(LOOK_EVERY_S, REST * took_s)

    def _look(self, seconds: float) -> None:
        """One turn."""
        poll = select.poll()
        owners: dict[int, Listener | Connection] = {each.socket.fileno(): each for each in self.listeners}
        for fd in owners:
            poll.register(fd, select.POLLIN)
        for connection in self.connections:
            for fd, events in connection.awaited():
                poll.register(fd, events)
                owners[fd] = connection
        ready = poll.poll(0 if any(each.has_work for each in self.connections) else seconds * 1000)
        end_s = time.monotonic() + WORK_S
        events_of: dict[Listener | Connection, list[tuple[int, int]]] = {}
        for fd, events in ready:
            events_of.setdefault(owners[fd], []).append((fd, events))
        everybody: list[Listener | Connection] = [*self.listeners, *self.connections]
        for owner in everybody:
            if time.monotonic() >= end_s:
                break
            self._serve_one(owner, events_of.get(owner, ()))
        for connection in self.connections:
            if connection.has_unsent:
                connection.flush()
        self.connections = [each for each in self.connections if each.is_open]

    def _serve_one(self, owner: Listener | Connection, events: Iterable[tuple[int, int]]) -> None:
        """Let one in, or let one connection have its turn; it is the last in the next."""
        if isinstance(owner, Listener):
            if events:
                self._accept(owner)
            return
        if owner.has_work:
            owner.work()
        for fd, what in events:
            if owner.is_open:
                owner.ready(fd, what)
        self.connections.remove(owner)
        self.connections.append(owner)

    def _accept(self, listener: Listener) -> None:
        """Let in who waits, a few in a turn."""
        for _ in range(ACCEPTED_A_TURN):
            if not self._accept_one(listener):
                break

    def _accept_one(self, listener: Listener) -> bool:
        try:
            peer, _ = listener.socket.accept()
        except OSError:  # it is gone already, or there are no descriptors left: the next turn tries again
            return False
        if len(self.connections) >= MOST_CONNECTIONS:
            peer.close()
            return True
        peer.setblocking(False)
        listener.had_peer = True
        self._begin(Connection(peer.fileno(), peer.fileno(), peer), listener.make_session)
        return True


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
        number = error.errno if isinstance(error, OSError) and error.errno else 0
        why = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{what} cannot be served at {address}: {why}.") from error


def _listen_unix(path: str) -> socket.socket:
    """A socket file that only its owner can use.  What an ended run left behind is replaced; what a living one serves,
    or what is no socket, is not."""
    if is_stale(path):
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


def is_stale(path: str) -> bool:
    """Whether there is a socket at `path` at which nobody listens."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return False
    except OSError:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # one that lives may be stopped, with as many waiting as there may be
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
