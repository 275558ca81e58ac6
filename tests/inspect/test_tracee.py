"""Stopping another process whatever it does, and letting it go as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.errors import ConfigError
from tests.inspect.conftest import Child
from vmm.inspect import ptrace_import
from vmm.inspect.tracee import Tracee, threads_of


def states(pid: int) -> set[str]:
    return {each.state for each in threads_of(pid)}


def tracers(pid: int) -> set[str]:
    return {ptrace_import.status_of(pid, each.tid)["TracerPid"] for each in threads_of(pid)}


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process whose threads come and go all the time."""
    program = """
import sys, threading, time
print("ready", flush=True)
count = 0
while True:
    threads = [threading.Thread(target=time.sleep, args=(0.0005,)) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        assert process.poll() is None, "it has ended"
        process.kill()


def test_every_thread_stands_and_afterwards_goes_on(child: Child) -> None:
    assert len(threads_of(child.pid)) > 1
    with Tracee(child.pid) as tracee:
        assert states(child.pid) == {"t"}
        assert tracers(child.pid) == {str(os.getpid())}
        assert {each.tid for each in tracee.before} == set(tracee.stops)
        assert {each.state for each in tracee.before} <= {"S", "R"}
        child.tell("write 0 alive")
        time.sleep(0.1)
        assert not child.has_answered()
    assert child.answer() == "done"
    assert tracers(child.pid) == {"0"}
    assert child.do("read 0 5") == b"alive".hex()


def test_a_stopped_process_stays_stopped(child: Child) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    while states(child.pid) != {"T"}:
        time.sleep(0.01)
    for _ in range(3):
        with Tracee(child.pid):
            assert states(child.pid) == {"t"}
        time.sleep(0.05)
        assert states(child.pid) == {"T"}
    child.tell("write 0 x")
    os.kill(child.pid, signal.SIGCONT)
    assert child.answer() == "done"


def test_a_signal_that_comes_meanwhile_is_not_lost() -> None:
    program = """
import signal, sys
count = 0
def handler(*_):
    global count
    count += 1
signal.signal(signal.SIGUSR1, handler)
print("ready", flush=True)
for line in sys.stdin:
    print(count, flush=True)
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()

        def count() -> int:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        for number in range(20):
            with Tracee(process.pid):
                process.send_signal(signal.SIGUSR1)
            assert count() == 2 * number + 1
            process.send_signal(signal.SIGUSR1)  # which may be on its way to the handler when the process is stopped
            with Tracee(process.pid):
                pass
            assert count() == 2 * number + 2
        process.stdin.close()


def test_a_signal_that_a_thread_stands_for_reaches_it() -> None:
    child = Child()
    with Tracee(child.pid) as tracee:
        tracee.go_on(child.pid)
        os.kill(child.pid, signal.SIGTERM)
        while not tracee.has_stopped(child.pid):
            time.sleep(0.001)
        assert tracee.signal_of(child.pid) == signal.SIGTERM
    wait_for_the_end(child)


def wait_for_the_end(child: Child) -> None:
    """All of it ends, and nobody has to ask it to."""
    deadline = time.monotonic() + 30
    while states(child.pid) - {"Z"}:
        assert time.monotonic() < deadline, "it has not ended"
        time.sleep(0.01)
    child.end()


def test_all_threads_of_a_process_that_is_killed_while_it_stands_come_to_their_end() -> None:
    child = Child()
    with Tracee(child.pid) as tracee:
        assert len(tracee.stops) > 1
        child.process.kill()
        time.sleep(0.1)
    wait_for_the_end(child)


def test_no_signal_of_a_storm_is_lost() -> None:
    """Signals that queue, sent while the process is stopped and let go again and again: some are on their way to it
    each time."""
    program = """
import os, signal, sys
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.signal(signal.SIGRTMIN, lambda *_: None)
signal.set_wakeup_fd(writer)  # a byte for each that arrives
print("ready", flush=True)
count = 0
while count < 3000:
    count += len(os.read(reader, 65536))
print(count, flush=True)
sys.stdin.read()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        sender = "import os, signal, sys\nfor _ in range(3000): os.kill(int(sys.argv[1]), signal.SIGRTMIN)"
        with subprocess.Popen([sys.executable, "-c", sender, str(process.pid)]) as storm:
            while storm.poll() is None:
                with Tracee(process.pid):
                    pass
        assert process.stdout.readline() == "3000\n"


def test_threads_that_come_and_go_are_all_stopped(busy: subprocess.Popen[bytes]) -> None:
    for _ in range(50):
        with Tracee(busy.pid) as tracee:
            assert states(busy.pid) <= {"t", "Z", "X"}
            before = {each.tid for each in threads_of(busy.pid) if each.state == "t"}
            assert set(tracee.stops) == before
            time.sleep(0.001)
            assert {each.tid for each in threads_of(busy.pid) if each.state == "t"} == before
        assert "t" not in states(busy.pid)


def test_a_process_that_is_killed_while_it_stands_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        with Tracee(process.pid) as tracee:
            process.kill()
            time.sleep(0.1)
            tracee.detach()
        process.wait(timeout=30)  # its tracer, here its parent as well, may have had its status


def test_another_thread_must_not_use_it(child: Child) -> None:
    caught: list[str] = []

    def detach() -> None:
        try:
            tracee.detach()
        except RuntimeError as error:
            caught.append(str(error))

    with Tracee(child.pid) as tracee:
        thread = threading.Thread(target=detach)
        thread.start()
        thread.join()
    assert caught == ["a Tracee must be used from the thread that made it"]


# -- who may not, and why --------------------------------------------------------------------------------------------


def refusal(pid: int, what: str = "inspect") -> str:
    with pytest.raises(ConfigError) as caught:
        Tracee(pid, what)
    return str(caught.value)


def test_a_process_cannot_stop_itself() -> None:
    assert refusal(os.getpid()) == "a process cannot inspect itself: do it from another one"


@pytest.mark.parametrize("pid", [0, -1, 1 << 30])
def test_there_is_no_such_process(pid: int) -> None:
    assert refusal(pid) == f"there is no process {pid}"


def test_a_process_that_has_ended_is_none() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        while states(process.pid) != {"Z"}:
            time.sleep(0.01)
        assert refusal(process.pid) == f"there is no process {process.pid}"


def test_one_that_is_traced_already_names_its_tracer(child: Child) -> None:
    program = f"from vmm.inspect.tracee import Tracee\nwith Tracee({child.pid}): print('ready', flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        expected = f"process {child.pid} is already traced by process {other.pid}: end that one first, then inspect it"
        assert refusal(child.pid) == expected
        other.stdin.write(b"\n")
        other.stdin.close()
    assert child.do("write 0 x") == "done"


class Refusing:
    """ptrace as a host answers it that forbids tracing: `seize` of every thread, or of all but the first."""

    def __init__(self, patch: pytest.MonkeyPatch, errno: int = 1, allowed: tuple[int, ...] = ()) -> None:
        func = ptrace_import.load("binding.func")
        self._allowed, self._errno, self._before = allowed, errno, func.ptrace
        patch.setattr(func, "ptrace", self)

    def __call__(self, request: int, pid: int, *rest: int, **options: bool) -> int:
        if request == 0x4206 and pid not in self._allowed:
            raise ptrace_import.load("error").PtraceError("Operation not permitted", errno=self._errno, pid=pid)
        result: int = self._before(request, pid, *rest, **options)
        return result


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch, child: Child) -> int:
    """The owner of the child, seen as an ordinary user."""
    uid = os.stat(f"/proc/{child.pid}").st_uid
    monkeypatch.setattr(os, "geteuid", lambda: uid or 1000)
    before = ptrace_import.status_of
    fields = {"Uid": f"{uid or 1000}\t0\t0\t0"}
    monkeypatch.setattr(ptrace_import, "status_of", lambda pid, tid=None: before(pid, tid) | fields)
    return uid or 1000


@pytest.mark.parametrize(
    ("scope", "remedy"),
    [
        ("1", "run as root, or let root write 0 there"),
        ("2", "run as root"),
        ("3", "nobody can until the host is started anew"),
    ],
)
def test_yama_is_named_with_its_remedy(
    child: Child, as_user: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scope: str, remedy: str
) -> None:
    path = tmp_path / "ptrace_scope"
    path.write_text(scope + "\n")
    monkeypatch.setattr(ptrace_import, "YAMA", str(path))
    Refusing(monkeypatch)
    expected = f"the host's Yama does not let this user inspect process {child.pid}: {remedy} ({path})"
    assert refusal(child.pid) == expected
    assert tracers(child.pid) == {"0"}


def test_another_user_s_process_names_that_user(child: Child, as_user: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: as_user + 1)
    monkeypatch.setattr(ptrace_import, "_user", lambda uid: f"user number {uid}")
    Refusing(monkeypatch)
    expected = f"process {child.pid} belongs to user number {as_user}: only that user and root can inspect it"
    assert refusal(child.pid) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_somebody_else_is_really_refused(child: Child) -> None:
    program = (
        "import os, sys\nfrom vmm.inspect.tracee import Tracee\nimport vmm.inspect.ptrace_import as p\n"
        "p.load('binding.func'); p.load('error')\nos.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"try: Tracee({child.pid}, 'inspect')\nexcept ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"process {child.pid} belongs to user root: only that user and root can inspect it\n"


def test_any_other_refusal_says_what_the_host_said(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container without the capability."""
    monkeypatch.setattr(ptrace_import, "YAMA", "/proc/no such file")
    Refusing(monkeypatch, allowed=(child.pid,))  # the second thread
    assert refusal(child.pid).startswith(
        f"the host does not let this user inspect process {child.pid}: run as its owner or as root, "
    )
    assert tracers(child.pid) == {"0"}
    assert child.do("backed") == "0"
