"""A small gdb for tests: it knows the protocol from gdb's manual, and nothing of the code that it talks to.

`Bench` debugs a machine of this process, without a socket.  Every answer that it waits for must come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import vmm
from vmm.control.gdb.server import GdbServer
from vmm.control.gdb.session import Monitor
from vmm.control.sockets import Connection, Session
from vmm.machine import Machine

GENERAL = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
RIP, EFLAGS, CS, FS_BASE, CR0, ST0, FSTAT, FTAG, FISEG, XMM0, MXCSR = 16, 17, 18, 24, 27, 33, 42, 43, 44, 49, 65


def frame(data: bytes) -> bytes:
    return b"$" + data + b"#" + format(sum(data) % 256, "02x").encode()


class Wire:
    """Stands in a `Connection`'s place and keeps what was sent."""

    def __init__(self) -> None:
        self.sent = b""
        self.is_open = True

    def send(self, data: bytes) -> None:
        assert self.is_open
        self.sent += data

    def finish(self) -> None:
        self.is_open = False

    close = finish

    def take(self) -> bytes:
        sent, self.sent = self.sent, b""
        return sent


def parse(sent: bytes) -> list[bytes]:
    """The packets in `sent`, each with a right checksum, and nothing between them but acknowledgments."""
    packets = []
    rest = sent
    while rest:
        found = re.match(rb"[+]*(?:\$([^#$]*)#([0-9a-f]{2}))?", rest, re.DOTALL)
        assert found is not None and found.end(), rest
        if found[1] is not None:
            assert int(found[2], 16) == sum(found[1]) % 256
            packets.append(found[1])
        rest = rest[found.end() :]
    return packets


class Bench:
    """One gdb at one machine; `wire` is how it hears."""

    def __init__(self, machine: Machine, monitor: Monitor | None = None) -> None:
        self.machine = machine
        self.server = GdbServer(machine, monitor)
        self.wire = Wire()
        self.session = self.connect(self.wire)

    def connect(self, wire: Wire) -> Session:
        return self.server.make_session(cast(Connection, wire))

    def send(self, data: bytes) -> None:
        self.session.received(frame(data))

    def answers(self, data: bytes) -> list[bytes]:
        """What a packet is answered at once."""
        self.send(data)
        return parse(self.wire.take())

    def ask(self, data: bytes) -> bytes:
        (answer,) = self.answers(data)
        return answer

    def go(self, data: bytes = b"c") -> bytes:
        """Let it run, and see why it stopped."""
        assert self.answers(data) == []
        self.machine.run()
        (answer,) = parse(self.wire.take())
        return answer

    def register(self, number: int) -> int:
        return int.from_bytes(bytes.fromhex(self.ask(b"p%x" % number).decode()), "little")

    def memory(self, address: int, length: int) -> bytes:
        return bytes.fromhex(self.ask(b"m%x,%x" % (address, length)).decode())


@contextmanager
def bench(guest: str = "hello", monitor: Monitor | None = None, **options: Any) -> Iterator[Bench]:
    """A gdb at a machine that stands at its reset vector."""
    with vmm.boot(guest, **options) as machine:
        yield Bench(machine, monitor)
