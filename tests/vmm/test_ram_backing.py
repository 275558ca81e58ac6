"""--ram-backing: what the host has behind RAM, from the words to the report, and when the host runs out of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import vmm
from devices.backing import Backing
from devices.errors import ConfigError
from tests.devices.huge_host import HugeHost
from vmm.cli import main
from vmm.config import parse_backing
from vmm.display import summary

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
HUGE = 2 * MIB


@pytest.mark.parametrize(
    ("text", "backing"),
    [
        ("memfd", Backing()),
        ("anonymous", Backing("anonymous")),
        ("hugepages", Backing("hugepages")),
        ("hugepages=2M", Backing("hugepages", HUGE)),
        ("hugepages=1G", Backing("hugepages", 1 << 30)),
        ("hugepages=64K", Backing("hugepages", 65536)),
    ],
)
def test_the_words_for_a_backing(text: str, backing: Backing) -> None:
    assert parse_backing(text) == backing


@pytest.mark.parametrize("text", ["", "memfd=2M", "anonymous=", "huge", "hugepages 2M", "file"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^The backing of RAM must be memfd, anonymous, hugepages or hugepages=SIZE"):
        parse_backing(text)


@pytest.mark.parametrize("size", ["3M", "4K", "0", "1", "6G"])
def test_huge_pages_are_a_power_of_two(size: str) -> None:
    if size == "1":  # MiB, as everywhere
        assert parse_backing("hugepages=1").page_bytes == MIB
        return
    with pytest.raises(ConfigError) as caught:
        parse_backing(f"hugepages={size}")
    assert str(caught.value) == (
        f"The size of huge pages must be a power of two above 4K, such as 2M or 1G, not {size!r}."
    )


def test_too_few_huge_pages_end_with_status_2_and_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    HugeHost(monkeypatch, pages=4)
    assert main(["boot", "hello", "-m", "32M", "--ram-backing", "hugepages"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "vmm: guest RAM takes 16 huge pages of 2 MiB and the host has 4 to spare: as root, "
        "'echo 16 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages' sets more aside\n"
    )


@pytest.mark.parametrize(
    ("words", "kind", "page_bytes", "told"),
    [
        ("memfd", "memfd", 4096, "at most"),
        ("anonymous", "anonymous", 4096, "at most; anonymous memory"),
        ("hugepages=2M", "hugepages", HUGE, "at most; huge pages of 2 MiB"),
    ],
)
def test_a_guest_runs_on_each_backing_and_the_report_names_it(
    monkeypatch: pytest.MonkeyPatch, words: str, kind: str, page_bytes: int, told: str
) -> None:
    """The guest compares the contents of all its pages itself, and its console is the same on each."""
    host = HugeHost(monkeypatch)
    with vmm.boot("balloon", memory="33M", targets="8M@1s,20M@2s,4M@3s,33M@4s", ram_backing=words) as m:
        outcome = m.run("3.5s")
        assert outcome is None
        report = m.report()
        balloon, memory = report["balloon"], report["memory"]
        assert (memory["backing"], memory["host_page_bytes"]) == (kind, page_bytes)
        assert balloon["actual_pages"] == 29 * MIB // 4096
        if kind == "hugepages":
            inside = balloon["actual_pages"] - balloon["held_pages"]
            assert inside > 0 and balloon["held_pages"] < 29 * 512
            assert host.holes and balloon["discarded_bytes"] == len(host.holes) * HUGE
            assert memory["backed_bytes_end"] % HUGE == 0
        else:
            assert balloon["held_pages"] == 0 and not host.holes
            assert balloon["discarded_bytes"] == balloon["inflated_pages"] * 4096
        m.run("2s")
        assert b"WRONG" not in m.console and b"balloon: " in m.console
        after = m.report()
        assert after["balloon"]["actual_pages"] == after["balloon"]["held_pages"] == 0
        rows = dict(summary({**after, "wall_s": 0.0, "outcome": "deadline", "exit_code": 0}))
        assert rows["host memory"].endswith(told)


def test_what_the_balloon_holds_back_is_in_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    HugeHost(monkeypatch)
    with vmm.boot("hello", ram_backing="hugepages") as m:
        m.run()
        report = {**m.report(), "wall_s": 0.0}
        report["balloon"]["held_pages"] = 300
        rows = dict(summary(report))
        assert rows["host memory"].endswith(
            "; huge pages of 2 MiB, 1.172 MiB of the balloon in pages that are not all in it"
        )


def test_a_run_in_huge_pages_is_cut_and_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    HugeHost(monkeypatch)
    with vmm.boot("balloon", memory="16M", targets="4M@1s,12M@2s", ram_backing="hugepages") as m:
        m.run("1.5s")
        state = m.save()
        held = m.balloon.held_pages
        m.run("1.5s")
        later = m.report()
        m.restore(state)
        assert m.balloon.held_pages == held
        m.run("1.5s")
        assert m.report() == later


# -- the host runs out -------------------------------------------------------------------------------------------------
#
# What a kernel does that has no huge page left, it does for a memory file that has become too short as well: SIGBUS.
# The process that this happens to is another one.

SHORT_OF_MEMORY = """
import os, sys, json, pytest, vmm
from tests.devices.huge_host import HugeHost
with pytest.MonkeyPatch.context() as patch:
    HugeHost(patch)
    with vmm.boot("balloon", memory="32M", targets="8M@1s,32M@2s", ram_backing="hugepages") as m:
        m.run("1.5s")
        os.ftruncate(m.memory.fd, 4 << 20)
        {what}
"""
ENDS = "m.run('2s'); print(json.dumps(m.report()['outcome']), m.exit_code, m.outcome.detail)"


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_guest_that_touches_what_the_host_has_no_more_ends_the_run_in_words() -> None:
    done = run(SHORT_OF_MEMORY.format(what=ENDS))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        '"host-memory" 6 no huge page of 2 MiB was free on the host when the guest used one again that it had given '
        "back\n"
    )


def test_so_does_a_device_or_the_host_that_touches_it() -> None:
    touch = "m.memory.view(30 << 20, 8)[:] = 1; print(m.memory.read(30 << 20, 9).hex()); "
    done = run(SHORT_OF_MEMORY.format(what=touch + ENDS))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "01" * 8 + "00"
    assert done.stdout.splitlines()[1].startswith('"host-memory" 6 ')


@pytest.mark.parametrize("closed", [False, True])
def test_a_fault_that_is_none_of_ours_does_what_it_did(closed: bool) -> None:
    """And so does any, when the machine is closed."""
    foreign = (
        "import mmap; fd = os.memfd_create('other'); os.ftruncate(fd, 4096); other = mmap.mmap(fd, 4096); "
        f"os.ftruncate(fd, 0); {'m.close(); ' if closed else ''}print('now', flush=True); other[0]"
    )
    done = run(SHORT_OF_MEMORY.format(what=foreign))
    assert done.returncode == -signal.SIGBUS
    assert done.stdout == "now\n"


def test_where_ram_is_in_no_huge_pages_nobody_listens_for_the_signal() -> None:
    before = Path(f"/proc/{os.getpid()}/status").read_text()
    with vmm.boot("hello"):
        during = Path(f"/proc/{os.getpid()}/status").read_text()
    caught = [next(line for line in text.splitlines() if line.startswith("SigCgt")) for text in (before, during)]
    assert caught[0] == caught[1]


def test_the_outcome_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    HugeHost(monkeypatch)
    assert main(["boot", "hello", "--ram-backing", "hugepages", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["backing"] == "hugepages"
