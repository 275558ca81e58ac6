"""The bundled guests over free_page_vq, with page poison, and with the statistics of the first patch.

Here the CPU stores to guest RAM by itself, and the host's page tables must notice."""

from __future__ import annotations

import json
import os
import re

import pytest

import vmm
from devices import hostcalls
from devices.errors import ConfigError
from tests.guests.test_runs import lines, outcome
from vmm.cli import main
from vmm.machine import Machine

PAGE = 4096
HINTING = ("virtio-balloon-pci,free-page-hint=on",)
REPORTING = ("virtio-balloon-pci,free-page-reporting=on",)


def kernel_tracks_writes() -> bool:
    try:
        os.close(hostcalls.open_write_watch())
    except OSError:
        return False
    return True


needs_tracking = pytest.mark.skipif(not kernel_tracks_writes(), reason="this kernel does not track writes")


def hinted(machine: Machine) -> list[tuple[int, int, int]]:
    """(pages hinted, id, pages that hold zeros afterwards) of each round, as the guest tells it."""
    found = re.findall(r"hinted (\d+) free pages under the id (\d+), (\d+) of them", machine.console.decode())
    return [(int(count), int(cmd_id), int(zeros)) for count, cmd_id, zeros in found]


@needs_tracking
def test_free_memory_goes_back_to_the_host_when_it_asks() -> None:
    with vmm.boot("balloon", memory="32M", hints="1s,3s", devices=HINTING, duration="4s") as machine:
        machine.run("900ms")
        before = machine.memory.backed_bytes()
        machine.run(lambda machine: machine.balloon.hint_command_id == 1)
        after = machine.memory.backed_bytes()
        machine.run()
        assert outcome(machine) == ("deadline", 0)
        (first, second) = hinted(machine)
        assert (first[1], second[1]) == (2, 3)
        assert first[0] == first[2] == second[0] == second[2] > 7000, "all of them, and the guest sees it"
        assert after < before - first[0] * PAGE + (64 << 10), "before the guest fills them again"
        report = machine.report()["balloon"]
        assert report["hinted_pages"] == report["hint_discarded_pages"] == 2 * first[0]
        assert report["discarded_bytes"] == report["hint_discarded_pages"] * PAGE
        assert machine.balloon.hint_command_id == 1


@needs_tracking
def test_what_the_cpu_writes_while_a_hint_is_on_its_way_is_never_lost() -> None:
    """The guest writes every other page between placing the hint and the notification, and panics if one is lost."""
    with vmm.boot("balloon", memory="32M", parameter="hint=2", hints="1s", devices=HINTING, duration="2s") as machine:
        machine.run()
        assert outcome(machine) == ("deadline", 0)
        ((count, _, zeros),) = hinted(machine)
        assert abs(count - 2 * zeros) <= 1
        assert machine.balloon.hint_discarded_pages == zeros


def test_a_host_that_does_not_track_writes_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(hostcalls, "open_write_watch", refuse)
    with vmm.boot("balloon", memory="16M", hints="1s", devices=HINTING, duration="2s") as machine:
        machine.run()
        ((count, _, zeros),) = hinted(machine)
        assert count > 3000 and zeros == 0
        assert (machine.balloon.hinted_pages, machine.balloon.hint_discarded_pages) == (count, 0)


@needs_tracking
def test_the_host_decides_when_the_pages_are_the_guests_again() -> None:
    with vmm.boot("balloon", memory="16M", devices=HINTING) as machine:
        machine.run("1s")
        machine.balloon.start_hinting(acknowledge=False)
        machine.run("1s")
        assert machine.balloon.hint_command_id == 2
        machine.balloon.stop_hinting()
        assert machine.balloon.hint_command_id == 0
        machine.balloon.start_hinting()
        machine.run("1s")
        machine.balloon.done_hinting()
        assert machine.balloon.hint_command_id == 1
        assert [cmd_id for _, cmd_id, _ in hinted(machine)] == [2, 3]


@needs_tracking
def test_a_run_cut_in_the_middle_of_a_round_goes_on_to_the_same_end() -> None:
    """Which pages were written by then is in the saved state."""
    words = {"memory": "16M", "parameter": "hint=2", "hints": "1s,3s", "devices": HINTING, "duration": "4s"}
    with vmm.boot("balloon", **words) as first, vmm.boot("balloon", **words) as second:  # type: ignore[arg-type]
        first.run(lambda machine: machine.balloon.hint_command_id == 2 and machine.balloon.hinted_pages > 0)
        state = first.save()
        assert first.balloon.hint_command_id == 2
        first.run()
        second.restore(state)
        second.run()
        assert first.save() == second.save()
        assert first.report() == second.report()
        assert len(hinted(second)) == 2


def test_without_hinting_nobody_can_ask() -> None:
    with pytest.raises(ConfigError, match=r"^Asking for hints needs a balloon with free-page-hint=on"):
        vmm.boot("balloon", hints="1s")
    not_ready = r"^Hinting cannot be started: the guest's driver is not ready\.$"
    with vmm.boot("balloon", memory="16M", devices=HINTING) as machine, pytest.raises(ConfigError, match=not_ready):
        machine.balloon.start_hinting()
    with vmm.boot("balloon", memory="16M", parameter="hint=0", hints="1s", devices=HINTING) as machine:
        machine.run("2s")  # a schedule goes on without
        assert machine.outcome is None
        with pytest.raises(ConfigError, match=r"the guest's driver has not accepted free page hinting\.$"):
            machine.balloon.start_hinting()


@pytest.mark.parametrize(("command", "verb"), [("stop_hinting", "stopped"), ("done_hinting", "ended")])
def test_nobody_can_be_told_to_stop_who_cannot_be_asked(command: str, verb: str) -> None:
    cases = (
        (["virtio-balloon-pci"], "", "500ms", "the balloon does not offer free page hinting"),
        (HINTING, "", "1us", "the guest's driver is not ready"),
        (HINTING, "hint=0", "500ms", "the guest's driver has not accepted free page hinting"),
    )
    for devices, parameter, duration, why in cases:
        with vmm.boot("balloon", memory="8M", parameter=parameter, devices=devices) as machine:
            machine.run(duration)
            with pytest.raises(ConfigError, match=f"^Hinting cannot be {verb}: {why}\\.$"):
                getattr(machine.balloon, command)()
    with vmm.boot("balloon", memory="8M", devices=HINTING) as machine:
        machine.run("500ms")
        getattr(machine.balloon, command)()  # no round is going on, and the driver may be told so


@needs_tracking
def test_the_guest_that_works_hints_too() -> None:
    """In its free memory nothing is expected; the memory it works with is checked by itself."""
    with vmm.boot("stats", memory="32M", hints="1s,2s", devices=HINTING, duration="3s") as machine:
        machine.run()
    assert outcome(machine) == ("deadline", 0)
    assert 4000 < machine.balloon.hint_discarded_pages <= machine.balloon.hinted_pages
    assert len(re.findall(r"stats: hinted \d+ free pages", machine.console.decode())) == 2


# -- poison ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 0xAAAAAAAA])
def test_reported_pages_hold_the_value_that_the_guest_fills_them_with(value: int) -> None:
    """The guest panics if one holds anything else."""
    parameter = f"report=1 poison={value}"
    with vmm.boot("balloon", memory="16M", parameter=parameter, targets="8M@1s,16M@2s", devices=REPORTING) as machine:
        machine.run("3s")
        assert machine.outcome is None, machine.console.decode()
        balloon = machine.balloon
        assert "VIRTIO_BALLOON_F_PAGE_POISON" in balloon.negotiated
        assert balloon.actual_pages == 0 and balloon.inflated_pages == 2048
        assert balloon.reported_pages > 7000
        assert balloon.poisoned_pages == (balloon.reported_pages if value else 0)
        given_back = 2048 * PAGE + (0 if value else balloon.reported_bytes)
        assert balloon.discarded_bytes == given_back


def test_a_guest_that_does_not_poison_does_not_accept_it() -> None:
    with vmm.boot("balloon", memory="16M") as machine:
        machine.run("1s")
        assert "VIRTIO_BALLOON_F_PAGE_POISON" in machine.balloon.offered
        assert "VIRTIO_BALLOON_F_PAGE_POISON" not in machine.balloon.negotiated


# -- the statistics as they were first proposed ------------------------------------------------------------------------


def test_the_statistics_of_the_patch_say_the_same_as_todays() -> None:
    """One guest in both languages, at the same moment of its life."""
    v2 = {"parameter": "v2=1", "devices": ("virtio-balloon-pci,stats-format=v2",)}
    found = []
    for words in (v2, {}):
        with vmm.boot("stats", memory="32M", targets="16M@1s", poll=0.5, **words) as machine:  # type: ignore[arg-type]
            machine.run("3s")
            found.append(machine.stats.snapshot())
    first, today = found
    assert first.reason == today.reason == "ok"
    assert [tag for tag, _ in first.raw] == list(range(7))
    for name in ("stat-free-memory", "stat-total-memory", "stat-major-faults", "stat-minor-faults"):
        assert first.values[name] == today.values[name], name
    for name in ("stat-swap-in", "stat-swap-out"):
        assert first.values[f"{name}-pages"] * PAGE == today.values[name]
    assert 0 < first.values["stat-anonymous-memory"] <= 32 << 20


def test_its_first_buffer_is_not_taken_for_statistics() -> None:
    with vmm.boot("stats", memory="16M", parameter="v2=1", devices=("virtio-balloon-pci,stats-format=v2",)) as machine:
        machine.run("1s")
        assert machine.stats.reason == "never posted"
        machine.balloon.request_stats()
        machine.run("1s")
        assert machine.stats.reason == "ok"
        assert 0 < machine.stats.values["stat-free-memory"] <= 16 << 20
    assert "panic" not in "\n".join(lines(machine))


# -- the command line --------------------------------------------------------------------------------------------------


@needs_tracking
def test_the_command_asks_and_its_report_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boot", "balloon", "-m", "16M", "--hint", "1s,500ms", "--for", "2s", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "VIRTIO_BALLOON_F_FREE_PAGE_HINT" in report["features"]["negotiated"]
    assert report["balloon"]["hinted_pages"] == report["balloon"]["hint_discarded_pages"] > 7000
    assert main(["boot", "balloon", "-m", "16M", "--hint", "1s", "--for", "2s", "--param", "hint=0"]) == 0
    out = capsys.readouterr().out
    assert "hinting cannot be started: the guest's driver has not accepted free page hinting" in out
