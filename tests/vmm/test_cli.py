"""The command `vmm` as its users meet it: sentences, exit statuses, JSON, files, signals and terminals.

Everything that needs a process of its own runs one, with the bundled guests; sentences about words alone are asked of
`main` directly, which is the same code and faster.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from vmm import __version__
from vmm.boot_options import WORDS
from vmm.cli import EXIT_STATUSES, main

ROOT = Path(__file__).resolve().parents[2]
VMM = [sys.executable, "-m", "vmm"]
KNOWN = "boot, ps, balloon, stats, ctl, snapshot, top, guests, devices, initramfs, conformance, inspect, watch"
POWER_OFF = bytes.fromhex("66ba0406 66b80020 66ef f4")  # mov dx, 604h; mov ax, 2000h; out dx, ax; hlt
QUIT_WITH_7 = bytes.fromhex("66baf405 b807000000 ef f4")  # mov dx, 5F4h; mov eax, 7; out dx, eax; hlt
PANIC = bytes.fromhex("66ba0505 b001 ee f4")  # mov dx, 505h; mov al, 1; out dx, al; hlt
TRIPLE_FAULT = bytes.fromhex("6a00 6a00 0f011c24 0f0b")  # push 0; push 0; lidt [rsp]; ud2
HALT = bytes.fromhex("fa f4")  # cli; hlt
SPIN = bytes.fromhex("ebfe")  # jmp $
RESET = bytes.fromhex("66baf90c b006 ee f4")  # mov dx, CF9h; mov al, 6; out dx, al; hlt


def vmm(*words: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with its output in pipes."""
    whole = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "VMM_TRACEBACK")}
    whole |= {"PYTHONPATH": str(ROOT)} | dict(env or {})
    return subprocess.run([*VMM, *words], capture_output=True, text=True, cwd=cwd, env=whole, timeout=120, check=False)


def flat(folder: Path, code: bytes) -> str:
    """A flat image of `code`."""
    path = folder / "guest.bin"
    path.write_bytes(code)
    return str(path)


class Terminal(io.StringIO):
    """Something that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [30, 60, 80])
@pytest.mark.parametrize("words", ["devices", "guests", "boot -device virtio-balloon-pci,help"])
def test_lists_are_folded_between_words_on_a_terminal(
    words: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 0
    whole = capsys.readouterr().out  # into a pipe: one line for each property
    assert max(len(line) for line in whole.splitlines()) > 80
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(words.split()) == 0
    folded = terminal.getvalue()
    assert folded.split() == whole.split()
    assert [line for line in folded.splitlines() if len(line) > columns and len(line.split()) > 1] == []


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("boot --clock virtul", "The clock must be virtual or realtime, not 'virtul'; did you mean 'virtual'?"),
        ("boot -m 0", "The memory must be at least 1 MiB, not 0 B."),
        ("boot -m -5", "A size must be a number with K, M, G or T (or none, for MiB), such as 64M, not '-5'."),
        ("boot -m 1e99", "A size must be a number with K, M, G or T (or none, for MiB), such as 64M, not '1e99'."),
        ("boot --target 65M", "A target must be more than 0 and at most the machine's 64 MiB of RAM, not 65 MiB."),
        ("boot --target balloon=64M", "The balloon must be smaller than the machine's 64 MiB of RAM, not 64 MiB."),
        (
            "boot --poll often",
            "A time must be a number of seconds or one with ns, us, ms, s, min or h, such as 2s, not 'often'.",
        ),
        ("boot --for 0", "The guest time to run for must be more than 0."),
        ("boot -smp 2", "The option -smp can only be '1' here, not '2'."),
        (
            "boot -machine q35",
            "The option -machine is QEMU's and not supported: the board and its one CPU model follow from --arch.",
        ),
        ("boot --jsn", "There is no option '--jsn'; did you mean '--json'?"),
        (
            "boot -device virtio-ballon-pci",
            "There is no device 'virtio-ballon-pci'; did you mean 'virtio-balloon-pci'?",
        ),
        ("boot --serial tcp:1", "The serial console must go to stdio or file:PATH, not 'tcp:1'."),
        ("boot --serial stdoi", "The serial console must go to stdio or file:PATH, not 'stdoi'; did you mean 'stdio'?"),
        (
            "boot --report /nonexistent/r.json",
            "The report /nonexistent/r.json cannot be written: No such file or directory.",
        ),
        ("boot --report /", "The report / cannot be written: it is a directory."),
        ("boot --serial file:/", "The serial file / cannot be written: Is a directory."),
        ("boot stats hello", "There can be one guest only, not 'stats' and 'hello'."),
        ("hello", "There is no command 'hello'; did you mean 'vmm boot hello'?"),
        ("bot", f"There is no command 'bot', only {KNOWN}; did you mean 'boot'?"),
        ("run hello", f"There is no command 'run', only {KNOWN}; did you mean 'boot'?"),
        ("foo", f"There is no command 'foo', only {KNOWN}."),
        ("version", f"There is no command 'version', only {KNOWN}; did you mean '--version'?"),
        ("-m 64M", "A command must come first: vmm boot -m 64M"),
        ("--json boot hello", "A command must come first: vmm boot --json hello"),
        ("--all guests", "A command must come first: vmm guests --all"),
        ("boot nothing", "There is no guest or file 'nothing'; `vmm guests` lists the guests."),
        ("boot --serial file:", "The serial console must go to stdio or file:PATH, not 'file:'."),
        ("boot --serial fil:x", "The serial console must go to stdio or file:PATH, not 'fil:x'."),
        ("guests --all", "No such option: --all."),
    ],
)
def test_a_mistake_gets_one_sentence_and_status_2(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"vmm: {sentence}\n"


def test_a_guest_that_does_not_exist_gets_the_nearest_name() -> None:
    for wrong, right in (("stts", "stats"), ("debain", "debian")):
        done = vmm("boot", wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(rf"vmm: There is no .*'{wrong}'; did you mean '{right}'\?\n", done.stderr)


@pytest.mark.parametrize("kind", ["folder", "empty", "missing", "unreadable ELF", "too large"])
def test_a_file_that_is_no_guest_gets_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "guest"
    match kind:
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "unreadable ELF":
            path.write_bytes(b"\x7fELF" + b"\xff" * 60)
        case "too large":
            path.write_bytes(bytes(2 << 20))
    done = vmm("boot", str(path), "-m", "2M")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"vmm: [^\n]*{re.escape(str(path))}[^\n]*\.\n", done.stderr)


def test_a_file_without_an_end_is_refused() -> None:
    done = vmm("boot", "/dev/zero")
    assert (done.returncode, done.stderr) == (2, "vmm: The guest '/dev/zero' is larger than 1024 MiB.\n")


def test_more_memory_than_the_host_has_is_refused() -> None:
    done = vmm("boot", "hello", "-m", "1024T")
    assert done.returncode == 2
    assert re.fullmatch(r"vmm: The memory must be at most the .* that this host has, not 1024 TiB\.\n", done.stderr)


def test_a_mistake_in_vmm_itself_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("something impossible")

    monkeypatch.delenv("VMM_TRACEBACK", raising=False)
    monkeypatch.setattr("vmm.boot_options.BootOptions.config", broken)
    assert main(["boot", "hello"]) == 70
    assert capsys.readouterr().err == "vmm: A mistake in vmm itself: RuntimeError: something impossible\n"
    monkeypatch.setenv("VMM_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        main(["boot", "hello"])


# -- what it tells ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["--version", "-version"])
def test_the_version_is_told(word: str) -> None:
    done = vmm(word)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vmm {__version__} (balloon-vmm)\n", "")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("boot", "guests", "devices"))


@pytest.mark.parametrize("word", ["--help", "-h", "-help"])
def test_help_teaches_options_sizes_and_exit_statuses(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", word]) == 0
    out = capsys.readouterr().out
    for option in WORDS.values():
        assert option.option is None or option.option in out
    for status, meaning in EXIT_STATUSES:
        assert re.search(rf"^ *{status} +{re.escape(meaning)}$", out, re.MULTILINE)
    assert "balloon=SIZE" in out


def test_guests_are_listed_with_what_they_show(capsys: pytest.CaptureFixture[str]) -> None:
    from guests import GUESTS

    assert main(["guests"]) == 0
    out = capsys.readouterr().out
    for row in GUESTS.values():
        assert re.search(rf"^{row.name} +{re.escape(row.summary)}$", out, re.MULTILINE)
        assert row.demo_target in out


def test_devices_are_listed_with_their_properties(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    whole = capsys.readouterr().out
    assert main(["boot", "-device", "virtio-balloon-pci,help"]) == 0
    one = capsys.readouterr().out
    assert one in whole
    names = (
        "id=",
        "addr=",
        "must-tell-host=on|off",
        "page-poison=on|off",
        "iommu_platform=off",
        "stats-format=final|v2",
    )
    for name in names:
        assert name in one
    assert main(["boot", "-device", "help"]) == 0
    assert capsys.readouterr().out == whole


# -- how a run ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words", "outcome", "status"),
    [
        (POWER_OFF, [], "powered-off", 0),
        (QUIT_WITH_7, [], "quit", 7),
        (PANIC, [], "guest-panicked", 3),
        (TRIPLE_FAULT, [], "triple-fault", 4),
        (HALT, [], "halted", 0),
        (RESET, [], "reset", 0),
        (SPIN, ["--for", "1ms"], "deadline", 0),
    ],
    ids=["power off", "quit", "panic", "triple fault", "halt", "reset", "deadline"],
)
def test_each_end_has_its_outcome_and_exit_status(
    code: bytes, words: list[str], outcome: str, status: int, tmp_path: Path
) -> None:
    done = vmm("boot", flat(tmp_path, code), "--json", *words)
    assert (done.returncode, done.stderr) == (status, "")
    report = json.loads(done.stdout)
    assert (report["outcome"], report["exit_code"]) == (outcome, status)


def test_a_triple_fault_is_told_with_vector_address_and_registers(tmp_path: Path) -> None:
    done = vmm("boot", flat(tmp_path, TRIPLE_FAULT))
    assert done.returncode == 4
    assert "triple-fault: exception 6 at 0010:0000000000100008" in done.stdout
    assert re.search(r"^registers +rax=[0-9a-f]+ rbx=", done.stdout, re.MULTILINE)
    assert re.search(
        r"\brflags=[0-9a-f]+ +cr0=[0-9a-f]+ +cr2=[0-9a-f]+ +cr3=[0-9a-f]+ +cr4=[0-9a-f]+", " ".join(done.stdout.split())
    )
    assert max(len(line) for line in done.stdout.splitlines() if str(tmp_path) not in line) <= 100
    detail = json.loads(vmm("boot", flat(tmp_path, TRIPLE_FAULT), "--json").stdout)["detail"]
    assert "tsc_aux=" in detail  # everything is there


def test_a_file_without_a_mark_is_told_to_be_taken_for_machine_code(tmp_path: Path) -> None:
    flat(tmp_path, POWER_OFF)
    done = vmm("boot", "guest.bin", cwd=tmp_path)
    assert done.stdout.count("guest.bin is no kernel or ELF file: run as a flat image at 100000h") == 2
    assert "no ELF file" not in vmm("boot", "hello").stdout


def test_a_text_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("# no guest at all")
    done = vmm("boot", "notes.txt", cwd=tmp_path)
    sentence = "vmm: The guest 'notes.txt' is text, and no program for this machine.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


# -- JSON and the report ---------------------------------------------------------------------------------------------

FIELDS = {
    "guest": str,
    "outcome": str,
    "exit_code": int,
    "clock_ns": int,
    "wall_s": float,
    "blocks": int,
    "features": {"offered": list, "negotiated": list},
    "balloon": dict.fromkeys(
        (
            *("target_pages", "actual_pages", "inflated_pages", "deflated_pages", "oom_deflated_pages"),
            *("reported_pages", "reported_bytes", "poisoned_pages", "hinted_pages", "hint_discarded_pages"),
            *("stale_hint_pages", "held_pages", "discarded_bytes", "bad_pfns"),
        ),
        int,
    ),
    "memory": {
        "backing": str,
        **dict.fromkeys(("ram_bytes", "host_page_bytes", "backed_bytes_peak", "backed_bytes_end"), int),
    },
    "stats": {"reason": str, "age_ns": int, "values": dict, "raw": list},
    "queues": list,
    "console": str,
}


def check_fields(found: dict[str, Any], fields: Mapping[str, Any]) -> None:
    for name, kind in fields.items():
        if isinstance(kind, dict):
            check_fields(found[name], kind)
        else:
            assert isinstance(found[name], kind), (name, found[name])


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], str]:
    """A run of `stats` with --json and --report: the process and what the report's file holds."""
    path = tmp_path_factory.mktemp("report") / "r.json"
    done = vmm(
        "boot", "stats", "--json", "--report", str(path), "--target", "32M@100ms", "--poll", "100ms", "--for", "400ms"
    )
    return done, path.read_text()


def test_json_is_one_object_on_standard_output_and_nothing_else(
    short_run: tuple[subprocess.CompletedProcess[str], str],
) -> None:
    done, _ = short_run
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    report = json.loads(done.stdout)
    check_fields(report, FIELDS)
    assert report["outcome"] == "deadline"
    assert report["balloon"]["target_pages"] == report["balloon"]["actual_pages"] == 8192
    assert report["stats"]["reason"] == "ok"
    assert {queue["name"] for queue in report["queues"]} == {"inflateq", "deflateq", "statsq"}


def test_the_report_is_the_same_object(short_run: tuple[subprocess.CompletedProcess[str], str]) -> None:
    done, report = short_run
    assert report == done.stdout


def test_two_runs_differ_in_wall_time_only(short_run: tuple[subprocess.CompletedProcess[str], str]) -> None:
    done, _ = short_run
    again = vmm("boot", "stats", "--json", "--target", "32M@100ms", "--poll", "100ms", "--for", "400ms")
    first, second = json.loads(done.stdout), json.loads(again.stdout)
    del first["wall_s"], second["wall_s"]
    assert first == second


def test_a_report_has_the_rights_of_an_ordinary_new_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert vmm("boot", "hello", "--report", str(path)).returncode == 0
    (tmp_path / "other").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_report_replaces_an_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path, link = tmp_path / "r.json", tmp_path / "link.json"
    path.write_text("old")
    link.symlink_to(path)
    assert vmm("boot", "hello", "--report", str(link)).returncode == 0
    assert json.loads(path.read_text())["guest"] == "hello"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.json", "r.json"]
    assert link.is_symlink()


def test_a_run_that_cannot_begin_leaves_an_old_report_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    assert vmm("boot", str(tmp_path / "missing"), "--report", str(path)).returncode == 2
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_a_report_may_go_to_a_device(tmp_path: Path) -> None:
    assert vmm("boot", "hello", "--report", "/dev/null").returncode == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_guest_with_no_balloon_has_a_report_too() -> None:
    done = vmm("boot", "hello", "--json", "-device", "virtio-rng-pci")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["balloon"] is report["stats"] is report["features"] is None


# -- what is printed -------------------------------------------------------------------------------------------------


def test_elsewhere_than_on_a_terminal_there_are_plain_lines() -> None:
    done = vmm("boot", "stats", "--poll", "100ms", "--for", "300ms", "--target", "32M@150ms")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    found = re.findall(r"^[0-9.]+ s  statistics: .*\n .*free-memory [0-9.]+ MiB", done.stdout, re.MULTILINE)
    assert len(found) == len(set(found)) >= 3
    assert max(map(len, done.stdout.splitlines())) <= 130
    assert "the host's new target: 32 MiB left to the guest (balloon 32 MiB)" in done.stdout
    assert re.search(r"^exit status +0$", done.stdout, re.MULTILINE)


def test_a_bundled_guest_brings_its_demonstration_in_proportion_to_the_memory() -> None:
    done = vmm("boot", "stats", "--for", "2.1s", "-m", "32M", "--json")
    report = json.loads(done.stdout)
    assert report["memory"]["ram_bytes"] == 32 << 20
    assert report["balloon"]["target_pages"] == 16 << 8  # 32M@2s of 64M


def test_serial_stdio_is_the_guests_bytes_alone(tmp_path: Path) -> None:
    path = tmp_path / "console.bin"
    done = vmm("boot", "hello", "--serial", "stdio")
    assert vmm("boot", "hello", "--serial", f"file:{path}").returncode == 0
    assert path.read_bytes().decode() == json.loads(vmm("boot", "hello", "--json").stdout)["console"]
    assert done.stdout == path.read_bytes().decode().replace("\r\n", "\n")
    assert "exit status" in done.stderr


def test_a_console_in_a_file_is_not_printed_as_well(tmp_path: Path) -> None:
    done = vmm("boot", "hello", "--serial", f"file:{tmp_path / 'c'}")
    assert "hello from a guest" not in done.stdout
    assert "exit status" in done.stdout


@pytest.mark.parametrize("word", ["null", "none"])
def test_a_console_that_goes_nowhere_is_still_in_the_report(word: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    done = vmm("boot", "hello", "-serial", word, "--report", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "hello from a guest" not in done.stdout
    assert "hello from a guest" in json.loads(path.read_text())["console"]


def test_with_json_the_console_on_stdio_goes_to_standard_error() -> None:
    done = vmm("boot", "hello", "--json", "--serial", "stdio")
    assert json.loads(done.stdout)["outcome"] == "quit"
    assert "hello from a guest" in done.stderr


DEBUG_OUT, CONSOLE_OUT = bytes.fromhex("66ba0204 ee"), bytes.fromhex("66baf803 ee")  # mov dx, 402h / 3F8h; out dx, al


def writes(debug: str, console: str) -> bytes:
    """Code that writes both texts, one character of each in turn, and halts."""
    code = b""
    for pair in itertools.zip_longest(debug.encode(), console.encode()):
        code += b"".join(
            bytes((0xB0, byte)) + out
            for byte, out in zip(pair, (DEBUG_OUT, CONSOLE_OUT), strict=True)
            if byte is not None
        )
    return code + HALT


@pytest.mark.parametrize("serial", ["shown", "stdio"])
def test_lines_of_the_debug_port_stay_whole_among_those_of_the_console(serial: str, tmp_path: Path) -> None:
    guest = flat(tmp_path, writes("debug one\ndebug two\nlast", "a console\nwith text\nend"))
    words = ["boot", guest, "--debugcon", "stdio", *(["--serial", "stdio"] if serial == "stdio" else [])]
    done = subprocess.run([*VMM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    lines = [line.partition("| ")[2] or line for line in done.stdout.splitlines()]
    assert [line for line in lines if line in ("debug one", "debug two", "last")] == ["debug one", "debug two", "last"]
    if serial == "shown":
        assert [line for line in lines if line in ("a console", "with text", "end")] == [
            "a console",
            "with text",
            "end",
        ]


def test_the_debug_port_in_a_file_is_unchanged(tmp_path: Path) -> None:
    guest, path = flat(tmp_path, writes("one\ntwo", "console")), tmp_path / "debug"
    assert vmm("boot", guest, "--debugcon", f"file:{path}").returncode == 0
    assert path.read_bytes() == b"one\ntwo"


@pytest.mark.parametrize("option", ["--param", "-append"])
def test_the_parameter_reaches_the_guest(option: str) -> None:
    done = vmm("boot", "-kernel", "hello", option, "-two words", "--json")
    assert 'hello: my parameter is "-two words"' in json.loads(done.stdout)["console"]


def test_a_locale_without_utf_8_is_no_obstacle() -> None:
    done = vmm("boot", "hello", "--param", "grün", env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "words", [["guests"], ["--version"], ["--help"], ["boot", "--help"], ["boot", "hello"], ["boot", "hello", "--json"]]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_gets_one_sentence(words: list[str], unbuffered: str) -> None:
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*VMM, *words], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False, env=env
        )
    assert done.returncode == 2
    assert re.fullmatch(r"vmm: [^\n]*No space left on device\.\n", done.stderr)


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["guests"], ["boot", "hello"], ["boot", "hello", "--json"]]
)
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&-", "2>&-"])
def test_closed_streams_are_no_mistake(words: list[str], closed: str, tmp_path: Path) -> None:
    """A report shows that the run was a whole one, and that no file has taken a closed stream's place."""
    report = tmp_path / "r.json"
    words = [*words, "--report", str(report)] if "hello" in words else words
    command = ["bash", "-c", f'"$@" {closed}', "bash", *VMM, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not report.exists() or json.loads(report.read_text())["outcome"] == "quit"


# -- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_still_writes_its_report(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    words = ["boot", flat(tmp_path, SPIN), "--report", str(path)]
    with subprocess.Popen(
        [*VMM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the machine stands
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "interrupted" in out
    assert json.loads(path.read_text())["exit_code"] == 130


def test_sigterm_before_the_machine_stands_ends_it_cleanly(tmp_path: Path) -> None:
    """A pipe that nobody writes into holds the command up while it reads its guest: no machine can stand yet."""
    guest, reports = tmp_path / "guest", tmp_path / "reports"
    os.mkfifo(guest)
    reports.mkdir()
    words = ["boot", str(guest), "--report", str(reports / "r.json")]
    with subprocess.Popen(
        [*VMM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        writer = open_when_read(guest, process)
        assert list(reports.iterdir()) != []  # the draft that must not stay
        process.terminate()
        out, err = process.communicate(timeout=60)
        os.close(writer)
    assert (process.returncode, out, err) == (130, "", "")
    assert list(reports.iterdir()) == []


def open_when_read(fifo: Path, process: subprocess.Popen[str]) -> int:
    """The writing end of `fifo`, as soon as `process` has opened the other."""
    while process.poll() is None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.01)
    raise AssertionError(f"the command ended by itself with {process.returncode}")


def test_a_reader_that_goes_away_ends_the_run_quietly(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    words = ["boot", "stats", "--poll", "1ms", "--for", "1h", "--report", str(path)]
    with subprocess.Popen(
        [*VMM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == ""
    assert json.loads(path.read_text())["outcome"] == "interrupted"


@pytest.mark.parametrize(
    "words", [["--version"], ["devices"], ["boot", "--help"], ["boot", "hello"], ["boot", "hello", "--json"]]
)
def test_a_reader_that_is_gone_before_the_first_line_gets_silence(words: list[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; (sleep 0.2; "$@") | true', "bash", *VMM, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == (0 if "--json" in words else 130)
    assert done.stderr == ""


# -- a terminal ------------------------------------------------------------------------------------------------------


def on_a_terminal(*words: str, env: Mapping[str, str], keys: bytes = b"") -> tuple[int, str]:
    """Run the command on a terminal of its own: the exit status and everything that was drawn."""
    pid, terminal = pty.fork()
    if pid == 0:  # pragma: no cover - another process
        os.chdir(ROOT)
        os.execve(
            VMM[0], [*VMM, *words], {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40", **env}
        )
    try:
        drawn = b"".join(read_all(terminal, keys))
    finally:
        os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), drawn.decode("utf-8", "replace")


def read_all(terminal: int, keys: bytes) -> Iterator[bytes]:
    end = time.monotonic() + 120
    while select.select([terminal], [], [], max(end - time.monotonic(), 0))[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            return
        if not data:
            return
        yield data
        if keys and b"statistics" in data:
            os.write(terminal, keys)
            keys = b""


def test_on_a_terminal_the_table_is_live_and_the_guests_time_is_paced() -> None:
    start_s = time.monotonic()
    status, drawn = on_a_terminal("boot", "stats", "--for", "1s", "--poll", "200ms", env={})
    assert status == 0
    assert time.monotonic() - start_s >= 1  # a guest second takes a second; it can only take longer
    assert drawn.count("stat-free-memory") >= 2  # drawn, and drawn again over it
    assert re.search(r"exit status", drawn)
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1


def test_pacing_changes_nothing_that_happens(tmp_path: Path) -> None:
    reports = [tmp_path / "paced.json", tmp_path / "unpaced.json"]
    words = ["boot", "stats", "--for", "300ms", "--poll", "50ms", "--target", "48M@100ms"]
    assert on_a_terminal(*words, "--report", str(reports[0]), env={})[0] == 0
    assert vmm(*words, "--report", str(reports[1])).returncode == 0
    paced, unpaced = (json.loads(path.read_text()) for path in reports)
    del paced["wall_s"], unpaced["wall_s"]
    assert paced == unpaced


def test_ctrl_c_on_a_terminal_ends_the_run_and_leaves_the_cursor_visible() -> None:
    status, drawn = on_a_terminal("boot", "stats", "--for", "1h", env={}, keys=b"\x03")
    assert status == 130
    assert "interrupted" in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


def test_no_color_and_dumb_terminals_are_respected() -> None:
    status, drawn = on_a_terminal("boot", "hello", env={"NO_COLOR": "1"})
    assert status == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9][;m]", drawn)
    status, drawn = on_a_terminal("boot", "hello", env={"TERM": "dumb"})
    assert status == 0
    assert "\x1b" not in drawn


# -- where the packages come from ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["devices", "firmware", "guests"])
def test_a_shadowed_package_gets_one_line_that_names_both(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    done = vmm("guests", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"vmm: The package {name!r} of balloon-vmm at {ROOT} is shadowed by {tmp_path / name}; "
        "start vmm from another folder, or without that one on PYTHONPATH.\n"
    )
