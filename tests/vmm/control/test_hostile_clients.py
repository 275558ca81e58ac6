"""Clients that flood, dawdle or vanish: the machine goes on, and those who behave are answered."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.vmm.control.running import PATIENCE_S, Place, wait_until
from vmm.control import sockets

VIRTUAL = ("stats", "--target", "40M@0.5,64M@1", "--poll", "0.5", "--for", "2s", "--clock", "virtual", "--json")
RUNNING = ("stats", "--target", "", "--poll", "0.1", "--for", "10min", "--clock", "realtime")


class Flood:
    """Somebody who sends `data` over and over, and reads whatever comes, until the context ends."""

    def __init__(self, place: Place, data: bytes, *, reads: bool = True) -> None:
        self.sent = 0
        self._data = data
        self._raw = place.raw()
        self._threads = [threading.Thread(target=self._send), *([threading.Thread(target=self._read)] if reads else [])]

    def _send(self) -> None:
        with suppress(OSError):
            while True:
                self._raw.socket.sendall(self._data)
                self.sent += len(self._data)

    def _read(self) -> None:
        with suppress(OSError):
            while self._raw.socket.recv(1 << 20):
                pass

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # it may have been let go
            self._raw.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._raw.close()


FLOODS = {
    "malformed lines": b"what is this?\n{]\n" * 1000,
    "half a message": b'{"execute": "query-status", "arguments": {"x": [' * 1000,
    "a string without an end": b'"' + b"x" * 100_000,
    "white space": b" \r\n" * 10_000,
    "zeros": bytes(100_000),
    "no UTF-8": b"\xff\xc0\xfe" * 10_000,
    "commands": b'{"execute":"query-qmp-schema"}' * 1000,
    "new targets": b"".join(b'{"execute":"balloon","arguments":{"value":%d000000}}' % mb for mb in (50, 60)) * 500,
}


@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_costs_others_their_answer_and_the_guest_its_progress_never(place: Place, kind: str) -> None:
    place.boot(*RUNNING)
    good = place.raw().negotiated()
    wait_until(lambda: good.ask("x-vmm-status")["balloon"]["driver-ready"], "the driver")
    hello = b'{"execute":"qmp_capabilities"}'
    with Flood(place, hello + FLOODS[kind]) as first, Flood(place, hello + FLOODS[kind], reads=False):
        wait_until(lambda: first.sent > 50_000, "the flood")
        before = good.ask("x-vmm-status")
        reports = before["balloon"]["stats-reports"]
        # The guest's timer, its driver and its statistics go on: ten times its polling interval.
        after = wait_until(
            lambda: (found := good.ask("x-vmm-status"))["balloon"]["stats-reports"] >= reports + 10 and found, "reports"
        )
        assert after["status"] == "running"
        assert after["blocks"] > before["blocks"]
        guest_s = (after["time-ns"] - before["time-ns"]) / 1e9
        assert guest_s >= 0.9  # ten intervals of 0.1 s


def test_a_million_malformed_lines_are_answered_one_by_one(place: Place) -> None:
    place.boot(*RUNNING)
    lines = 1_000_000
    raw = place.raw()
    assert "QMP" in raw.line()

    def send() -> None:
        for _ in range(lines // 1000):
            raw.socket.sendall(b"}\n" * 1000)

    sender = threading.Thread(target=send)
    sender.start()
    expected = b'{"error": {"class": "GenericError", "desc": "JSON parse error, expecting value"}}\r\n'
    left = lines * len(expected)
    raw.socket.settimeout(PATIENCE_S)
    tail = b""
    while left:
        data = raw.socket.recv(min(1 << 20, left))
        assert data, "the connection has ended"
        left -= len(data)
        tail = (tail + data)[-len(expected) :]
    sender.join()
    assert tail == expected
    raw.ask("qmp_capabilities")
    assert raw.ask("query-status")["status"] == "running"


def run_virtual(place: Place, disturb: Any = None) -> str:
    """The report of a run with the virtual clock, without the time it took."""
    process = place.boot(*VIRTUAL)
    if disturb is not None:
        disturb()
    output = place.end(process)
    report = json.loads(output)
    del report["wall_s"]
    return json.dumps(report)


def test_a_virtual_run_is_the_same_to_the_byte_with_a_flood_and_with_nobody(place: Place) -> None:
    def flood() -> None:
        with suppress(OSError), Flood(place, FLOODS["malformed lines"]), place.raw().negotiated().socket:
            wait_until(lambda: place.started[-1].poll() is not None, "the end")

    assert run_virtual(place, flood) == run_virtual(place)


def test_a_run_where_no_socket_can_be_made_is_the_same(place: Place) -> None:
    with_socket = run_virtual(place)
    folder = place.folder / "balloon-vmm"
    folder.rmdir()
    folder.write_text("no folder")
    done = place.vmm("boot", *VIRTUAL, "--name", "vm")
    assert done.returncode == 0 and done.stderr == ""
    report = json.loads(done.stdout)
    del report["wall_s"]
    assert json.dumps(report) == with_socket
    assert place.vmm("ps").stdout.splitlines()[1:] == []


def test_clients_that_vanish_within_a_line_leave_nothing_behind(place: Place) -> None:
    process = place.boot(*RUNNING)
    good = place.raw().negotiated()
    before = len(os.listdir(f"/proc/{process.pid}/fd"))
    for number in range(200):
        raw = place.raw()
        raw.socket.sendall(b'{"execute":"qmp_capabilities"}{"execute":"qu')
        if number % 2:
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        raw.close()
    assert good.ask("query-status")["status"] == "running"
    wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) <= before, "the end of the connections")


def test_a_client_that_does_not_read_is_let_go_when_too_much_has_come_for_it(place: Place) -> None:
    process = place.boot(*RUNNING)
    good = place.raw().negotiated()
    slow = place.raw().negotiated()
    slow.socket.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            slow.socket.send(b'{"execute":"query-qmp-schema"}' * 100)
    for _ in range(20):
        assert good.ask("query-status")["status"] == "running"
    held = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096
    assert held < 64 * (1 << 20) + 50 * sockets.MOST_UNSENT_BYTES
    slow.close()


def test_a_machine_that_stands_still_is_told_so_and_others_are_found(place: Place) -> None:
    process = place.boot(*RUNNING)
    place.boot(*RUNNING, name="other")
    process.send_signal(signal.SIGSTOP)
    lines = place.vmm("ps").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "other", "vm"]
    assert "unresponsive" in lines[2] and lines[2].split()[1] == str(process.pid)
    start_s = time.monotonic()
    assert place.vmm("balloon", "vm", "50M", "--wait", "--timeout", "1s").returncode == 2
    assert time.monotonic() - start_s < 8
    process.send_signal(signal.SIGCONT)
    assert "running" in place.vmm("ps").stdout.splitlines()[2]
