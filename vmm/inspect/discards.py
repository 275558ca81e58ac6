"""What a running process really asks the host to take back: its system calls, seen from outside.

The tracer stops every thread of the process at every system call, which makes it slow; it is a witness for tests and
for doubts, not a tool for every day.  Its rules are ptrace's: attach to every thread, make all calls from the one OS
thread that attached, and leave by detaching, so that the process goes on as if nothing had been.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

from devices.errors import ConfigError
from vmm.inspect import ptrace_import

_SYSCALL_STOP = signal.SIGTRAP | 0x80  # PTRACE_O_TRACESYSGOOD marks stops at system calls so
_FALLOC_FL_PUNCH_HOLE = 0x02
_MADV_DISCARDS = (mmap.MADV_REMOVE, mmap.MADV_DONTNEED)
_NAMES = {"fallocate": "fallocate", "madvise": "madvise", "process_madvise": "process_madvise"}
_NAMES["syscall<440>"] = "process_madvise"  # where python-ptrace's table is older than the call
_PAUSE_S = 0.0002

_libc = ctypes.CDLL(None, use_errno=True)


class DiscardCall(NamedTuple):
    """One finished system call.  `name` is fallocate, madvise or process_madvise, `arguments` its registers as unsigned
    numbers in the order of the manual, `result` what the host answered (negative: an errno)."""

    thread: int
    name: str
    arguments: tuple[int, ...]
    result: int

    @property
    def discarded_bytes(self) -> int:
        """The bytes that this call gave up; 0 if it failed or was about something else."""
        if self.result < 0:
            return 0
        if self.name == "fallocate":
            return self.arguments[3] if self.arguments[1] & _FALLOC_FL_PUNCH_HOLE else 0
        if self.name == "madvise":
            return self.arguments[1] if self.arguments[2] in _MADV_DISCARDS else 0
        return self.result if self.arguments[3] in _MADV_DISCARDS else 0


class DiscardTrace:
    """All threads of the process `pid`, traced from construction to `close`; a context manager.

    ConfigError when there is no such process or the host does not allow it.  While it is attached and nobody asks for
    `calls`, the process stands still at its next system call.
    """

    def __init__(self, pid: int) -> None:
        if pid == os.getpid():
            raise ConfigError("a process cannot trace itself: trace it from another one")
        self.pid = pid
        self._thread = threading.get_ident()
        self._error: type[Exception] = ptrace_import.load("error").PtraceError
        self._events = ptrace_import.load("debugger")
        self._options = ptrace_import.load("func_call").FunctionCallOptions()
        self._debugger = self._events.PtraceDebugger()
        self._debugger.traceClone()
        try:
            self._attach_all()
        except (OSError, self._error) as error:
            self.close()
            raise ptrace_import.refusal(pid, "trace", error) from error
        for process in list(self._debugger):
            process.syscall()

    def _attach_all(self) -> None:
        """Attach until no thread is left that could still start another."""
        while new := {int(name) for name in os.listdir(f"/proc/{self.pid}/task")} - set(self._debugger.dict):
            for thread in sorted(new):
                try:
                    process = self._debugger.addProcess(thread, is_attached=False, is_thread=thread != self.pid)
                except self._events.ProcessEvent:  # it ended instead of stopping
                    self._debugger.deleteProcess(pid=thread)
                except self._error as error:
                    if getattr(error, "errno", None) != errno.ESRCH:  # it ended even earlier
                        raise
                else:
                    process.syscall_state.ignore_callback = _is_of_no_interest

    def calls(self, until: Callable[[], bool] = lambda: False) -> Iterator[DiscardCall]:
        """Let the process run and give its discarding calls as they return, until it ends or `until()` is true at a
        moment when no thread waits for us: every call that returned before that moment has been given then."""
        while len(self._debugger):
            if (event := self._next_event()) is not None:
                yield from self._handle(event)
            elif until():
                return
            else:
                time.sleep(_PAUSE_S)

    def _next_event(self) -> Any:
        self._check_thread()
        for thread in list(self._debugger.dict):
            event = self._debugger.waitProcessEvent(pid=thread, blocking=False)
            if event is not None:
                return event
        return None

    def _handle(self, event: Any) -> Iterator[DiscardCall]:
        """Take note of one stop and let the thread go on."""
        process, signum = event.process, 0
        if isinstance(event, self._events.ProcessExit):
            return
        try:
            if isinstance(event, self._events.NewProcessEvent):
                process.syscall_state.ignore_callback = _is_of_no_interest
                self._resume(process.parent)
            elif isinstance(event, self._events.ProcessSignal) and event.signum == _SYSCALL_STOP:
                call = process.syscall_state.event(self._options)
                if call is not None and call.result is not None:
                    arguments = tuple(argument.value for argument in call.arguments)
                    yield DiscardCall(process.pid, _NAMES[call.name], arguments, call.result)
            elif isinstance(event, self._events.ProcessSignal):
                signum = event.signum
        finally:  # also when the one who asked does not want to hear more
            self._resume(process, signum)

    def _resume(self, process: Any, signum: int = 0) -> None:
        try:
            process.syscall(signum)
        except self._error as error:
            if getattr(error, "errno", None) != errno.ESRCH:  # killed while it stood: its end is the next event
                raise

    def close(self) -> None:
        """Detach from every thread and let it run on; a second time is no error."""
        self._check_thread()
        for process in list(self._debugger):
            if self._halt(process):
                process.detach()

    def _halt(self, process: Any) -> bool:
        """Bring one thread to a stop that leaves no trace; False if it has ended.

        A thread can only be detached while it is stopped, and the signal that stops it must be taken back by us."""
        if _libc.tgkill(self.pid, process.pid, signal.SIGSTOP):
            process.running = False  # gone: there is nothing to detach from
            process.detach()
            return False
        if process.is_stopped:
            process.cont()
        while process.pid in self._debugger.dict:
            event = self._debugger.waitProcessEvent(pid=process.pid)
            if isinstance(event, self._events.ProcessExit):
                return False
            if isinstance(event, self._events.ProcessSignal) and event.signum == signal.SIGSTOP:
                return True
            pending = event.signum if isinstance(event, self._events.ProcessSignal) else 0
            process.cont(0 if pending == _SYSCALL_STOP else pending)
        return False

    def _check_thread(self) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError("a DiscardTrace must be used from the thread that made it")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _is_of_no_interest(call: Any) -> bool:
    return call.name not in _NAMES
