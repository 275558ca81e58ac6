"""All threads of another process, stopped, and let go again as if nothing had been.

The threads are seized, not attached to: no signal is sent, so that a process that was stopped (SIGSTOP) stays stopped
afterwards and one that ran goes on, in the middle of a system call too.  It does not matter whether the process answers
to anything: a thread in an endless loop stops as well.  ptrace's own rules are kept here: every call comes from the OS
thread that seized, and leaving means detaching.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from devices.errors import ConfigError
from vmm.inspect import ptrace_import

_CONT, _DETACH, _SETOPTIONS, _SEIZE, _INTERRUPT, _LISTEN = 7, 17, 0x4200, 0x4206, 0x4207, 0x4208
_O_TRACECLONE, _EVENT_CLONE, _EVENT_STOP = 8, 3, 128
_WALL = 0x40000000
_GROUP_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_PATIENCE_S = 10.0
_PAUSE_S = 0.0002
RUNNING: Final = -1


@dataclass(frozen=True, slots=True)
class ThreadState:
    """A thread as /proc shows it: `state` is its letter there (R, S, D, T, …)."""

    tid: int
    name: str
    state: str


def threads_of(pid: int) -> list[ThreadState]:
    """The threads of a process, ascending; none where there is no such process."""
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for tid in sorted(map(int, os.listdir(f"/proc/{pid}/task"))):
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
                fields = ptrace_import.status_of(pid, tid)
                found.append(ThreadState(tid, fields["Name"], fields["State"][:1]))
    return found


class Tracee:
    """The process `pid`, every thread of which stands still from construction on; a context manager, which lets it go.

    `before` are its threads as they were before.  `stops` has the wait status of each thread's stop, or `RUNNING`.
    ConfigError when there is no such process, when it is this one, or when the host does not allow it.
    """

    def __init__(self, pid: int, what: str = "stop") -> None:
        if pid == os.getpid():
            raise ConfigError(f"a process cannot {what} itself: do it from another one")
        self.pid = pid
        self.before = threads_of(pid)
        self.stops: dict[int, int] = {}
        self._func = ptrace_import.load("binding.func")
        self._error: type[Exception] = ptrace_import.load("error").PtraceError
        self._thread = threading.get_ident()
        try:
            self._seize_all()
        except (OSError, self._error) as error:
            self.detach()
            raise ptrace_import.refusal(pid, what, error) from error
        except BaseException:
            self.detach()
            raise
        if not self.stops:
            raise ptrace_import.refusal(pid, what, ProcessLookupError(errno.ESRCH, "it has ended"))

    def _seize_all(self) -> None:
        """Seize and stop until no thread is left that could still start another."""
        seen: set[int] = set()
        while new := {int(name) for name in os.listdir(f"/proc/{self.pid}/task")} - seen:
            for tid in sorted(new):
                seen.add(tid)
                try:
                    self.ptrace(_SEIZE, tid)
                except self._error as error:
                    if _number(error) == errno.ESRCH or self._has_ended(tid):
                        continue
                    raise
                self.stops[tid] = RUNNING
                self.halt(tid)

    def _has_ended(self, tid: int) -> bool:
        """Whether nothing is left of a thread but its name."""
        try:
            return ptrace_import.status_of(self.pid, tid)["State"][:1] in "ZX"
        except OSError:
            return True

    def ptrace(self, request: int, tid: int, address: int = 0, data: int = 0) -> int:
        """One request.  PtraceError where the kernel refuses."""
        self._check_thread()
        result: int = self._func.ptrace(request, tid, address, data)
        return result

    def registers(self, tid: int) -> Any:
        """The registers of a thread that stands."""
        return self._func.ptrace_getregs(tid)

    # -- stopping and going on -----------------------------------------------------------------------------------------

    def halt(self, tid: int) -> bool:
        """Bring one thread to a stop, if it does not stand already; False if it has ended."""
        if self.stops.get(tid, RUNNING) == RUNNING:
            try:
                self.ptrace(_INTERRUPT, tid)
            except self._error as error:
                if _number(error) != errno.ESRCH:
                    raise
            deadline = time.monotonic() + _PATIENCE_S
            while tid in self.stops and not self.has_stopped(tid):
                if time.monotonic() > deadline:
                    raise ConfigError(f"thread {tid} of process {self.pid} does not stop: the kernel keeps it busy")
                time.sleep(_PAUSE_S)
        return tid in self.stops

    def has_stopped(self, tid: int) -> bool:
        """Whether a running thread has come to a stop; one that has ended is taken from the list."""
        try:
            found, status = os.waitpid(tid, os.WNOHANG | _WALL)
        except ChildProcessError:
            self.stops.pop(tid, None)
            return False
        if found != tid:
            return False
        if not os.WIFSTOPPED(status):
            self.stops.pop(tid, None)
            return False
        self.stops[tid] = status
        if status >> 16 == _EVENT_CLONE:
            self.stops.setdefault(self._func.ptrace_geteventmsg(tid), RUNNING)
        return True

    def signal_of(self, tid: int) -> int:
        """The signal that a thread which stands is about to receive; 0: it stands for another reason."""
        status = self.stops[tid]
        return 0 if status == RUNNING or status >> 16 else os.WSTOPSIG(status)

    def swallow_signal(self, tid: int) -> None:
        """A thread that stands shall not receive what it stands for."""
        self.stops[tid] = _EVENT_STOP << 16 | signal.SIGTRAP << 8 | 0x7F

    def go_on(self, tid: int, signum: int = 0) -> None:
        """Let one thread run on; with the process stopped by a signal it waits as it would have."""
        status = self.stops[tid]
        waits = status >> 16 == _EVENT_STOP and os.WSTOPSIG(status) in _GROUP_STOPS
        self.stops[tid] = RUNNING
        try:
            self.ptrace(_LISTEN if waits else _CONT, tid, 0, 0 if waits else signum)
        except self._error as error:
            if _number(error) != errno.ESRCH:  # killed while it stood: its end comes next
                raise

    def follow_new_threads(self) -> None:
        """From now on threads that are started stand still at their start, and are in `stops`."""
        for tid in self.stops:
            self.ptrace(_SETOPTIONS, tid, 0, _O_TRACECLONE)

    def each(self) -> Iterator[int]:
        """Every thread once, those too that come to light meanwhile."""
        done: set[int] = set()
        while left := self.stops.keys() - done:
            for tid in sorted(left):
                done.add(tid)
                yield tid

    def stopped(self) -> Iterator[int]:
        """The threads that have come to a stop since they were let go."""
        for tid in list(self.stops):
            if self.stops.get(tid) == RUNNING and self.has_stopped(tid):
                yield tid

    # -- the end -------------------------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Let every thread go for good; a second time is no error."""
        self._check_thread()
        for tid in self.each():
            with suppress(ConfigError):  # it will never stop: it is let go when we end
                if self.halt(tid):
                    self._let_go(tid)
            self.stops.pop(tid, None)

    def _let_go(self, tid: int) -> None:
        try:
            self.ptrace(_DETACH, tid, 0, self.signal_of(tid))
        except self._error:
            # Killed while it stood: its process cannot end before somebody has heard of it, and we are its tracer.
            self.stops[tid] = RUNNING
            deadline = time.monotonic() + _PATIENCE_S
            while tid in self.stops and time.monotonic() < deadline and not self.has_stopped(tid):
                time.sleep(_PAUSE_S)

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("a Tracee must be used from the thread that made it")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.detach()


def _number(error: Exception) -> int | None:
    return getattr(error, "errno", None)
