"""Ctrl-C for whoever runs a machine from Python: it waits until the CPU is between two runs.

KeyboardInterrupt is raised wherever Python happens to be.  Inside a callback of the CPU it would tear an access of the
guest apart, or be lost in the C code around it.  So during a run the signal is noted and raised at the next safe place.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class KeyboardGuard:
    """A context manager around a run; the run calls `check` where nothing is half done.

    It stands aside where Ctrl-C is somebody else's: outside the main thread, or when another handler is in force.  A
    second Ctrl-C before the first was raised is Python's own, for a run that is stuck in its caller's code.
    """

    def __init__(self) -> None:
        self._noted = False
        self._installed = False

    def __enter__(self) -> Self:
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted:
            self._noted = False
            signal.default_int_handler(number, frame)
        self._noted = True

    def check(self) -> None:
        """KeyboardInterrupt if Ctrl-C was pressed since the last look."""
        if self._noted:
            self._noted = False
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False
        if kind is None:
            self.check()
