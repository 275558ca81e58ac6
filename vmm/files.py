"""Opening files that the user names, so that Ctrl-C and SIGTERM always end the wait.

Such a file may be a pipe that nobody has opened at the other end, or where nothing comes.  A signal that arrives when
the interpreter has just looked for one, and right before it enters a system call that waits without end, is seen only
when that call returns: never.  So no call here waits for longer than `LONGEST_WAIT_S`; between two the interpreter
looks.  Errors are OSError and ValueError as those of `open`.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time

LONGEST_WAIT_S = 0.1
_CHUNK_BYTES = 1 << 20


def read_file(path: str | os.PathLike[str], limit_bytes: int | None = None) -> bytes:
    """What is in the file, at most its first `limit_bytes`.  A pipe is read to its end."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer opens at once, too
    try:
        return _read_to_the_end(fd, limit_bytes)
    finally:
        os.close(fd)


def _read_to_the_end(fd: int, limit_bytes: int | None) -> bytes:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    pieces, size = [], 0
    while limit_bytes is None or size < limit_bytes:
        if not poller.poll(LONGEST_WAIT_S * 1000):
            continue
        try:
            piece = os.read(fd, _CHUNK_BYTES if limit_bytes is None else min(limit_bytes - size, _CHUNK_BYTES))
        except BlockingIOError:  # another reader of the same pipe was quicker
            continue
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def open_to_write(path: str | os.PathLike[str]) -> int:
    """A descriptor of the file, emptied or made anew; of a pipe as soon as somebody reads it."""
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):
                raise
            time.sleep(LONGEST_WAIT_S)
        else:
            os.set_blocking(fd, True)
            return fd
