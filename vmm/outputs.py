"""Where a run's output goes besides the display: the serial console's file.

It is opened before the machine is built, so that a wrong name is refused at once and not after the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from devices.errors import ConfigError
from vmm.display import Silent
from vmm.files import open_to_write
from vmm.models import did_you_mean
from vmm.streams import guarded

LONGEST_LINE_BYTES = 4096
"""Of a line that does not end so much is kept back until it does."""

# -- the serial console --------------------------------------------------------------------------------------------


class SerialSink(Silent):
    """Every byte of the guest's console, unchanged and at once, to `out`."""

    def __init__(self, out: BinaryIO, what: str) -> None:
        self._out = out
        self._what = what
        self.at_line_start = True

    def on_console(self, data: bytes) -> None:
        with guarded(self._what):
            self._out.write(data)
            self._out.flush()
        self.at_line_start = data.endswith(b"\n")


class LineSink(SerialSink):
    """The same, but line by line, for a stream on which something else is told too: the lines that a display prints, or
    the console `beside`.  A line that the console has not ended is ended for it."""

    def __init__(self, out: BinaryIO, what: str, beside: SerialSink | None = None) -> None:
        super().__init__(out, what)
        self._beside = beside
        self._rest = b""

    def on_console(self, data: bytes) -> None:
        lines, end, self._rest = (self._rest + data).rpartition(b"\n")
        if len(self._rest) > LONGEST_LINE_BYTES:  # the guest does not decide how much is kept here
            lines, end, self._rest = lines + end + self._rest, b"\n", b""
        if end:
            self._write_lines(lines + end)

    def finish(self) -> None:
        """The guest writes no more: its last line is told as far as it came."""
        if self._rest:
            self._write_lines(self._rest + b"\n")
        self._rest = b""

    def _write_lines(self, lines: bytes) -> None:
        if self._beside is not None and not self._beside.at_line_start:
            lines = b"\n" + lines
            self._beside.at_line_start = True
        super().on_console(lines)


def serial_path(text: str, what: str = "serial console") -> Path | None:
    """The file that `--serial TEXT` names, None for "stdio".  ConfigError, about `what`, otherwise."""
    kind, _, path = text.partition(":")
    if text == "stdio":
        return None
    if kind == "file" and path:
        return Path(path)
    hint = "." if kind == "file" else did_you_mean(kind, ("stdio", "file:PATH"))
    raise ConfigError(f"The {what} must go to stdio or file:PATH, not {text!r}{hint}")


@contextmanager
def serial_file(path: Path, kind: str = "serial") -> Iterator[SerialSink]:
    """A sink that writes a new file at `path`."""
    what = f"The {kind} file {path}"
    with guarded(what), open(open_to_write(path), "wb", buffering=0) as out:
        yield SerialSink(out, what)
