"""Under a snapshot's name there is always a whole one: whatever ends the writing of the next, and however."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vmm
from devices.errors import ConfigError
from vmm.machine import Machine
from vmm.snapshots import ram, read_snapshot, write_snapshot, writing

KILLS = 12

WRITER = """
import sys, time, vmm
from vmm.snapshots import write_snapshot
machine = vmm.boot("balloon", memory="48M")
machine.run("100ms")
print("ready", flush=True)
first = True
def tell(done, total):
    print(done, total, flush=True)
while True:
    write_snapshot(machine, sys.argv[1], tell)
    print("written", flush=True)
    machine.run("1ms")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """In a folder of its own, to see what else is left there."""
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "guest.snap"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with vmm.boot("balloon", memory="24M") as machine:
        machine.run("100ms")
        yield machine


@pytest.fixture(params=["without a name", "with a hidden name"])
def draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of file systems: those that have files without a name, and those that have not."""
    if request.param == "with a hidden name":
        true_open = os.open

        def refusing(path: str, flags: int, mode: int = 0o777, **options: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return true_open(path, flags, mode, **options)

        monkeypatch.setattr(os, "open", refusing)
    return str(request.param)


def check_whole(path: Path, now_ns: int) -> None:
    with read_snapshot(path) as snapshot:
        assert snapshot.clock_ns == now_ns
        snapshot.state()


# -- kill -9 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(KILLS))
def test_kill_9_in_the_midst_of_it_leaves_the_older_snapshot(place: int, path: Path) -> None:
    """The second writing is ended at another chunk each time, and a little later each time within it."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if line == "written\n":
                break
        before, inode = path.read_bytes(), path.stat().st_ino
        for _ in range(1 + place % 11):
            assert "written" not in writer.stdout.readline(), "there are that many chunks, and it is not done"
        time.sleep(place * 0.0007)
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read()
    left = os.listdir(path.parent)
    with read_snapshot(path) as snapshot:
        snapshot.state()
    if "written" not in rest and path.stat().st_ino == inode:
        assert path.read_bytes() == before
    others = [name for name in left if name != path.name]
    assert len(others) <= 1, "one may have been about to take the other's place"
    for name in others:
        assert name.startswith(f".{path.name}.")
        with read_snapshot(path.with_name(name)) as snapshot:
            snapshot.state()


def test_the_kills_come_in_the_midst_of_it(path: Path) -> None:
    """After the first chunk there is always more to write: the older one is still the one that is there."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        while writer.stdout.readline() != "written\n":
            pass
        before, inode = path.read_bytes(), path.stat().st_ino
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.stdout.read()
    assert path.stat().st_ino == inode
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# -- other ends --------------------------------------------------------------------------------------------------------


class Enough(Exception):
    """What a progress bar may raise."""


def stop(done: int, total: int) -> None:
    if done > total // 2:
        raise Enough


@pytest.mark.parametrize("error", [Enough, KeyboardInterrupt])
def test_what_the_progress_raises_ends_it_and_leaves_nothing(
    error: type[BaseException], draft: str, path: Path, machine: Machine
) -> None:
    write_snapshot(machine, path)
    before = path.read_bytes()

    def tell(done: int, total: int) -> None:
        raise error

    state = machine.save()
    with pytest.raises(error):
        write_snapshot(machine, path, tell)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    assert machine.save() == state


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_full_disk_leaves_the_older_one_and_is_told(
    after: int, draft: str, path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snapshot(machine, path)
    before, count, true_write = path.read_bytes(), 0, ram.write_all

    def full(fd: int, data: bytes, offset: int) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        true_write(fd, data, offset)

    monkeypatch.setattr(ram, "write_all", full)
    monkeypatch.setattr(writing, "write_all", full)
    with pytest.raises(ConfigError) as caught:
        write_snapshot(machine, path)
    assert str(caught.value) == f"The snapshot {path} cannot be written: No space left on device."
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_it_is_on_the_disk_before_it_has_its_name_and_so_is_the_folder_after(
    draft: str, path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str, true: Callable[..., object]) -> Callable[..., object]:
        def call(*words: object, **options: object) -> object:
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(words[0]).st_mode)  # type: ignore[arg-type]
            calls.append(f"{name} of the folder" if is_folder else name)
            return true(*words, **options)

        return call

    for name in ("fsync", "rename", "pwrite"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    write_snapshot(machine, path)
    others = [name for name in calls if name != "pwrite"]
    assert others == ["fsync", "rename", "fsync of the folder"]
    assert calls[-4:] == ["pwrite", *others]


# -- the file ----------------------------------------------------------------------------------------------------------


def test_only_its_owner_may_read_it(draft: str, path: Path, machine: Machine) -> None:
    mask = os.umask(0)
    try:
        size = write_snapshot(machine, path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == size
    assert os.listdir(path.parent) == [path.name]
    check_whole(path, machine.now_ns)


def test_an_older_file_with_other_rights_is_replaced_by_one_of_its_own(
    draft: str, path: Path, machine: Machine
) -> None:
    path.write_bytes(b"something")
    path.chmod(0o644)
    write_snapshot(machine, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    check_whole(path, machine.now_ns)


def test_a_link_stays_and_what_it_leads_to_is_replaced(path: Path, machine: Machine) -> None:
    (path.parent / "real").mkdir()
    real = path.parent / "real" / "there.snap"
    path.symlink_to(real)
    write_snapshot(machine, path)
    assert path.is_symlink()
    check_whole(real, machine.now_ns)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "it is no ordinary file"),
        ("no/such/folder.snap", "No such file or directory"),
        ("pipe", "it is no ordinary file"),
        ("file/below", "Not a directory"),
    ],
)
def test_a_place_where_none_can_be_is_told(name: str, reason: str, path: Path, machine: Machine) -> None:
    os.mkfifo(path.parent / "pipe")
    (path.parent / "file").touch()
    place = path.parent / name
    with pytest.raises(ConfigError) as caught:
        write_snapshot(machine, place)
    assert str(caught.value) == f"The snapshot {place} cannot be written: {reason}."
    assert sorted(os.listdir(path.parent)) == ["file", "pipe"]


def test_a_closed_machine_has_none(path: Path) -> None:
    with vmm.boot("hello", memory="1M") as machine:
        pass
    with pytest.raises(ConfigError, match=r"^The machine is closed\.$"):
        write_snapshot(machine, path)
    assert os.listdir(path.parent) == []


def test_a_snapshot_that_was_closed_is_told(path: Path, machine: Machine) -> None:
    write_snapshot(machine, path)
    snapshot = read_snapshot(path)
    snapshot.close()
    snapshot.close()
    with pytest.raises(ConfigError, match=r"is closed\.$"):
        snapshot.boot()


def test_a_snapshot_goes_on_from_the_file_that_was_opened(path: Path, machine: Machine) -> None:
    """Whoever replaces it meanwhile does not change it."""
    write_snapshot(machine, path)
    now_ns = machine.now_ns
    with read_snapshot(path) as snapshot:
        with vmm.boot("hello", memory="1M") as other:
            write_snapshot(other, path)
        with snapshot.boot() as same:
            assert same.now_ns == now_ns


def test_memory_is_bounded_whatever_the_guest_s_ram(
    path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no time are more chunks in memory than are worked on, and a few."""
    alive = most = 0
    true_without, true_append = ram._without_zeros, ram.SavedRam._append

    def without_zeros(*words: Any) -> Any:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return true_without(*words)

    def append(saved: ram.SavedRam, frame: bytes) -> None:
        nonlocal alive
        alive -= 1
        true_append(saved, frame)

    monkeypatch.setattr(ram, "CHUNK_BYTES", 256 << 10)
    monkeypatch.setattr(ram, "_without_zeros", without_zeros)
    monkeypatch.setattr(ram.SavedRam, "_append", append)
    write_snapshot(machine, path)
    assert alive == 0, "all of them had contents"
    assert 1 < most <= ram.workers() + 2
