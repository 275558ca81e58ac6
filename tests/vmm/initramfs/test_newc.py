"""The newc archive, read back by a reader of its own and, where there is one, by cpio."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from devices.errors import ConfigError
from tests.boot.debian import BUSYBOX, needs_debian
from tests.vmm.initramfs.newc_reader import by_name, read_newc
from vmm.initramfs.newc import Archive


def test_an_empty_archive_is_its_trailer() -> None:
    assert read_newc(Archive().to_bytes()) == []


@pytest.mark.parametrize("size", range(6))
def test_names_and_data_of_every_length_are_padded(size: int) -> None:
    archive = Archive()
    archive.add_file("n" * (size + 1), b"x" * size)
    archive.add_file("z", b"after")
    first, second = read_newc(archive.to_bytes())
    assert (first.name, first.data) == ("n" * (size + 1), b"x" * size)
    assert (second.name, second.data) == ("z", b"after")


def test_every_kind_of_member_has_its_mode_and_number() -> None:
    archive = Archive()
    archive.add_file("run", b"#!", 0o755)
    archive.add_folder("tmp", 0o1777)
    archive.add_link("sh", "busybox")
    archive.add_character_device("null", 1, 3, 0o666)
    found = by_name(archive.to_bytes())
    assert found["run"].mode == stat.S_IFREG | 0o755
    assert (found["tmp"].mode, found["tmp"].nlink) == (stat.S_IFDIR | 0o1777, 2)
    assert (found["sh"].mode, found["sh"].data) == (stat.S_IFLNK | 0o777, b"busybox")
    assert (found["null"].mode, found["null"].device) == (stat.S_IFCHR | 0o666, (1, 3))


def test_folders_come_before_what_is_in_them_and_need_not_be_named() -> None:
    archive = Archive()
    archive.add_file("a/b/c", b"")
    archive.add_file("a-b", b"")  # "-" sorts before "/", and must not come between a folder and its contents
    assert [member.name for member in read_newc(archive.to_bytes())] == ["a", "a/b", "a/b/c", "a-b"]


def test_the_same_contents_give_the_same_bytes_in_any_order_and_at_any_time(tmp_path: Path) -> None:
    results: list[bytes] = []
    for order in (["x", "y"], ["y", "x"]):
        folder = tmp_path / "-".join(order)
        folder.mkdir()
        for name in order:
            (folder / name).write_text(name)
            os.utime(folder / name, (len(results) * 1000, 7))
        archive = Archive()
        archive.add_host_folder("", folder)
        results.append(archive.to_bytes())
    assert results[0] == results[1]
    assert {(member.uid, member.gid, member.mtime) for member in read_newc(results[0])} == {(0, 0, 0)}


def test_a_folder_of_the_host_keeps_links_and_what_is_executable(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "data").write_bytes(b"\0\1")
    (tmp_path / "inner" / "script").write_text("#!/bin/sh\n")
    (tmp_path / "inner" / "script").chmod(0o700)
    (tmp_path / "link").symlink_to("nowhere/at/all")
    archive = Archive()
    archive.add_host_folder("at", tmp_path)
    found = by_name(archive.to_bytes())
    assert found["at/inner/data"].data == b"\0\1"
    assert found["at/inner/data"].mode & 0o777 == 0o644
    assert found["at/inner/script"].mode & 0o777 == 0o755
    assert found["at/link"].data == b"nowhere/at/all"


def test_what_is_added_behind_a_link_lands_where_the_link_leads() -> None:
    archive = Archive()
    archive.add_folder("bin")
    archive.add_link("usr/bin", "../bin")
    archive.add_file("usr/bin/tool", b"t")
    archive.add_folder("usr/bin")
    found = by_name(archive.to_bytes())
    assert found["bin/tool"].data == b"t"
    assert stat.S_ISLNK(found["usr/bin"].mode)


def test_a_later_file_replaces_an_earlier_one() -> None:
    archive = Archive()
    archive.add_file("init", b"bundled")
    archive.add_file("/init", b"own")
    assert by_name(archive.to_bytes())["init"].data == b"own"


@pytest.mark.parametrize("path", ["", "/", ".", "../x", "a/../../x", "a\0b", "TRAILER!!!"])
def test_a_path_that_is_not_below_the_root_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="below its root"):
        Archive().add_file(path, b"")


def test_a_folder_and_a_file_of_one_name_are_refused() -> None:
    archive = Archive()
    archive.add_file("a/b", b"")
    with pytest.raises(ConfigError, match="/a of the initramfs cannot be both a folder and something else"):
        archive.add_file("a", b"")
    with pytest.raises(ConfigError, match="/a/b of the initramfs cannot be both"):
        archive.add_file("a/b/c", b"")


def test_links_that_lead_in_a_circle_are_refused() -> None:
    archive = Archive()
    archive.add_link("a", "b")
    archive.add_link("b", "a")
    with pytest.raises(ConfigError, match="links that point to each other"):
        archive.add_file("a/file", b"")


def test_a_pipe_among_the_files_is_refused_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="neither a file, a folder nor a link"):
        Archive().add_host_folder("", tmp_path)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The file .*/missing cannot be read: No such file or directory\."):
        Archive().add_host_file("x", tmp_path / "missing")


@needs_debian
def test_busybox_s_cpio_lists_and_extracts_the_archive(tmp_path: Path) -> None:
    archive = Archive()
    archive.add_file("folder/file", b"contents")
    archive.add_link("folder/link", "file")
    done = subprocess.run(
        [BUSYBOX, "cpio", "-idm"], input=archive.to_bytes(), cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "folder" / "link").read_bytes() == b"contents"
