"""Writing to the standard output when it may fail: the reader may have gone, or the disk be full.

The two mean different things.  A reader that has gone wants no more: the run ends as if interrupted, and nothing is
said.  Any other failure is told in one sentence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from devices.errors import ConfigError


class OutputGone(Exception):
    """Nobody reads the output any more."""


@contextmanager
def guarded(what: str = "The output") -> Iterator[None]:
    """Turns a failure to write into the two things it can mean: OutputGone, or a ConfigError about `what`."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputGone from error
    except OSError as error:
        raise ConfigError(f"{what} cannot be written: {error.strerror}.") from error


class GuardedText:
    """A text stream, written at once, whose failures are OutputGone or a ConfigError."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, text: str) -> None:
        with guarded():
            self._out.write(text)
            self._out.flush()


def forget_stdout() -> None:
    """Nobody reads it: let the interpreter's own last flush go nowhere instead of failing."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
