"""`vmm ps`, `balloon`, `stats` and `ctl` as typed, on machines that run in processes of their own."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.vmm.control.running import PATIENCE_S, ROOT, VMM, Place
from tests.vmm.running.conftest import STATS

MIB = 1 << 20


# -- which machine -----------------------------------------------------------------------------------------------------


def test_ps_lists_what_runs(running: Place) -> None:
    running.boot("hello", "--paused", name="other", env={"XDG_RUNTIME_DIR": str(running.folder)})
    done = running.vmm("ps")
    lines = [re.split(r"  +", line) for line in done.stdout.splitlines()]
    assert lines[0] == ["NAME", "PID", "GUEST", "STATE", "TIME", "RAM", "LEFT", "TARGET", "BALLOON", "HOST MEMORY"]
    assert [line[0] for line in lines[1:]] == ["other", "vm"]
    other, vm = lines[1], lines[2]
    assert [int(line[1]) for line in (vm, other)] == [process.pid for process in running.started]
    assert (vm[2:4], other[2:4]) == (["stats", "running"], ["hello", "prelaunch"])
    assert vm[5:9] == ["64 MiB", "64 MiB", "64 MiB", "0 B"]
    listed = json.loads(running.vmm("ps", "--json").stdout)
    assert [each["name"] for each in listed] == ["other", "vm"]


def test_ps_of_nothing_is_a_head_or_an_empty_list(place: Place) -> None:
    assert len(place.vmm("ps").stdout.splitlines()) == 1
    assert json.loads(place.vmm("ps", "--json").stdout) == []


@pytest.mark.parametrize("words", [["balloon", "40M"], ["stats"], ["ctl", "query-status"]])
def test_without_a_machine_every_command_says_so(place: Place, words: list[str]) -> None:
    done = place.vmm(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vmm: No machine of yours is running; start one with 'vmm boot'.\n"


def test_a_name_may_be_left_out_while_there_is_one_only(running: Place) -> None:
    assert running.vmm("balloon", "60M").returncode == 0
    assert running.vmm("ctl", "query-status").returncode == 0
    running.boot("hello", "--paused", name="other")
    for words in (["balloon", "40M"], ["stats"], ["ctl", "query-status"]):
        done = running.vmm(*words)
        assert done.returncode == 2
        assert done.stderr == "vmm: Several machines are running, so say which: other, vm.\n"


@pytest.mark.parametrize("words", [["balloon", "nope", "40M"], ["stats", "nope"]])
def test_a_name_that_nobody_has(running: Place, words: list[str]) -> None:
    done = running.vmm(*words)
    assert (done.returncode, done.stderr) == (2, "vmm: No machine called 'nope' is running, only vm.\n")


# -- the balloon -------------------------------------------------------------------------------------------------------


def test_a_target_is_set_in_either_direction_and_both_are_named(running: Place) -> None:
    done = running.vmm("balloon", "vm", "40M", "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "vm: 40 MiB left to the guest (balloon 24 MiB) of 64 MiB of RAM.\n"
    done = running.vmm("balloon", "vm", "balloon=8M", "--wait")
    assert done.stdout == "vm: 56 MiB left to the guest (balloon 8 MiB) of 64 MiB of RAM.\n"
    balloon = running.status("vm")["balloon"]
    assert (balloon["actual"], balloon["guest-ram"]) == (8 * MIB, 56 * MIB)


def test_without_waiting_it_is_said_where_the_balloon_is_on_its_way(running: Place) -> None:
    running.vmm("ctl", "vm", "stop")
    done = running.vmm("balloon", "vm", "40M")
    assert done.returncode == 0
    assert done.stdout == "vm: the target is 40 MiB left to the guest (balloon 24 MiB); the machine is paused.\n"
    start = time.monotonic()
    done = running.vmm("balloon", "vm", "40M", "--wait", "--timeout", "50s")
    assert done.returncode == 1 and "the machine is paused" in done.stderr
    assert time.monotonic() - start < 40


def test_without_a_driver_it_says_so_and_does_not_hang(place: Place) -> None:
    place.boot("hello", "--paused")
    start = time.monotonic()
    done = place.vmm("balloon", "vm", "40M", "--wait", "--timeout", "50s")
    assert time.monotonic() - start < 40
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "vmm: vm: the target is 40 MiB left to the guest (balloon 24 MiB); "
        "the guest has no driver at work that could follow it.\n"
    )


def test_a_driver_that_does_not_follow_in_time(running: Place) -> None:
    # The guest keeps its own image and what it works with: it cannot give all but 1 MiB.
    done = running.vmm("balloon", "vm", "1M", "--wait", "--timeout", "1s")
    assert done.returncode == 1
    assert re.fullmatch(
        r"vmm: vm: the target is 1 MiB left to the guest \(balloon 63 MiB\); it was not reached in 1 s; "
        r"now it is .* left to the guest \(balloon .*\)\.\n",
        done.stderr,
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["vm", "x"], "vmm: "),
        (["vm", "65M"], "vmm: A target must be more than 0 and at most the machine's 64 MiB of RAM, not 65 MiB.\n"),
        (["vm", "40M@1s"], "vmm: A target for now is one SIZE or balloon=SIZE, not '40M@1s'.\n"),
        (["vm", "40M", "50M"], "vmm: NAME and SIZE are all there is to say, not '50M'.\n"),
        (["vm", "40M", "--timeout", "x"], "vmm: A time must be"),
    ],
)
def test_a_wrong_target_is_one_sentence(running: Place, words: list[str], sentence: str) -> None:
    done = running.vmm("balloon", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(sentence) and done.stderr.count("\n") == 1


def test_a_machine_without_a_balloon(place: Place) -> None:
    place.boot("hello", "--paused", "-device", "virtio-rng-pci")
    assert place.vmm("balloon", "40M").stderr == "vmm: vm has no balloon.\n"
    done = place.vmm("stats")
    assert (done.returncode, done.stderr) == (1, "vmm: vm has no balloon, and so no statistics.\n")
    assert re.search(r"hello  prelaunch .* 64 MiB  -     -       -", place.vmm("ps").stdout)


def test_on_a_terminal_there_is_a_bar(running: Place) -> None:
    user, terminal = pty.openpty()
    process = subprocess.Popen(
        [*VMM, "balloon", "vm", "1M", "--wait", "--timeout", "1s"],  # more than the guest can give
        cwd=ROOT,
        env=running.env | {"TERM": "xterm"},
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        while data := os.read(user, 65536):
            shown += data
    except OSError:
        pass  # the other end is gone
    os.close(user)
    assert process.wait(PATIENCE_S) == 1
    assert b"inflating" in shown
    assert b"vmm: vm: the target is 1 MiB left to the guest (balloon 63 MiB); it was not reached in 1 s; now" in shown


# -- statistics --------------------------------------------------------------------------------------------------------


def test_the_table_names_sizes_and_what_the_guest_says(running: Place) -> None:
    done = running.vmm("stats", "vm")
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in done.stdout.splitlines())
    assert rows["RAM"] == rows["guest RAM"] == "64 MiB" and rows["balloon"] == "0 B"
    assert rows["statistics"].startswith("ok, ")
    assert rows["stat-free-memory"].endswith("MiB") and rows["stat-major-faults"].isdecimal()


def test_every_format_is_that_of_its_tool(running: Place) -> None:
    running.vmm("balloon", "vm", "40M", "--wait")

    def stats(format: str) -> str:
        done = running.vmm("stats", "vm", "--format", format)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    virsh = dict(line.split() for line in stats("virsh").splitlines())
    assert list(virsh)[:5] == ["actual", "swap_in", "swap_out", "major_fault", "minor_fault"]
    assert virsh["actual"] == str(40 * 1024) and int(virsh["unused"]) < 40 * 1024 < int(virsh["rss"]) + (1 << 20)
    assert abs(int(virsh["last_update"]) - time.time()) < 60
    qemu = json.loads(stats("qemu"))
    assert qemu.keys() == {"stats", "last-update"} and qemu["stats"]["stat-htlb-pgfail"] == 18446744073709551615
    firecracker = json.loads(stats("firecracker"))
    assert (firecracker["target_mib"], firecracker["actual_mib"]) == (24, 24)
    assert firecracker["actual_pages"] == 24 * 256 and "hugetlb_failures" not in firecracker
    assert 0 < firecracker["free_memory"] < 40 * MIB
    families = {family.name for family in text_string_to_metric_families(stats("prometheus"))}
    assert {"vmm_balloon_actual_bytes", "vmm_guest_memory_free_bytes"} <= families
    assert json.loads(stats("json"))["balloon"]["actual"] == 24 * MIB


def test_an_unknown_format_is_one_sentence(running: Place) -> None:
    done = running.vmm("stats", "vm", "--format", "tabel")
    assert done.returncode == 2
    assert done.stderr.endswith("did you mean 'table'?\n") and done.stderr.count("\n") == 1


def test_fresh_figures_come_when_they_are_asked_for(place: Place) -> None:
    place.boot(*STATS[:3], "--poll", "0", *STATS[5:])
    client = place.raw().negotiated()
    while not client.ask("x-vmm-status")["balloon"]["driver-ready"]:
        time.sleep(0.05)
    before = place.status("vm")["balloon"]["stats-reports"]
    assert place.vmm("stats", "vm", "--refresh").returncode == 0
    assert place.status("vm")["balloon"]["stats-reports"] == before + 1
    place.vmm("ctl", "vm", "stop")
    done = place.vmm("stats", "vm", "--refresh")
    assert (done.returncode, done.stderr) == (1, "vmm: vm: the guest sent no statistics in 2 s.\n")


def test_watching_goes_on_until_the_machine_ends(running: Place) -> None:
    watcher = subprocess.Popen(
        [*VMM, "stats", "vm", "--watch", "--every", "100ms", "--format", "qemu"],
        cwd=ROOT,
        env=running.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout is not None
    reports = [line for line in (watcher.stdout.readline() for _ in range(5)) if line.strip()]
    assert all("stat-free-memory" in report for report in reports) and len(reports) == 3
    running.vmm("ctl", "vm", "quit")
    _, complaint = watcher.communicate(timeout=PATIENCE_S)
    assert (watcher.returncode, complaint) == (2, "vmm: vm has ended.\n")


# -- any command -------------------------------------------------------------------------------------------------------


def test_ctl_speaks_qmp_and_otherwise_to_the_monitor(running: Place, tmp_path: Path) -> None:
    assert json.loads(running.vmm("ctl", "vm", "query-status").stdout)["status"] == "running"
    got = running.vmm("ctl", "vm", "qom-get", "path=balloon0", "property=guest-stats-polling-interval")
    assert json.loads(got.stdout) == 0  # 0.2 s, in whole seconds
    saved = running.vmm("ctl", "vm", "pmemsave", "val=0", "size=4096", f"filename={tmp_path / 'x'}")
    assert json.loads(saved.stdout) == {} and (tmp_path / "x").stat().st_size == 4096
    assert running.vmm("ctl", "vm", "balloon", '{"value": 50331648}').returncode == 0
    assert running.vmm("ctl", "vm", "balloon", "50").stdout.strip() == ""  # a line of the monitor, in MiB
    assert running.status("vm")["balloon"]["target-guest-ram"] == 50 << 20
    assert running.vmm("ctl", "vm", "info", "status").stdout == "VM status: running\n"


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["balloon"], 1, "vmm: vm: Parameter 'value' is missing (GenericError).\n"),
        (["qom-get", "path=/x", "property=y"], 1, "vmm: vm: Device '/x' not found (DeviceNotFound).\n"),
        (["nope"], 2, "vmm: vm has neither a QMP command 'nope' nor that line of the monitor.\n"),
        (["query-status", "x"], 2, "vmm: An argument must be NAME=VALUE, not 'x'.\n"),
        ([], 2, "vmm: What shall vm do? Try 'vmm ctl vm query-commands'.\n"),
    ],
)
def test_ctl_says_why_not(running: Place, words: list[str], status: int, sentence: str) -> None:
    done = running.vmm("ctl", "vm", *words)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", sentence)
