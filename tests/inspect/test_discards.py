"""The outside witness of what a process gives back to the host."""

from __future__ import annotations

import mmap
import os
import select
import subprocess
import sys
import threading

import pytest

from devices.errors import ConfigError
from tests.inspect.conftest import Child
from tests.inspect.real_vmm import ROOT, Vmm
from vmm.inspect import DiscardCall, DiscardTrace, GuestRam, ptrace_import

PAGE = 4096


def guest_pages(call: DiscardCall, ram: GuestRam) -> set[int]:
    """The page frame numbers of guest RAM that a call discarded."""
    start = -1
    if call.name == "fallocate" and call.arguments[0] in files_of(ram):
        start = call.arguments[2]
    for region in ram.regions:
        if call.name == "madvise" and region.address <= call.arguments[0] < region.address + region.size:
            start = region.gpa + call.arguments[0] - region.address
    return set() if start < 0 else set(range(start // PAGE, (start + call.discarded_bytes) // PAGE))


def files_of(ram: GuestRam) -> set[int]:
    """The descriptors of guest RAM in its process: it discards pages of other files, too."""
    numbers = map(int, os.listdir(f"/proc/{ram.pid}/fd"))
    return {number for number in numbers if os.stat(f"/proc/{ram.pid}/fd/{number}").st_ino == ram.inode}


def watched(child: Child, command: str) -> tuple[int, list[DiscardCall]]:
    """What the child says that it discarded, and the calls seen while it did."""
    with DiscardTrace(child.pid) as trace:
        child.tell(command)
        calls = list(trace.calls(until=child.has_answered))
    return int(child.answer()), calls


@pytest.mark.parametrize("prefix", ["", "other "])
def test_the_calls_seen_are_what_the_process_says_it_discarded(child: Child, prefix: str) -> None:
    child.do("fill")
    with GuestRam.attach(child.pid) as ram:
        before = ram.backed_bytes()
        said, calls = watched(child, prefix + "discard 3+2 101+5 10+1 100000+256")
        of_ram = [(call, pages) for call in calls if (pages := guest_pages(call, ram))]
        assert sum(call.discarded_bytes for call, _ in of_ram) == said == before - ram.backed_bytes() == 264 * PAGE
        expected = {3, 4, *range(0x101, 0x106), 0x10, *range(0x100000, 0x100100)}
        assert set().union(*(pages for _, pages in of_ram)) == expected
        assert all((call.thread == child.pid) == (prefix == "") for call, _ in of_ram)


def test_a_process_that_discards_nothing_shows_nothing(child: Child) -> None:
    with GuestRam.attach(child.pid) as ram, DiscardTrace(child.pid) as trace:
        child.tell("write 0 x")
        assert [call for call in trace.calls(until=child.has_answered) if guest_pages(call, ram)] == []
    assert child.answer() == "done"


def test_a_real_vmm_discards_exactly_the_pages_that_are_in_its_balloon() -> None:
    """Not one more, not one less, and none twice."""
    vmm = Vmm.boot("stats", "-m", "16M", "--target", "8M@1s,12M@2s,6M@3s", "--for", "900s", "--clock", "realtime")
    try:
        vmm.wait_for_balloon(0)
        with GuestRam.attach(vmm.pid) as ram, DiscardTrace(vmm.pid) as trace:
            calls = list(trace.calls(until=lambda: vmm.actual() == 2048))
            first = {pfn + n for pfn, count in vmm.balloon().ranges for n in range(count)}
            pages = [pfn for call in calls for pfn in guest_pages(call, ram)]
            assert len(pages) == len(set(pages)) == 2048
            assert set(pages) == first
            assert [call for call in trace.calls(until=lambda: vmm.actual() == 1024) if guest_pages(call, ram)] == []
            kept = {pfn + n for pfn, count in vmm.balloon().ranges for n in range(count)}
            calls = list(trace.calls(until=lambda: vmm.actual() == 2560))
            last = {pfn + n for pfn, count in vmm.balloon().ranges for n in range(count)}
            assert {pfn for call in calls for pfn in guest_pages(call, ram)} == last - kept
            assert kept < first and kept < last
    finally:
        vmm.close()


REPORTING = """
import random, sys
from tests.support import BalloonMachine, build_reporting
bench = BalloonMachine(build=build_reporting)
driver = bench.driver
driver.start()
pfns = bench.filled_pfns(300)
print("ready", flush=True)
for line in sys.stdin:
    before = bench.balloon.discarded_bytes
    chosen = random.Random(int(line)).sample(pfns, 120)
    inflated, reported = chosen[:60], chosen[60:]
    driver.inflate(inflated)
    # The last 20 ranges begin in the middle of a page and end in the middle of another: neither is discarded.
    driver.report([(pfn * 4096, 4096) for pfn in reported[:40]] + [(pfn * 4096 + 100, 4096) for pfn in reported[40:]])
    driver.deflate(inflated)
    words = map(str, [*inflated, *reported[:40], bench.balloon.discarded_bytes - before])
    sys.stdout.write(" ".join(words) + "\\n")  # in one piece
    sys.stdout.flush()
"""


def test_reported_and_inflated_pages_are_discarded_and_no_parts_of_pages() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", REPORTING], cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        answers = process.stdout
        with GuestRam.attach(process.pid) as ram, DiscardTrace(process.pid) as trace:
            for seed in range(5):
                process.stdin.write(f"{seed}\n")
                process.stdin.flush()
                calls = list(trace.calls(until=lambda: bool(select.select([answers], [], [], 0)[0])))
                *pages, discarded = map(int, answers.readline().split())
                of_ram = [(call.discarded_bytes, guest_pages(call, ram)) for call in calls if guest_pages(call, ram)]
                assert set().union(*(found for _, found in of_ram)) == set(pages)
                assert sum(size for size, _ in of_ram) == discarded == len(pages) * PAGE
        process.stdin.close()


def tracers(pid: int) -> set[str]:
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/status") as status:
            found |= {line.split()[1] for line in status if line.startswith("TracerPid")}
    return found


def test_every_thread_is_traced_and_afterwards_none_and_the_process_goes_on(child: Child) -> None:
    assert len(os.listdir(f"/proc/{child.pid}/task")) > 1
    with DiscardTrace(child.pid) as trace:
        assert tracers(child.pid) == {str(os.getpid())}
        trace.close()
        assert tracers(child.pid) == {"0"}
    assert child.do("write 0 alive") == "done"
    assert child.do("read 0 5") == b"alive".hex()


def test_one_may_stop_listening_in_the_middle(child: Child) -> None:
    child.do("fill")
    with DiscardTrace(child.pid) as trace:
        child.tell("discard 1+1 3+1 5+1")
        for call in trace.calls():
            if call.discarded_bytes == PAGE:
                break
    assert child.answer() == str(3 * PAGE)
    assert child.do("discard 7+1") == str(PAGE)


def test_a_process_that_ends_ends_the_calls() -> None:
    child = Child()
    with DiscardTrace(child.pid) as trace:
        assert child.process.stdin is not None
        child.process.stdin.close()
        for call in trace.calls():
            assert isinstance(call, DiscardCall)
    child.end()


@pytest.mark.parametrize(
    ("name", "arguments", "result", "expected"),
    [
        ("fallocate", (3, 3, 0, 8192), 0, 8192),
        ("fallocate", (3, 3, 0, 8192), -95, 0),
        ("fallocate", (3, 0, 0, 8192), 0, 0),
        ("madvise", (0x1000, 4096, mmap.MADV_REMOVE), 0, 4096),
        ("madvise", (0x1000, 4096, mmap.MADV_DONTNEED), 0, 4096),
        ("madvise", (0x1000, 4096, mmap.MADV_DONTNEED), -22, 0),
        ("madvise", (0x1000, 4096, mmap.MADV_WILLNEED), 0, 0),
        ("process_madvise", (5, 0x1000, 3, mmap.MADV_DONTNEED, 0, 0), 12288, 12288),
        ("process_madvise", (5, 0x1000, 3, mmap.MADV_WILLNEED, 0, 0), 12288, 0),
    ],
)
def test_only_calls_that_worked_and_gave_memory_back_count(
    name: str, arguments: tuple[int, ...], result: int, expected: int
) -> None:
    assert DiscardCall(1, name, arguments, result).discarded_bytes == expected


def test_a_process_cannot_trace_itself() -> None:
    with pytest.raises(ConfigError, match=r"^a process cannot trace itself: trace it from another one$"):
        DiscardTrace(os.getpid())


def test_a_process_that_does_not_exist_cannot_be_traced() -> None:
    with pytest.raises(ConfigError, match=r"^there is no process 1073741824$"):
        DiscardTrace(1 << 30)


def test_a_refusal_to_trace_is_explained_and_leaves_the_process_alone(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ptrace_import.load("debugger.process")
    allowed = module.ptrace_attach

    def refused(pid: int) -> None:
        if pid != child.pid:  # the second thread
            raise ptrace_import.load("error").PtraceError("Operation not permitted", errno=1, pid=pid)
        allowed(pid)

    monkeypatch.setattr(module, "ptrace_attach", refused)
    with pytest.raises(ConfigError, match=rf"^the host does not let this user trace process {child.pid}: "):
        DiscardTrace(child.pid)
    assert tracers(child.pid) == {"0"}
    assert child.do("backed") == "0"


def test_another_thread_must_not_use_it(child: Child) -> None:
    caught: list[BaseException] = []

    def close_it() -> None:
        try:
            trace.close()
        except RuntimeError as error:
            caught.append(error)

    with DiscardTrace(child.pid) as trace:
        thread = threading.Thread(target=close_it)
        thread.start()
        thread.join()
    assert [str(error) for error in caught] == ["a DiscardTrace must be used from the thread that made it"]
