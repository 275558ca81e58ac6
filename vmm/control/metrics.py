"""Prometheus' scrapes: as much of HTTP/1.1 (RFC 9112) as GET and HEAD of one page take.

A request's head may have `MOST_HEAD_BYTES`; a body is not read, and ends the connection.  One request is answered in a
turn; what a client has sent besides waits.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from vmm.control.exposition import CONTENT_TYPE, exposition
from vmm.control.sockets import Connection
from vmm.control.status import status

if TYPE_CHECKING:
    from vmm.machine import Machine

MOST_HEAD_BYTES = 8192
PATH = "/metrics"
_END = re.compile(rb"\r?\n\r?\n")
_REQUEST = re.compile(r"([!-~]+) ([!-~]+) HTTP/1\.([01])")
_PLAIN = "text/plain; charset=utf-8"


class MetricsSession:
    """One connection of a client that asks for the figures of `machine`, which is called `name`."""

    def __init__(self, connection: Connection, machine: Machine, name: str) -> None:
        self._connection = connection
        self._machine = machine
        self._name = name
        self._unread = b""

    def received(self, data: bytes) -> None:
        self._unread += data
        self._go_on()

    def ended(self) -> None:
        """Nothing is kept."""

    def _go_on(self) -> None:
        """Answer one request, if one is there."""
        self._unread = self._unread.lstrip(b"\r\n")  # RFC 9112 §2.2
        end = _END.search(self._unread)
        if end is None:
            if len(self._unread) > MOST_HEAD_BYTES:
                self._answer(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, keep=False)
            return
        head, self._unread = self._unread[: end.start()], self._unread[end.end() :]
        self._request(head.decode("latin-1").splitlines())
        if self._unread and self._connection.is_open:
            self._connection.go_on(self._go_on)

    def _request(self, lines: list[str]) -> None:
        found = _REQUEST.fullmatch(lines[0].rstrip())
        if found is None:
            self._answer(HTTPStatus.BAD_REQUEST, keep=False)
            return
        method, target, minor = found.groups()
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip().lower()
        has_body = fields.get("content-length", "0") != "0" or "transfer-encoding" in fields
        keep = minor == "1" and fields.get("connection") != "close" and not has_body
        path = target.partition("?")[0]
        if method not in ("GET", "HEAD"):
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, keep=keep, extra="Allow: GET, HEAD\r\n")
        elif path == PATH:
            self._answer(HTTPStatus.OK, exposition(status(self._machine, self._name)), method, CONTENT_TYPE, keep=keep)
        elif path == "/":
            self._answer(HTTPStatus.OK, f"The metrics of {self._name} are at {PATH}.\n", method, keep=keep)
        else:
            self._answer(HTTPStatus.NOT_FOUND, method=method, keep=keep)

    def _answer(
        self,
        code: HTTPStatus,
        text: str = "",
        method: str = "GET",
        content_type: str = _PLAIN,
        *,
        keep: bool,
        extra: str = "",
    ) -> None:
        body = (text or f"{code.value} {code.phrase}\n").encode()
        head = (
            f"HTTP/1.1 {code.value} {code.phrase}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'keep-alive' if keep else 'close'}\r\n{extra}\r\n"
        )
        self._connection.send(head.encode("latin-1") + (b"" if method == "HEAD" else body))
        if not keep:
            self._unread = b""
            self._connection.finish()
