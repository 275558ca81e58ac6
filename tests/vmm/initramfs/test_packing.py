"""What `vmm initramfs` puts where, told by a reader of the archive."""

from __future__ import annotations

import gzip
import stat
from pathlib import Path

import pytest

from devices.errors import ConfigError
from tests.vmm.initramfs.elf_files import (
    EM_AARCH64,
    VERSION,
    busybox_file,
    module_file,
    module_folder,
    out_of_reach,
    program_file,
)
from tests.vmm.initramfs.newc_reader import Member, by_name
from vmm.cli import main
from vmm.initramfs.busybox import applet_names, read_busybox
from vmm.initramfs.packing import parse_file, parse_folder

APPLETS = ["[", "[[", "acpid", "ash", "busybox", "cat", "sh", "zcat"]


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    path = tmp_path / "busybox"
    path.write_bytes(busybox_file(APPLETS))
    return path


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    files = {
        "virtio/virtio.ko": module_file("depends=virtio-ring"),
        "virtio/virtio-ring.ko": module_file("depends="),
        "virtio/virtio_balloon.ko": module_file("depends=virtio,virtio_ring"),
    }
    return module_folder(tmp_path / "kernel", files)


def pack(tmp_path: Path, *words: str) -> dict[str, Member]:
    """The members of what `vmm initramfs WORDS` writes."""
    place = tmp_path / "out"
    assert main(["initramfs", "-o", str(place), *words]) == 0
    return by_name(place.read_bytes())


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["initramfs", *words]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def test_busybox_has_a_link_for_each_of_its_names_but_its_own(tmp_path: Path, busybox: Path) -> None:
    found = pack(tmp_path, "--busybox", str(busybox))
    assert (found["bin/busybox"].data, found["bin/busybox"].mode & 0o777) == (busybox.read_bytes(), 0o755)
    links = {
        name: member.data for name, member in found.items() if name.startswith("bin/") and stat.S_ISLNK(member.mode)
    }
    assert links == {f"bin/{name}": b"busybox" for name in APPLETS if name != "busybox"}


def test_the_bundled_init_finds_what_it_names(tmp_path: Path, busybox: Path) -> None:
    found = pack(tmp_path, "--busybox", str(busybox))
    for name in ("init", "main", "etc/run", "etc/inittab", "etc/acpi/PWRF/00000080"):
        assert found[name].mode == stat.S_IFREG | 0o755
    for name in ("proc", "sys", "dev", "root", "run", "etc"):
        assert stat.S_ISDIR(found[name].mode)
    assert b"::once:/etc/run\n" in found["etc/inittab"].data
    assert "etc/exit-status" not in found


def test_the_device_nodes_that_init_needs_are_there(tmp_path: Path, busybox: Path) -> None:
    found = pack(tmp_path, "--busybox", str(busybox))
    nodes = {name: member.device for name, member in found.items() if stat.S_ISCHR(member.mode)}
    assert nodes["dev/console"] == (5, 1)  # the numbers are those of devices.txt of the kernel
    assert nodes["dev/null"] == (1, 3)
    assert nodes["dev/tty"] == (5, 0)
    assert nodes["dev/ttyS0"] == (4, 64)


def test_modules_lie_where_modprobe_looks_and_are_listed_in_order(tmp_path: Path, busybox: Path, modules: Path) -> None:
    found = pack(tmp_path, "--busybox", str(busybox), "--kernel-modules", str(modules), "--module", "virtio_balloon")
    folder = f"lib/modules/{VERSION}"
    assert found["etc/modules.load"].data.decode().splitlines() == [
        f"/{folder}/kernel/virtio/virtio-ring.ko",
        f"/{folder}/kernel/virtio/virtio.ko",
        f"/{folder}/kernel/virtio/virtio_balloon.ko",
    ]
    for line in found["etc/modules.load"].data.decode().splitlines():
        assert found[line[1:]].data.startswith(b"\x7fELF")
    assert found[f"{folder}/modules.dep"].data.decode().splitlines() == [
        "kernel/virtio/virtio-ring.ko:",
        "kernel/virtio/virtio.ko: kernel/virtio/virtio-ring.ko",
        "kernel/virtio/virtio_balloon.ko: kernel/virtio/virtio.ko kernel/virtio/virtio-ring.ko",
    ]


def test_an_init_of_the_user_needs_no_busybox(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"\x7fELF mine")
    found = pack(tmp_path, "--init", str(tmp_path / "mine"))
    assert (found["init"].data, found["init"].mode & 0o777) == (b"\x7fELF mine", 0o755)
    assert "main" not in found


def test_files_and_folders_of_the_user_win(tmp_path: Path, busybox: Path) -> None:
    folder = tmp_path / "overlay"
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "inittab").write_text("mine\n")
    (folder / "usr" / "sbin").mkdir(parents=True)
    (folder / "usr" / "sbin" / "tool").write_text("tool")
    (tmp_path / "notes").write_text("n")
    found = pack(tmp_path, "--busybox", str(busybox), "--add", str(folder), "--file", f"{tmp_path}/notes:srv/read.me")
    assert found["etc/inittab"].data == b"mine\n"
    assert found["bin/tool"].data == b"tool"  # /usr/sbin is a link
    assert found["srv/read.me"].data == b"n"


def test_a_name_that_ends_in_gz_is_compressed_and_the_bytes_are_the_same_each_time(
    tmp_path: Path, busybox: Path
) -> None:
    plain, first, second = tmp_path / "a", tmp_path / "b.gz", tmp_path / "c.gz"
    for place in (plain, first, second):
        assert main(["initramfs", "-o", str(place), "--busybox", str(busybox)]) == 0
    assert first.read_bytes() == second.read_bytes()
    assert gzip.decompress(first.read_bytes()) == plain.read_bytes()


def test_what_was_written_is_told(tmp_path: Path, busybox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = pack(tmp_path, "--busybox", str(busybox))
    size = (tmp_path / "out").stat().st_size
    assert capsys.readouterr().out == f"{tmp_path}/out: {len(found)} entries, {size} bytes\n"


# -- the words -----------------------------------------------------------------------------------------------------


def test_a_file_goes_to_the_root_or_where_it_is_told(tmp_path: Path) -> None:
    assert parse_file("some/file") == (Path("some/file"), "file")
    assert parse_file("some/file:/etc/other") == (Path("some/file"), "etc/other")
    assert parse_file("some/file:etc/") == (Path("some/file"), "etc/file")
    (tmp_path / "a:b").write_text("")
    assert parse_file(f"{tmp_path}/a:b") == (tmp_path / "a:b", "a:b")


def test_a_folder_goes_to_the_root_or_where_it_is_told(tmp_path: Path) -> None:
    assert parse_folder(str(tmp_path)) == (tmp_path, "")
    assert parse_folder(f"{tmp_path}:/srv/") == (tmp_path, "srv")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "An initramfs needs a program /init, or busybox for the bundled one."),
        ("--init /etc/hostname --main /etc/hostname --busybox B", "There can be an init of your own, or something"),
        ("--busybox B --module virtio", "Modules need the folder that they are in, such as /lib/modules/VERSION."),
        ("--busybox B --add MISSING", "to be added does not exist."),
        ("--busybox B --file MISSING", "cannot be read: No such file or directory."),
        ("--busybox MISSING", "cannot be read: No such file or directory."),
        ("--init MISSING", "cannot be read: No such file or directory."),
        ("--busybox B --main MISSING", "cannot be read: No such file or directory."),
    ],
)
def test_what_is_missing_is_one_sentence(
    words: str, sentence: str, tmp_path: Path, busybox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words.replace("MISSING", str(tmp_path / "missing")).replace("B ", f"{busybox} ").split()
    said = complaint(capsys, "-o", str(tmp_path / "out"), *[str(busybox) if word == "B" else word for word in given])
    assert said.startswith("vmm: ") and said.endswith(".\n") and said.count("\n") == 1
    assert sentence in said
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, busybox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = complaint(capsys, "-o", str(tmp_path), "--busybox", str(busybox))
    assert said == f"vmm: The initramfs {tmp_path} cannot be written: Is a directory.\n"


# -- busybox -------------------------------------------------------------------------------------------------------


def test_the_list_of_names_ends_where_its_order_ends() -> None:
    assert applet_names(busybox_file(APPLETS)) == APPLETS
    assert applet_names(b"x\0[\0[[\0ash\0cat\0") == ["[", "[[", "ash", "cat"]
    assert applet_names(b"x\0[\0[[\0ash\0aaa\0cat\0") == ["[", "[[", "ash"]
    assert applet_names(b"no list") == []


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"#!/bin/sh\n", "is no ELF file"),
        (program_file(b"\0[\0[[\0sh\0", machine=EM_AARCH64), "is no program for x86-64"),
        (program_file(b"\0[\0[[\0sh\0", interpreter=True), "is linked dynamically"),
        (out_of_reach(program_file(b"\0[\0[[\0sh\0"), table=32), "is no ELF file"),
        (program_file(b"something else"), "has no list of commands"),
    ],
)
def test_a_busybox_that_cannot_run_is_refused(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "busybox").write_bytes(data)
    with pytest.raises(ConfigError, match=sentence):
        read_busybox(tmp_path / "busybox")


@pytest.mark.parametrize("text", ["", ":", ":/srv"])
def test_nothing_to_add_is_not_the_folder_that_one_is_in(text: str) -> None:
    for parse in (parse_file, parse_folder):
        with pytest.raises(ConfigError, match=r"^There is no name of what to add in '.*'[.]$"):
            parse(text)
