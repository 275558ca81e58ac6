"""Writing to the standard output when it may fail: the reader may have gone, or the disk be full.

The two mean different things.  A reader that has gone, or a terminal that was hung up, wants no more: the run ends as
if interrupted, and nothing is said.  Any other failure is told in one sentence.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from devices.errors import ConfigError

OUTPUT = "The output"
STDOUT, STDERR = 1, 2


class OutputGone(Exception):
    """Nobody reads the output any more."""


@contextmanager
def guarded(what: str = OUTPUT) -> Iterator[None]:
    """Turns a failure to write into the two things it can mean: OutputGone, or a ConfigError about `what`."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputGone from error
    except OSError as error:
        if what == OUTPUT and error.errno == errno.EIO and (_is_device(STDOUT) or _is_device(STDERR)):
            raise OutputGone from error
        raise ConfigError(f"{what} cannot be written: {error.strerror}.") from error


def _is_device(fd: int) -> bool:
    """Whether it is, or was before it was hung up, a terminal; no disk that fails."""
    with suppress(OSError):
        return stat.S_ISCHR(os.fstat(fd).st_mode)
    return False


class GuardedText:
    """A text stream, written at once, whose failures are OutputGone or a ConfigError."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        with guarded():
            self._out.write(text)
            self._out.flush()

    def flush(self) -> None:
        with guarded():
            self._out.flush()

    def __getattr__(self, name: str) -> Any:
        """What a stream tells of itself, for a library that draws on it."""
        return getattr(self._out, name)


def forget_stdout() -> None:
    """Nobody reads it: let the interpreter's own last flush go nowhere instead of failing."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
