"""`vmm inspect` on real VMMs: those that run, those that hang, those that are stopped, and what is no VMM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from devices.errors import ConfigError
from tests.inspect.real_vmm import ROOT, TARGET_PAGES, Vmm
from vmm.inspect.look import inspect as freeze_and_look
from vmm.inspect.tracee import threads_of

BOOT = ("stats", "-m", "16M", "--target", "8M@0.2s", "--poll", "0.1", "--for", "300s", "--clock", "realtime", "--json")


def vmm_command(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vmm", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def inspect(pid: int) -> Any:
    done = vmm_command("inspect", str(pid), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture
def running() -> Iterator[Vmm]:
    made = Vmm.boot(*BOOT)
    try:
        made.wait_for_balloon()
        yield made
    finally:
        made.close()


def test_a_running_vmm_is_seen_as_it_says_it_is(running: Vmm) -> None:
    blocks = running.blocks()
    seen = inspect(running.pid)
    assert running.blocks() == blocks
    assert running.tracers() == {"0"}
    assert (seen["pid"], seen["state"], seen["findings"]) == (running.pid, "running", [])
    assert {each["tid"] for each in seen["threads"]} == {each.tid for each in threads_of(running.pid)}
    (machine,) = seen["machines"]
    assert machine["ram"]["backed_bytes"] <= machine["ram"]["bytes"] - TARGET_PAGES * 4096
    (balloon,) = machine["devices"]
    assert balloon["config"]["num_pages"] == balloon["config"]["actual"] == balloon["balloon"]["pages"] == TARGET_PAGES
    assert sum(each["pages"] for each in balloon["balloon"]["ranges"]) == TARGET_PAGES
    assert balloon["balloon"]["backed_pages"] == 0
    queues = {queue["name"]: queue for queue in balloon["queues"]}
    assert len(queues["statsq"]["in_flight"]) == 1  # it holds the driver's buffer until it wants the next report
    status, out, _ = running.end()
    report = json.loads(out)
    assert status == 130
    assert report["balloon"]["actual_pages"] == TARGET_PAGES
    by_name = {queue["name"]: queue for queue in report["queues"]}
    assert by_name["inflateq"]["requests"] == queues["inflateq"]["indices"]["used"]


def test_people_get_tables(running: Vmm) -> None:
    done = vmm_command("inspect", str(running.pid))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"process {running.pid}, running: it stood still for " in done.stdout
    for text in ("inflateq", "statsq", "in flight", f"balloon: {TARGET_PAGES} pages (8 MiB) in 1 range"):
        assert text in done.stdout
    assert done.stdout.endswith(
        "nothing is wrong: the rings keep their rules, and no page in the balloon has host memory behind it\n"
    )


def test_it_runs_on_exactly_as_if_nobody_had_looked() -> None:
    """With the virtual clock the same run, block by block, with and without."""
    words = ("balloon", "-m", "32M", "--target", "16M@0.5s,24M@1s,8M@1.5s", "--poll", "0.1", "--for", "12s", "--json")
    alone = Vmm.boot(*words)
    looked_at = Vmm.boot(*words)
    try:
        looked_at.wait_until(lambda: looked_at.actual() > 0, "pages in the balloon")
        times = 0
        with suppress(ConfigError):  # until it has ended
            while True:
                freeze_and_look(looked_at.pid)
                times += 1
        reports = [json.loads(vmm.end_of_run()) for vmm in (alone, looked_at)]
    finally:
        alone.close()
        looked_at.close()
    assert times >= 2
    for report in reports:
        report.pop("wall_s")
        report.pop("memory")  # its peak is sampled
    assert reports[0] == reports[1]


@pytest.mark.parametrize("how", ["native-loop", "blocked", "python-loop"])
def test_a_vmm_that_hangs_is_looked_at_all_the_same(how: str) -> None:
    """In the middle of a kick of deflateq; what the device has taken and not returned is in flight."""
    hanging = Vmm.hanging(how)
    try:
        before, blocks = hanging.state, hanging.blocks()
        seen = inspect(hanging.pid)
        assert hanging.blocks() == blocks
        time.sleep(0.1)
        assert (hanging.state, hanging.process.poll()) == (before, None)
        (balloon,) = seen["machines"][0]["devices"]
        queues = {queue["name"]: queue for queue in balloon["queues"]}
        requests = queues["deflateq"]["in_flight"]
        entries = sum(buffer["length"] // 4 for request in requests for buffer in request["buffers"])
        assert entries == balloon["balloon"]["pages"] == TARGET_PAGES
        assert queues["deflateq"]["indices"]["used"] == 0
    finally:
        hanging.close()


def test_a_stopped_vmm_is_looked_at_and_stays_stopped(running: Vmm) -> None:
    os.kill(running.pid, signal.SIGSTOP)
    running.wait_until(lambda: running.state == "T", "a stop")
    assert inspect(running.pid)["state"] == "stopped"
    time.sleep(0.1)
    assert running.state == "T"
    os.kill(running.pid, signal.SIGCONT)
    running.wait_until(lambda: "T" not in running.state, "its going on")
    assert running.end()[0] == 130


def test_a_broken_rule_is_told_with_status_1() -> None:
    """The bundled guest `hostile` makes a chain that loops, and goes on."""
    script = (
        "import vmm\n"
        "with vmm.boot('hostile', memory='16M', parameter='loop') as m:\n"
        "    m.run(until=lambda m: m.board.virtio_devices[0].needs_reset)\n"
        "    print('broken', flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"broken\n"
        done = vmm_command("inspect", str(process.pid))
        process.stdin.close()
    assert (done.returncode, done.stderr) == (1, "")
    assert "WRONG  balloon0: the driver broke a rule: the device needs a reset\n" in done.stdout
    assert "WRONG  balloon0 inflateq: available: the chain at " in done.stdout
    assert "nothing is wrong" not in done.stdout


def test_each_machine_of_a_process_is_looked_at() -> None:
    """One process may have several machines: each has its own RAM and table."""
    script = (
        "import vmm\n"
        "with vmm.boot('stats', memory='16M') as a, vmm.boot('stats', memory='32M') as b:\n"
        "    b.run('1s'); print('ready', flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        seen = inspect(process.pid)
        process.stdin.close()
    sizes = {each["ram"]["bytes"] >> 20: each["devices"][0]["queues"][0]["enabled"] for each in seen["machines"]}
    assert sizes == {15: False, 31: True}


# -- what cannot be looked at ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("inspect",), ("watch", "used.idx")])
def test_what_is_no_vmm_is_told_in_one_sentence(words: tuple[str, ...]) -> None:
    command, *rest = words
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        done = vmm_command(command, str(process.pid), *rest)
        assert process.stdin is not None
        process.stdin.close()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"vmm: process {process.pid} is no VMM that can be looked at: there is no 'guest-ram' in its memory map, "
        "nor is there where the host has no memory files\n"
    )


@pytest.mark.parametrize("words", [("inspect",), ("watch", "used.idx")])
def test_what_is_not_there_is_told_in_one_sentence(words: tuple[str, ...]) -> None:
    command, *rest = words
    done = vmm_command(command, str(1 << 30), *rest)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "vmm: there is no process 1073741824\n")


@pytest.mark.parametrize("command", ["inspect", "watch"])
def test_help_and_a_wrong_word(command: str) -> None:
    overview = vmm_command("--help").stdout
    assert f"  {command} " in overview
    text = vmm_command(command, "--help").stdout
    assert "Exit status: 0" in text and "PID" in text
    done = vmm_command(command, "no-number")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vmm: ") and done.stderr.count("\n") == 1


def test_without_memory_files_it_says_that_it_cannot() -> None:
    """Anonymous RAM has no name that anybody could find it by."""
    script = (
        "import vmm\nfrom devices import hostcalls\nhostcalls.create_memory_file = lambda name, size: None\n"
        "with vmm.boot('stats', memory='16M') as m: print('ready', flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        done = vmm_command("inspect", str(process.pid))
        process.stdin.close()
    assert done.returncode == 2
    assert "nor is there where the host has no memory files" in done.stderr


def test_ptrace_is_imported_by_nobody_else() -> None:
    program = (
        "import sys, vmm.cli, vmm.machine, vmm.device_table, vmm.inspect.command\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'ptrace']\n"
        "import vmm.inspect.look, vmm.inspect.watchpoint, vmm.inspect.inspect_report\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'ptrace']\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
