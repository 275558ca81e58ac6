"""Where the running machines of one user are found: a folder of sockets, NAME.sock, at each of which QMP is served.

Owns the folder: $XDG_RUNTIME_DIR/balloon-vmm, or one below the folder for temporary files where there is no such thing.
It must be the user's own and nobody else's to enter, or it is not used.  A run that cannot be found there runs all the
same.  What a run that was killed has left is replaced by the next of its name, and removed by who looks for others.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from devices.errors import ConfigError
from vmm.control.address import LONGEST_PATH_BYTES, Address
from vmm.control.sockets import is_stale

if TYPE_CHECKING:
    from vmm.control.sockets import Connection, Server, Session

FOLDER = "balloon-vmm"
SUFFIX = ".sock"
LONGEST_NAME = 60
MOST_OF_A_NAME = 100  # runs that want the same name
LOCK_TRIES, LOCK_WAIT_S = 20, 0.001
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class Named(Protocol):
    """What is registered: it has a name, which may become another, and speaks QMP."""

    name: str

    def qmp(self, connection: Connection) -> Session: ...


def folder() -> Path | None:
    """The folder, made if need be; None where there is none that can be trusted."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    place = Path(runtime) / FOLDER if runtime else Path(os.environ.get("TMPDIR") or "/tmp") / f"{FOLDER}-{os.getuid()}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
    except OSError:
        return None
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return place if mine else None


def socket_name(name: str) -> str:
    """`name` as part of a file's name."""
    return _UNSAFE.sub("-", name).strip("-.")[:LONGEST_NAME] or "vm"


@contextmanager
def registered(server: Server, run: Named) -> Iterator[None]:
    """Serve QMP in the folder as `run.name`, or that with a number behind it, which it is called from then on."""
    place = folder()
    if place is not None:
        _register(place, server, run)
    yield


def _register(place: Path, server: Server, run: Named) -> None:
    wanted = socket_name(run.name)
    with _locked(place) as is_mine:
        if not is_mine:
            return
        for number in range(1, MOST_OF_A_NAME):
            name = wanted if number == 1 else f"{wanted}-{number}"
            path = place / f"{name}{SUFFIX}"
            if len(os.fsencode(path)) > LONGEST_PATH_BYTES:
                return
            try:
                server.listen(Address("unix", path=str(path)), run.qmp, "QMP")
            except ConfigError:
                if path.is_socket():
                    continue  # somebody else is called so
                return
            run.name = name
            return


@contextmanager
def _locked(place: Path) -> Iterator[bool]:
    """Whether nobody else takes or removes a name meanwhile."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """False when somebody else takes too long about it."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_WAIT_S)
        except OSError:
            return False
        else:
            return True
    return False


def sockets() -> dict[str, Path]:
    """The socket of each name, whether or not anybody serves there still."""
    place = folder()
    if place is None:
        return {}
    return {path.name.removesuffix(SUFFIX): path for path in sorted(place.glob(f"*{SUFFIX}")) if path.is_socket()}


def remove_stale(paths: Iterable[Path]) -> None:
    """Remove the sockets among `paths` at which nobody serves any more.

    One that is just being made is not taken for such a one: whoever makes it has the folder locked."""
    place = folder()
    if place is None:
        return
    with _locked(place) as is_mine:
        for path in paths if is_mine else ():
            if is_stale(str(path)):
                with suppress(OSError):
                    path.unlink()
