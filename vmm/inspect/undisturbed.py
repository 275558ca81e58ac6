"""Ctrl-C and its kin wait while another process stands still.

An exception between two steps of ptrace's book-keeping would forget what a thread stands for, and a process with a
trap and no tracer ends.  Masking the signals would not do: another thread of this process (numpy's libraries have some)
would take them, and the exception would come all the same.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Undisturbed:
    """A context manager in which the signals that end this process only become `waiting`; at its end they take effect.

    In another thread than the main one, which signals do not interrupt, it does nothing."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._before: dict[int, Any] = {}
        self._busy = True

    @property
    def waiting(self) -> bool:
        """Whether such a signal has come: it is time to leave."""
        return bool(self._waiting)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in _ENDING:
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._take)
        return self

    def __exit__(self, *_exception: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        for signum in self._waiting[:1]:
            signal.raise_signal(signum)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        handler = self._before[signum]
        if self._busy or not callable(handler):  # the default action would be the end at once
            self._waiting.append(signum)
        else:
            handler(signum, frame)

    @contextmanager
    def open_to_signals(self) -> Iterator[None]:
        """Somebody else has the word, and may be interrupted: everything is in order here."""
        self._busy = False
        try:
            yield
        finally:
            self._busy = True
