"""§5.5.6.3 memory statistics: the queue that runs in reverse.  D4 and D5 are the device's normative statements."""

from __future__ import annotations

import pytest

from devices.virtio.spec import BALLOON_STATS
from tests.support import BalloonMachine
from vmm.testing import RawQueue
from vmm.testing.balloon import STATS_VQ, STATSQ

SECOND_NS = 10**9

# Tag by tag from §5.5.6.4 and, from 10 on, Linux's header; the names are QEMU's.
NAMES = {
    0: "stat-swap-in",
    1: "stat-swap-out",
    2: "stat-major-faults",
    3: "stat-minor-faults",
    4: "stat-free-memory",
    5: "stat-total-memory",
    6: "stat-available-memory",
    7: "stat-disk-caches",
    8: "stat-htlb-pgalloc",
    9: "stat-htlb-pgfail",
    10: "stat-oom-kills",
    11: "stat-alloc-stalls",
    12: "stat-async-scans",
    13: "stat-direct-scans",
    14: "stat-async-reclaims",
    15: "stat-direct-reclaims",
}


@pytest.fixture
def started(started: BalloonMachine) -> BalloonMachine:
    """Of a legacy driver the first buffer says nothing (§5.5.6.3): it is posted here, and asked back."""
    if started.driver.is_legacy:
        started.driver.post_stats(b"\xff\xff" + bytes(8))
        started.request_stats()
        assert started.driver.stats_wanted()
        started.driver.take_interrupts()
    return started


# -- values ------------------------------------------------------------------------------------------------------------


def test_5_5_6_3_all_sixteen_tags_arrive_under_their_names(started: BalloonMachine) -> None:
    started.driver.post_stats({tag: 1000 + tag for tag in NAMES})
    assert started.statistics().values == {name: 1000 + tag for tag, name in NAMES.items()}
    assert started.statistics().reason == "ok"
    assert set(BALLOON_STATS) == set(NAMES)


def test_5_5_6_3_values_have_64_bits(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 2**64 - 1, 5: 2**63, 2: 0})
    assert started.statistics().values == {
        "stat-free-memory": 2**64 - 1,
        "stat-total-memory": 2**63,
        "stat-major-faults": 0,
    }


def test_5_5_6_3_an_entry_is_ten_packed_little_endian_bytes(started: BalloonMachine) -> None:
    started.driver.post_stats(b"\x04\x00\x08\x07\x06\x05\x04\x03\x02\x01")
    assert started.statistics().values == {"stat-free-memory": 0x0102030405060708}


def test_d4_5_5_6_3_2_unknown_tags_are_ignored_and_passed_through_raw(started: BalloonMachine) -> None:
    started.driver.post_stats([(4, 10), (16, 11), (65535, 12), (5, 13)])
    statistics = started.statistics()
    assert statistics.values == {"stat-free-memory": 10, "stat-total-memory": 13}
    assert [tuple(entry) for entry in statistics.raw] == [(4, 10), (16, 11), (65535, 12), (5, 13)]
    assert not started.driver.needs_reset


@pytest.mark.parametrize(
    "order",
    [
        list(NAMES),
        list(reversed(NAMES)),
        [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 8, 9, 4, 5, 6, 7],  # Linux 6.12
    ],
)
def test_d5_5_5_6_3_2_any_order_is_accepted(started: BalloonMachine, order: list[int]) -> None:
    started.driver.post_stats([(tag, tag * 3) for tag in order])
    statistics = started.statistics()
    assert statistics.values == {name: tag * 3 for tag, name in NAMES.items()}
    assert [tag for tag, _ in statistics.raw] == order


@pytest.mark.parametrize("subset", [[], [4], [15, 0], [7, 6, 5]])
def test_r22_5_5_6_3_1_a_driver_may_supply_any_subset(started: BalloonMachine, subset: list[int]) -> None:
    started.driver.post_stats(dict.fromkeys(subset, 1) if subset else b"\xff\xff" + bytes(8))
    assert set(started.statistics().values) == {NAMES[tag] for tag in subset}


def test_5_5_6_3_a_report_replaces_the_one_before_it_entirely(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 1, 5: 2})
    started.request_stats()
    assert started.driver.stats_wanted()
    started.driver.post_stats({5: 3})
    assert started.statistics().values == {"stat-total-memory": 3}


def test_2_7_4_1_statistics_may_come_in_several_descriptors_cut_anywhere(started: BalloonMachine) -> None:
    payload = b"\x04\x00" + (77).to_bytes(8, "little") + b"\x05\x00" + (88).to_bytes(8, "little")
    started.driver.offer(STATSQ, readable=[payload[:1], payload[1:13], payload[13:]])
    started.driver.kick(STATSQ)
    assert started.statistics().values == {"stat-free-memory": 77, "stat-total-memory": 88}


# -- the buffer's way --------------------------------------------------------------------------------------------------


def test_5_5_6_3_the_device_keeps_the_buffer_until_it_wants_the_next(started: BalloonMachine) -> None:
    head = started.driver.post_stats({4: 1})
    started.bench.advance(SECOND_NS)
    assert started.driver.collect(STATSQ) == []
    started.request_stats()
    (used,) = started.driver.collect(STATSQ)
    assert (used.head, used.length) == (head, 0)
    assert started.driver.take_interrupts().for_queue(STATSQ) == 1


def test_5_5_6_3_a_request_with_no_buffer_there_is_carried_out_when_one_comes(started: BalloonMachine) -> None:
    """Nobody may lose a request because the driver was slow: the report that comes next answers it."""
    started.request_stats()
    assert started.driver.take_interrupts() == ({}, 0)
    started.driver.post_stats({4: 5})
    assert started.statistics().values == {"stat-free-memory": 5}


def test_5_5_6_3_requests_before_the_answer_return_the_buffer_once(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 1})
    for _ in range(3):
        started.request_stats()
    assert len(started.driver.collect(STATSQ)) == 1
    started.driver.post_stats({4: 2})
    assert started.statistics().values == {"stat-free-memory": 2}


def test_5_5_6_3_twenty_rounds(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 0})
    for value in range(1, 21):
        started.request_stats()
        assert started.driver.stats_wanted()
        started.driver.post_stats({4: value})
        assert started.statistics().values == {"stat-free-memory": value}


def test_5_5_5_the_first_buffer_may_be_empty_and_asks_for_nothing(started: BalloonMachine) -> None:
    """ "Add one empty buffer": without one whole entry it is a report of nothing, held and returned like any other."""
    head = started.driver.offer(STATSQ, readable=[b"\0"])
    started.driver.kick(STATSQ)
    assert (started.statistics().reason, started.statistics().values) == ("ok", {})
    started.request_stats()
    assert [used.head for used in started.driver.collect(STATSQ)] == [head]
    started.driver.post_stats({4: 3})
    assert started.statistics().values == {"stat-free-memory": 3}


@pytest.mark.split_rings
def test_2_7_5_an_empty_buffer_is_no_descriptor_without_a_byte(started: BalloonMachine) -> None:
    """That is a broken ring on statsq as on any other queue."""
    raw = RawQueue(started.driver, STATSQ)
    raw.descriptor(0, raw.buffer(b"\0"), 0)
    raw.available(0)
    raw.kick()
    assert started.driver.needs_reset
    assert started.statistics().reason == "never posted"


# -- polling -----------------------------------------------------------------------------------------------------------


def test_polling_asks_at_once_and_then_at_each_interval(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 0})
    started.set_polling_interval(SECOND_NS)
    asked = []
    for tenth in range(35):
        if started.driver.stats_wanted():
            asked.append(tenth)
            started.driver.post_stats({4: tenth})
        started.bench.advance(SECOND_NS // 10)
    assert asked == [0, 10, 20, 30]


def test_polling_a_driver_that_does_not_answer_is_not_asked_again(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 0})
    started.set_polling_interval(SECOND_NS)
    assert started.driver.stats_wanted()
    started.driver.take_interrupts()
    started.bench.advance(10 * SECOND_NS)
    assert started.driver.collect(STATSQ) == []
    assert started.driver.take_interrupts() == ({}, 0)


def test_polling_can_be_changed_and_stopped(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 0})
    started.set_polling_interval(SECOND_NS)
    assert started.driver.stats_wanted()
    started.driver.post_stats({4: 1})
    started.set_polling_interval(0)
    started.bench.advance(5 * SECOND_NS)
    assert not started.driver.stats_wanted()
    started.set_polling_interval(2 * SECOND_NS)
    assert started.driver.stats_wanted()


def test_polling_starts_when_the_driver_comes(machine: BalloonMachine) -> None:
    """An interval set before there is a driver is kept and works for the one that comes, and for the next."""
    machine.set_polling_interval(SECOND_NS)
    machine.bench.advance(5 * SECOND_NS)
    for _ in range(2):
        machine.driver.start()
        machine.driver.post_stats({4: 1})
        machine.bench.advance(SECOND_NS)
        assert machine.driver.stats_wanted()


# -- why there are none ------------------------------------------------------------------------------------------------


def test_no_statistics_before_a_driver_has_a_reason(machine: BalloonMachine) -> None:
    assert machine.statistics().reason in ("not negotiated", "never posted")
    assert machine.statistics().values == {}


def test_no_statistics_because_the_feature_was_not_negotiated(machine: BalloonMachine) -> None:
    machine.driver.start(machine.driver.transport.read_device_features() & ~STATS_VQ)
    assert machine.statistics().reason == "not negotiated"
    machine.request_stats()
    assert machine.driver.take_interrupts() == ({}, 0)


def test_no_statistics_because_the_driver_never_posted(started: BalloonMachine) -> None:
    assert started.statistics().reason == "never posted"
    started.request_stats()
    assert started.statistics().reason == "never posted"


def test_statistics_have_an_age(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 1})
    assert started.statistics().age_ns == 0
    started.bench.advance(3 * SECOND_NS)
    assert started.statistics().age_ns == 3 * SECOND_NS


def test_statistics_go_stale_when_the_driver_does_not_answer(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 1})
    started.set_polling_interval(SECOND_NS)
    started.bench.advance(60 * SECOND_NS)
    statistics = started.statistics()
    assert statistics.reason == "stale"
    assert statistics.age_ns == 60 * SECOND_NS
    started.driver.collect(STATSQ)
    started.driver.post_stats({4: 2})
    assert started.statistics().reason == "ok"
    assert started.statistics().values == {"stat-free-memory": 2}


def test_statistics_of_a_driver_that_was_reset_are_stale(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 1})
    started.driver.reset()
    started.bench.advance(SECOND_NS)
    statistics = started.statistics()
    assert statistics.reason == "stale"
    assert statistics.age_ns == SECOND_NS


def test_statistics_of_one_driver_are_not_passed_off_as_the_next_ones(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 1})
    started.driver.start()
    statistics = started.statistics()
    assert statistics.reason == "never posted"
    assert statistics.values == {}


def test_2_4_1_a_buffer_that_an_earlier_driver_left_is_not_returned_to_the_next(started: BalloonMachine) -> None:
    started.driver.post_stats({4: 1})  # the device holds it
    started.driver.start()
    started.driver.post_stats({4: 2})
    assert not started.driver.stats_wanted()
    started.request_stats()
    assert len(started.driver.collect(STATSQ)) == 1
    started.request_stats()  # nothing is held now
    assert started.driver.collect(STATSQ) == []
