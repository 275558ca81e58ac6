"""Who attends to a machine while it runs: the console's keyboard, and the servers of its control protocols.

The machine calls `serve` between two runs of its CPU, and `wait` while its guest sleeps or while it is paused.  An
attendant never blocks, does little at a time, and names the file descriptors that it waits for; so a sleeping machine
costs no CPU time, and whatever comes wakes it at once.  A signal wakes it too.
"""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from vmm.machine import Machine

LONGEST_WAIT_S = 1.0
_SIGNALS_BYTES = 4096


class Attendant(Protocol):
    """One of them."""

    @property
    def can_wake(self) -> bool:
        """Whether it may still bring something that a guest without any deadline waits for."""
        ...

    @property
    def due_s(self) -> float | None:
        """When it has something to do, whatever comes, by the host's monotonic clock; None: never."""
        ...

    def serve(self) -> None:
        """Do what there is to do, without waiting for anything."""
        ...

    def awaited(self) -> Iterable[tuple[int, int]] | None:
        """What it waits for: file descriptors, each with `select.POLLIN`, `select.POLLOUT` or both.  None when it has
        something to do already."""
        ...


class Attendants:
    """All that attend to `machine`, in the order in which they are added; a context manager around its run."""

    def __init__(self, machine: Machine, *attendants: Attendant) -> None:
        self._machine = machine
        self._attendants = list(attendants)

    def add(self, attendant: Attendant) -> None:
        """One more."""
        self._attendants.append(attendant)

    @property
    def can_wake(self) -> bool:
        """Whether any of them may still wake a guest that sleeps without a deadline."""
        return any(attendant.can_wake for attendant in self._attendants)

    def serve(self) -> None:
        """Let each of them do what it has to do; called between two runs of the CPU."""
        for attendant in self._attendants:
            attendant.serve()

    def wait(self, seconds: float) -> None:
        """Sleep that long at most, less when one of them has something to do or a signal has come."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        for attendant in self._attendants:
            awaited = attendant.awaited()
            if awaited is None:
                return
            for fd, events in awaited:
                poll.register(fd, events)
            if attendant.due_s is not None:
                seconds = min(seconds, attendant.due_s - time.monotonic())
        poll.poll(min(max(seconds, 0.0), LONGEST_WAIT_S) * 1000)
        with suppress(BlockingIOError):
            self._woken.recv(_SIGNALS_BYTES)

    def __enter__(self) -> Self:
        """From now on a signal ends `wait`: the interpreter writes a byte for each."""
        self._wakeup, self._woken = socket.socketpair()
        self._wakeup.setblocking(False)
        self._woken.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        self._machine.attendants = self
        return self

    def __exit__(self, *error: object) -> None:
        self._machine.attendants = None
        signal.set_wakeup_fd(self._wakeup_before)
        self._wakeup.close()
        self._woken.close()
