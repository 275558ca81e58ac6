"""The state of a machine: a run that is cut anywhere, saved and gone on with is the run that was never cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import vmm
from devices.effects import Event
from vmm.machine import Machine
from vmm.state import MachineState

CUTS = 200  # places for each guest
PARTS = 4
BLOCK_NS = 10


class Heard:
    """What an observer hears; the counts of statistics and targets with the guest time."""

    def __init__(self, machine: Machine) -> None:
        self.console = b""
        self.told: list[tuple[int, object]] = []
        machine.observers = [self]

    def on_event(self, now_ns: int, event: Event) -> None:
        self.told.append((now_ns, event))

    def on_console(self, data: bytes) -> None:
        self.console += data

    def on_stats(self, now_ns: int) -> None:
        self.told.append((now_ns, "statistics"))

    def on_target(self, now_ns: int) -> None:
        self.told.append((now_ns, "target"))


@dataclass(frozen=True)
class Run:
    """A run that nobody cut: how it was made, and everything that can be seen of it at its end."""

    make: Callable[[], Machine]
    state: MachineState
    report: dict[str, Any]
    ram: list[bytes]
    registers: dict[str, int]
    told: list[tuple[int, object]]


def ram(machine: Machine) -> list[bytes]:
    return [machine.memory.peek(region.gpa, region.size) for region in machine.memory.regions]


def boot_stats() -> Machine:
    return vmm.boot(
        "stats",
        memory="8M",
        duration="1s",
        poll=0.03,
        targets="6M@0.3,8M@0.7",
        devices=("virtio-balloon-pci", "virtio-rng-pci"),
    )


def boot_balloon() -> Machine:
    return vmm.boot("balloon", memory="8M", duration="1s", poll=0.2, targets="4M@0.15,6M@0.4,2M@0.6,8M@0.8")


def boot_torture() -> Machine:
    return vmm.boot("torture", memory="4M")


def boot_hello() -> Machine:
    return vmm.boot("hello", memory="4M", parameter="to be cut")


@pytest.fixture(scope="module")
def uncut() -> Iterator[Callable[[Callable[[], Machine]], Run]]:
    runs: dict[Callable[[], Machine], Run] = {}

    def run(make: Callable[[], Machine]) -> Run:
        if make not in runs:
            with make() as machine:
                heard = Heard(machine)
                machine.run()
                runs[make] = Run(make, machine.save(), machine.report(), ram(machine), machine.registers(), heard.told)
                assert heard.console == machine.console
        return runs[make]

    yield run


Uncut = Callable[[Callable[[], Machine]], Run]


def assert_is_the_end_of(run: Run, machine: Machine, told: list[tuple[int, object]]) -> None:
    assert machine.report() == run.report
    assert machine.registers() == run.registers
    assert ram(machine) == run.ram
    assert machine.save() == run.state
    assert told == run.told


def go_on(run: Run, machine: Machine, state: MachineState, so_far: Heard) -> None:
    """Restore, run to the end, and compare with the uncut run."""
    machine.restore(state)
    assert machine.save() == state
    heard = Heard(machine)
    machine.run()
    assert_is_the_end_of(run, machine, so_far.told + heard.told)
    assert so_far.console + heard.console == machine.console


def cut_everywhere(run: Run, places_ns: list[int]) -> None:
    """Cut one run at all places, in order; go on from every other one in a new machine, from the rest in one machine
    that each time goes back from its end."""
    with run.make() as machine, run.make() as another:
        so_far = Heard(machine)
        for index, place_ns in enumerate(places_ns):
            machine.run(until=f"{place_ns - machine.now_ns}ns")
            state = machine.save()
            if index % 2:
                go_on(run, another, state, so_far)
            else:
                with run.make() as fresh:
                    go_on(run, fresh, state, so_far)
        machine.run()
        assert_is_the_end_of(run, machine, so_far.told)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("make", [boot_stats, boot_balloon])
def test_a_run_that_was_cut_anywhere_is_the_run_that_was_not(
    make: Callable[[], Machine], part: int, uncut: Uncut
) -> None:
    run = uncut(make)
    end_ns = run.report["clock_ns"]
    cut_everywhere(run, [end_ns * cut // CUTS + 7 * cut for cut in range(part, CUTS, PARTS)])


@pytest.mark.parametrize("make", [boot_stats, boot_torture])
def test_a_run_cut_while_the_firmware_changes_the_processors_mode_goes_on_alike(
    make: Callable[[], Machine], uncut: Uncut
) -> None:
    with make() as machine:
        machine.run(until=lambda m: True)
        places_ns: list[int] = []
        while len(places_ns) < 24:
            machine.run(until=f"{BLOCK_NS}ns")
            places_ns.append(machine.now_ns)
    cut_everywhere(uncut(make), places_ns)


def test_exceptions_ring_3_and_interrupts_may_be_cut(uncut: Uncut) -> None:
    run = uncut(boot_torture)
    cut_everywhere(run, [run.report["clock_ns"] * cut // 37 for cut in range(1, 37)])


def test_a_short_run_may_be_cut_after_any_block_it_prints_in(uncut: Uncut) -> None:
    run = uncut(boot_hello)
    cut_everywhere(run, [run.report["clock_ns"] - 97 * BLOCK_NS * cut for cut in range(20, 0, -1)])
