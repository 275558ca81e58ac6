"""The bundled guests at work: each row's demonstration, the least memory, and whether what they say is true."""

from __future__ import annotations

import re

import pytest

import vmm
from guests import GUESTS, GuestRow
from vmm.machine import Machine

EVERY_GUEST = pytest.mark.parametrize("row", GUESTS.values(), ids=GUESTS)
PAGE = 4096
MIB = 1 << 20


def lines(machine: Machine) -> list[str]:
    return machine.console.decode().splitlines()


def demonstration(row: GuestRow) -> Machine:
    return vmm.boot(
        row.name, memory=row.memory, targets=row.demo_target, poll=row.demo_poll, duration=row.demo_for or None
    )


def outcome(machine: Machine) -> tuple[str, int]:
    assert machine.outcome is not None, machine.console.decode()
    return machine.outcome.kind, machine.outcome.exit_code


def counters(machine: Machine) -> dict[str, int]:
    """Fresh statistics: asks the guest, and lets it answer."""
    machine.balloon.request_stats()
    machine.run(until="1ms")
    age_ns = machine.stats.age_ns
    assert age_ns is not None and age_ns <= 1_000_000
    return dict(machine.stats.values)


@EVERY_GUEST
def test_the_demonstration_prints_what_the_row_says_in_that_order(row: GuestRow) -> None:
    with demonstration(row) as machine:
        machine.run()
    assert outcome(machine) == (("deadline", 0) if row.demo_for else ("quit", 0))
    rest = iter(lines(machine))
    for expected in row.prints:
        assert any(re.search(expected, line) for line in rest), f"{expected} in\n{machine.console.decode()}"


@EVERY_GUEST
def test_every_guest_runs_in_the_memory_its_row_calls_the_least(row: GuestRow) -> None:
    with vmm.boot(row.name, memory=row.minimum_memory, duration="1s") as machine:
        machine.run()
    assert outcome(machine) in (("deadline", 0), ("quit", 0))
    assert any(line.startswith(f"{row.name}: ") for line in lines(machine))


def test_hello_tells_its_parameter() -> None:
    with vmm.boot("hello", parameter="one two=3") as machine:
        machine.run()
    assert 'hello: my parameter is "one two=3"' in lines(machine)


def test_stats_ends_itself_when_asked() -> None:
    with vmm.boot("stats", memory="8M", parameter="ticks=12") as machine:
        machine.run()
    assert outcome(machine) == ("quit", 0)
    assert 1_100_000_000 <= machine.now_ns <= 1_300_000_000


def test_balloon_ends_itself_when_asked() -> None:
    with vmm.boot("balloon", memory="8M", parameter="targets=2", targets="6M@1s,4M@2s,8M@3s") as machine:
        machine.run()
    assert outcome(machine) == ("quit", 0)
    assert lines(machine)[-1].startswith("balloon: target 1024 pages reached")


@pytest.mark.parametrize("name", ["stats", "balloon"])
def test_without_a_balloon_they_say_so(name: str) -> None:
    with vmm.boot(name, memory="8M", devices=()) as machine:
        machine.run()
    assert outcome(machine) == ("guest-panicked", 3)
    assert lines(machine)[-1] == "panic: there is no balloon"


def test_an_idle_balloon_guest_executes_nothing() -> None:
    with vmm.boot("balloon", memory="8M", targets="4M@1s,8M@7200s") as machine:
        machine.run(until="2s")
        idle_from = machine.blocks
        machine.run(until="7000s")
        assert machine.blocks == idle_from
        machine.run(until="1000s")
        assert machine.balloon.actual_pages == 0


# -- the statistics are honest ---------------------------------------------------------------------------------------


def test_total_memory_is_what_the_balloon_leaves() -> None:
    with vmm.boot("stats", memory="32M") as machine:
        machine.run(until="1s")
        before = counters(machine)
        machine.balloon.set_target("20M")
        machine.run(until="1s")
        after = counters(machine)
        assert (
            before["stat-total-memory"] - after["stat-total-memory"] == machine.balloon.actual_pages * PAGE == 12 * MIB
        )
        machine.balloon.set_target("32M")
        machine.run(until="1s")
        assert counters(machine)["stat-total-memory"] == before["stat-total-memory"]


def test_free_memory_falls_with_the_balloon_and_available_memory_counts_the_caches() -> None:
    with vmm.boot("stats", memory="32M", targets="16M@1s") as machine:
        machine.run(until="900ms")
        before = counters(machine)
        machine.run(until="2s")
        after = counters(machine)
    assert before["stat-free-memory"] - after["stat-free-memory"] > 8 * MIB
    for values in (before, after):
        assert 0 < values["stat-free-memory"] < values["stat-total-memory"] <= 32 * MIB
        assert values["stat-available-memory"] == values["stat-free-memory"] + values["stat-disk-caches"]
        assert all(values[name] % PAGE == 0 for name in values if not name.endswith("faults"))


def test_with_all_its_memory_the_guest_does_not_swap_and_with_half_of_it_it_does() -> None:
    with vmm.boot("stats", memory="32M") as machine:
        machine.run(until="2s")
        roomy = counters(machine)
        machine.balloon.set_target("16M")
        machine.run(until="2s")
        tight = counters(machine)
    assert [roomy[f"stat-{name}"] for name in ("swap-in", "swap-out", "major-faults")] == [0, 0, 0]
    assert roomy["stat-minor-faults"] > 0
    assert tight["stat-swap-out"] > 0
    assert tight["stat-swap-in"] == tight["stat-major-faults"] * PAGE > 0
    assert tight["stat-minor-faults"] > roomy["stat-minor-faults"]


def test_all_memory_is_touched_first_so_that_inflation_is_felt_on_the_host() -> None:
    with vmm.boot("stats", memory="32M") as machine:
        machine.run(until="500ms")
        full = machine.memory.backed_bytes()
        assert full > 31 * MIB - 384 * 1024
        machine.balloon.set_target("16M")
        machine.run(until="50ms")
        assert full - machine.memory.backed_bytes() >= 15 * MIB


def test_a_target_out_of_reach_leaves_the_guest_alive() -> None:
    with vmm.boot("stats", memory="16M", targets="1M@1s,16M@3s") as machine:
        machine.run(until="5s")
        values = counters(machine)
    said = [line for line in lines(machine) if line.startswith("stats: target")]
    assert "out of reach" in said[0]
    assert "target 0 pages reached" in said[-1]
    assert machine.outcome is None
    assert values["stat-free-memory"] > 8 * MIB


# -- free page reporting -----------------------------------------------------------------------------------------------

REPORTING = ("virtio-balloon-pci,free-page-reporting=on", "virtio-balloon-pci,free-page-reporting=on,stats-vq=off")


@pytest.mark.parametrize("device", REPORTING, ids=["reporting_vq is 3", "reporting_vq is 2"])
def test_balloon_reports_its_free_pages_and_the_host_gets_them_back(device: str) -> None:
    with vmm.boot("balloon", memory="16M", parameter="report=1", devices=[device]) as machine:
        machine.run(until=lambda m: b"hold a pattern" in m.console)
        assert machine.memory.backed_bytes() > 15 * MIB
        machine.run(until="1s")
        assert machine.memory.backed_bytes() < MIB
        free = machine.balloon.reported_pages
        assert f"balloon: reported {free} free pages" in lines(machine)
        machine.balloon.set_target("8M")
        machine.run(until="1s")
        assert f"balloon: {free - 2048} free pages hold zeros since they were reported" in lines(machine)
        assert machine.memory.backed_bytes() < MIB
    assert 15 * 256 < free < 16 * 256
    assert outcome_of_balloon(machine) == (2048, free + free - 2048)


def outcome_of_balloon(machine: Machine) -> tuple[int, int]:
    """Pages in the balloon, and pages reported."""
    report = machine.report()["balloon"]
    return report["actual_pages"], report["reported_pages"]


def test_without_the_feature_balloon_has_nobody_to_report_to() -> None:
    with vmm.boot("balloon", memory="8M", parameter="report=1 targets=1", targets="6M@1s") as machine:
        machine.run()
    assert outcome(machine) == ("quit", 0)
    assert not any(line.startswith("balloon: reported") for line in lines(machine))


def test_a_reported_page_that_holds_anything_but_zeros_or_its_own_is_noticed() -> None:
    with vmm.boot("balloon", memory="8M", parameter="report=1", devices=REPORTING[:1]) as machine:
        machine.run(until="1s")
        machine.memory.write(6 * MIB + 100 * 8, b"\x01")
        machine.balloon.set_target("7M")
        machine.run(until="1s")
    assert outcome(machine) == ("guest-panicked", 3)
    assert lines(machine)[-1] == "panic: page 600000h outside the balloon has lost its contents"


# -- the balloon guest would notice ------------------------------------------------------------------------------------


def test_a_page_that_changes_outside_the_balloon_is_noticed() -> None:
    with vmm.boot("balloon", memory="8M") as machine:
        machine.run(until="1s")
        machine.memory.write(6 * MIB + 100 * 8, b"\x01")
        machine.balloon.set_target("7M")
        machine.run(until="1s")
    assert outcome(machine) == ("guest-panicked", 3)
    assert lines(machine)[-1] == "panic: page 600000h outside the balloon has lost its contents"


def test_a_page_that_comes_back_with_strange_contents_is_noticed() -> None:
    with vmm.boot("balloon", memory="8M") as machine:
        machine.run(until="1s")
        machine.balloon.set_target("1M")
        machine.run(until="1s")
        machine.memory.write(4 * MIB + 4088, b"\x01")
        machine.balloon.set_target("8M")
        machine.run(until="1s")
    assert outcome(machine) == ("guest-panicked", 3)
    assert lines(machine)[-1] == "panic: page 400000h came back with strange contents"
