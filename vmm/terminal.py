"""The input side of the serial console: what is typed on a terminal, or comes out of a pipe, reaches the 16550.

`ConsoleInput` is the attendant (`vmm.control.attendants`) that a machine asks for input between two runs of its CPU and
that wakes it while its guest sleeps.  Nothing is lost: what the port does not take stays here,
and nothing is read beyond that, so a pipe's writer waits.  A byte is offered only while the guest raises RTS, as a
terminal with a handshake does.  RTS alone says too little: firmware raises it for whoever comes next, and Linux, which
then finds up to a FIFO of input, clears it when it starts its driver and again when the port is opened.  So what a
guest clears without having read it comes back here and is offered again.

On a terminal the mode is raw, every key belongs to the guest, and Ctrl-A is the one escape.  `raw_mode` puts the
terminal back however the run ends.  A standard input that was closed, and the terminal of a job in the background,
count as input that has ended: nothing is read there, and nothing of the terminal is changed.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from vmm.display import Silent

if TYPE_CHECKING:
    from vmm.machine import Machine

ESCAPE = 0x01  # Ctrl-A
END_OF_INPUT = b"\x04"  # Ctrl-D, which a terminal's line discipline takes for the end
READ_BYTES = 4096
END_AGAIN_NS = 1_000_000_000  # guest time until the end of input is typed again: a program may have taken the first

HELP = """
Ctrl-A H  this help
Ctrl-A X  end the machine and leave
Ctrl-A C  from the guest's console to the monitor, and back
Ctrl-A A  send Ctrl-A
"""


class OtherEnd(Protocol):
    """Who else may have the keys than the guest: the monitor (`vmm.control.monitor.sessions.ConsoleMonitor`)."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def feed(self, typed: bytes) -> None: ...


class Keys:
    """Takes the escapes out of what is typed.  `leave` is called for Ctrl-A X, `say` with what shall be shown; Ctrl-A C
    gives the keys to what `make_monitor` makes when it is typed first, and back to the guest."""

    def __init__(
        self, leave: Callable[[], None], say: Callable[[str], None], make_monitor: Callable[[], OtherEnd]
    ) -> None:
        self._leave = leave
        self._say = say
        self._make_monitor = make_monitor
        self._monitor: OtherEnd | None = None
        self._has_monitor_keys = False
        self._escaped = False

    def feed(self, typed: bytes) -> bytes:
        """What of `typed` is for the guest.  An escape may be cut in two anywhere."""
        passed = bytearray()
        for byte in typed:
            if self._escaped:
                self._escaped = False
                self._command(byte, passed)
            elif byte == ESCAPE:
                self._escaped = True
            else:
                self._pass_on(byte, passed)
        return bytes(passed)

    def _pass_on(self, byte: int, passed: bytearray) -> None:
        """To whoever has the keys now."""
        if self._has_monitor_keys and self._monitor is not None:
            self._monitor.feed(bytes([byte]))
        else:
            passed.append(byte)

    def _command(self, byte: int, passed: bytearray) -> None:
        match chr(byte).lower():
            case "a" | "\x01":
                self._pass_on(ESCAPE, passed)
            case "x":
                self._leave()
            case "c":
                self._toggle()
            case _:
                self._say(HELP)

    def _toggle(self) -> None:
        if self._monitor is None:
            self._monitor = self._make_monitor()
        self._has_monitor_keys = not self._has_monitor_keys
        if self._has_monitor_keys:
            self._monitor.open()
        else:
            self._monitor.close()


class ConsoleInput:
    """Types on the console of `machine` what comes from the file descriptor `fd`, through `keys` if there are any.

    `is_ready` tells whether the guest wants input yet; until then everything waits, but escapes
    among the keys work at any time.  With `types_end` the end of the input is typed too, as Ctrl-D, until the guest has
    ended; without, it just gets no more."""

    def __init__(
        self,
        machine: Machine,
        fd: int,
        keys: Keys | None = None,
        *,
        is_ready: Callable[[], bool] = lambda: True,
        types_end: bool = False,
    ) -> None:
        self._machine = machine
        self._fd = fd
        self._keys = keys
        self._is_ready = is_ready
        self._types_end = types_end
        self._waiting = b""
        self._at_end = False
        self._end_typed_ns: int | None = None

    @property
    def can_wake(self) -> bool:
        """Whether something may still come, so that a guest that sleeps without a deadline is not over."""
        return not self._at_end or bool(self._waiting) or self._types_end

    due_s: None = None

    def serve(self) -> None:
        """Offer the port what is there; called between two runs of the CPU."""
        self._waiting = self._machine.board.serial.take_unread() + self._waiting
        wanted = self._is_wanted()
        if self._is_watched(wanted) and select.select([self._fd], [], [], 0)[0]:
            self._read()
        if not wanted:
            return
        if self._waiting:
            self._waiting = self._waiting[self._machine.send_console(self._waiting) :]
        elif self._at_end and self._types_end:
            self._type_end()

    def awaited(self) -> list[tuple[int, int]] | None:
        """The input, when the guest can have it; None when there is some already."""
        wanted = self._is_wanted()
        if self._waiting and wanted:
            return None
        return [(self._fd, select.POLLIN)] if self._is_watched(wanted) else []

    def _is_wanted(self) -> bool:
        """Whether the port has room, and the guest asks for more."""
        serial = self._machine.board.serial
        return serial.is_ready and not serial.received and self._is_ready()

    def _is_watched(self, wanted: bool) -> bool:
        """Whether to read on: a pipe only when the guest has had the rest, keys always, since one may mean us."""
        return not self._at_end and (self._keys is not None or (wanted and not self._waiting))

    def _read(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except OSError:  # a terminal that was hung up, or that another job has by now
            data = b""
        self._at_end = not data
        if self._keys is not None:
            data = self._keys.feed(data)
        room = max(READ_BYTES - len(self._waiting), 0)
        self._waiting += data[:room]  # nobody types that far ahead, but a key may be held down

    def _type_end(self) -> None:
        now_ns = self._machine.now_ns
        if self._end_typed_ns is None or now_ns - self._end_typed_ns >= END_AGAIN_NS:
            self._machine.send_console(END_OF_INPUT)
            self._end_typed_ns = now_ns


@contextmanager
def raw_mode(fd: int, *, signals: bool) -> Iterator[None]:
    """Each key at once and unchanged, Ctrl-C and Ctrl-Z too unless `signals`; the terminal is as before afterwards.

    The output stays as it is: a line that the VMM itself prints still begins at the left."""
    before = termios.tcgetattr(fd)
    raw = termios.tcgetattr(fd)
    raw[0] &= ~(termios.BRKINT | termios.ICRNL | termios.IGNCR | termios.INLCR | termios.ISTRIP | termios.IXON)
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | (0 if signals else termios.ISIG))
    raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
    reading = signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # sent into the background: no input, and no stop
    try:
        termios.tcsetattr(fd, termios.TCSADRAIN, raw)
        yield
    finally:
        if not _is_in_background(fd):  # else the shell has put it back, and this would stop us
            with suppress(termios.error):  # it may have been hung up
                termios.tcsetattr(fd, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTTIN, reading)


@contextmanager
def console_input(
    machine: Machine, ready: bytes | None, make_monitor: Callable[[], OtherEnd], *, is_shared: bool = False
) -> Iterator[ConsoleInput]:
    """What connects the standard input with the console of `machine`; in raw mode if it is a terminal that shows it
    too.  Then Ctrl-A is the escape, and `make_monitor` makes the other end of Ctrl-A C.

    `ready` is for a shell: what the guest sends to the debug port when it wants input, nothing
    where it wants it already.  Then all other keys are the
    guest's, Ctrl-C too, and the end of a pipe is typed as Ctrl-D.  `is_shared` is QEMU's mon:stdio: all other keys are
    the guest's, and Ctrl-A is the escape in a pipe too."""
    is_terminal, is_shell = is_interactive(), ready is not None
    with ExitStack() as stack:
        fd = stack.enter_context(_standard_input())
        if is_terminal:
            stack.enter_context(raw_mode(fd, signals=not is_shell and not is_shared))
        yield ConsoleInput(
            machine,
            fd,
            Keys(machine.interrupt, say, make_monitor) if is_terminal or is_shared else None,
            is_ready=_heard(machine, ready) if ready else lambda: True,
            types_end=is_shell and not is_terminal,
        )


def _heard(machine: Machine, words: bytes) -> Callable[[], bool]:
    """Whether `words` came out of the debug port since now."""
    tail = bytearray()
    heard = False

    def listen(data: bytes) -> None:
        nonlocal heard
        tail.extend(data)
        heard = heard or words in tail
        del tail[: -len(words)]

    machine.debug_sinks.append(listen)
    return lambda: heard


def is_interactive() -> bool:
    """Whether somebody sits at a terminal that is both standard input and output, and ours to read from."""
    fd = _readable_input()
    return fd is not None and os.isatty(fd) and sys.stdout.isatty()


@contextmanager
def _standard_input() -> Iterator[int]:
    """Its file descriptor, or one at its end where there is nothing to read."""
    fd = _readable_input()
    if fd is not None:
        yield fd
        return
    ended = os.open(os.devnull, os.O_RDONLY)
    try:
        yield ended
    finally:
        os.close(ended)


def _readable_input() -> int | None:
    """The file descriptor; None where it was closed, or where reading would stop us, a job in the background."""
    try:
        fd = None if sys.stdin is None else sys.stdin.fileno()
    except (OSError, ValueError):
        return None
    return None if fd is None or _is_in_background(fd) else fd


def _is_in_background(fd: int) -> bool:
    """Whether `fd` is the terminal that controls us, and another job has it."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # no terminal, or none that controls us
        return False


def say(text: str) -> None:
    """Show `text` between what the guest writes."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


class ShellDisplay(Silent):
    """Nothing but the guest's console; at the end a sentence, if it is not what the user brought about."""

    def end(self, report: Mapping[str, Any]) -> None:
        if report["outcome"] not in ("powered-off", "quit", "host-quit", "interrupted"):
            say(f"vmm: {report['detail']}\n")
