"""The watcher of the driver's side: the rules about statistics, each with a driver that breaks it (§5.5.6.3.1)."""

from __future__ import annotations

from tests.vmm.watching import SECOND_NS, STATS, Bench, MakeBench
from vmm.boards.pc import BalloonUnderWatch
from vmm.testing.balloon import (
    STATSQ,
    stats_bytes,
    stats_v2_bytes,
)


def test_r16_a_second_statistics_buffer(bench: MakeBench) -> None:
    made = bench().start()
    made.driver.post_stats(STATS)
    made.driver.post_stats(STATS)
    made.wait()
    made.expect_only("R16", count=2)


def test_r17_statistics_are_never_posted(bench: MakeBench) -> None:
    made = bench().start(stats=False)
    made.wait()
    assert made.expect_only("R17").time_ns == SECOND_NS


def test_r18_statistics_are_not_posted_again(bench: MakeBench) -> None:
    made = bench().start()
    made.refresh_stats()
    made.wait(5 * SECOND_NS)
    assert made.breaches == [], "a buffer that the device keeps is the driver's no more"
    made.machine.request_stats()
    asked = made.machine.now_ns
    assert made.driver.stats_wanted()
    made.wait()
    made.driver.post_stats(STATS)
    assert made.expect_only("R18").time_ns == asked + SECOND_NS


def test_r18_a_buffer_to_be_written_is_no_output_buffer(bench: MakeBench) -> None:
    made = bench().start()
    made.machine.request_stats()
    assert made.driver.stats_wanted()
    made.driver.offer(STATSQ, readable=[stats_bytes(STATS, made.driver.order)], writable=[100])
    made.driver.kick(STATSQ)
    made.expect_only("R18")


def test_r19_a_statistic_stands_twice_in_a_buffer(bench: MakeBench) -> None:
    made = bench().start()
    twice = [*STATS.items(), (4, 7)]
    made.refresh_stats(twice)
    made.expect_only("R19")


def test_r20_a_buffer_ends_within_an_entry(bench: MakeBench) -> None:
    made = bench().start()
    made.refresh_stats(stats_bytes(STATS, made.driver.order) + b"\0\0\0")
    assert "3 bytes" in made.expect_only("R20").detail


def test_r21_r22_any_order_and_any_subset(bench: MakeBench) -> None:
    made = bench().start()
    made.refresh_stats(dict(reversed(STATS.items())))
    assert made.breaches == []


def test_r23_the_set_of_statistics_changes(bench: MakeBench) -> None:
    made = bench().start()
    made.refresh_stats({4: 1, 5: 2})
    made.refresh_stats({4: 1, 5: 2, 7: 3})
    made.refresh_stats({4: 1, 7: 2, 5: 3})
    made.refresh_stats({4: 1})
    made.wait()
    assert made.expect_only("R23", count=2).detail.endswith("7")


def test_r23_another_driver_may_have_other_statistics(bench: MakeBench) -> None:
    made = bench().start()
    made.refresh_stats()
    made.start()
    made.driver.take_interrupts()
    assert made.breaches == []


def test_r20_r23_of_the_statistics_that_were_first_proposed() -> None:
    """Their entries have eight bytes, and the first buffer means nothing."""
    made = Bench("pci", build=lambda memory: BalloonUnderWatch(memory, stats_format="v2")).start(stats=False)
    made.driver.post_stats(b"\xff" * 13)
    for tags in ((4, 5), (5, 4)):
        made.refresh_stats(stats_v2_bytes([(tag, 7) for tag in tags]))
    assert made.breaches == []
    made.refresh_stats(stats_v2_bytes([(4, 7), (5, 7)]) + b"12345")
    assert "5 bytes" in made.expect_only("R20").detail
    made.refresh_stats(stats_v2_bytes([(4, 7)]))
    assert made.ids == ["R20", "R23"]
    made.machine.close()
