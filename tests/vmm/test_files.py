"""Files that the user names: pipes are waited for, and a signal at any moment ends the wait."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from vmm.files import open_to_write, read_file


class Alarmed(Exception):
    pass


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Sends one signal after so many seconds; its handler raises."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Alarmed

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_a_file_is_read_whole_or_up_to_a_limit(tmp_path: Path) -> None:
    path, data = tmp_path / "file", os.urandom(3_000_000)
    path.write_bytes(data)
    assert read_file(path) == data
    assert read_file(path, 2_500_000) == data[:2_500_000]
    assert len(read_file("/dev/zero", 1_234_567)) == 1_234_567
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")


def test_a_pipe_is_waited_for_and_read_to_its_end(fifo: Path) -> None:
    def write() -> None:
        time.sleep(0.2)
        with open(fifo, "wb", buffering=0) as out:
            out.write(b"a" * 100_000)
            time.sleep(0.2)
            out.write(b"b")

    writer = threading.Thread(target=write)
    writer.start()
    assert read_file(fifo) == b"a" * 100_000 + b"b"
    writer.join()


def test_a_pipe_is_written_as_soon_as_somebody_reads_it(fifo: Path) -> None:
    read: list[bytes] = []

    def take() -> None:
        time.sleep(0.2)
        read.append(fifo.read_bytes())

    reader = threading.Thread(target=take)
    reader.start()
    with open(open_to_write(fifo), "wb") as out:
        out.write(b"x" * 1_000_000)  # more than a pipe holds: this must wait, not fail
    reader.join()
    assert read == [b"x" * 1_000_000]


def test_a_file_is_emptied_and_a_new_one_has_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    os.close(open_to_write(tmp_path / "old"))
    assert (tmp_path / "old").read_bytes() == b""
    os.close(open_to_write(tmp_path / "new"))
    (tmp_path / "usual").write_bytes(b"")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("writer", [False, True], ids=["nobody writes", "nothing is written"])
def test_a_signal_at_any_moment_ends_the_wait_for_a_reader(
    fifo: Path, alarm: Callable[[float], None], writer: bool
) -> None:
    """One in some dozens of these falls between the interpreter's last look and a system call that would not end."""
    held = os.open(fifo, os.O_RDWR) if writer else -1
    for number in range(400):
        begun = time.monotonic()
        with pytest.raises(Alarmed):
            alarm(1e-6 + number * 0.5e-6)
            read_file(fifo)
        assert time.monotonic() - begun < 5
    if writer:
        os.close(held)


def test_a_signal_at_any_moment_ends_the_wait_for_one_who_reads(fifo: Path, alarm: Callable[[float], None]) -> None:
    for number in range(100):
        with pytest.raises(Alarmed):
            alarm(1e-6 + number * 1e-6)
            open_to_write(fifo)
