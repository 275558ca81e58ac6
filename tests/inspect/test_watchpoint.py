"""Who wrote a word of guest RAM: hardware watchpoints on real VMMs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from devices.errors import ConfigError
from tests.inspect.conftest import Child
from tests.inspect.real_vmm import ROOT, Vmm
from tests.inspect.test_inspect_command import BOOT, inspect, vmm_command
from vmm.inspect import GuestRam, ptrace_import
from vmm.inspect.look import look
from vmm.inspect.tracee import Tracee, threads_of
from vmm.inspect.watchpoint import Spot, Watchpoint, watch

BITS_16 = 1 << 16


@pytest.fixture(scope="module")
def shared() -> Iterator[Vmm]:
    """A VMM that is asked for statistics ten times a second."""
    made = Vmm.boot(*BOOT)
    try:
        made.wait_for_balloon()
        yield made
        assert made.process.poll() is None, "a test has ended it"
        assert made.end()[0] == 130
    finally:
        made.close()


def lines(done: subprocess.CompletedProcess[str]) -> list[Any]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_used_index_is_written_by_the_device(shared: Vmm) -> None:
    done = vmm_command("watch", str(shared.pid), "used.idx", "--count", "3", "--timeout", "30", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    writes = lines(done)
    assert len(writes) == 3
    for before, after in pairwise(writes):
        assert after["old"] == before["new"]
    for write in writes:
        assert write["what"] == "balloon0.statsq used.idx"
        assert write["new"] == (write["old"] + 1) % BITS_16
        assert (write["side"], write["thread"]) == ("device", shared.pid)
        assert write["file"] != ""
    assert shared.tracers() == {"0"}


def test_the_available_index_is_written_by_the_guest(shared: Vmm) -> None:
    done = vmm_command("watch", str(shared.pid), "avail.idx", "--queue", "statsq", "--count", "2", "--timeout", "30")
    assert (done.returncode, done.stderr) == (0, "")
    for line in done.stdout.splitlines():
        assert "balloon0.statsq avail.idx: 0x" in line
        assert "the guest's CPU (Unicorn: " in line
        assert f"thread {shared.pid} (" in line
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("spelling", ["{:#x}", "{:x}h", "{}"])
def test_an_address_is_watched(shared: Vmm, spelling: str) -> None:
    """The length in the used element of statsq's next report: the whole element is one write of 8 bytes."""
    (balloon,) = inspect(shared.pid)["machines"][0]["devices"]
    used_ring = balloon["queues"][2]["parts"]["used ring"]["gpa"]
    words = ("--count", "1", "--timeout", "30", "--size", "2", "--json")
    done = vmm_command("watch", str(shared.pid), spelling.format(used_ring + 2), *words)
    (write,) = lines(done)
    assert (write["gpa"], write["size"], write["side"]) == (used_ring + 2, 2, "device")
    assert write["new"] == (write["old"] + 1) % BITS_16


def test_a_word_that_nobody_writes_ends_with_status_1(shared: Vmm) -> None:
    done = vmm_command("watch", str(shared.pid), "used.idx", "--queue", "inflateq", "--timeout", "0.5")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_watching_again_and_again_never_harms_the_vm() -> None:
    """The end comes at every possible moment: with traps on their way, too."""
    vmm = Vmm.boot("stats", "-m", "16M", "--poll", "0.001", "--for", "3000s", "--serial", "null", "--json")
    try:
        vmm.wait_until(lambda: vmm.actual() == 0, "a driver")
        time.sleep(0.5)
        seen = 0
        for number in range(60):
            for _ in watch(vmm.pid, "used.idx", queue="statsq", count=1 + number % 3, timeout_s=0.003 * (number % 7)):
                seen += 1
            assert vmm.process.poll() is None
            assert vmm.tracers() == {"0"}
        assert seen > 20
        assert vmm.end()[0] == 130
    finally:
        vmm.close()


def test_a_watch_that_sees_nothing_can_be_ended(shared: Vmm) -> None:
    command = [sys.executable, "-m", "vmm", "watch", str(shared.pid), "used.idx", "--queue", "inflateq"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        shared.wait_until(lambda: shared.tracers() == {str(process.pid)}, "a watch")
        process.terminate()
        assert process.wait(timeout=30) == 130
    assert shared.tracers() == {"0"}


def test_a_watch_ended_at_any_moment_leaves_no_trap() -> None:
    """The VM writes all the time, so that each signal comes in the middle of something."""
    vmm = Vmm.boot("stats", "-m", "16M", "--poll", "0.001", "--for", "3000s", "--serial", "null", "--json")
    try:
        vmm.wait_until(lambda: vmm.actual() == 0, "a driver")
        time.sleep(0.5)
        for number in range(12):
            command = [sys.executable, "-m", "vmm", "watch", str(vmm.pid), "used.idx"]
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
                vmm.wait_until(lambda pid=process.pid: str(pid) in vmm.tracers(), "a watch")  # type: ignore[misc]
                time.sleep(0.01 * number)
                process.terminate()
                time.sleep(0.002 * (number % 3))
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=30) == 130
            time.sleep(0.05)
            assert vmm.process.poll() is None, number
            assert vmm.tracers() == {"0"}
    finally:
        vmm.close()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_watch_that_is_ended_lets_the_vm_go(shared: Vmm, signum: int) -> None:
    command = [sys.executable, "-m", "vmm", "watch", str(shared.pid), "used.idx"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "used.idx" in process.stdout.readline()
        assert shared.tracers() == {str(process.pid)}
        process.send_signal(signum)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == ""
    time.sleep(0.5)  # some reports later
    assert shared.process.poll() is None
    assert shared.tracers() == {"0"}


def test_a_vm_that_is_stopped_while_it_is_watched_stays_stopped(shared: Vmm) -> None:
    command = [sys.executable, "-m", "vmm", "watch", str(shared.pid), "used.idx"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(shared.pid, signal.SIGSTOP)
        time.sleep(0.3)
        before = used_index(shared)
        time.sleep(0.5)
        assert used_index(shared) == before
        os.kill(shared.pid, signal.SIGCONT)
        shared.wait_until(lambda: used_index(shared) != before, "its going on")
        os.kill(shared.pid, signal.SIGSTOP)
        time.sleep(0.3)
        process.terminate()
        assert process.wait(timeout=30) == 130
    time.sleep(0.1)
    assert shared.state == "T"
    os.kill(shared.pid, signal.SIGCONT)
    shared.wait_until(lambda: shared.state != "T", "its going on")


def used_index(vmm: Vmm) -> int:
    """Of statsq, read without stopping anybody."""
    (device,) = look(vmm.pid)[0].devices
    return device.queues[2].indices["used"]


def test_a_vm_that_ends_ends_the_watch() -> None:
    vmm = Vmm.boot(*BOOT)
    try:
        vmm.wait_for_balloon()
        seen = 0
        for _ in watch(vmm.pid, "used.idx", timeout_s=60):
            seen += 1
            if seen == 2:
                os.kill(vmm.pid, signal.SIGTERM)
        assert seen >= 2
        # Its parent is its tracer here, which has had its exit status before the parent asks for it.
        assert json.loads(vmm.end()[1])["outcome"] == "interrupted"
    finally:
        vmm.close()


def test_a_thread_that_is_started_meanwhile_is_watched_too(child: Child) -> None:
    child.do("write 100000 aaaa")
    before = {each.tid for each in threads_of(child.pid)}
    with GuestRam.attach(child.pid) as ram, Tracee(child.pid, "watch") as tracee:
        (address,) = [each.address for each in ram.regions if each.gpa == 0x100000]
        with Watchpoint(tracee, ram, [Spot("it", 0x100000, 4, (address,))]) as watchpoint:
            child.tell("other write 100000 bbbb")
            (write,) = watchpoint.writes(1, 30.0)
    assert child.answer() == "done"
    assert write.thread not in before
    assert (write.old, write.new) == (int.from_bytes(b"aaaa", "little"), int.from_bytes(b"bbbb", "little"))
    assert write.place.side == "device"
    assert write.as_json()["gpa"] == 0x100000


def test_what_the_c_library_writes_is_the_caller_s(child: Child) -> None:
    """A long write is memcpy's: who called it is Python."""
    text = "x" * 3000
    with GuestRam.attach(child.pid) as ram, Tracee(child.pid, "watch") as tracee:
        (address,) = [each.address for each in ram.regions if each.gpa == 0x100000]
        with Watchpoint(tracee, ram, [Spot("it", 0x100400, 8, (address + 0x400,))]) as watchpoint:
            child.tell(f"write 100000 {text}")
            (write,) = watchpoint.writes(1, 30.0)
    assert child.answer() == "done"
    assert write.place.file.startswith(("libc", "ld-"))
    assert write.place.side == "device"
    assert "called from " in write.writer


# -- what cannot be watched ------------------------------------------------------------------------------------------


def refusal(pid: int, what: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        list(watch(pid, what, **{"timeout_s": 1.0, **options}))
    return str(caught.value)


def test_wrong_words_are_told(shared: Vmm) -> None:
    pid = shared.pid
    assert refusal(pid, "used").startswith("what to watch must be used.idx, avail.idx or a guest-physical address ")
    assert refusal(pid, "0xa0000") == "the 4 bytes at 0xa0000 are not guest RAM"
    assert refusal(pid, "0x100002", size=4) == "the address 0x100002 must be a multiple of the size, 4 bytes"
    assert refusal(pid, "0x100000", size=3) == "the size must be 1, 2, 4 or 8 bytes, not 3"
    expected = "there is no queue 'rx' that is set up, only: balloon0.inflateq, balloon0.deflateq, balloon0.statsq"
    assert refusal(pid, "used.idx", queue="rx") == expected
    assert shared.tracers() == {"0"}


@pytest.mark.parametrize("words", [("--count", "-1"), ("--timeout", "-1"), ("--size", "x")])
def test_wrong_numbers_are_told(shared: Vmm, words: tuple[str, ...]) -> None:
    done = vmm_command("watch", str(shared.pid), "used.idx", *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_packed_ring_has_no_used_index() -> None:
    script = (
        "import sys\nfrom tests.support import BalloonMachine\nfrom vmm.device_table import DeviceTable\n"
        "bench = BalloonMachine('packed'); bench.driver.start()\n"
        "table = DeviceTable([bench.balloon], bench.memory)\nprint('ready', flush=True); input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        text = refusal(process.pid, "used.idx", queue="inflateq")
        process.stdin.close()
    assert text == "balloon0.inflateq is a packed ring, which has no used.idx: give an address in it"


@pytest.mark.parametrize("number", [5, 22, 28])
def test_a_host_without_debug_registers_is_told(shared: Vmm, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """EIO, EINVAL or ENOSPC, as containers and other kernels answer; the VM goes on."""
    func = ptrace_import.load("binding.func")
    before = func.ptrace

    def answer(request: int, pid: int, address: int = 0, data: int = 0, **options: bool) -> int:
        if request == 6 and data:
            raise ptrace_import.load("error").PtraceError("no such register", errno=number, pid=pid)
        result: int = before(request, pid, address, data, **options)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(func, "ptrace", answer)
        text = refusal(shared.pid, "used.idx")
    assert text.startswith("the host does not give the processor's debug registers, which a watchpoint takes, ")
    assert shared.tracers() == {"0"}


def test_another_processor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    expected = "a watchpoint takes the debug registers of an x86-64 host, not of 'aarch64'"
    assert refusal(os.getpid(), "used.idx") == expected
