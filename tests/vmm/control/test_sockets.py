"""The server: real sockets of this process, and peers that behave badly."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from devices.errors import ConfigError
from vmm.control import sockets
from vmm.control.address import Address
from vmm.control.sockets import Connection, Server


class Echo:
    """A session that sends everything back, `times` over."""

    made: ClassVar[list[Echo]] = []
    times: ClassVar = 1

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.heard = bytearray()
        self.is_over = False
        Echo.made.append(self)

    def received(self, data: bytes) -> None:
        self.heard += data
        self.connection.send(data * self.times)

    def ended(self) -> None:
        assert not self.is_over
        self.is_over = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(sockets, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(sockets, "REST", 0)
    Echo.made, Echo.times = [], 1
    made = Server()
    yield made
    made.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "echo")


def connect(server: Server, path: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.connect(path)
    server.serve()
    return peer


def serve_until(server: Server, holds: object) -> None:
    end = time.monotonic() + 5
    assert callable(holds)
    while not holds():
        assert time.monotonic() < end
        server.serve()


def test_a_peer_gets_what_its_session_sends(server: Server, path: str) -> None:
    server.listen(Address("unix", path=path), Echo, "The echo")
    with connect(server, path) as peer:
        peer.sendall(b"hello")
        server.serve()
        assert peer.recv(100) == b"hello"


def test_a_socket_file_is_its_owners_alone_and_goes_with_the_server(server: Server, path: str) -> None:
    server.listen(Address("unix", path=path), Echo, "The echo")
    assert stat.S_IMODE(os.stat(path).st_mode) & 0o600 == 0o600
    assert not os.stat(path).st_mode & 0o077
    server.close()
    assert not os.path.exists(path)


def test_a_port_of_0_becomes_one_that_is_free(server: Server) -> None:
    address = server.listen(Address("tcp"), Echo, "The echo")
    assert address.port
    with socket.create_connection((address.host, address.port)) as peer:
        server.serve()
        peer.sendall(b"x")
        serve_until(server, lambda: Echo.made and Echo.made[0].heard)
        server.serve()
        assert peer.recv(1) == b"x"


def test_what_a_run_that_was_killed_left_is_replaced(server: Server, path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(path)
    server.listen(Address("unix", path=path), Echo, "The echo")
    with connect(server, path):
        assert len(server.connections) == 1


@pytest.mark.parametrize("kind", ["a living server", "a file", "a folder that is missing"])
def test_a_place_that_is_taken_gets_one_sentence(server: Server, path: str, kind: str) -> None:
    if kind == "a file":
        Path(path).write_text("mine")
    elif kind == "a living server":
        server.listen(Address("unix", path=path), Echo, "The echo")
    else:
        path += "/deeper"
    with pytest.raises(ConfigError, match=rf"^The echo cannot be served at unix:{path}: [^:]*\.$"):
        server.listen(Address("unix", path=path), Echo, "The echo")
    if kind == "a file":
        assert Path(path).read_text() == "mine"


def test_a_peer_that_does_not_read_is_not_read_from(server: Server, path: str) -> None:
    server.listen(Address("unix", path=path), Echo, "The echo")
    Echo.times = 16
    with connect(server, path) as peer:
        peer.setblocking(False)
        sent = 0
        for _ in range(1000):
            with contextlib.suppress(BlockingIOError):
                sent += peer.send(bytes(4096))
            server.serve()
        assert len(Echo.made[0].heard) < sent
        assert len(server.connections) == 1
        got = 0
        end = time.monotonic() + 20
        while got < 16 * sent:
            assert time.monotonic() < end
            server.serve()
            with contextlib.suppress(BlockingIOError):
                got += len(peer.recv(1 << 20))
        assert got == 16 * sent


def test_a_peer_that_lets_events_pile_up_is_let_go(server: Server, path: str) -> None:
    server.listen(Address("unix", path=path), Echo, "The echo")
    with connect(server, path):
        for _ in range(100):
            Echo.made[0].connection.send(bytes(1 << 16))
            server.serve()
        assert Echo.made[0].is_over
        assert not server.connections


def test_a_peer_that_vanishes_ends_its_session_only(server: Server, path: str) -> None:
    server.listen(Address("unix", path=path), Echo, "The echo")
    first, second = connect(server, path), connect(server, path)
    first.sendall(b"half a li")
    first.close()
    serve_until(server, lambda: Echo.made[0].is_over)
    assert Echo.made[0].heard == b"half a li"
    second.sendall(b"x")
    serve_until(server, lambda: bool(Echo.made[1].heard))
    second.close()


def test_a_peer_that_sends_no_more_still_gets_its_answer(server: Server, path: str) -> None:
    server.listen(Address("unix", path=path), Echo, "The echo")
    with connect(server, path) as peer:
        peer.sendall(b"the last words")
        peer.shutdown(socket.SHUT_WR)
        serve_until(server, lambda: Echo.made[0].is_over)
        assert peer.recv(100) == b"the last words"
        assert peer.recv(100) == b""


def test_the_end_lets_peers_take_what_was_sent(server: Server, path: str) -> None:
    server.listen(Address("unix", path=path), Echo, "The echo")
    with connect(server, path) as peer:
        Echo.made[0].connection.send(b"goodbye")
        server.close()
        assert peer.recv(100) == b"goodbye"
        assert peer.recv(100) == b""


def test_there_is_an_end_to_how_many_peers_there_are(server: Server, path: str) -> None:
    server.listen(Address("unix", path=path), Echo, "The echo")
    peers = [connect(server, path) for _ in range(sockets.MOST_CONNECTIONS + 1)]
    assert len(server.connections) == sockets.MOST_CONNECTIONS
    assert peers[-1].recv(1) == b""
    for peer in peers:
        peer.close()


class Slow:
    """A session that does one thing a turn for each byte, and writes down whose turn it was."""

    turns: ClassVar[list[Slow]] = []

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.left = 0

    def received(self, data: bytes) -> None:
        self.left += len(data)
        self.go_on()

    def go_on(self) -> None:
        Slow.turns.append(self)
        self.left -= 1
        self.connection.send(b"x")
        if self.left:
            self.connection.go_on(self.go_on)

    def ended(self) -> None: ...


def test_a_session_with_much_to_do_does_a_piece_a_turn_and_is_not_read_from_meanwhile(
    server: Server, path: str
) -> None:
    Slow.turns = []
    server.listen(Address("unix", path=path), Slow, "The slow one")
    with connect(server, path) as peer:
        peer.sendall(b"abc")
        server.serve()
        assert len(Slow.turns) == 1
        assert server.awaited() is None  # nobody sleeps while there is something to do
        peer.sendall(b"de")
        server.serve()
        assert (len(Slow.turns), Slow.turns[0].left) == (2, 1)
        peer.shutdown(socket.SHUT_WR)
        serve_until(server, lambda: not server.connections)
        assert peer.recv(100) == b"xxxxx"


def test_a_turn_that_took_long_enough_leaves_the_others_for_the_next(
    server: Server, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Slow.turns = []
    server.listen(Address("unix", path=path), Slow, "The slow one")
    peers = [connect(server, path) for _ in range(3)]
    monkeypatch.setattr(sockets, "WORK_S", 0.0)
    for peer in peers:
        peer.sendall(b"abc")
    server.serve()
    assert Slow.turns == []
    monkeypatch.setattr(sockets, "WORK_S", 10.0)
    server.serve()
    assert len(set(map(id, Slow.turns))) == 3
    for peer in peers:
        peer.close()


def test_a_timer_is_waited_for_and_fires_once_it_is_due(server: Server) -> None:
    class Once:
        due_s: float | None = time.monotonic() + 0.05

        def fire(self) -> None:
            self.due_s = None

    timer = Once()
    server.timers.append(timer)
    assert server.due_s == timer.due_s
    server.serve()
    assert timer.due_s is not None
    serve_until(server, lambda: timer.due_s is None)
    assert server.due_s is None


def test_a_standard_output_that_takes_nothing_holds_nobody_up() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)  # as a standard output is, and who else has it counts on it
    connection = Connection(reader, writer)
    connection.send(b"x")
    flushing = threading.Thread(target=connection.flush, daemon=True)
    flushing.start()
    flushing.join(5)
    held_up = flushing.is_alive()
    os.read(reader, 1 << 20)
    flushing.join()
    assert not held_up and connection.has_unsent
    connection.flush()
    assert not connection.has_unsent
    os.close(reader)
    os.close(writer)
