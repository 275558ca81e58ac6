"""Where a run's output goes besides the display: the serial console's file and the report's file.

Both are opened before the machine is built, so that a wrong name is refused at once and not after the run.  The report
appears whole or not at all: it is written beside its place and then moved there.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


# -- the report ----------------------------------------------------------------------------------------------------


class ReportFile:
    """The place of one report.  Make it before the run, `write` after it; `discard` when there is nothing to write.

    ConfigError at once when nothing can be written there.  A place that is no ordinary file, such as a pipe or
    /dev/null, is written to directly.
    """

    def __init__(self, path: Path) -> None:
        self._what = f"The report {path}"
        self._place = Path(os.path.realpath(path))
        self._draft: str | None = None
        with guarded(self._what):
            if self._place.is_dir():
                raise IsADirectoryError(0, "it is a directory")
            if not self._place.exists() or stat.S_ISREG(self._place.stat().st_mode):
                fd, self._draft = tempfile.mkstemp(prefix=f".{self._place.name}.", dir=self._place.parent)
                os.fchmod(fd, 0o666 & ~_umask())
                os.close(fd)

    def write(self, text: str) -> None:
        with guarded(self._what):
            with open(open_to_write(self._draft or self._place), "w", encoding="utf-8") as out:
                out.write(text)
            if self._draft is not None:
                os.replace(self._draft, self._place)
                self._draft = None

    def discard(self) -> None:
        if self._draft is not None:
            with suppress(OSError):
                os.unlink(self._draft)
            self._draft = None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
