"""Files that come back from a guest: a tar archive through the debug port, after a line that announces it.

The guest is not trusted.  Its bytes go into a temporary file as they come, up to a limit.  Only files and folders are
taken from the archive, none outside the place that the user named, and that place is new or empty before the run.
What is written is no more than what came: no file with holes, which a few bytes make as large as they like, and no part
of the archive twice.  All of it is taken or nothing: the files are made in a folder of their own within the place, and
move out of it when the archive has ended.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from shutil import copyfileobj, rmtree

from devices.errors import ConfigError

MARK = b"balloon-vmm: the files of /out as a tar archive\n"
LARGEST_BYTES = 1 << 30
MOST_MEMBERS = 100_000
DEEPEST_FOLDERS = 200  # of what is taken one in another; removing them again costs a call in a call for each
TOLD_EVERY_S = 1.0
_UNFINISHED = ".unfinished-"

# tarfile lets through what its own parts raise for numbers and names that make no sense, or stand in each other
_DAMAGES = (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError)


class ReturnedFiles:
    """Collects what the debug port sends, for the folder `place`.  A context manager.

    ConfigError, before anything runs, unless the place can be written and has nothing in it.  `tell` is called with a
    line every second for as long as they come; `clock` gives seconds."""

    def __init__(
        self,
        place: Path,
        tell: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._told_s = 0.0
        self._place = place
        try:
            place.mkdir(parents=True, exist_ok=True)
            if any(place.iterdir()):
                raise ConfigError(f"The folder {place} for the guest's files is not empty.")
        except OSError as error:
            raise ConfigError(f"The folder {place} for the guest's files cannot be used: {error.strerror}.") from error
        try:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed with this object)
        except OSError as error:
            raise ConfigError(f"The guest's files need a temporary file: {error.strerror}.") from error
        self._size = 0
        self._lost: OSError | None = None  # why the temporary file is not whole: told after the run, which goes on
        self._head = b""
        self._announced = False

    def tell_with(self, tell: Callable[[str], None]) -> None:
        """From now on `tell` says how far they have come."""
        self._tell = tell

    def receive(self, data: bytes) -> None:
        """Take what came out of the port next."""
        if not self._announced:
            self._head += data
            start = self._head.find(MARK)
            if start < 0:
                self._head = self._head[-len(MARK) :]
                return
            data, self._head, self._announced = self._head[start + len(MARK) :], b"", True
            self._told_s = self._clock()
        self._size += len(data)
        if self._size <= LARGEST_BYTES and self._lost is None:
            self._keep(memoryview(data))
        self._tell_progress()

    def _tell_progress(self) -> None:
        now_s = self._clock()
        if self._tell is not None and now_s - self._told_s >= TOLD_EVERY_S:
            self._told_s = now_s
            self._tell(f"{self._size / (1 << 20):.1f} MiB of the guest's files have come")

    def _keep(self, data: memoryview) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._lost = error

    def unpack(self) -> str:
        """Put the files in their place; returns a sentence about them.

        ConfigError when they did not come whole or cannot all be written; then none is in the place."""
        if not self._announced:
            raise ConfigError("The guest ended without sending the files of its /out.")
        if self._lost is not None:
            raise ConfigError(f"The guest's files cannot be kept in {tempfile.gettempdir()}: {self._lost.strerror}.")
        if self._size > LARGEST_BYTES:
            raise ConfigError(f"The guest sent more than {LARGEST_BYTES >> 30} GiB of files; none of them was kept.")
        self._file.seek(0)
        try:
            taken, left = self._unpack_aside()
        except _DAMAGES as error:
            raise ConfigError(f"The guest's files did not come whole, and none of them was kept: {error}.") from error
        except OSError as error:
            raise ConfigError(f"The guest's files cannot be written to {self._place}: {error.strerror}.") from error
        what = {0: "no files", 1: "1 file or folder"}.get(taken, f"{taken} files and folders")
        return f"{what} in {self._place}" + (f", {left} of other kinds left out" if left else "")

    def _unpack_aside(self) -> tuple[int, int]:
        """How many members were taken, and how many were not; nothing stays of an archive that is not whole."""
        aside = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self._place))
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                counts = self._take_all(archive, aside)
            for path in aside.iterdir():
                path.rename(self._place / path.name)
        finally:
            rmtree(aside, ignore_errors=True)
        return counts

    def _take_all(self, archive: tarfile.TarFile, folder: Path) -> tuple[int, int]:
        """How many members were taken into `folder`, and how many were not."""
        taken, left, behind, end = 0, 0, -1, 0
        for count, member in enumerate(archive):
            if count >= MOST_MEMBERS:
                raise ConfigError(f"The guest sent more than {MOST_MEMBERS} files; none of them was kept.")
            if member.offset_data <= behind or member.size < 0:  # a size below 0 would lead back
                raise tarfile.ReadError("its parts lie upon each other")
            behind, end = member.offset_data, archive.offset
            done = self._take(archive, member, folder)
            is_place = not PurePosixPath(member.name).parts  # "." itself, which nobody put there
            taken, left = taken + (done and not is_place), left + (not done)
        if not self._ends_at(end):
            raise tarfile.ReadError("its end is missing")
        return taken, left

    def _ends_at(self, offset: int) -> bool:
        """Whether there is the empty block that ends an archive, behind the last part that was read.

        tarfile ends quietly where the rest is missing, and, having read on, at a header that it refuses."""
        self._file.seek(offset)
        return self._file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> bool:
        """One member; False for what is neither a whole file nor a folder, or not below `folder`."""
        if member.issparse() or "\0" in member.name:
            return False
        parts = [part for part in PurePosixPath(member.name).parts if part != "."]
        if ".." in parts or PurePosixPath(member.name).is_absolute() or not (member.isreg() or member.isdir()):
            return False
        if len(parts) > DEEPEST_FOLDERS:
            raise tarfile.ReadError("its folders lie too deep in one another")
        place = folder.joinpath(*parts)
        if member.isdir():
            place.mkdir(parents=True, exist_ok=True)
            return True
        place.parent.mkdir(parents=True, exist_ok=True)
        source = archive.extractfile(member)
        assert source is not None, member  # it is a regular file
        with source, open(place, "wb") as target:
            copyfileobj(source, target)
            os.fchmod(target.fileno(), 0o755 if member.mode & 0o100 else 0o644)
        return True

    def __enter__(self) -> ReturnedFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
