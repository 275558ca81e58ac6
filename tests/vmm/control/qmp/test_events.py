"""Events: which, with what, how often, and to whom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

import vmm
from tests.vmm.control.qmp.talk import Talk
from vmm.control.qmp import events as module
from vmm.machine import Machine

MIB = 1 << 20


class HostTime:
    """The host's clocks, which a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 1_700_000_000.25 + self.now_s


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostTime:
    made = HostTime()
    monkeypatch.setattr(module, "time", made)
    return made


def heard(talk: Talk) -> list[tuple[str, Any]]:
    return [(each["event"], each.get("data")) for each in talk.wire.take() if "event" in each]


def change(mib: int) -> tuple[str, Any]:
    return "BALLOON_CHANGE", {"actual": mib * MIB}


def test_a_change_of_the_balloon_is_told_with_the_ram_that_is_left(talk: Talk, machine: Machine) -> None:
    machine.run("0.1s")
    machine.balloon.set_target("40M")
    machine.run(lambda m: m.balloon.actual_pages == m.balloon.target_pages)
    talk.events.end(None)  # what was held back comes
    changes = [data["actual"] for name, data in heard(talk) if name == "BALLOON_CHANGE"]
    assert changes[-1] == 40 * MIB


def test_changes_come_once_a_second_the_first_at_once_and_the_last_later(
    talk: Talk, machine: Machine, host: HostTime
) -> None:
    def tell(mib: int) -> None:
        talk.events.emit("BALLOON_CHANGE", actual=mib * MIB)

    tell(60)
    assert heard(talk) == [change(60)]
    for mib in (50, 40, 30):
        host.now_s += 0.2
        tell(mib)
    assert heard(talk) == []
    assert talk.events.due_s == pytest.approx(1001.0)
    host.now_s = 1001.0
    talk.events.fire()
    assert heard(talk) == [change(30)]
    tell(20)
    assert heard(talk) == []  # the next second has begun
    host.now_s = 1002.0
    talk.events.fire()
    assert heard(talk) == [change(20)]
    host.now_s = 1003.0
    talk.events.fire()
    assert heard(talk) == [] and talk.events.due_s is None
    tell(10)
    assert heard(talk) == [change(10)]


def test_an_event_bears_the_hosts_time(talk: Talk, host: HostTime) -> None:
    talk.events.emit("STOP")
    assert talk.wire.take() == [{"timestamp": {"seconds": 1_700_001_000, "microseconds": 250000}, "event": "STOP"}]


def test_all_clients_hear_of_it_once_they_have_negotiated_until_they_are_gone(machine: Machine) -> None:
    first = Talk(machine)
    second = Talk(machine, events=first.events)
    shy = Talk(machine, events=first.events, negotiate=False)
    first.ask("stop")
    assert [name for name, _ in heard(second)] == ["STOP"]
    assert heard(shy) == []
    second.session.ended()
    shy.session.ended()
    first.ask("cont")
    assert heard(second) == []
    assert len(first.events.listeners) == 1


@pytest.fixture
def no_balloon() -> Iterator[Machine]:
    """The guest `balloon` panics without one."""
    with vmm.boot("balloon", devices=["virtio-rng-pci"]) as made:
        yield made


def test_a_panic_is_told_as_qemu_tells_it(no_balloon: Machine) -> None:
    talk = Talk(no_balloon)
    outcome = no_balloon.run()
    talk.events.end(outcome)
    assert heard(talk) == [
        ("GUEST_PANICKED", {"action": "poweroff"}),
        ("STOP", None),
        ("SHUTDOWN", {"guest": True, "reason": "guest-panic"}),
    ]
    assert talk.ask("query-status")["status"] == "guest-panicked"


def test_a_panic_with_a_crash_kernel_goes_on(talk: Talk, machine: Machine) -> None:
    ports = machine.board.ports  # type: ignore[attr-defined]
    machine.platform.carry_out(ports.write(0x505, 1, 2, 0))
    machine.tell()
    assert heard(talk) == [("GUEST_CRASHLOADED", {"action": "run"})]


@pytest.mark.parametrize(
    ("guest", "options", "data"),
    [
        ("hello", {}, {"guest": True, "reason": "guest-shutdown"}),
        ("stats", {"duration": "0.1s"}, {"guest": False, "reason": "host-ui"}),
    ],
)
def test_how_a_run_ended(guest: str, options: dict[str, Any], data: dict[str, Any]) -> None:
    with vmm.boot(guest, **options) as machine:
        talk = Talk(machine)
        talk.events.end(machine.run())
        assert heard(talk)[-1] == ("SHUTDOWN", data)


def test_an_interrupted_run_was_ended_by_a_signal(talk: Talk, machine: Machine) -> None:
    machine.interrupt()
    talk.events.end(machine.run())
    assert heard(talk) == [("SHUTDOWN", {"guest": False, "reason": "host-signal"})]


def test_listening_does_not_change_a_virtual_run() -> None:
    def console(listen: bool) -> tuple[bytes, int, int]:
        with vmm.boot("stats", poll="0.5", targets="40M@0.5,64M@1", duration="2s") as machine:
            if listen:
                talk = Talk(machine)
                machine.run("1s")
                talk.ask("x-vmm-status")
                talk.ask("stop")
                time.sleep(0.01)
                talk.ask("cont")
            machine.run()
            return machine.console, machine.blocks, machine.now_ns

    assert console(True) == console(False)
