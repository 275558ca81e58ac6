"""Where running machines are found: whose folder, which name, and what becomes of what was left behind."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vmm.control import registry
from vmm.control.client import living
from vmm.control.sockets import Connection, Server


class Run:
    def __init__(self, name: str) -> None:
        self.name = name

    def qmp(self, connection: Connection) -> Run:
        return self

    def received(self, data: bytes) -> None: ...

    def ended(self) -> None: ...


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", ".")  # a short path, wherever pytest has its folders
    return tmp_path


def register(servers: ExitStack, name: str) -> tuple[Server, str]:
    server, run = Server(), Run(name)
    servers.callback(server.close)
    servers.enter_context(registry.registered(server, run))
    return server, run.name


def test_a_run_is_found_by_its_name_and_by_its_owner_only(servers: ExitStack, runtime: Path) -> None:
    server, name = register(servers, "stats")
    assert name == "stats" and list(living()) == ["stats"]
    path = runtime / "balloon-vmm" / "stats.sock"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.stat().st_mode & 0o077
    server.close()
    assert not path.exists() and living() == {}


def test_it_keeps_no_run_alive(servers: ExitStack) -> None:
    server, _ = register(servers, "stats")
    assert not server.can_wake


def test_the_same_name_gets_a_number(servers: ExitStack) -> None:
    first, name = register(servers, "stats")
    assert [name, register(servers, "stats")[1], register(servers, "stats")[1]] == ["stats", "stats-2", "stats-3"]
    first.close()
    assert register(servers, "stats")[1] == "stats"


def test_what_a_killed_run_left_is_replaced_by_the_next_of_its_name(servers: ExitStack) -> None:
    folder = registry.folder()
    assert folder is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(folder / "stats.sock"))
    assert register(servers, "stats")[1] == "stats"
    assert list(living()) == ["stats"]


def test_what_a_killed_run_left_is_removed_by_who_looks_unless_somebody_is_about_to_serve(servers: ExitStack) -> None:
    folder = registry.folder()
    assert folder is not None
    path = folder / "stats.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(str(path))
        with registry._locked(folder) as is_mine:
            assert is_mine
            assert living() == {} and path.exists()
            made.listen(1)
        assert list(living()) == ["stats"]
    assert path.exists()
    assert living() == {} and not path.exists()


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("a b/../c", "a-b-..-c"),
        ("../../etc", "etc"),
        ("é", "vm"),
        ("", "vm"),
        ("x" * 500, "x" * 60),
        (".hidden", "hidden"),
    ],
)
def test_a_name_cannot_lead_out_of_the_folder(servers: ExitStack, name: str, called: str) -> None:
    assert register(servers, name)[1] == called
    assert list(living()) == [called]


@pytest.mark.parametrize("kind", ["others may enter", "a link", "a file", "nothing", "another's"])
def test_a_folder_that_cannot_be_trusted_is_not_used_and_the_run_goes_on(
    servers: ExitStack, runtime: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = runtime / "balloon-vmm"
    if kind == "others may enter":
        folder.mkdir()
        folder.chmod(0o755)
    elif kind == "a link":
        (runtime / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to("elsewhere")
    elif kind == "a file":
        folder.write_text("")
    elif kind == "nothing":
        monkeypatch.setenv("XDG_RUNTIME_DIR", "missing")
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    server, name = register(servers, "stats")
    assert (server.listeners, name) == ([], "stats")
    assert living() == {}


def test_without_a_runtime_folder_there_is_one_for_temporary_files(
    servers: ExitStack, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("TMPDIR", ".")
    register(servers, "stats")
    assert (runtime / f"balloon-vmm-{os.getuid()}" / "stats.sock").is_socket()


def test_a_path_too_long_for_a_socket_is_no_reason_to_fail(servers: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Path("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    server, _ = register(servers, "stats")
    assert server.listeners == []
