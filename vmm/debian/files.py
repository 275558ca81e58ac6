"""Files that come back from a guest: a tar archive through the debug port, after a line that announces it.

The guest is not trusted.  Its bytes go into a temporary file as they come, up to a limit.  Only files and folders are
taken from the archive, none outside the place that the user named, and that place is new or empty before the run.
What is written is no more than what came: no file with holes, which a few bytes make as large as they like, and no part
of the archive twice.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from shutil import copyfileobj

from devices.errors import ConfigError

MARK = b"balloon-vmm: the files of /out as a tar archive\n"
LARGEST_BYTES = 1 << 30
MOST_MEMBERS = 100_000

# tarfile lets through what its own parts raise for numbers and names that make no sense, or stand in each other
_DAMAGES = (tarfile.TarError, EOFError, ValueError, ArithmeticError, LookupError, RecursionError)


class ReturnedFiles:
    """Collects what the debug port sends, for the folder `place`.  A context manager.

    ConfigError, before anything runs, unless the place can be written and has nothing in it."""

    def __init__(self, place: Path) -> None:
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

    def receive(self, data: bytes) -> None:
        """Take what came out of the port next."""
        if not self._announced:
            self._head += data
            start = self._head.find(MARK)
            if start < 0:
                self._head = self._head[-len(MARK) :]
                return
            data, self._head, self._announced = self._head[start + len(MARK) :], b"", True
        self._size += len(data)
        if self._size <= LARGEST_BYTES and self._lost is None:
            self._keep(memoryview(data))

    def _keep(self, data: memoryview) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            self._lost = error

    def unpack(self) -> str:
        """Put the files in their place; returns a sentence about them.  ConfigError when they did not come whole."""
        if not self._announced:
            raise ConfigError("The guest ended without sending the files of its /out.")
        if self._lost is not None:
            raise ConfigError(f"The guest's files cannot be kept in {tempfile.gettempdir()}: {self._lost.strerror}.")
        if self._size > LARGEST_BYTES:
            raise ConfigError(f"The guest sent more than {LARGEST_BYTES >> 30} GiB of files; none of them was kept.")
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as archive:
                taken, left = self._take_all(archive)
        except _DAMAGES as error:
            raise ConfigError(f"The guest's files did not come whole: {error}.") from error
        except OSError as error:
            raise ConfigError(f"The guest's files cannot be written to {self._place}: {error.strerror}.") from error
        what = {0: "no files", 1: "1 file or folder"}.get(taken, f"{taken} files and folders")
        return f"{what} in {self._place}" + (f", {left} of other kinds left out" if left else "")

    def _take_all(self, archive: tarfile.TarFile) -> tuple[int, int]:
        """How many members were taken, and how many were not."""
        taken, left, behind = 0, 0, -1
        for count, member in enumerate(archive):
            if count >= MOST_MEMBERS:
                raise ConfigError(f"The guest sent more than {MOST_MEMBERS} files; the rest was not kept.")
            if member.offset_data <= behind or member.size < 0:  # a size below 0 would lead back
                raise tarfile.ReadError("its parts lie upon each other")
            behind = member.offset_data
            done = self._take(archive, member)
            is_place = not PurePosixPath(member.name).parts  # "." itself, which nobody put there
            taken, left = taken + (done and not is_place), left + (not done)
        if not archive.getmembers() and self._has_a_first_part():
            raise tarfile.ReadError("its first part makes no sense")
        return taken, left

    def _has_a_first_part(self) -> bool:
        """Whether there is more than the end of an archive: some tarfiles end quietly at a header that they refuse."""
        self._file.seek(0)
        return any(self._file.read(tarfile.BLOCKSIZE))

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
        """One member; False for what is neither a whole file nor a folder, or not below the place."""
        if member.issparse() or "\0" in member.name:
            return False
        parts = [part for part in PurePosixPath(member.name).parts if part != "."]
        if ".." in parts or PurePosixPath(member.name).is_absolute() or not (member.isreg() or member.isdir()):
            return False
        place = self._place.joinpath(*parts)
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
