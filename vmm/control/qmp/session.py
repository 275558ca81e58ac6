"""One client's conversation: the greeting, the agreement on capabilities, then commands and their answers.

A few messages are dealt with in a turn, and for no longer than `TURN_S` unless a single one takes longer; the rest
waits for the next, unread.  So a flood, of whatever it is, takes no more of the machine's time than one busy client.
"""

from __future__ import annotations

import time
from typing import Any

from vmm.control.qmp.context import Context
from vmm.control.qmp.errors import QmpError
from vmm.control.qmp.machine_commands import query_version
from vmm.control.qmp.stream import JsonStream, encode
from vmm.control.qmp.table import carry_out
from vmm.control.sockets import Connection

MESSAGES_A_TURN = 16
TURN_S = 0.0005
_NEGOTIATE = "Expecting capabilities negotiation with 'qmp_capabilities'"
_NEGOTIATED = "Capabilities negotiation is already complete, command ignored"


class QmpSession:
    """A session of `connection` about the run of `context`.  Events are heard from the negotiation on."""

    def __init__(self, connection: Connection, context: Context) -> None:
        self._connection = connection
        self._context = context
        self._stream = JsonStream()
        self._negotiated = False
        self._send({"QMP": {"version": query_version(context), "capabilities": []}})

    # -- as a session ------------------------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        self._stream.feed(data)
        self._go_on()

    def ended(self) -> None:
        if self._send in self._context.events.listeners:
            self._context.events.listeners.remove(self._send)

    def _go_on(self) -> None:
        """Deal with what came, for one turn."""
        end_s = time.monotonic() + TURN_S
        for _ in range(MESSAGES_A_TURN):
            message = self._stream.take()
            if message is None:
                return
            self._send(message.answer() if isinstance(message, QmpError) else self._answer(message[0]))
            if time.monotonic() >= end_s:
                break
        self._connection.go_on(self._go_on)

    # -- one message -------------------------------------------------------------------------------------------------

    def _answer(self, message: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = {"return": self._carry_out(message)}
        except QmpError as error:
            answer = error.answer()
        # What a command brought about is told before its answer, as in QEMU.
        self._context.machine.tell()
        return answer | ({"id": message["id"]} if isinstance(message, dict) and "id" in message else {})

    def _carry_out(self, message: Any) -> Any:
        name, arguments = _command_of(message)
        if not self._negotiated and name != "qmp_capabilities":
            raise QmpError(_NEGOTIATE, "CommandNotFound")
        if self._negotiated and name == "qmp_capabilities":
            raise QmpError(_NEGOTIATED, "CommandNotFound")
        answer = carry_out(self._context, name, arguments)
        if not self._negotiated:
            self._negotiated = True
            self._context.events.listeners.append(self._send)
        return answer

    def _send(self, message: dict[str, Any]) -> None:
        self._connection.send(encode(message))


def _command_of(message: Any) -> tuple[str, dict[str, Any]]:
    """The command that `message` asks for, and its arguments.  QmpError when it is no request."""
    if not isinstance(message, dict):
        raise QmpError("QMP input must be a JSON object")
    for member, value in message.items():
        if member == "execute":
            if not isinstance(value, str):
                raise QmpError("QMP input member 'execute' must be a string")
        elif member == "arguments":
            if not isinstance(value, dict):
                raise QmpError("QMP input member 'arguments' must be an object")
        elif member != "id":
            raise QmpError(f"QMP input member '{member}' is unexpected")
    if "execute" not in message:
        raise QmpError("QMP input lacks member 'execute'")
    return message["execute"], message.get("arguments", {})
