"""Files that come back from a guest that need not be honest."""

from __future__ import annotations

import errno
import io
import tarfile
from pathlib import Path

import pytest

from devices.errors import ConfigError
from vmm.debian.files import MARK, ReturnedFiles


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(data), mode
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = "/etc/passwd"
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def described(**words: str) -> bytes:
    """An archive of one file of one byte, about which a header of the POSIX format says something else."""
    info, data = member("a", b"x")
    info.pax_headers = {name.replace("__", "."): value for name, value in words.items()}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def receive(place: Path, *pieces: bytes) -> str:
    with ReturnedFiles(place) as files:
        for piece in pieces:
            files.receive(piece)
        return files.unpack()


def names(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def test_files_and_folders_come_back_with_what_is_executable(tmp_path: Path) -> None:
    sent = archive(
        member(".", kind=tarfile.DIRTYPE),
        member("./sub", kind=tarfile.DIRTYPE),
        member("./sub/data", b"\0\1\2"),
        member("./run", b"#!", mode=0o4755),
    )
    assert receive(tmp_path / "new", MARK, sent).startswith("3 files and folders in ")
    assert (tmp_path / "new/sub/data").read_bytes() == b"\0\1\2"
    assert (tmp_path / "new/run").stat().st_mode & 0o7777 == 0o755


def test_what_came_back_is_counted_without_the_folder_that_holds_it(tmp_path: Path) -> None:
    empty, one = member(".", kind=tarfile.DIRTYPE), member("./one", b"1")
    assert receive(tmp_path / "new", MARK, archive(empty)) == f"no files in {tmp_path / 'new'}"
    assert receive(tmp_path / "new", MARK, archive(empty, one)) == f"1 file or folder in {tmp_path / 'new'}"


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_the_stream_may_be_cut_anywhere_and_begin_with_something_else(size: int, tmp_path: Path) -> None:
    stream = b"the firmware says hello\n" + MARK + archive(member("file", b"contents"))
    receive(tmp_path / "new", *(stream[at : at + size] for at in range(0, len(stream), size)))
    assert (tmp_path / "new/file").read_bytes() == b"contents"


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside", b"x"),
        member("/absolute", b"x"),
        member("a/../../outside", b"x"),
        member("link", kind=tarfile.SYMTYPE),
        member("hard", kind=tarfile.LNKTYPE),
        member("pipe", kind=tarfile.FIFOTYPE),
        member("device", kind=tarfile.CHRTYPE),
    ],
    ids=lambda each: each[0].name,
)
def test_nothing_leaves_the_place_and_no_link_is_made(hostile: tuple[tarfile.TarInfo, bytes], tmp_path: Path) -> None:
    place = tmp_path / "new"
    said = receive(place, MARK, archive(hostile, member("good", b"g")))
    assert said.endswith(", 1 of other kinds left out")
    assert names(tmp_path) == ["new", "new/good"]


def test_a_file_where_a_folder_was_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written to"):
        receive(tmp_path / "new", MARK, archive(member("a", b"file"), member("a/b", b"below it")))


@pytest.mark.parametrize("cut", [0, 100, 700, 1536, 1700, 3000, 4096])
def test_of_an_archive_that_is_cut_off_nothing_is_kept(cut: int, tmp_path: Path) -> None:
    sent = archive(member("first", b"x" * 1000), member("sub/second", b"x" * 2000))[:cut]
    with pytest.raises(ConfigError, match="did not come whole, and none of them was kept: "):
        receive(tmp_path / "new", MARK, sent)
    assert names(tmp_path / "new") == []
    assert receive(tmp_path / "new", MARK, archive(member("whole"))).startswith("1 file")


def test_a_header_that_is_damaged_ends_nothing_quietly(tmp_path: Path) -> None:
    sent = bytearray(archive(member("first", b"x" * 1000), member("second", b"y")))
    sent[1536 + 100] ^= 1  # in the second header
    with pytest.raises(ConfigError, match="did not come whole"):
        receive(tmp_path / "new", MARK, bytes(sent))
    assert names(tmp_path / "new") == []


def test_an_interruption_while_they_are_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: io.BufferedReader, target: io.BufferedWriter) -> None:
        target.write(source.read(10))
        assert len(names(tmp_path / "new")) == 2  # the folder for the unfinished, and the file
        raise KeyboardInterrupt

    monkeypatch.setattr("vmm.debian.files.copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        receive(tmp_path / "new", MARK, archive(member("file", b"x" * 2000)))
    assert names(tmp_path / "new") == []


def test_a_full_disk_leaves_nothing_in_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: io.BufferedReader, target: io.BufferedWriter) -> None:
        target.write(source.read(10))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vmm.debian.files.copyfileobj", full)
    with pytest.raises(ConfigError, match=r"cannot be written to .*: No space left on device"):
        receive(tmp_path / "new", MARK, archive(member("file", b"x" * 2000)))
    assert names(tmp_path / "new") == []


def test_how_far_they_have_come_is_told_every_second(tmp_path: Path) -> None:
    told: list[str] = []
    times = iter([5.0, 5.0, 5.9, 6.0, 6.5, 7.0])
    with ReturnedFiles(tmp_path / "new", told.append, lambda: next(times)) as files:
        files.receive(MARK)
        for _ in range(4):
            files.receive(bytes(1 << 19))
    said = "MiB of the guest's files have come"
    assert told == [f"1.0 {said}", f"2.0 {said}"]


@pytest.mark.parametrize(
    "left_out",
    [{"GNU__sparse__map": "0,1", "GNU__sparse__size": str(1 << 20)}, {"path": "na\0me"}],
    ids=["holes", "nul"],
)
def test_a_file_with_holes_and_a_name_that_is_none_are_left_out(left_out: dict[str, str], tmp_path: Path) -> None:
    """A few bytes of archive must not fill the host's disk."""
    said = receive(tmp_path / "new", MARK, described(**left_out))
    assert said == f"no files in {tmp_path / 'new'}, 1 of other kinds left out"
    assert names(tmp_path / "new") == []


@pytest.mark.parametrize(
    "sent",
    [
        described(GNU__sparse__map="none", GNU__sparse__size="1"),
        described(size="-1024"),
        archive(member("/".join("a" * 2000), b"x")),
        b"".join(archive(member("name", b"long", b"L"))[:1024] for _ in range(2000)),
    ],
    ids=["a map of no numbers", "a size that leads back", "two thousand folders", "names of names"],
)
def test_an_archive_that_makes_no_sense_is_one_sentence(sent: bytes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^The guest's files (did not come whole|cannot be written to).*[.]$"):
        receive(tmp_path / "new", MARK, sent)
    assert names(tmp_path / "new") == []


def test_folders_that_lie_too_deep_can_be_removed_again(tmp_path: Path) -> None:
    deep = [member("/".join("a" * depth), kind=tarfile.DIRTYPE) for depth in range(1, 1200)]
    with pytest.raises(ConfigError, match="did not come whole"):
        receive(tmp_path / "new", MARK, archive(*deep))
    assert names(tmp_path / "new") == []


def test_a_guest_that_sends_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ended without sending the files"):
        receive(tmp_path / "new", b"something else")


def test_too_much_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.debian.files.LARGEST_BYTES", 1000)
    with pytest.raises(ConfigError, match="none of them was kept"):
        receive(tmp_path / "new", MARK, archive(member("file", b"x" * 2000)))
    assert names(tmp_path / "new") == []


def test_too_many_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.debian.files.MOST_MEMBERS", 3)
    with pytest.raises(ConfigError, match="more than 3 files"):
        receive(tmp_path / "new", MARK, archive(*(member(f"file{number}") for number in range(9))))
    assert names(tmp_path / "new") == []


def test_a_place_with_something_in_it_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        ReturnedFiles(tmp_path)


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used: File exists"):
        ReturnedFiles(tmp_path / "file")


def test_a_full_disk_is_told_after_the_run_and_does_not_break_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    said = r"^The guest's files cannot be kept in .*: No space left on device[.]$"
    with pytest.raises(ConfigError, match=said):
        receive(tmp_path / "out", MARK, archive(member("a", b"text")), b"more")


def test_no_room_for_a_temporary_file_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"^The guest's files need a temporary file: No such file or directory[.]$"):
        ReturnedFiles(tmp_path / "out")
