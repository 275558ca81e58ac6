"""`vmm boot debian` around the guest: what its options make of the machine, its files and the exit status.

Debian is played by a made-up kernel that ends the machine at once; the real one runs in tests/boot.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from guests.debian import bundled_file
from tests.vmm.initramfs.elf_files import busybox_file, module_file, module_folder
from tests.vmm.initramfs.newc_reader import Member, by_name
from tests.vmm.kernels import KERNEL_GPA, bzimage, vmlinux
from vmm.cli import main
from vmm.initramfs.bundled import BALLOON_MODULES, MACHINE_MODULES
from vmm.runner import Request

VERSION = "6.1.0-1-cloud-amd64"
MIB = 1 << 20
RESET = bytes.fromhex("66baf90c b006 ee f4")  # mov dx, CF9h; mov al, 6; out dx, al; hlt
POWER_OFF = bytes.fromhex("66ba0406 66b80020 66ef f4")  # mov dx, 604h; mov ax, 2000h; out dx, ax; hlt
STATUSES = (0, 1, 2, 3, 4, 5, 70, 126, 127, 130, 137, 255)


def quit_with(code: int) -> bytes:
    return bytes.fromhex("66baf405 b8") + struct.pack("<I", code) + bytes.fromhex("ef f4")  # out 5F4h, code; hlt


Kernel = Callable[[bytes], None]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Puts a kernel made of machine code into a cache that is complete otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    cache = tmp_path / "xdg/balloon-vmm/debian/current"
    modules = {f"{name}.ko": module_file(vermagic=f"{VERSION} SMP ") for name in (*BALLOON_MODULES, *MACHINE_MODULES)}
    module_folder(cache, modules, VERSION)
    for folder in ("boot", "bin"):
        (cache / folder).mkdir()
    (cache / "bin/busybox").write_bytes(busybox_file(["[", "[[", "sh"]))
    (cache / "PACKAGES").write_text("linux-image 1\nbusybox-static 1\n", encoding="utf-8")

    def put(code: bytes) -> None:
        image = bzimage(gzip.compress(vmlinux(((KERNEL_GPA, code, 0x2000),))))
        (cache / f"boot/vmlinuz-{VERSION}").write_bytes(image)

    put(POWER_OFF)
    return put


@dataclass
class Runs:
    """What was to be run, and with which files."""

    requests: list[Request] = field(default_factory=list)
    files: dict[str, Member] = field(default_factory=dict)

    def __call__(self, request: Request) -> int:
        self.requests.append(request)
        self.files = by_name(Path(request.config.modules[0]).read_bytes())
        return 0

    @property
    def request(self) -> Request:
        (request,) = self.requests
        return request


@pytest.fixture
def runs(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Nothing is run, only noted."""
    noted = Runs()
    monkeypatch.setattr("vmm.runner.run", noted)
    return noted


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script"
    path.write_bytes(b"#!/bin/sh\n")
    return str(path)


# -- what is shown -------------------------------------------------------------------------------------------------


def test_the_guest_is_called_after_its_kernel_and_not_after_a_file(
    kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["boot", "debian"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"Debian {VERSION}: 512 MiB of RAM, virtual clock, ")
    assert "vmlinuz" not in shown.out + shown.err
    assert main(["boot", "debian", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guest"] == f"Debian {VERSION}"


def test_the_whole_command_line_is_told(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "debian", "--append", "demo=3 nokaslr"]) == 0
    assert "debian: Linux's command line is: console=ttyS0 quiet panic=-1 demo=3 nokaslr\n" in capsys.readouterr().err


def test_nobody_reading_the_messages_is_no_mistake(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr("sys.stderr", full)
        assert main(["boot", "debian", "--json"]) == 0
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # so that closing it does not fail


# -- what the options mean -----------------------------------------------------------------------------------------


def test_the_demonstration_has_targets_and_polls(runs: Runs) -> None:
    assert main(["boot", "debian"]) == 0
    assert (len(runs.request.config.targets), runs.request.config.poll_ns) == (3, 10**9)
    assert (runs.request.serial, runs.request.shell_ready) == ("", None)


@pytest.mark.parametrize("what", ["shell", "run"])
@pytest.mark.parametrize(
    ("words", "targets", "poll_ns"),
    [
        ([], 0, 0),
        (["--poll", "2"], 0, 2 * 10**9),
        (["--target", "256M@1s"], 1, 0),
        (["--target", "256M@1s", "--poll", "1"], 1, 10**9),
    ],
)
def test_a_shell_or_a_script_gets_only_what_was_asked_for(
    what: str, words: list[str], targets: int, poll_ns: int, runs: Runs, script: str
) -> None:
    task = ["--shell"] if what == "shell" else ["--run", script]
    assert main(["boot", "debian", *task, *words]) == 0
    assert (len(runs.request.config.targets), runs.request.config.poll_ns) == (targets, poll_ns)


def test_a_shell_that_nobody_sits_at_takes_commands_and_gives_their_status(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stdin in (None, open(os.devnull, encoding="utf-8")):  # noqa: SIM115 (closed below)
        monkeypatch.setattr("sys.stdin", stdin)
        assert main(["boot", "debian", "--shell"]) == 0
        assert runs.files["main"].data == bundled_file("commands")
        assert "etc/exit-status" in runs.files
        assert "etc/terminal" not in runs.files
        request = runs.requests.pop()
        assert (request.serial, request.config.clock) == ("stdio", "realtime")
        assert request.shell_ready is not None
        if stdin is not None:
            stdin.close()


def test_a_script_reads_nothing_unless_the_console_is_here(runs: Runs, script: str) -> None:
    assert main(["boot", "debian", "--run", script]) == 0
    request = runs.requests.pop()
    assert runs.files["script"].data == b"#!/bin/sh\n"
    assert "etc/typed" not in runs.files
    assert (request.shell_ready, request.config.clock) == (None, "virtual")

    assert main(["boot", "debian", "--run", script, "--serial", "stdio"]) == 0
    assert "etc/typed" in runs.files
    assert runs.request.shell_ready is not None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--shell --serial null", "A shell is typed to, so its console can only be 'stdio', not 'file:/dev/null'."),
        ("--shell --run x", "The guest can have a shell or a script to run, not both."),
        ("--run=", "The option --run needs the name of a script."),
        ("--run /nonexistent", "The script /nonexistent cannot be read: No such file or directory."),
        ("--add /nonexistent", "The folder /nonexistent to be added does not exist."),
        ("--add /dev/null", "What is to be added must be a folder, which /dev/null is not."),
        ("-m 64M", "With its files the guest 'debian' needs at least 96 MiB of RAM, not 64 MiB."),
        ("--initrd x", "The guest 'debian' brings its own initramfs, and our firmware starts it."),
    ],
)
def test_a_mistake_gets_one_sentence(
    words: str, sentence: str, kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["boot", "debian", *words.split()]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"vmm: {sentence}"


def test_files_that_the_ram_cannot_hold_are_refused_before_linux_drops_them(
    kernel: Kernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    with open(given / "large", "wb") as file:
        file.truncate(40 * MIB)
    assert main(["boot", "debian", "--add", str(given), "-m", "128M"]) == 2
    assert "needs at least 185 MiB of RAM, not 128 MiB." in capsys.readouterr().err
    assert main(["boot", "debian", "--add", str(given), "-m", "192M", "--target", "", "--json"]) == 0


# -- the exit status -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 2, 70, 130, 255])
def test_any_status_of_the_guest_s_own_is_the_run_s_and_the_outcome_tells_it_apart(
    code: int, kernel: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel(quit_with(code))
    assert main(["boot", "debian", "--json"]) == code
    report = json.loads(capsys.readouterr().out)
    assert (report["outcome"], report["exit_code"]) == ("quit", code)


@pytest.mark.parametrize(("task", "status"), [([], 0), (["--run"], 3)])
def test_a_script_that_a_reset_ends_did_not_end_well(
    task: list[str], status: int, kernel: Kernel, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody can know how it would have ended."""
    kernel(RESET)
    assert main(["boot", "debian", "--json", *task, *[script for _ in task]]) == status
    report = json.loads(capsys.readouterr().out)
    assert (report["outcome"], report["exit_code"]) == ("reset", status)
    assert report["detail"] == "the guest reset the machine" + (" before its program had ended" if status else "")


@pytest.mark.parametrize("code", STATUSES)
def test_the_status_of_main_ends_the_machine(code: int, tmp_path: Path) -> None:
    """The guest's own script, with its commands played by small ones and its files below a folder."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (tmp_path / "exit-status").touch()
    for name, text in (
        ("setsid", 'exec "$@"'),
        ("cttyhack", f"exit {code}"),
        ("port", f'echo "port $*" >>{tmp_path}/log'),
        ("poweroff", f"echo poweroff >>{tmp_path}/log"),
        ("sync", ""),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    script = bundled_file("run").decode().replace("/etc/exit-status", f"{tmp_path}/exit-status")
    script = script.replace("-d /out", f"-d {tmp_path}/out")
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", script], env=env, check=True)
    assert (tmp_path / "log").read_text(encoding="utf-8").splitlines()[0] == f"port exit {code}"


@pytest.mark.parametrize(("code", "status", "prefix"), [(quit_with(7), 7, "debian"), (POWER_OFF, 2, "vmm")])
def test_why_a_run_failed_matters_more_than_that_its_files_did_not_come(
    code: bytes, status: int, prefix: str, kernel: Kernel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel(code)
    assert main(["boot", "debian", "--out", str(tmp_path / "out")]) == status
    sentence = f"{prefix}: The guest ended without sending the files of its /out."
    assert capsys.readouterr().err.splitlines()[-1] == sentence
