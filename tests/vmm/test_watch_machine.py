"""A machine whose driver is watched: the same run, the report, the state, and the words that ask for it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

import vmm
from devices.effects import Event
from devices.errors import ConfigError
from devices.memory import GuestMemory
from devices.virtio.spec import Status
from tests.support import RAM_LAYOUT
from tests.vmm.watching import STATS, Bench
from vmm.boards.pc import BalloonUnderWatch
from vmm.cli import main
from vmm.machine import Machine
from vmm.testing.balloon import MUST_TELL_HOST, PAGE_POISON

DEMONSTRATIONS: dict[str, dict[str, Any]] = {
    "stats": {"targets": "48M@200ms,64M@600ms", "poll": 0.1, "duration": "1s"},
    "balloon": {"targets": "balloon=16M@200ms,balloon=4M@600ms", "duration": "1s"},
}


class Lines:
    """The breaches that an observer hears of."""

    def __init__(self, machine: Machine) -> None:
        self.texts: list[str] = []
        machine.observers.append(self)

    def on_event(self, now_ns: int, event: Event) -> None:
        if event.kind == "breach":
            self.texts.append(event.text)

    def on_console(self, data: bytes) -> None: ...

    def on_stats(self, now_ns: int) -> None: ...

    def on_target(self, now_ns: int) -> None: ...


def seen(machine: Machine) -> dict[str, Any]:
    """Everything that a run may differ in."""
    digest = hashlib.sha256()
    for region in machine.memory.regions:
        digest.update(machine.memory.peek(region.gpa, region.size))
    report = {name: value for name, value in machine.report().items() if name != "breaches"}
    return {"ram": digest.hexdigest(), "registers": machine.registers(), **report}


@pytest.mark.parametrize("guest", DEMONSTRATIONS)
def test_a_bundled_guest_keeps_the_rules_and_its_run_is_the_same_with_and_without(guest: str) -> None:
    runs = []
    for watch_driver in (True, False):
        with vmm.boot(guest, memory="64M", watch_driver=watch_driver, **DEMONSTRATIONS[guest]) as m:
            lines = Lines(m)
            m.run()
            assert m.report()["breaches"] == ([] if watch_driver else None)
            assert m.breaches == () and lines.texts == []
            assert m.balloon.inflated_pages and m.balloon.deflated_pages
            runs.append(seen(m))
    assert runs[0] == runs[1]


def test_nothing_of_it_is_there_unless_it_was_asked_for() -> None:
    with vmm.boot("stats") as m:
        assert m.board.watched is None
        assert not isinstance(m.board.need_balloon()[1], BalloonUnderWatch)


def clear_the_status(machine: Machine) -> None:
    """What no driver may do, by the driver's way in."""
    transport, device = machine.board.need_balloon()
    machine.platform.carry_out(transport.signal(device.write_status(int(Status.ACKNOWLEDGE), machine.now_ns)))


def test_a_breach_is_in_the_report_and_one_line_for_observers() -> None:
    with vmm.boot("stats", watch_driver=True, poll=0.1) as m:
        lines = Lines(m)
        m.run("200ms")
        assert m.board.need_balloon()[1].is_ready
        clear_the_status(m)
        clear_the_status(m)
        m.run("100ms")
        (entry,) = m.report()["breaches"]
        assert entry.pop("sentence") == "No bit of the device status is cleared."
        assert "0x01" in entry.pop("detail")
        assert entry == {"id": "G4", "section": "2.1.1", "level": "must", "time_ns": 200_000_000, "count": 2}
        assert len(lines.texts) == 1 and "(§2.1.1, must)" in lines.texts[0]


def test_a_driver_that_falls_silent_is_found_without_a_kick() -> None:
    """A driver starts as it should and then does nothing: the machine looks by itself."""
    with vmm.boot("stats", watch_driver=True) as m:
        lines = Lines(m)
        m.run("200ms")
        transport, device = m.board.need_balloon()
        for value in (0, Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK):
            device.write_driver_features(device.device_features & ~PAGE_POISON)
            notes = device.write_status(device.status | value if value else 0, m.now_ns)
            m.platform.carry_out(transport.signal(notes))
        started = m.now_ns
        m.run("3s")
        assert [(breach.id, breach.time_ns) for breach in m.breaches] == [("R17", started + 10**9)]
        assert len(lines.texts) == 1


# -- the state ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut_ms", [1, 150, 300, 651])
def test_a_run_that_was_cut_and_gone_on_with_elsewhere_finds_the_same(cut_ms: int) -> None:
    options = {"memory": "64M", "watch_driver": True, **DEMONSTRATIONS["stats"]}
    with vmm.boot("stats", **options) as whole, vmm.boot("stats", **options) as first:
        first.run(f"{cut_ms}ms")
        with vmm.boot("stats", **options) as second:
            second.restore(first.save())
            assert second.save() == first.save()
            whole.run()
            second.run()
            assert second.save() == whole.save()
            assert second.report() == whole.report()


def test_what_was_found_and_what_is_awaited_survive() -> None:
    made = Bench("pci").start(without=MUST_TELL_HOST)
    made.driver.post_stats(STATS)
    pages = made.machine.filled_pfns(9)
    made.driver.inflate(pages)
    saved = made.device.save_state()
    copy = BalloonUnderWatch(GuestMemory(RAM_LAYOUT))
    copy.check_state(saved, "balloon")
    copy.restore_state(saved)
    assert copy.save_state() == saved
    assert [breach.id for breach in copy.breaches] == ["R1", "R16"]
    for device in (made.device, copy):
        device.look(10**12)
    assert list(copy.breaches) == list(made.device.breaches)
    assert [breach.id for breach in copy.breaches] == ["R1", "R16", "R14"]
    made.machine.close()


def test_a_state_is_refused_by_a_machine_that_watches_where_the_other_did_not() -> None:
    with vmm.boot("stats") as plain, vmm.boot("stats", watch_driver=True) as watched:
        for source, place, theirs, own in ((plain, watched, "off", "on"), (watched, plain, "on", "off")):
            with pytest.raises(ConfigError) as refused:
                place.restore(source.save())
            assert str(refused.value) == (
                f"The saved state is of a machine with other settings for watching the driver: {theirs!r}, not {own!r}."
            )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"id": "R99"}, "there is no rule 'R99'"),
        ({"count": -1}, "count must be a number"),
        ({"detail": 5}, "detail must be a text"),
    ],
)
def test_a_state_with_a_wrong_breach_is_refused(change: dict[str, Any], sentence: str) -> None:
    made = Bench("pci").start(without=MUST_TELL_HOST)
    saved: Any = made.device.save_state()
    saved["watch"]["breaches"]["found"][0].update(change)
    with pytest.raises(ConfigError, match=sentence):
        made.device.check_state(saved, "balloon")
    made.machine.close()


# -- the words ---------------------------------------------------------------------------------------------------------


def test_the_command_line_asks_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["boot", "stats", "--watch-driver", "--for", "300ms", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["breaches"] == []


def test_a_machine_without_a_balloon_cannot_watch_its_driver() -> None:
    with pytest.raises(ConfigError, match=r"^Watching the balloon's driver needs a balloon, and this"):
        vmm.boot("hello", devices=(), watch_driver=True)
