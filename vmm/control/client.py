"""A client of QMP for the shell's commands: it asks one running machine, and waits for answers, but never for ever."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from devices.errors import ConfigError
from vmm.control import registry

ANSWER_S = 10.0
LOOK_S = 2.0
"""How long a machine that is only looked at may take to answer."""
MOST_EVENTS = 100
_PEER = struct.Struct("3i")


class Refused(Exception):
    """The machine answered with an error: its class and what it says."""

    def __init__(self, class_: str, desc: str) -> None:
        super().__init__(desc)
        self.class_ = class_
        self.desc = desc


class NoAnswer(ConfigError):
    """The machine, which is the process `pid`, did not answer in time; it may still, and may be asked again."""

    def __init__(self, name: str, pid: int) -> None:
        super().__init__(f"{name} (process {pid}) does not answer; it may be stopped.")
        self.pid = pid


class Client:
    """A conversation with the machine called `name`, which serves at `path`; a context manager.

    ConfigError, one sentence, when nobody is there, NoAnswer when no answer comes within `answer_s`.  `events` are the
    newest that came while an answer was waited for."""

    def __init__(self, name: str, path: Path, answer_s: float = ANSWER_S) -> None:
        self.name = name
        self._answer_s = answer_s
        self._unread = b""
        self._asked = 0
        self.events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(answer_s)
        try:
            self._socket.connect(str(path))
            self.pid = _PEER.unpack(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0]
            self._next_message(time.monotonic() + answer_s)
            self.ask("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise ConfigError(f"{name} cannot be asked: {error.strerror or error}.") from error
        except ConfigError:
            self._socket.close()
            raise

    def ask(self, command: str, **arguments: Any) -> Any:
        """What the command answers.  Refused when it cannot be carried out; an argument's name has "_" for "-"."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.ask_with(command, named)

    def ask_with(self, command: str, arguments: dict[str, Any]) -> Any:
        """The same, with arguments by QMP's own names."""
        end_s = time.monotonic() + self._answer_s
        self._asked += 1
        request = {"execute": command, "arguments": arguments, "id": self._asked}
        try:
            self._socket.sendall(json.dumps(request).encode())
        except OSError as error:
            raise self._gone() from error
        while True:
            message = self._next_message(end_s)
            if "event" in message:
                self.events.append(message)
            if message.get("id") != self._asked:  # or else it answers what was given up
                continue
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise Refused(message["error"]["class"], message["error"]["desc"])

    def _next_message(self, end_s: float) -> dict[str, Any]:
        """The next line; what is sent to us is one message a line."""
        while b"\n" not in self._unread:
            left_s = end_s - time.monotonic()
            try:
                self._socket.settimeout(max(left_s, 0.001))
                data = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise NoAnswer(self.name, self.pid) from error
            except OSError as error:
                raise self._gone() from error
            if not data:
                raise self._gone()
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _gone(self) -> ConfigError:
        return ConfigError(f"{self.name} has ended.")

    def fileno(self) -> int:
        """For select: it can be read when something has come."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def living() -> dict[str, Path]:
    """The sockets at which somebody serves, by name; what others have left is removed."""
    found, stale = {}, []
    for name, path in registry.sockets().items():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except BlockingIOError:
                pass  # stopped, with as many waiting as there may be: it lives
            except OSError:
                stale.append(path)
                continue
        found[name] = path
    if stale:
        registry.remove_stale(stale)
    return found


def choose(name: str, found: dict[str, Path] | None = None) -> tuple[str, Path]:
    """The machine called `name`, or the only one that runs where no name was given.  ConfigError otherwise."""
    found = living() if found is None else found
    if not found:
        raise ConfigError("No machine of yours is running; start one with 'vmm boot'.")
    names = ", ".join(found)
    if name:
        if name not in found:
            raise ConfigError(f"No machine called {name!r} is running, only {names}.")
        return name, found[name]
    if len(found) > 1:
        raise ConfigError(f"Several machines are running, so say which: {names}.")
    return next(iter(found.items()))
