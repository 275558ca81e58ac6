"""The watcher of the driver's side: a driver that breaks one rule is told of once, and a good one never.

Each bad driver is written from the statement of the specification that it breaks; here those about the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.memory import PAGE_BYTES
from devices.virtio import spec
from tests.support import BalloonMachine, Way
from tests.vmm.watching import STATS, Bench, MakeBench, watched
from vmm.testing.balloon import (
    ACTUAL,
    DEFLATEQ,
    INFLATEQ,
    MUST_TELL_HOST,
    PAGE_POISON,
    PAGE_REPORTING,
    STATS_VQ,
    STATSQ,
    stats_bytes,
)
from vmm.watch import RULES

# -- the rules as data -------------------------------------------------------------------------------------------------


def test_every_statement_about_the_driver_has_its_row() -> None:
    assert [name for name in RULES if name.startswith("R")] == [f"R{number}" for number in range(1, 43)]
    for name, rule in RULES.items():
        assert rule.id == name
        assert rule.sentence.endswith(".")
        assert rule.level != "may" or not rule.is_watched, "nobody can break a permission"


def test_the_documentation_lists_every_rule() -> None:
    text = (Path(__file__).parents[2] / "docs" / "balloon.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith(("| R", "| G")) and line[3].isdigit()]
    assert [row.split(" | ")[0][2:] for row in rows] == list(RULES)
    for row, rule in zip(rows, RULES.values(), strict=True):
        _, section, level, sentence, watched_or_why = row.strip("| ").split(" | ")
        assert (section, level, sentence) == (rule.section, rule.level, rule.sentence)
        assert watched_or_why == (rule.unseen or "yes")


# -- the good driver ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processor", ["<", ">"])
@pytest.mark.parametrize("without", [0, MUST_TELL_HOST, STATS_VQ])
def test_a_driver_that_keeps_the_rules_is_told_nothing_of(
    bench: MakeBench, without: int, processor: spec.ByteOrder
) -> None:
    bits = spec.VIRTIO_BALLOON_F_PAGE_REPORTING, spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
    made = bench(*bits, without=without, processor=processor).start()
    for target in (300, 20, 90):
        made.machine.set_target(target)
        made.driver.follow_target()
        if not without & STATS_VQ:
            made.refresh_stats()
        made.wait()
    taken = made.driver.deflate_on_oom(10)
    for pfn in taken:
        made.machine.memory.write(pfn * PAGE_BYTES, b"x" * PAGE_BYTES)
    made.machine.memory.write(taken[0] * PAGE_BYTES, bytes(PAGE_BYTES))
    made.driver.report([(taken[0] * PAGE_BYTES, PAGE_BYTES)])
    made.wait()
    made.start()
    made.end()
    assert made.breaches == []
    assert made.lines == []


def test_a_page_may_be_moved_by_inflating_another_first(bench: MakeBench) -> None:
    """As a kernel does that compacts its memory."""
    made = bench().start()
    made.machine.set_target(10)
    made.driver.follow_target()
    (new,) = made.machine.filled_pfns(1)
    made.driver.inflate([new])
    made.driver.deflate([made.driver.held_pfns[0]])
    made.wait()
    assert made.breaches == []


# -- features and start ------------------------------------------------------------------------------------------------


def test_r1_must_tell_host_is_left_out(bench: MakeBench) -> None:
    made = bench().start(without=MUST_TELL_HOST)
    made.expect_only("R1")


def test_r1_says_nothing_where_it_is_not_offered(bench: MakeBench) -> None:
    made = bench(without=MUST_TELL_HOST).start()
    assert made.breaches == []


def test_g1_a_kick_before_driver_ok(bench: MakeBench) -> None:
    """Linux does this: it posts statistics while it probes."""
    made = bench(without=PAGE_POISON)
    driver = made.driver
    driver.reset()
    driver.acknowledge()
    driver.negotiate()
    driver.set_up_queues()
    driver.offer(STATSQ, readable=[stats_bytes(STATS, driver.order)])
    driver.kick(STATSQ, force=True)
    driver.driver_ok()
    made.wait()
    assert "statsq" in made.expect_only("G1").detail


@pytest.mark.parametrize("reach", ["pci", "mmio"])
def test_g2_a_notification_without_its_data(reach: Way) -> None:
    """§2.9: of the queue, and of what is new in it."""
    made = Bench(reach, spec.VIRTIO_F_NOTIFICATION_DATA).start()
    made.refresh_stats()
    assert made.breaches == []
    made.driver.transport.notify(INFLATEQ, INFLATEQ | 77 << 16)
    made.expect_only("G2")
    made.machine.close()


def test_g3_a_feature_is_accepted_that_was_not_offered(bench: MakeBench) -> None:
    made = bench(without=PAGE_POISON)
    driver = made.driver
    driver.reset()
    driver.acknowledge()
    offered = driver.transport.read_device_features()
    driver.transport.write_driver_features(offered | PAGE_REPORTING)
    if driver.is_legacy:
        driver.features = offered & driver.supported & ~PAGE_REPORTING
        driver.set_up_queues()
        driver.driver_ok()
        driver.post_stats(STATS)
    else:
        driver.add_status(spec.Status.FEATURES_OK)
    made.wait()
    assert "VIRTIO_BALLOON_F_PAGE_REPORTING was not offered" in made.expect_only("G3").detail


def test_g4_a_status_bit_is_cleared(bench: MakeBench) -> None:
    made = bench().start()
    made.driver.transport.write_status(int(spec.Status.ACKNOWLEDGE))
    made.expect_only("G4")


def test_g5_configuration_is_written_before_features_are_negotiated(bench: MakeBench, reach: Way) -> None:
    made = bench()
    made.driver.reset()
    made.driver.acknowledge()
    made.driver.write_config(ACTUAL, 4, 0)
    if reach == "mmio-legacy":
        assert made.breaches == []
    else:
        made.expect_only("G5")


@pytest.mark.parametrize(("reach", "is_told"), [("legacy", True), ("mmio-legacy", True), ("pci", False)])
def test_g6_a_legacy_driver_writes_actual_in_pieces(reach: Way, is_told: bool) -> None:
    """As drivers for PCI used to: the specification tells of them, and asks for one access."""
    made = Bench(reach).start()
    made.driver.inflate(made.machine.filled_pfns(3))
    for index in range(4):
        made.driver.transport.write_config(ACTUAL + index, 1, 3 if index == 0 else 0)
    made.wait()
    if is_told:
        made.expect_only("G6", count=4)
    else:
        assert made.breaches == []
    made.machine.close()


# -- more than one -----------------------------------------------------------------------------------------------------


def test_each_rule_is_told_of_once_and_counted(bench: MakeBench) -> None:
    made = bench().start(without=MUST_TELL_HOST)
    for _ in range(3):
        made.driver.deflate(made.machine.filled_pfns(2))
        made.driver.post_stats(STATS)
    made.wait()
    assert [(breach.id, breach.count) for breach in made.breaches] == [("R1", 1), ("R9", 6), ("R16", 3)]
    assert len(made.lines) == 3


def test_what_the_device_answers_is_the_same() -> None:
    """Used elements, RAM, status and notifications: beside a balloon that nobody watches."""
    machines = [BalloonMachine("pci", build=watched()), BalloonMachine("pci")]
    seen = []
    for machine in machines:
        driver = machine.driver
        driver.start()
        driver.post_stats(STATS)
        machine.set_target(40)
        driver.follow_target()
        driver.deflate([5, 1 << 30, *driver.held_pfns[:3]])
        driver.post_stats(b"abc")
        driver.transfer(DEFLATEQ, readable=[b"12345"])
        machine.request_stats()
        seen.append(
            (driver.take_interrupts(), driver.status, driver.actual, driver.collect(STATSQ), machine.snapshot())
        )
    assert seen[0][:-1] == seen[1][:-1]
    assert seen[0][-1]._before.keys() == seen[1][-1]._before.keys()
    for gpa, ram in seen[0][-1]._before.items():
        assert (ram == seen[1][-1]._before[gpa]).all()
    for machine in machines:
        machine.close()
