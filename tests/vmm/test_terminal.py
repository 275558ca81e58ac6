"""The input side of the serial console: escapes, flow control, the end of the input, and the terminal's mode."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import termios
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from devices.serial import MCR_DTR, MCR_OUT2, MCR_RTS, Serial
from vmm.control.attendants import Attendants
from vmm.machine import Machine
from vmm.terminal import HELP, ConsoleInput, Keys, console_input, raw_mode


class FakeMachine:
    """A 16550 that a guest reads when told to, and a clock."""

    def __init__(self, *, rts: bool = True) -> None:
        self.serial = Serial()
        self.serial.write(2, 1, 1, 0)  # FIFOs on
        self.serial.write(4, 1, MCR_DTR | MCR_OUT2 | (MCR_RTS if rts else 0), 0)
        self.board = SimpleNamespace(serial=self.serial)
        self.attendants: Attendants | None = None
        self.now_ns = 0
        self.interrupted = False
        self.debug_sinks: list[object] = []

    def send_console(self, data: bytes) -> int:
        accepted, _ = self.serial.receive(data, self.now_ns)
        return accepted

    def interrupt(self) -> None:
        self.interrupted = True

    def guest_reads(self) -> bytes:
        """Everything that waits in the port."""
        got = bytearray()
        while self.serial.received:
            value, _ = self.serial.read(0, 1, 0)
            got.append(value)
        return bytes(got)

    def as_machine(self) -> Machine:
        return cast(Machine, self)


def no_monitor() -> NoReturn:
    pytest.fail("nobody has asked for the monitor")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(fd)


def attending(machine: FakeMachine, fd: int, *keys: Keys, **how: Any) -> Attendants:
    """The console's input from `fd`, and nobody else."""
    return Attendants(machine.as_machine(), ConsoleInput(machine.as_machine(), fd, *keys, **how))


def all_that_comes(machine: FakeMachine, source: Attendants, rounds: int = 1000) -> bytes:
    """What the guest reads if it reads after each round, until nothing more comes."""
    got = bytearray()
    for _ in range(rounds):
        source.serve()
        piece = machine.guest_reads()
        if not piece:
            break
        got += piece
    return bytes(got)


# -- the escape ----------------------------------------------------------------------------------------------------


class Overheard:
    """A monitor that notes what happens to it."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def open(self) -> None:
        self._said.append("(opened)")

    def close(self) -> None:
        self._said.append("(closed)")

    def feed(self, typed: bytes) -> None:
        self._said.append(typed.decode("latin-1"))


def keys() -> tuple[Keys, list[str]]:
    said: list[str] = []
    return Keys(lambda: said.append("left"), said.append, lambda: Overheard(said)), said


@pytest.mark.parametrize(
    ("typed", "passed", "said"),
    [
        (b"plain\x03\x1a\x04", b"plain\x03\x1a\x04", ""),
        (b"a\x01ab", b"a\x01b", ""),
        (b"\x01\x01x", b"\x01x", ""),
        (b"\x01x", b"", "left"),
        (b"\x01Xy", b"y", "left"),
        (b"\x01h", b"", "Ctrl-A X  end the machine and leave"),
        (b"\x01?z", b"z", "Ctrl-A H  this help"),
    ],
)
def test_ctrl_a_is_the_only_escape(typed: bytes, passed: bytes, said: str) -> None:
    for cut in range(len(typed) + 1):
        each, heard = keys()
        assert each.feed(typed[:cut]) + each.feed(typed[cut:]) == passed
        assert len(heard) == bool(said)
        assert said in "".join(heard)


@pytest.mark.parametrize(
    ("typed", "passed", "said"),
    [
        (b"a\x01cb", b"a", "(opened)b"),
        (b"a\x01Cb\x01cd", b"ad", "(opened)b(closed)"),
        (b"\x01c1\x01a\x01\x012\x01c3\x01c4", b"3", "(opened)1\x01\x012(closed)(opened)4"),
        (b"\x01c\x01xy", b"", "(opened)lefty"),
        (b"\x01c\x01hz\x01cq", b"q", "(opened)" + HELP + "z(closed)"),
    ],
)
def test_ctrl_a_c_gives_the_keys_to_the_monitor_and_back(typed: bytes, passed: bytes, said: str) -> None:
    for cut in range(len(typed) + 1):
        each, heard = keys()
        assert each.feed(typed[:cut]) + each.feed(typed[cut:]) == passed
        assert "".join(heard) == said


# -- from a pipe ---------------------------------------------------------------------------------------------------


def test_everything_arrives_in_order_however_much_it_is(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sent = bytes(number * 7 % 251 for number in range(30_000))
    os.write(writer, sent)
    machine = FakeMachine()
    with attending(machine, reader) as source:
        assert all_that_comes(machine, source, 5000) == sent


def test_what_the_port_does_not_take_is_kept_for_later(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"0123456789abcdefghij")
    machine = FakeMachine()
    with attending(machine, reader) as source:
        for _ in range(5):
            source.serve()  # the guest reads nothing meanwhile
        assert machine.guest_reads() == b"0123456789abcdef"
        source.serve()
        assert machine.guest_reads() == b"ghij"


def test_what_the_guest_clears_before_it_has_read_it_is_typed_again(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"0123456789abcdefghij")
    machine = FakeMachine()
    with attending(machine, reader) as source:
        source.serve()
        machine.serial.write(2, 1, 0, 0)  # a driver that starts switches the FIFOs off and on,
        source.serve()
        machine.serial.write(4, 1, MCR_DTR, 0)  # takes RTS back,
        machine.serial.write(2, 1, 7, 0)  # clears what came meanwhile,
        source.serve()
        assert machine.guest_reads() == b""
        machine.serial.write(4, 1, MCR_DTR | MCR_RTS, 0)  # and opens the port
        assert all_that_comes(machine, source) == b"0123456789abcdefghij"


def test_a_writer_waits_while_the_guest_does_not_read(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    machine = FakeMachine()
    written = 0
    with attending(machine, reader) as source:
        for _ in range(100):
            try:
                written += os.write(writer, b"x" * 4096)
            except BlockingIOError:
                break
            source.serve()
        else:
            pytest.fail("the pipe was read without end")


def test_nothing_is_sent_while_rts_is_off(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"hello")
    machine = FakeMachine(rts=False)
    with attending(machine, reader) as source:
        source.serve()
        assert machine.guest_reads() == b""
        machine.serial.write(4, 1, MCR_DTR | MCR_RTS | MCR_OUT2, 0)
        source.serve()
        assert machine.guest_reads() == b"hello"


def test_nothing_is_sent_before_the_guest_is_ready(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"hello")
    machine, ready = FakeMachine(), False
    with attending(machine, reader, is_ready=lambda: ready) as source:
        source.serve()
        assert machine.guest_reads() == b""
        ready = True
        source.serve()
        assert machine.guest_reads() == b"hello"


def test_the_end_is_typed_after_everything_else_and_again_each_second(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"x" * 20)
    os.close(writer)
    machine = FakeMachine()
    with attending(machine, reader, types_end=True) as source:
        assert source.can_wake
        assert all_that_comes(machine, source) == b"x" * 20 + b"\x04"
        machine.now_ns += 999_999_999
        source.serve()
        assert machine.guest_reads() == b""
        machine.now_ns += 1
        source.serve()
        assert machine.guest_reads() == b"\x04"
        assert source.can_wake


def test_without_being_asked_the_end_is_not_typed_and_nothing_can_wake_the_guest(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"x")
    os.close(writer)
    machine = FakeMachine()
    with attending(machine, reader) as source:
        assert source.can_wake
        assert all_that_comes(machine, source) == b"x"
        source.serve()
        assert not source.can_wake
        source.serve()
        assert machine.guest_reads() == b""


def test_a_file_of_the_disk_is_read_like_a_pipe(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("input") / "file"
    path.write_bytes(b"y" * 100)
    machine = FakeMachine()
    with open(path, "rb") as file, attending(machine, file.fileno()) as source:
        assert all_that_comes(machine, source) == b"y" * 100


# -- sleeping ------------------------------------------------------------------------------------------------------


def elapsed(source: Attendants, seconds: float) -> float:
    start = time.monotonic()
    source.wait(seconds)
    return time.monotonic() - start


def test_input_ends_a_wait_and_no_input_does_not(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    machine = FakeMachine()
    with attending(machine, reader) as source:
        assert elapsed(source, 0.05) >= 0.04
        later = threading.Timer(0.05, os.write, (writer, b"k"))
        later.start()
        source.wait(60)  # a second at most; what ends it is seen below
        later.join()
        source.serve()
        assert machine.guest_reads() == b"k"


def test_input_that_the_guest_cannot_have_yet_does_not_end_a_wait(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"typed too early")
    machine = FakeMachine(rts=False)
    with attending(machine, reader) as source:
        source.serve()
        assert elapsed(source, 0.05) >= 0.04


def test_a_signal_ends_a_wait_at_once(pipe: tuple[int, int]) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with attending(FakeMachine(), pipe[0]) as source:
            later = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
            later.start()
            source.wait(60)
            later.join()
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- a terminal ----------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """(the user's end, the program's end) of a pseudo-terminal."""
    user, program = pty.openpty()
    yield user, program
    os.close(user)
    os.close(program)


def flags(fd: int) -> tuple[int, int]:
    attributes = termios.tcgetattr(fd)
    return attributes[0], attributes[3]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_terminal_is_as_before_however_it_ends(
    error: type[BaseException] | None, terminal: tuple[int, int]
) -> None:
    before = termios.tcgetattr(terminal[1])
    try:
        with raw_mode(terminal[1], signals=False):
            incoming, local = flags(terminal[1])
            assert not local & (termios.ECHO | termios.ICANON | termios.ISIG)
            assert not incoming & (termios.ICRNL | termios.IXON)
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt, SystemExit):
        pass
    assert termios.tcgetattr(terminal[1]) == before


def test_the_terminals_signals_stay_where_they_are_wanted(terminal: tuple[int, int]) -> None:
    with raw_mode(terminal[1], signals=True):
        assert flags(terminal[1])[1] & termios.ISIG


def test_leaving_works_before_the_guest_wants_input(terminal: tuple[int, int]) -> None:
    machine = FakeMachine(rts=False)
    each = Keys(machine.interrupt, lambda text: None, lambda: Overheard([]))
    with (
        raw_mode(terminal[1], signals=False),
        attending(machine, terminal[1], each, is_ready=lambda: False) as source,
    ):
        os.write(terminal[0], b"typed ahead\x01x")
        source.wait(1)
        source.serve()
        assert machine.interrupted
        assert machine.guest_reads() == b""


def test_a_machine_has_its_attendants_only_while_they_are_there(pipe: tuple[int, int]) -> None:
    machine = FakeMachine()
    with attending(machine, pipe[0]) as source:
        assert machine.attendants is source
    assert machine.attendants is None


def test_a_closed_standard_input_is_one_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    monkeypatch.setattr("sys.stdin", None)
    with console_input(machine.as_machine(), None, no_monitor) as source:
        source.serve()
        assert not source.can_wake


def test_a_shell_hears_that_the_standard_input_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    monkeypatch.setattr("sys.stdin", None)
    with console_input(machine.as_machine(), b"ready", no_monitor) as source:
        (listen,) = machine.debug_sinks
        assert callable(listen)
        listen(b"ready")
        source.serve()
        source.serve()
        assert machine.guest_reads() == b"\x04"


def test_a_shell_gets_input_when_it_has_said_its_words(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMachine()
    os.write(pipe[1], b"ls\n")
    with open(pipe[0], closefd=False) as file:
        monkeypatch.setattr("sys.stdin", file)
        with console_input(machine.as_machine(), b"ready\n", no_monitor) as source:
            source.serve()
            assert machine.guest_reads() == b""
            (listen,) = machine.debug_sinks
            assert callable(listen)
            for piece in (b"not yet, re", b"ad", b"y", b"\n"):
                listen(piece)
            source.serve()
            assert machine.guest_reads() == b"ls\n"


def test_a_console_that_is_shared_has_its_escapes_in_a_pipe_too(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, said = FakeMachine(), list[str]()
    os.write(pipe[1], b"a\x01cinfo\x01cb")
    with open(pipe[0], closefd=False) as file:
        monkeypatch.setattr("sys.stdin", file)
        with console_input(machine.as_machine(), None, lambda: Overheard(said), is_shared=True) as source:
            source.serve()
            source.serve()
            assert machine.guest_reads() == b"ab"
            assert "".join(said) == "(opened)info(closed)"
