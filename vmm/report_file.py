"""The file that a report goes to: opened before the run, so that a wrong name is refused at once and not after it.

The report appears whole or not at all: it is written beside its place and then moved there.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from vmm.files import open_to_write
from vmm.streams import guarded


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
