"""The statistics of the patch of 2009: {u16 tag, padding, le32 value}, seven tags, KiB, an empty first buffer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from devices.memory import GuestMemory
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.stats_formats import V2, parse
from tests.support import BalloonMachine, Way
from vmm.testing.balloon import STATSQ, stats_v2_bytes

SECOND = 10**9


@pytest.fixture(params=["direct", "pci"])
def started(request: pytest.FixtureRequest) -> Iterator[BalloonMachine]:
    way: Way = request.param

    def build(memory: GuestMemory) -> Balloon:
        return Balloon(memory, stats_format="v2")

    machine = BalloonMachine(way, build=build)
    machine.driver.start()
    yield machine
    machine.close()


ALL = list(enumerate((10, 20, 30, 40, 50, 60, 70)))


def test_the_layout_is_that_of_the_structure_with_natural_alignment() -> None:
    """Eight bytes an entry: tag, two bytes that mean nothing, value."""
    payload = bytes.fromhex("0500 beef 00010000  0600 dead 78563412")
    assert V2.entry_bytes == 8
    assert parse(payload, len(payload), V2).raw == ((5, 256), (6, 0x12345678))


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_tag_is_in_the_drivers_order_and_the_value_is_not(order: Literal["<", ">"]) -> None:
    """The patch converted one of the two and forgot the other."""
    payload = stats_v2_bytes([(3, 0x01020304)], order)
    assert payload[4:] == b"\4\3\2\1"
    assert payload[:2] == (b"\3\0" if order == "<" else b"\0\3")
    assert parse(payload, 8, V2, order).raw == ((3, 0x01020304),)
    other: Literal["<", ">"] = ">" if order == "<" else "<"
    assert parse(payload, 8, V2, other).raw == ((0x300, 0x01020304),)


def test_seven_tags_with_sizes_in_bytes_and_counts_as_they_are(started: BalloonMachine) -> None:
    started.driver.post_stats(bytes(56))
    started.request_stats()
    assert started.driver.stats_wanted()
    started.driver.post_stats(stats_v2_bytes([*ALL, (7, 1)]))
    assert started.statistics().values == {
        "stat-swap-in-pages": 10,
        "stat-swap-out-pages": 20,
        "stat-anonymous-memory": 30 * 1024,
        "stat-major-faults": 40,
        "stat-minor-faults": 50,
        "stat-free-memory": 60 * 1024,
        "stat-total-memory": 70 * 1024,
    }
    assert started.statistics().raw == (*ALL, (7, 1)), "unknown tags are passed on"


def test_the_first_buffer_holds_nothing(started: BalloonMachine) -> None:
    """It is posted before anything was stored in it: whatever lies there is no statistics."""
    started.driver.post_stats(stats_v2_bytes([(5, 0xFFFFFFFF)]))
    assert started.statistics().reason == "never posted"
    assert not started.driver.stats_wanted(), "it is held like any other"
    started.request_stats()
    assert started.driver.stats_wanted()
    started.driver.post_stats(stats_v2_bytes([(5, 4)]))
    assert (started.statistics().reason, started.statistics().values) == ("ok", {"stat-free-memory": 4096})


def test_each_driver_has_a_first_buffer_of_its_own(started: BalloonMachine) -> None:
    started.driver.post_stats(bytes(56))
    started.request_stats()
    started.driver.collect(STATSQ)
    started.driver.post_stats(stats_v2_bytes([(5, 4)]))
    started.driver.start()
    started.driver.post_stats(stats_v2_bytes([(5, 0xFFFFFFFF)]))
    assert started.statistics().reason == "never posted"


def test_polling_asks_past_it(started: BalloonMachine) -> None:
    started.set_polling_interval(SECOND)
    started.driver.post_stats(b"\xff" * 56)
    assert started.driver.stats_wanted(), "the poll is due at once"
    started.driver.post_stats(stats_v2_bytes([(6, 1)]))
    assert not started.driver.stats_wanted()
    started.bench.advance(SECOND)
    assert started.driver.stats_wanted()


@pytest.mark.parametrize("tail", range(1, 8))
def test_a_part_of_an_entry_is_ignored_and_counted(started: BalloonMachine, tail: int) -> None:
    started.driver.post_stats(b"\0")
    started.request_stats()
    started.driver.collect(STATSQ)
    started.driver.post_stats(stats_v2_bytes([(5, 4)]) + b"\xff" * tail)
    assert started.statistics().values == {"stat-free-memory": 4096}
    assert started.balloon.ignored_bytes == tail


def test_the_final_format_is_another_one(started: BalloonMachine) -> None:
    """What a driver of today sends is not understood, and breaks nothing."""
    for _ in range(2):
        started.driver.post_stats({"stat-free-memory": 5 << 20})
        started.request_stats()
        started.driver.collect(STATSQ)
    assert "stat-free-memory" not in started.statistics().values
    assert not started.driver.needs_reset


def test_a_saved_report_keeps_its_meaning(started: BalloonMachine) -> None:
    started.driver.post_stats(b"\0")
    started.request_stats()
    started.driver.collect(STATSQ)
    started.driver.post_stats(stats_v2_bytes(ALL))
    before, state = started.statistics(), started.balloon.save_state()
    started.driver.reset()
    started.balloon.check_state(state, "balloon")
    started.balloon.restore_state(state)
    assert started.statistics() == before


def test_there_is_no_third_format(started: BalloonMachine) -> None:
    with pytest.raises(KeyError):
        Balloon(started.memory, stats_format="v3")
