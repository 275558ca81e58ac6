"""The ways in which somebody talks to the monitor: over a connection, or with the keys of the guest's own console.

A few lines are carried out in a turn; the rest waits for the next, unread, so that a flood of them holds the machine up
no more than one busy client.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vmm import __version__
from vmm.control.monitor.commands import Monitor
from vmm.control.monitor.editor import Editor
from vmm.control.sockets import Connection

PROMPT = "(qemu) "
"""What scripts written for QEMU wait for."""
BANNER = f"balloon-vmm {__version__} monitor - type 'help' for more information\n"
LINES_A_TURN = 16
TURN_S = 0.0005


class MonitorSession:
    """A session of `connection`.  Lines end as `newline` says.  With `edits` the other side is a terminal in raw mode,
    and so lines are edited and echoed here; without, what comes is taken line by line, and nothing is echoed."""

    def __init__(
        self, connection: Connection, monitor: Monitor, *, newline: bytes = b"\r\n", edits: bool = False
    ) -> None:
        self._connection = connection
        self._monitor = monitor
        self._newline = newline
        self._unread = b""
        self._editor = Editor(PROMPT, self._show, monitor.complete, echoes=edits)
        self._show(BANNER)
        self._editor.start()

    def received(self, data: bytes) -> None:
        self._unread += data
        self._go_on()

    def ended(self) -> None:
        """Nothing is kept."""

    def _go_on(self) -> None:
        """Carry out what came, for one turn."""
        end_s, lines = time.monotonic() + TURN_S, 0
        for position, byte in enumerate(self._unread, 1):
            line = self._editor.put(byte)
            if line is None:
                continue
            lines += 1
            self._show(self._monitor.execute(line))
            if self._monitor.has_quit:
                self._unread = b""
                self._connection.finish()
                return
            self._editor.start()
            if lines == LINES_A_TURN or time.monotonic() >= end_s:
                self._unread = self._unread[position:]
                if self._unread:
                    self._connection.go_on(self._go_on)
                return
        self._unread = b""

    def _show(self, text: str) -> None:
        self._connection.send(text.encode("utf-8", "replace").replace(b"\n", self._newline))


class ConsoleMonitor:
    """The monitor behind the keys of the guest's console: `show` has what it says.  With `echoes` the keys come from a
    terminal in raw mode."""

    def __init__(self, monitor: Monitor, show: Callable[[str], None], *, echoes: bool) -> None:
        self._monitor = monitor
        self._show = show
        self._editor = Editor(PROMPT, show, monitor.complete, echoes=echoes)
        self._was_open = False

    def open(self) -> None:
        """The keys are the monitor's from now on."""
        self._show("\n" if self._was_open else f"\n{BANNER}")
        self._was_open = True
        self._editor.start()

    def close(self) -> None:
        """They are the guest's again."""
        self._show("\n")

    def feed(self, typed: bytes) -> None:
        """Some keys."""
        for byte in typed:
            line = self._editor.put(byte)
            if line is None:
                continue
            if answer := self._monitor.execute(line):
                self._show(answer)
            if self._monitor.has_quit:
                return
            self._editor.start()
