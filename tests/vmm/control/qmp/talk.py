"""A client of QMP without a socket: what it says reaches a session of a real machine at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from vmm.control.monitor import Monitor
from vmm.control.qmp.events import Events
from vmm.control.qmp.session import QmpSession
from vmm.control.sockets import Connection
from vmm.machine import Machine


class Wire:
    """As much of a connection as a session uses."""

    def __init__(self) -> None:
        self.sent = b""
        self.work: Callable[[], None] | None = None

    def send(self, data: bytes) -> None:
        self.sent += data

    def go_on(self, work: Callable[[], None]) -> None:
        self.work = work

    def take(self) -> list[dict[str, Any]]:
        """The messages since the last call."""
        lines, self.sent = self.sent.split(b"\r\n"), b""
        assert lines.pop() == b""
        return [json.loads(line) for line in lines]


class Talk:
    """A client of `machine`, past the greeting and, unless it is told otherwise, the negotiation."""

    def __init__(self, machine: Machine, *, events: Events | None = None, negotiate: bool = True) -> None:
        self.wire = Wire()
        self.events = Events(machine) if events is None else events
        if self.events not in machine.observers:
            machine.observers.append(self.events)
        context = Monitor(machine, "fred", self.events).context
        self.session = QmpSession(cast(Connection, self.wire), context)
        (self.greeting,) = self.wire.take()
        if negotiate:
            assert self.ask("qmp_capabilities") == {}

    def hear(self, text: str | bytes) -> list[dict[str, Any]]:
        """All that comes back when `text` is sent."""
        self.session.received(text.encode() if isinstance(text, str) else text)
        while self.wire.work is not None:
            work, self.wire.work = self.wire.work, None
            work()
        return self.wire.take()

    def answer(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a command, whole; events before it are dropped."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.hear(json.dumps({"execute": command, "arguments": named}))[-1]

    def ask(self, command: str, **arguments: Any) -> Any:
        """What a command answers that is carried out."""
        answer = self.answer(command, **arguments)
        assert "return" in answer, answer
        return answer["return"]

    def refusal(self, command: str, **arguments: Any) -> tuple[str, str]:
        """Class and description of the error that a command answers."""
        error = self.answer(command, **arguments)["error"]
        return error["class"], error["desc"]
