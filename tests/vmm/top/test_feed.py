"""The threads that ask machines, against sockets that answer well, badly, or not at all."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vmm.top.fakes import MIB, FakeVm, fake_vms, sockets_in
from vmm.config import TargetStep
from vmm.control.client import Client, NoAnswer
from vmm.top.data import HUNG, Fleet, Watched
from vmm.top.feed import Feeds
from vmm.top.orders import Order, PauseOrContinue, PollOrNot, Step, Target

PATIENCE_S = 20
QUICK_S = 0.3


class Looking:
    """Feeds and the fleet that they tell."""

    def __init__(self, folder: Path, *wanted: str) -> None:
        self.feeds = Feeds(wanted, sockets_in(folder), QUICK_S)
        self.fleet = Fleet(wanted)

    def until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, {name: each.state for name, each in self.fleet.machines.items()}
            self.feeds.scan()
            for news in self.feeds.take():
                self.fleet.apply(news)
            time.sleep(0.01)

    def until_state(self, name: str, state: str) -> Watched:
        self.until(lambda: name in self.fleet.machines and self.fleet.machines[name].state == state)
        return self.fleet.machines[name]

    def until_event(self, name: str, text: str) -> None:
        self.until(lambda: any(text in line for line in self.fleet.machines[name].events))

    def order(self, vm: FakeVm, order: Order) -> None:
        """Do it, and wait until it was done."""
        before = len(vm.commands())
        self.feeds.order(vm.name, order)
        self.until(lambda: len(vm.commands()) > before)


@contextmanager
def looking(folder: Path, *wanted: str) -> Iterator[Looking]:
    found = Looking(folder, *wanted)
    try:
        yield found
    finally:
        found.feeds.close(5)


def test_machines_come_and_go(tmp_path: Path) -> None:
    with looking(tmp_path) as look:
        with fake_vms(tmp_path, "a"):
            look.until_state("a", "running")
            with fake_vms(tmp_path, "b"):
                look.until_state("b", "running")
            look.until_state("b", "ended")
            assert look.fleet.machines["a"].state == "running"
        look.until_state("a", "ended")
        with fake_vms(tmp_path, "a"):
            look.until_state("a", "running")


def test_it_asks_a_few_times_a_second(tmp_path: Path) -> None:
    with fake_vms(tmp_path, "a") as (vm,), looking(tmp_path) as look:
        look.until_state("a", "running")
        before, start = len(vm.asked), time.monotonic()
        look.until(lambda: len(vm.asked) >= before + 3)
        assert time.monotonic() - start > 1.0


def test_one_that_hangs_does_not_hold_up_the_others_and_comes_back(tmp_path: Path) -> None:
    with fake_vms(tmp_path, "hangs", "works") as (hangs, works), looking(tmp_path) as look:
        look.until_state("hangs", "running")
        hangs.mute.set()
        hung = look.until_state("hangs", HUNG)
        assert "does not answer" in hung.why
        before, asked = len(works.asked), len(hangs.asked)
        look.until(lambda: len(works.asked) >= before + 3)
        assert len(hangs.asked) == asked, "it is asked nothing more while it owes an answer"
        hangs.status["status"] = "paused"
        hangs.mute.clear()
        look.until_state("hangs", "paused")


def test_one_that_does_not_even_greet_is_shown_as_hanging(tmp_path: Path) -> None:
    path = tmp_path / "stopped.sock"
    with socket.socket(socket.AF_UNIX) as listener, looking(tmp_path) as look:
        listener.bind(str(path))
        listener.listen(4)
        look.until_state("stopped", HUNG)


def test_what_is_ordered_of_one_that_hangs_is_not_done_later(tmp_path: Path) -> None:
    with fake_vms(tmp_path, "a") as (vm,), looking(tmp_path) as look:
        look.until_state("a", "running")
        vm.mute.set()
        look.until_state("a", HUNG)
        look.feeds.order("a", Step(1))
        look.until_event("a", "not done")
        vm.mute.clear()
        look.until_state("a", "running")
        asked = len(vm.asked)
        look.until(lambda: len(vm.asked) > asked + 1)
        assert vm.commands() == []


def slowly(answer: object) -> Callable[[object], object]:
    """An answer that comes when it was given up."""

    def found(arguments: object) -> object:
        time.sleep(2 * QUICK_S)
        return answer

    return found


def test_a_late_answer_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    """The answer that was given up comes all the same, when something else was asked."""
    with fake_vms(tmp_path, "a") as (vm,), Client("a", vm.path, QUICK_S) as client:
        vm.answers["query-late"] = slowly("late")
        vm.answers["query-now"] = lambda arguments: "now"
        with pytest.raises(NoAnswer):
            client.ask("query-late")
        select.select([client], [], [], PATIENCE_S)
        assert client.ask("query-now") == "now"


def test_what_was_ordered_when_it_began_to_hang_is_not_done_again(tmp_path: Path) -> None:
    with fake_vms(tmp_path, "a") as (vm,), looking(tmp_path) as look:
        look.until_state("a", "running")
        vm.answers["balloon"] = slowly({})
        look.feeds.order("a", Step(1))
        look.until_event("a", "whether it was done is not known")
        look.until_state("a", "running")
        asked = len(vm.asked)
        look.until(lambda: len(vm.asked) > asked + 1)
        assert vm.commands() == ["balloon"]


def test_a_stale_socket_is_nobody(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "stale.sock"))
    with fake_vms(tmp_path, "a"), looking(tmp_path) as look:
        look.until_state("a", "running")
        assert list(look.fleet.machines) == ["a"]


@pytest.mark.parametrize("answer", [{}, [], "x", {"pid": "nobody"}])
def test_one_of_another_version_is_told_so(tmp_path: Path, answer: object) -> None:
    with fake_vms(tmp_path, "old") as (vm,), looking(tmp_path) as look:
        vm.answers["x-vmm-status"] = lambda arguments: answer
        assert "another version" in look.until_state("old", HUNG).why


def test_only_those_that_are_named_are_asked(tmp_path: Path) -> None:
    with fake_vms(tmp_path, "a", "b") as (a, _), looking(tmp_path, "b") as look:
        look.until_state("b", "running")
        assert (a.asked, list(look.fleet.machines)) == ([], ["b"])


# -- orders --------------------------------------------------------------------------------------------------------


def test_steps_are_sent_as_targets_and_held_keys_together(tmp_path: Path) -> None:
    with fake_vms(tmp_path, "a") as (vm,), looking(tmp_path) as look:
        look.until_state("a", "running")
        vm.mute.set()
        time.sleep(0.1)
        for _ in range(3):
            look.feeds.order("a", Step(1))
        vm.mute.clear()
        look.until(lambda: vm.status["balloon"]["target-guest-ram"] == 36 * MIB)
        assert len(vm.commands()) < 3
        look.until_event("a", "BALLOON_CHANGE 36 MiB left to the guest")


def test_every_order_is_carried_out(tmp_path: Path) -> None:
    with fake_vms(tmp_path, "a") as (vm,), looking(tmp_path) as look:
        look.until_state("a", "running")
        look.order(vm, Target(TargetStep(0, balloon_bytes=24 * MIB)))
        assert vm.status["balloon"]["actual"] == 24 * MIB
        look.order(vm, Target(TargetStep(0, ram_bytes=60 * MIB)))
        assert vm.status["balloon"]["actual"] == 4 * MIB
        look.order(vm, PauseOrContinue())
        look.until_state("a", "paused")
        look.until_event("a", "STOP")
        look.order(vm, PauseOrContinue())
        look.until_state("a", "running")
        look.order(vm, PollOrNot())
        assert vm.status["balloon"]["polling-interval-ns"] == 10**9
        look.order(vm, PollOrNot())
        assert vm.status["balloon"]["polling-interval-ns"] == 0


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with fake_vms(tmp_path, "a") as (vm,), looking(tmp_path) as look:
        look.until_state("a", "running")
        vm.refuses["balloon"] = "not today"
        look.order(vm, Step(1))
        look.until_event("a", "refused: not today")
        look.feeds.order("a", Target(TargetStep(0, ram_bytes=65 * MIB)))
        look.until_event("a", "at most the machine's 64 MiB of RAM")
        del vm.status["balloon"]
        look.feeds.order("a", PollOrNot())
        look.until_event("a", "a has no balloon.")
        look.until_state("a", "running")
