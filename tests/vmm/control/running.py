"""A `vmm boot` of its own process, with a folder of its own for its sockets, and the commands that find it there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
VMM = [sys.executable, "-m", "vmm"]
PATIENCE_S = 60.0


def wait_until(holds: Callable[[], Any], what: str) -> Any:
    """What `holds` gives as soon as that is true."""
    end_s = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < end_s, f"{what} did not come"
        time.sleep(0.02)
    return found


class Place:
    """A folder for sockets, `vmm boot`s that are started with it, and commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"XDG_RUNTIME_DIR": str(folder), "COLUMNS": "120"}
        self.started: list[subprocess.Popen[bytes]] = []
        self.clients: list[Raw] = []

    def boot(self, *words: str, name: str = "vm", env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A machine that can be found as `name`, and answers."""
        with self._log(name).open("w") as log:  # not a pipe: who does not read it would hold the machine up
            process = subprocess.Popen(
                [*VMM, "boot", *words, "--name", name],
                cwd=ROOT,
                env=self.env | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        wait_until(lambda: self.socket(name).exists() or process.poll() is not None, name)
        return process

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def end(self, process: subprocess.Popen[bytes], name: str = "vm") -> str:
        """What it has printed, when it has ended."""
        process.wait(PATIENCE_S)
        return self._log(name).read_text()

    def socket(self, name: str) -> Path:
        return self.folder / "balloon-vmm" / f"{name}.sock"

    def vmm(self, *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        env = self.env | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [*VMM, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )

    def status(self, name: str) -> dict[str, Any]:
        """What `vmm ps --json` knows of it."""
        listed = json.loads(self.vmm("ps", "--json").stdout)
        return next(each for each in listed if each["name"] == name)

    def raw(self, name: str = "vm") -> Raw:
        """A client of QMP; it is closed with the place."""
        self.clients.append(Raw(self.socket(name)))
        return self.clients[-1]

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


class Raw:
    """A client that sends what it likes."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        wait_until(lambda: self._is_connected(path), "a place among those who wait")
        self._unread = b""

    def _is_connected(self, path: Path) -> bool:
        try:
            self.socket.connect(str(path))
        except BlockingIOError:
            return False
        return True

    def line(self) -> dict[str, Any]:
        while b"\n" not in self._unread:
            data = self.socket.recv(1 << 16)
            assert data, "the connection has ended"
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, command: str, **arguments: Any) -> Any:
        """What it answers; events are passed over."""
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments, "id": "asked"}).encode())
        while (message := self.line()).get("id") != "asked":
            pass
        return message["return"]

    def negotiated(self) -> Raw:
        assert "QMP" in self.line()
        self.ask("qmp_capabilities")
        return self

    def close(self) -> None:
        self.socket.close()
