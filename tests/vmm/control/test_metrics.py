"""What Prometheus scrapes, read by its own parser and by curl, and as much of HTTP as that takes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

import vmm
from tests.vmm.control.qmp.talk import Wire
from tests.vmm.control.running import Place
from vmm.control.exposition import exposition
from vmm.control.metrics import MetricsSession
from vmm.control.sockets import Connection
from vmm.control.status import status
from vmm.machine import Machine

MIB = 1 << 20
UNPACKED = Path(__file__).resolve().parents[3] / ".venv/packages"


def unpacked_or_installed(name: str) -> tuple[str | None, dict[str, str]]:
    """The program `name` of Debian's package, as tools/debian-package unpacks it with what it needs, and its
    environment; or the one that is installed."""
    program = UNPACKED / name / f"usr/bin/{name}"
    if not program.is_file():
        return shutil.which(name), dict(os.environ)
    libraries = ":".join(str(UNPACKED / name / place / "x86_64-linux-gnu") for place in ("usr/lib", "lib"))
    return str(program), {**os.environ, "LD_LIBRARY_PATH": libraries}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with vmm.boot("stats", targets="40M@0.2", poll=0.1) as made:
        made.run("1s")
        yield made


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation and family.type in ("gauge", "counter")
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_the_figures_are_prometheus(machine: Machine) -> None:
    found = samples(exposition(status(machine, 'a "name" \\ of\nlines')))
    ((labels, value),) = found["vmm_balloon_actual_bytes"]
    assert labels == {"vm": 'a "name" \\ of\nlines', "device": "balloon0"} and value == 24 * MIB
    assert found["vmm_guest_ram_bytes"][0][1] == 40 * MIB
    assert found["vmm_ram_bytes"][0][1] == 64 * MIB
    assert found["vmm_guest_memory_free_bytes"][0][1] == machine.stats.values["stat-free-memory"]
    assert found["vmm_guest_time_seconds_total"][0][1] == pytest.approx(1.0, abs=0.01)
    assert {labels["state"] for labels, value in found["vmm_state"] if value} == {"running"}
    queues = {labels["queue"]: value for labels, value in found["vmm_virtqueue_requests_total"]}
    assert queues == {queue.name: queue.requests for queue in machine.board.virtio_devices[0].queues}
    assert found["vmm_balloon_inflated_bytes_total"][0][1] == machine.balloon.inflated_pages * 4096


def test_without_a_balloon_there_are_the_others() -> None:
    with vmm.boot("hello", devices=["virtio-rng-pci"]) as machine:
        found = samples(exposition(status(machine, "x")))
        assert "vmm_ram_bytes" in found and not any("balloon" in name for name in found)


class Peer(Wire):
    """A client of HTTP without a socket."""

    is_open = True

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.session = MetricsSession(cast(Connection, self), machine, "fred")

    def finish(self) -> None:
        self.is_open = False

    def say(self, *pieces: bytes) -> bytes:
        for piece in pieces:
            self.session.received(piece)
            while self.work is not None and self.is_open:
                work, self.work = self.work, None
                work()
        sent, self.sent = self.sent, b""
        return sent


@pytest.fixture
def peer(machine: Machine) -> Peer:
    return Peer(machine)


def test_a_request_may_be_cut_anywhere_and_others_follow(peer: Peer) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = peer.say(*(bytes([byte]) for byte in request))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert samples(body.decode())["vmm_info"][0][0]["guest"] == "stats"
    assert peer.is_open
    assert peer.say(request * 3).count(b"HTTP/1.1 200") == 3


def test_a_head_is_the_same_without_the_page(peer: Peer) -> None:
    answer = peer.say(b"HEAD /metrics?x=1 HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n") and b"Content-Length: 0" not in answer


@pytest.mark.parametrize(
    ("request_text", "status_code", "stays"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"200", True),
        (b"GET /nope HTTP/1.1\r\n\r\n", b"404", True),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405", False),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", b"405", True),
        (b"GET /metrics HTTP/1.0\r\n\r\n", b"200", False),
        (b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n", b"200", False),
        (b"GET /metrics HTTP/2\r\n\r\n", b"400", False),
        (b"nonsense\r\n\r\n", b"400", False),
        (b"\x16\x03\x01\xff\r\n\r\n", b"400", False),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9000, b"431", False),
    ],
)
def test_other_requests(peer: Peer, request_text: bytes, status_code: bytes, stays: bool) -> None:
    assert peer.say(request_text)[9:12] == status_code
    assert peer.is_open == stays


def test_curl_reads_it_from_a_machine_that_runs(place: Place) -> None:
    curl, env = unpacked_or_installed("curl")
    if curl is None:
        pytest.skip("Debian's package curl is neither unpacked nor installed; see what tools/debian-package says")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    place.boot("stats", "--for", "10min", "--clock", "realtime", "--metrics", f":{port}")
    url = f"http://127.0.0.1:{port}/metrics"
    done = subprocess.run(
        [curl, "-sS", "--fail", url, url], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.count("# TYPE vmm_info gauge") == 2
    assert samples(done.stdout[: len(done.stdout) // 2])


def test_a_port_that_is_taken_is_one_sentence(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = place.vmm("boot", "hello", "--metrics", f"127.0.0.1:{port}")
    assert done.returncode == 2
    assert done.stderr == f"vmm: The metrics cannot be served at tcp:127.0.0.1:{port}: Address already in use.\n"
