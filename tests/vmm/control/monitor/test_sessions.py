"""The monitor as people reach it: by socket, by pipe, on a terminal, from the guest's console, and through QMP."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import pexpect
import pytest

from vmm import __version__
from vmm.control.monitor import Monitor
from vmm.control.monitor.sessions import LINES_A_TURN, MonitorSession
from vmm.control.sockets import Connection

ROOT = Path(__file__).resolve().parents[4]
VMM = [sys.executable, "-m", "vmm"]
PATIENCE_S = 60
BANNER = f"balloon-vmm {__version__} monitor - type 'help' for more information"
PROMPT = b"(qemu) "
FOREVER = ("--for", "1h")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vmm") as name:
        yield Path(name)


@contextmanager
def boot(folder: Path, *words: str, **how: Any) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}
    with (folder / "log").open("wb") as log:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log} | how
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [*VMM, "boot", *words], cwd=ROOT, env=environment, **streams
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


class Person:
    """Somebody with a terminal program at a socket."""

    def __init__(self, family: int, address: Any) -> None:
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        end_s = time.monotonic() + PATIENCE_S
        while self.socket.connect_ex(address):
            assert time.monotonic() < end_s, "nobody listens"
            time.sleep(0.05)

    def read_prompt(self) -> str:
        """All up to the next prompt, without it."""
        got = b""
        while not got.endswith(PROMPT):
            data = self.socket.recv(1 << 16)
            assert data, got
            got += data
        return got.removesuffix(PROMPT).decode()

    def ask(self, line: str) -> str:
        self.socket.sendall(line.encode() + b"\n")
        return self.read_prompt()

    def close(self) -> None:
        self.socket.close()


class Meet(Protocol):
    def __call__(self, family: int, address: Any) -> Person: ...


@pytest.fixture
def meet() -> Iterator[Meet]:
    """Makes people, who leave at the end."""
    met: list[Person] = []

    def make(family: int, address: Any) -> Person:
        met.append(Person(family, address))
        return met[-1]

    yield make
    for person in met:
        person.close()


# -- sockets -------------------------------------------------------------------------------------------------------


def test_several_people_at_one_socket(folder: Path, meet: Meet) -> None:
    path = folder / "monitor"
    with boot(folder, "stats", *FOREVER, "-monitor", f"unix:{path},server=on,wait=off") as process:
        first, second = meet(socket.AF_UNIX, str(path)), meet(socket.AF_UNIX, str(path))
        assert first.read_prompt() == second.read_prompt() == f"{BANNER}\r\n"
        assert first.ask("stop") == ""
        assert second.ask("info status") == "VM status: paused\r\n"
        assert second.ask("c") == ""
        assert first.ask("info status\r") == "VM status: running\r\n", "what is typed is not echoed"
        first.socket.sendall(b"info sta")  # somebody who vanishes in the middle of a line
        first.close()
        assert second.ask("info name") == "stats\r\n"
        second.socket.sendall(b"quit\n")
        while second.socket.recv(1 << 16):
            pass
        assert process.wait(PATIENCE_S) == 0
    assert not path.exists()


def test_a_flood_of_lines_holds_nobody_up(folder: Path, meet: Meet) -> None:
    path = folder / "monitor"
    with boot(folder, "stats", *FOREVER, "-monitor", f"unix:{path}"):
        flood, other = meet(socket.AF_UNIX, str(path)), meet(socket.AF_UNIX, str(path))
        flood.read_prompt()
        other.read_prompt()
        flood.socket.setblocking(False)
        sent = 0
        for _ in range(50):  # its answers are not read, and so in the end it is not read from either
            try:
                sent += flood.socket.send(b"info registers\n" * 4096)
            except BlockingIOError:
                time.sleep(0.01)
        assert sent > 0
        start_s = time.monotonic()
        assert other.ask("info status") == "VM status: running\r\n"
        assert time.monotonic() - start_s < 10
        flood.close()
        assert other.ask("x" * 100_000) == f"unknown command: '{'x' * 4095}'\r\n"


class Wire:
    """As much of a connection as a session uses."""

    def __init__(self) -> None:
        self.sent = b""
        self.work: Callable[[], None] | None = None

    def send(self, data: bytes) -> None:
        self.sent += data

    def go_on(self, work: Callable[[], None]) -> None:
        self.work = work


def test_many_lines_at_once_are_carried_out_a_few_in_a_turn(monitor: Monitor) -> None:
    wire = Wire()
    session = MonitorSession(cast(Connection, wire), monitor)
    session.received(b"".join(b"p %d\n" % number for number in range(100)) + b"p 1")
    turns = 1
    while wire.work is not None:
        assert wire.sent.count(PROMPT) <= turns * LINES_A_TURN + 1
        work, wire.work = wire.work, None
        work()
        turns += 1
    assert turns > 100 // LINES_A_TURN
    session.received(b"00\n")
    answers = wire.sent.decode().split("(qemu) ")
    assert answers == [f"{BANNER}\r\n", "0\r\n", *(f"{number:#x}\r\n" for number in range(1, 101)), ""]


def test_over_tcp(folder: Path, meet: Meet) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with boot(folder, "stats", *FOREVER, "-monitor", f"tcp:127.0.0.1:{port}"):
        person = meet(socket.AF_INET, ("127.0.0.1", port))
        assert person.read_prompt() == f"{BANNER}\r\n"
        assert re.fullmatch(r"balloon: actual=\d+\r\n", person.ask("info balloon"))


def test_through_qmp_and_from_the_shell(folder: Path, meet: Meet) -> None:
    with boot(folder, "stats", *FOREVER, "--name", "fred", "-qmp", f"unix:{folder / 'qmp'}"):
        person = meet(socket.AF_UNIX, str(folder / "qmp"))
        answers = []
        with person.socket.makefile("r") as lines:
            assert "QMP" in json.loads(lines.readline())
            for command, arguments in (
                ("qmp_capabilities", {}),
                ("human-monitor-command", {"command-line": "info status"}),
                ("human-monitor-command", {"command-line": "info pci"}),
            ):
                person.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
                answers.append(json.loads(lines.readline())["return"])
        assert answers[1] == "VM status: running\r\n"
        assert "PCI device 8086:1237\r\n" in answers[2]
        told = subprocess.run(
            [*VMM, "ctl", "fred", "xp", "/4xb", "0xfffffff0"],
            cwd=ROOT,
            env=os.environ | {"XDG_RUNTIME_DIR": str(folder)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert re.fullmatch(r"00000000fffffff0:( 0x[0-9a-f]{2}){4}\n", told.stdout), told


# -- the standard input and output -----------------------------------------------------------------------------------


def test_from_a_pipe(folder: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with boot(folder, "hello", "-S", "-monitor", "stdio", "--name", "fred", **pipes) as process:
        shown, _ = process.communicate(b"info name\ninfo status\nquit\n", PATIENCE_S)
        assert shown.decode() == (f"{BANNER}\n(qemu) fred\n(qemu) VM status: paused (prelaunch)\n(qemu) ")
        assert process.returncode == 0


def test_a_name_that_was_taken_is_told_as_it_became(folder: Path) -> None:
    """Two runs of one name: the second is called otherwise, and so by its monitor."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with boot(folder, "hello", "-S", "-monitor", "stdio", "--name", "fred", **pipes) as first:
        assert first.stdout is not None
        assert first.stdout.readline().decode() == f"{BANNER}\n", "it has its name by now"
        with boot(folder, "hello", "-S", "-monitor", "stdio", "--name", "fred", **pipes) as second:
            for process, name in ((second, "fred-2"), (first, "fred")):
                shown, _ = process.communicate(b"info name\nquit\n", PATIENCE_S)
                assert f"{name}\n" in shown.decode().removeprefix(f"{BANNER}\n").removeprefix("(qemu) ").splitlines(
                    True
                )


def test_the_end_of_a_pipe_is_not_the_machines(folder: Path) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with boot(folder, "hello", "-monitor", "stdio", **pipes) as process:
        shown, _ = process.communicate(b"info version\n", PATIENCE_S)
        assert f"balloon-vmm {__version__} " in shown.decode()
        assert process.returncode == 0


@contextmanager
def terminal(folder: Path, *words: str) -> Iterator[Any]:
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder), "TERM": "xterm"}
    child = pexpect.spawn(
        VMM[0], [*VMM[1:], "boot", *words], cwd=str(ROOT), env=environment, timeout=PATIENCE_S, dimensions=(40, 120)
    )
    try:
        yield child
    finally:
        child.close(force=True)


def test_on_a_terminal_lines_are_edited(folder: Path) -> None:
    with terminal(folder, "stats", "-S", "-monitor", "stdio") as child:
        child.expect_exact("(qemu) ")
        child.send("info stx\x7fatus\r")
        child.expect_exact("VM status: paused (prelaunch)\r\n(qemu) ")
        child.send("info uu\t")
        child.expect_exact("info uuid ")
        child.send("\r")
        child.expect_exact("00000000-0000-0000-0000-000000000000\r\n(qemu) ")
        child.send("\x1b[A\x1b[A")
        child.expect_exact("info status")
        child.send("\r")
        child.expect_exact("VM status: paused (prelaunch)\r\n(qemu) ")
        child.send("q\r")
        child.expect(pexpect.EOF)
        assert child.wait() == 0


@pytest.mark.parametrize("place", ["stdio", "mon:stdio"])
def test_behind_ctrl_a_c_on_the_guests_console(place: str, folder: Path) -> None:
    with terminal(folder, "stats", *FOREVER, "-serial", place) as child:
        child.expect_exact("entering the guest")
        child.send("\x01h")
        child.expect_exact("Ctrl-A C  from the guest's console to the monitor, and back")
        child.send("\x01c")
        child.expect_exact(f"{BANNER}\r\n(qemu) ")
        child.send("info balx\x08\t\r")
        child.expect(r"balloon: actual=\d+\r\n\(qemu\) ")
        child.send("balloon 48\r")
        child.expect_exact("(qemu) ")
        child.expect_exact("stats: target 4096 pages reached")  # the guest's output goes on meanwhile
        child.send("stop\rinfo status\r")
        child.expect_exact("VM status: paused\r\n(qemu) ")
        child.send("\x01c\x01c")
        child.expect_exact("(qemu) ")
        child.send("cont\rinfo status\r")
        child.expect_exact("VM status: running\r\n(qemu) ")
        child.send("\x01x")
        child.expect(pexpect.EOF)
        assert child.wait() == 130


def test_ctrl_c_ends_a_run_on_stdio_and_is_the_guests_on_mon_stdio(folder: Path) -> None:
    with terminal(folder, "stats", *FOREVER, "-serial", "mon:stdio") as child:
        child.expect_exact("entering the guest")
        child.send("\x03\x01c")
        child.expect_exact("(qemu) ")
        child.send("half a line\x03info name\r")
        child.expect_exact("stats\r\n(qemu) ")
        child.send("quit\r")
        child.expect(pexpect.EOF)
        assert child.wait() == 0
    with terminal(folder, "stats", *FOREVER, "-serial", "stdio") as child:
        child.expect_exact("entering the guest")
        child.send("\x03")
        child.expect(pexpect.EOF)
        assert child.wait() == 130


def test_mon_stdio_in_a_pipe(folder: Path) -> None:
    """As scripts drive QEMU's -nographic."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with boot(folder, "stats", *FOREVER, "-serial", "mon:stdio", **pipes) as process:
        shown, _ = process.communicate(b"\x01cinfo name\nquit\n", PATIENCE_S)
        assert f"{BANNER}\n(qemu) stats\n(qemu) ".encode() in shown
        assert process.returncode == 0
