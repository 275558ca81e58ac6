"""A Linux guest in a file: whatever it was doing, it does the same from there on, in another machine."""

from __future__ import annotations

import base64
import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.boot.balloon import MIB, Guests, balloon_pages, digest, meminfo, reach, stuck, write_file
from tests.boot.debian import needs_debian
from tests.boot.guest import SHELL_IS_UP, Linux
from vmm.snapshots import read_snapshot, write_snapshot

pytestmark = needs_debian

ARITHMETIC = Path(__file__).with_name("arithmetic.c")
COMPILE = (
    *("-target", "x86_64-freestanding-none", "-O1", "-ffreestanding"),
    *("-nostdlib", "-static", "-fno-sanitize=all", "-s"),
)
PIECE = 600  # characters of a typed line
# Two processes at once, so that the kernel puts their registers away and back all the time.
TYPED = "/tmp/arithmetic a9 >/tmp/one & /tmp/arithmetic b7 >/tmp/two; wait; cat /tmp/one /tmp/two; echo done-$?.\n"
CUTS, CUT_AFTER = 8, "11ms"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "debian.snap"


@contextmanager
def twin(guest: Linux, file: Path) -> Iterator[Linux]:
    """The same guest in a machine made of a snapshot, with everything that was heard of it until now."""
    write_snapshot(guest.machine, file)
    with read_snapshot(file) as snapshot, snapshot.boot() as machine:
        other = copy.copy(guest)
        other.machine, other.events = machine, list(guest.events)
        machine.observers.append(other)
        yield other


def check_both_go_on(guest: Linux, file: Path, do: Callable[[Linux], object]) -> None:
    """Both do the same, with the same answers, the same state and the same RAM at the end."""
    with twin(guest, file) as other:
        assert do(other) == do(guest)
        assert other.console == guest.console
        assert other.events == guest.events
        assert other.machine.report() == guest.machine.report()
        assert other.machine.save() == guest.machine.save()
        assert stuck(other) == set() and other.complaints == []


def bring_program(guest: Linux, folder: Path) -> None:
    """Type a program into the guest."""
    path = folder / "arithmetic"
    subprocess.run([sys.executable, "-m", "ziglang", "cc", *COMPILE, "-o", path, ARITHMETIC], check=True)
    text = base64.b64encode(path.read_bytes()).decode()
    for start in range(0, len(text), PIECE):
        guest.ask(f"echo {text[start : start + PIECE]} >>/tmp/typed")
    guest.ask("base64 -d /tmp/typed >/tmp/arithmetic; chmod +x /tmp/arithmetic")


def wait_for_done(guest: Linux) -> str:
    guest.wait_for("done-0.")
    guest.wait_for(SHELL_IS_UP, guest.console.index("done-0."))
    return guest.console


def test_arithmetic_goes_on_to_the_last_bit(guests: Guests, file: Path) -> None:
    """Cut in many places one after the other, each time in another machine; SSE and x87 registers are in use then."""
    guest = guests.loaded()
    bring_program(guest, file.parent)
    guest.type(TYPED)
    in_use: set[str] = set()
    answers = []
    with twin(guest, file) as straight:
        for cut in range(CUTS):
            guest.machine.run(CUT_AFTER)
            assert "done-0." not in guest.console
            state: Any = guest.machine.save().data
            in_use |= {name for name, value in state["cpu"]["registers"].items() if value}
            write_snapshot(guest.machine, file)
            if cut in (2, CUTS - 1):  # one goes on in a machine of its own…
                with twin(guest, file) as other:
                    answers.append(wait_for_done(other))
            with read_snapshot(file) as snapshot:  # …and one in the same one
                guest.machine.restore(snapshot.state())
        for _ in range(CUTS):
            straight.machine.run(CUT_AFTER)
        answers += [wait_for_done(straight), wait_for_done(guest)]
        assert answers == [answers[0]] * 4
        assert guest.machine.save() == straight.machine.save()
    assert in_use >= {"xmm9", "xmm10", "xmm15", "fpr7", "fpr6"}, "otherwise this would mean nothing"


@pytest.mark.parametrize("properties", ["", "packed=on", "disable-legacy=off", "packed=on,in_order=on"])
def test_in_the_middle_of_an_inflate(properties: str, guests: Guests, file: Path) -> None:
    guest = guests.loaded(properties)
    kept = write_file(guest, "/files/kept", 8)
    guest.machine.balloon.set_size("60M")
    guest.run_until(lambda machine: machine.balloon.inflated_pages >= 5000)

    def do(guest: Linux) -> object:
        reach(guest, 60 * MIB)
        pages, host = balloon_pages(guest), guest.machine.memory.backed_bytes()
        reach(guest, 0)
        return pages, host, digest(guest, "/files/kept"), meminfo(guest)

    check_both_go_on(guest, file, do)
    assert digest(guest, "/files/kept") == kept
    assert guest.machine.balloon.inflated_pages == 60 * MIB // 4096


def test_with_a_held_buffer_of_statistics(guests: Guests, file: Path) -> None:
    guest = guests.loaded()
    guest.machine.balloon.request_stats()
    guest.run_until(lambda machine: machine.stats.reason == "ok")

    def do(guest: Linux) -> object:
        device = guest.machine.board.need_balloon()[1]
        reports = device.stats_reports
        guest.machine.balloon.request_stats()
        guest.run_until(lambda machine: device.stats_reports > reports)
        return guest.machine.stats.values

    check_both_go_on(guest, file, do)


def test_in_the_middle_of_a_round_of_hints(guests: Guests, file: Path) -> None:
    guest = guests.loaded("free-page-hint=on")
    guest.machine.balloon.start_hinting()
    guest.run_until(lambda machine: machine.balloon.hinted_pages > 0)
    assert guest.machine.balloon.hint_command_id >= 2, "the round is going on"

    def do(guest: Linux) -> object:
        guest.run_until(lambda machine: machine.balloon.hint_command_id == 1)
        balloon = guest.machine.balloon
        return balloon.hinted_pages, balloon.hint_discarded_pages, meminfo(guest)

    check_both_go_on(guest, file, do)
    assert guest.machine.balloon.hinted_pages > 1000
