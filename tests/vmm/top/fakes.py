"""Machines that are none: sockets at which something speaks as much of QMP as `vmm top` asks for, or less."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MIB = 1 << 20


def status(name: str = "fake", **changes: Any) -> dict[str, Any]:
    """What x-vmm-status answers: 64 MiB of RAM, 16 MiB in the balloon; keys of `balloon` are changed in it."""
    balloon = {
        "id": "balloon0",
        "driver-ready": True,
        "target": 16 * MIB,
        "actual": 16 * MIB,
        "guest-ram": 48 * MIB,
        "target-guest-ram": 48 * MIB,
        "polling-interval-ns": 0,
        "stats-reason": "ok",
        "stats-reports": 1,
        "stats-age-ns": 500_000_000,
        "stats": {"stat-free-memory": 20 * MIB, "stat-major-faults": 12, "stat-swap-in": 4096},
    }
    found = {
        "name": name,
        "pid": 4711,
        "guest": "stats",
        "arch": "x86_64",
        "clock": "realtime",
        "status": "running",
        "time-ns": 1_500_000_000,
        "ram": 64 * MIB,
        "host-memory": 40 * MIB,
        "queues": [{"device": "balloon0", "name": "inflateq", "requests": 7}],
    }
    balloon_changes = {name: changes.pop(name) for name in list(changes) if name in balloon}
    return found | {"balloon": balloon | balloon_changes} | changes


class FakeVm:
    """Serves at `path` until `close`.  `asked` is every command it got, `mute` has it say nothing."""

    def __init__(self, path: Path, **changes: Any) -> None:
        self.path = path
        self.name = path.stem
        self.status = status(self.name, **changes)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.mute = threading.Event()
        self.refuses: dict[str, str] = {}
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "qmp_capabilities": lambda arguments: {},
            "x-vmm-status": lambda arguments: self.status,
            "balloon": self._balloon,
            "stop": lambda arguments: self._state("paused", "STOP"),
            "cont": lambda arguments: self._state("running", "RESUME"),
            "x-query-virtio": lambda arguments: [{"path": "/machine/b/virtio-backend", "name": "virtio-balloon"}],
            "qom-set": lambda arguments: self._poll(arguments["value"]),
        }
        self._peers: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(4)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for peer in self._peers:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def event(self, name: str, **data: Any) -> None:
        stamp = {"seconds": int(time.time()), "microseconds": 0}
        for peer in self._peers:
            with suppress(OSError):
                self._send(peer, {"timestamp": stamp, "event": name} | ({"data": data} if data else {}))

    def commands(self) -> list[str]:
        """What it was asked to do, without what was only looked at."""
        looks = ("qmp_capabilities", "x-vmm-status", "x-query-virtio")
        return [name for name, _ in self.asked if name not in looks]

    def _balloon(self, arguments: dict[str, Any]) -> dict[str, Any]:
        left = arguments["value"]
        self.status["balloon"] |= {"target-guest-ram": left, "target": self.status["ram"] - left}
        self.status["balloon"] |= {"guest-ram": left, "actual": self.status["ram"] - left}
        self.event("BALLOON_CHANGE", actual=left)
        return {}

    def _state(self, state: str, event: str) -> dict[str, Any]:
        self.status["status"] = state
        self.event(event)
        return {}

    def _poll(self, seconds: int) -> dict[str, Any]:
        self.status["balloon"]["polling-interval-ns"] = seconds * 10**9
        return {}

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self._peers.append(peer)
            thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, suppress(OSError):
            if not self.mute.is_set():
                self._send(peer, {"QMP": {"version": {}, "capabilities": []}})
            decoder, unread = json.JSONDecoder(), ""
            while data := peer.recv(4096):
                unread += data.decode()
                while unread:
                    request, end = decoder.raw_decode(unread)
                    unread = unread[end:].lstrip()
                    while self.mute.is_set():
                        time.sleep(0.01)
                    self._send(peer, self._answer(request) | {"id": request["id"]})

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["execute"]
        self.asked.append((name, request.get("arguments", {})))
        if name in self.refuses:
            return {"error": {"class": "GenericError", "desc": self.refuses[name]}}
        return {"return": self.answers[name](request.get("arguments", {}))}

    @staticmethod
    def _send(peer: socket.socket, message: dict[str, Any]) -> None:
        peer.sendall(json.dumps(message).encode() + b"\r\n")


@contextmanager
def fake_vms(folder: Path, *names: str, **changes: Any) -> Iterator[list[FakeVm]]:
    """Some of them at once, in one folder."""
    made = [FakeVm(folder / f"{name}.sock", **changes) for name in names]
    try:
        yield made
    finally:
        for each in made:
            each.mute.clear()
            each.close()


def sockets_in(folder: Path) -> Callable[[], dict[str, Path]]:
    """The sockets of a folder by name, as the registry has them."""
    return lambda: {path.stem: path for path in sorted(folder.glob("*.sock"))}
