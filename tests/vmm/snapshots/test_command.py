"""`--snapshot-at` and `--restore` as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vmm as library
from tests.vmm.test_machine_devices import SLEEP
from vmm.cli import main
from vmm.snapshots import read_snapshot, write_snapshot

ROOT = Path(__file__).resolve().parents[3]
OWN = "A snapshot has its own machine: "
RUN = ("boot", "balloon", "-m", "16M", "--target", "8M@0.2s,16M@0.4s", "--for", "0.6s")


def vmm(*words: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "vmm", *words],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


def report(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    del found["wall_s"]
    return found


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the snapshots of a run and its report."""
    folder = tmp_path_factory.mktemp("taken")
    done = vmm(
        *RUN, "--snapshot-at", "0.5s=late.snap", "--snapshot-at", "100ms=early.snap", "--report", "run.json", cwd=folder
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "0.100000 s  snapshot: early.snap is written, " in done.stdout
    return folder


def test_a_run_with_snapshots_is_the_run_without(taken: Path) -> None:
    assert vmm(*RUN, "--report", "plain.json", cwd=taken).returncode == 0
    assert report(taken / "plain.json") == report(taken / "run.json")


@pytest.mark.parametrize("name", ["early.snap", "late.snap"])
def test_a_run_from_a_snapshot_ends_as_the_run_that_was_not_cut(name: str, taken: Path, tmp_path: Path) -> None:
    words = ("boot", "--restore", str(taken / name), "--report", "rest.json")
    assert vmm(*words, cwd=tmp_path).returncode == 0
    assert report(tmp_path / "rest.json") == report(taken / "run.json")


def test_the_times_are_those_that_were_asked_for(taken: Path) -> None:
    for name, time_ns in (("early.snap", 100_000_000), ("late.snap", 500_000_000)):
        with read_snapshot(taken / name) as snapshot:
            assert time_ns <= snapshot.clock_ns < time_ns + 1000


def test_what_is_said_beside_it_counts_from_the_snapshot(taken: Path) -> None:
    words = ("--for", "0.3s", "--target", "12M@0.1s", "--poll", "0", "--json", "--snapshot-at", "0.2s=again.snap")
    done = vmm("boot", "--restore", "early.snap", *words, cwd=taken)
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["clock_ns"] == pytest.approx(400_000_000, abs=1000)
    assert found["balloon"]["target_pages"] == found["balloon"]["actual_pages"] == 1024
    with read_snapshot(taken / "again.snap") as snapshot:
        assert snapshot.clock_ns == pytest.approx(300_000_000, abs=1000)


def test_a_snapshot_whose_time_does_not_come_is_told_and_changes_nothing(taken: Path) -> None:
    (taken / "kept.snap").write_bytes(b"what was there")
    done = vmm("boot", "hello", "--snapshot-at", "1h=kept.snap", cwd=taken)
    assert done.returncode == 0
    assert "snapshot: kept.snap was not written: the run ended before its time" in done.stdout
    assert (taken / "kept.snap").read_bytes() == b"what was there"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--restore {} stats", "A snapshot has its own guest: 'stats' cannot stand beside --restore."),
        ("--restore {} -kernel x", "A snapshot has its own guest: 'x' cannot stand beside --restore."),
        ("--restore {} -m 64M", "A snapshot has its own machine: --memory cannot stand beside --restore."),
        ("--restore {} --clock virtual", "A snapshot has its own machine: --clock cannot stand beside --restore."),
        ("--restore {} --watch-driver", OWN + "--watch-driver cannot stand beside --restore."),
        ("--restore {} -device virtio-rng-pci", OWN + "--device cannot stand beside --restore."),
        ("--restore {} --arch ppc", "A snapshot has its own machine: --arch cannot stand beside --restore."),
        ("--restore {} --out x", "A snapshot has its own machine: --out cannot stand beside --restore."),
        (
            "--restore {} --shell --serial null",
            "A shell is typed to, so its console can only be 'stdio', not 'file:/dev/null'.",
        ),
        ("--restore {} --for 0", "The guest time to run for must be more than 0."),
        (
            "--restore {} --target 17M",
            "A target must be more than 0 and at most the machine's 16 MiB of RAM, not 17 MiB.",
        ),
        (
            "--restore {} --hint 1s",
            "Asking for hints needs a balloon with free-page-hint=on, and this machine has none.",
        ),
        ("--restore=", "The option --restore needs the name of a file."),
        ("--snapshot-at 5s", "A snapshot must be TIME=FILE, such as 2s=guest.snap, not '5s'."),
        ("--snapshot-at 5s=", "A snapshot must be TIME=FILE, such as 2s=guest.snap, not '5s='."),
        (
            "--snapshot-at soon=x",
            "A time must be a number of seconds or one with ns, us, ms, s, min or h, such as 2s, not 'soon'.",
        ),
        ("--snapshot-at 1s=/nowhere/x", "The snapshot /nowhere/x cannot be written: No such file or directory."),
        ("--snapshot-at 1s=/", "The snapshot / cannot be written: it is no ordinary file."),
    ],
)
def test_a_mistake_gets_one_sentence_and_status_2(
    words: str, sentence: str, taken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["boot", *words.format(taken / "early.snap").split()]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"vmm: {sentence}\n")


def test_a_snapshot_of_a_machine_without_a_balloon_takes_no_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "guest").write_bytes(SLEEP)
    with library.boot(tmp_path / "guest", memory="2M", devices=()) as machine:
        write_snapshot(machine, tmp_path / "bare.snap")
    path = str(tmp_path / "bare.snap")
    assert main(["boot", "--restore", path, "--target", "1M"]) == 2
    assert "needs a balloon" in capsys.readouterr().err
    assert main(["boot", "--restore", path, "--poll", "0", "--for", "10ms"]) == 0


def test_a_place_that_becomes_full_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    """The file may have no more than 64 KiB: the writing fails when its time comes."""
    program = (
        "import resource, signal, sys\n"
        "from vmm.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = [sys.executable, "-c", program, *RUN, "--snapshot-at", "0.3s=full.snap"]
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "vmm: The snapshot full.snap cannot be written: File too large.\n"
    assert os.listdir(tmp_path) == []
