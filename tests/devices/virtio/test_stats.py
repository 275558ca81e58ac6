"""The statistics (virtio 1.3 §5.5.6.3): what is understood, the conversation, and the reason when there are none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.stats_formats import MAX_ENTRIES
from devices.virtio.device import NO_NOTIFICATIONS
from tests.devices.virtio.balloons import STATSQ, VERSION_1, Driven, stats_bytes
from tests.devices.virtio.rings import LAYOUT

SECOND = 1_000_000_000


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        yield made


@pytest.fixture
def driven(memory: GuestMemory) -> Driven:
    return Driven(memory).start()


# -- what a buffer says ------------------------------------------------------------------------------------------------


def test_all_sixteen_tags_have_qemus_names(driven: Driven) -> None:
    driven.post(*((tag, 1000 + tag) for tag in range(16)))
    names = [
        *("stat-swap-in", "stat-swap-out", "stat-major-faults", "stat-minor-faults"),
        *("stat-free-memory", "stat-total-memory", "stat-available-memory", "stat-disk-caches"),
        *("stat-htlb-pgalloc", "stat-htlb-pgfail", "stat-oom-kills", "stat-alloc-stalls"),
        *("stat-async-scans", "stat-direct-scans", "stat-async-reclaims", "stat-direct-reclaims"),
    ]
    assert driven.balloon.statistics(0).values == {name: 1000 + tag for tag, name in enumerate(names)}
    assert {stat.unit for stat in spec.BALLOON_STATS.values()} == {"bytes", "count"}


def test_5_5_6_3_2_any_order_unknown_tags_and_repeats_are_taken_as_they_come(driven: Driven) -> None:
    sent = [(5, 7), (65534, 1), (4, (1 << 64) - 1), (5, 8), (16, 2)]
    driven.post(*sent)
    statistics = driven.balloon.statistics(0)
    assert statistics.raw == tuple(sent)
    assert statistics.values == {"stat-total-memory": 8, "stat-free-memory": (1 << 64) - 1}


def test_a_buffer_in_many_descriptors_is_one_buffer(driven: Driven) -> None:
    payload = stats_bytes((4, 11), (5, 22))
    driven.send(STATSQ, payload[:1], payload[1:13], payload[13:])
    assert driven.balloon.statistics(0).raw == ((4, 11), (5, 22))


@pytest.mark.parametrize("tail", range(1, 10))
def test_a_part_of_an_entry_is_ignored_and_counted(driven: Driven, tail: int) -> None:
    driven.send(STATSQ, stats_bytes((4, 11)) + b"\x05" * tail)
    assert driven.balloon.statistics(0).raw == ((4, 11),)
    assert driven.balloon.ignored_bytes == tail
    assert not driven.balloon.needs_reset


def test_regression_an_oversize_buffer_is_bounded(driven: Driven) -> None:
    driven.send(STATSQ, stats_bytes(*((4, number) for number in range(MAX_ENTRIES + 3))))
    statistics = driven.balloon.statistics(0)
    assert len(statistics.raw) == MAX_ENTRIES and statistics.values == {"stat-free-memory": MAX_ENTRIES - 1}
    assert driven.balloon.ignored_bytes == 30


def test_a_buffer_without_a_single_entry_is_a_report_of_nothing(driven: Driven) -> None:
    driven.send(STATSQ, b"\x04")
    statistics = driven.balloon.statistics(0)
    assert (statistics.reason, statistics.raw, statistics.values) == ("ok", (), {})


# -- the conversation --------------------------------------------------------------------------------------------------


def test_the_first_buffer_is_read_and_kept(driven: Driven) -> None:
    told = driven.post((4, 1))
    assert driven.balloon.statistics(0).values == {"stat-free-memory": 1}
    assert (driven.returned(STATSQ), told.queues) == (0, ())
    assert driven.balloon.stats_reports == 1


def test_a_request_returns_the_buffer_and_the_next_one_is_the_reply(driven: Driven) -> None:
    driven.post((4, 1))
    told = driven.balloon.request_stats(0)
    assert (told.queues, driven.rings[STATSQ].used_elements()) == ((STATSQ,), [(0, 0)])
    driven.now_ns = 40
    driven.post((4, 2))
    statistics = driven.balloon.statistics(50)
    assert (statistics.reason, statistics.age_ns, statistics.values) == ("ok", 10, {"stat-free-memory": 2})
    assert driven.returned(STATSQ) == 1


def test_a_request_while_one_is_under_way_asks_no_second_time(driven: Driven) -> None:
    driven.post((4, 1))
    driven.balloon.request_stats(0)
    assert driven.balloon.request_stats(0) == NO_NOTIFICATIONS
    assert driven.post((4, 2)).queues == ()


def test_a_request_before_any_buffer_waits_for_the_first(driven: Driven) -> None:
    assert driven.balloon.request_stats(0) == NO_NOTIFICATIONS
    assert driven.balloon.statistics(0).reason == "never posted"
    assert driven.post((4, 1)).queues == (STATSQ,)
    assert driven.post((4, 2)).queues == ()
    assert driven.balloon.statistics(0).values == {"stat-free-memory": 2}


def test_a_request_while_bus_mastering_is_off_waits_for_it(driven: Driven) -> None:
    driven.post((4, 1))
    driven.balloon.set_dma_enabled(False, 0)
    assert driven.balloon.request_stats(0) == NO_NOTIFICATIONS
    assert driven.returned(STATSQ) == 0
    assert driven.balloon.set_dma_enabled(True, 0).queues == (STATSQ,)


def test_a_second_buffer_completes_the_older_one(driven: Driven) -> None:
    """§5.5.6.3.1 allows one; the newer has the newer figures."""
    driven.post((4, 1))
    assert driven.post((4, 2)).queues == (STATSQ,)
    assert driven.rings[STATSQ].used_elements() == [(0, 0)]
    assert driven.balloon.statistics(0).values == {"stat-free-memory": 2}


def test_of_several_buffers_at_once_the_last_is_kept(driven: Driven) -> None:
    for value in (1, 2, 3):
        driven.offer(STATSQ, stats_bytes((4, value)))
    driven.kick(STATSQ)
    assert driven.rings[STATSQ].used_elements() == [(0, 0), (1, 0)]
    assert driven.balloon.statistics(0).values == {"stat-free-memory": 3}


# -- polling -----------------------------------------------------------------------------------------------------------


def test_the_first_poll_is_at_once_and_the_next_one_an_interval_after_the_reply(driven: Driven) -> None:
    driven.post((4, 1))
    told = driven.balloon.set_polling_interval(SECOND, 100)
    assert told.queues == (STATSQ,) and told.deadline
    assert driven.balloon.next_deadline_ns() is None, "the driver's reply comes first"
    driven.now_ns = 300
    assert driven.post((4, 2)).deadline
    assert driven.balloon.next_deadline_ns() == 300 + SECOND
    assert driven.balloon.advance(299 + SECOND) == NO_NOTIFICATIONS
    assert driven.balloon.advance(300 + SECOND).queues == (STATSQ,)
    assert driven.balloon.next_deadline_ns() is None


def test_polling_that_began_before_the_driver_asks_with_its_first_buffer(memory: GuestMemory) -> None:
    balloon = Balloon(memory)
    balloon.set_polling_interval(SECOND, 0)
    assert balloon.next_deadline_ns() is None
    driven = Driven(memory, balloon)
    driven.now_ns = 5 * SECOND
    assert driven.start().post((4, 1)).queues == (STATSQ,)
    driven.post((4, 2))
    assert balloon.next_deadline_ns() == 6 * SECOND


def test_the_interval_can_be_changed_and_polling_stopped(driven: Driven) -> None:
    driven.balloon.set_polling_interval(SECOND, 0)
    driven.post((4, 1))
    driven.post((4, 2))
    assert driven.balloon.set_polling_interval(2 * SECOND, 10).queues == (STATSQ,)
    driven.now_ns = 20
    driven.post((4, 3))
    assert driven.balloon.next_deadline_ns() == 20 + 2 * SECOND
    assert driven.balloon.set_polling_interval(0, 30).deadline
    assert driven.balloon.next_deadline_ns() is None
    assert driven.balloon.advance(9 * SECOND) == NO_NOTIFICATIONS
    assert driven.balloon.polling_interval_ns == 0


def test_a_request_between_two_polls_rearms_the_poll(driven: Driven) -> None:
    driven.balloon.set_polling_interval(SECOND, 0)
    driven.post((4, 1))
    driven.post((4, 2))
    driven.now_ns = SECOND // 2
    driven.balloon.request_stats(driven.now_ns)
    driven.post((4, 3))
    assert driven.balloon.next_deadline_ns() == SECOND // 2 + SECOND


# -- no statistics, and why --------------------------------------------------------------------------------------------


def test_not_negotiated_by_nobody_yet_by_the_device_or_by_the_driver(memory: GuestMemory) -> None:
    for balloon in (Balloon(memory), Driven(memory).start(VERSION_1).balloon, Balloon(memory, features=VERSION_1)):
        statistics = balloon.statistics(7)
        assert (statistics.reason, statistics.age_ns, statistics.values) == ("not negotiated", None, {})
        assert balloon.request_stats(7) == NO_NOTIFICATIONS


def test_never_posted(driven: Driven) -> None:
    assert driven.balloon.statistics(7).reason == "never posted"


def test_stale_after_three_polling_intervals(driven: Driven) -> None:
    driven.balloon.set_polling_interval(SECOND, 0)
    driven.post((4, 1))
    assert driven.balloon.statistics(3 * SECOND).reason == "ok"
    late = driven.balloon.statistics(3 * SECOND + 1)
    assert (late.reason, late.age_ns, late.values) == ("stale", 3 * SECOND + 1, {"stat-free-memory": 1})


def test_without_polling_statistics_only_grow_old(driven: Driven) -> None:
    driven.post((4, 1))
    old = driven.balloon.statistics(1000 * SECOND)
    assert (old.reason, old.age_ns) == ("ok", 1000 * SECOND)


def test_after_a_reset_they_are_stale_until_the_next_driver_is_ready(driven: Driven) -> None:
    driven.post((4, 1))
    driven.balloon.write_status(0, 0)
    left = driven.balloon.statistics(5)
    assert (left.reason, left.values) == ("stale", {"stat-free-memory": 1})
    driven.start()
    assert driven.balloon.statistics(5).reason == "never posted"
    driven.start(VERSION_1)
    assert driven.balloon.statistics(5).reason == "not negotiated"


def test_what_is_handed_out_cannot_change_what_is_known(driven: Driven) -> None:
    driven.post((4, 1))
    driven.balloon.statistics(0).values.clear()
    assert driven.balloon.statistics(0).values == {"stat-free-memory": 1}


# -- reset -------------------------------------------------------------------------------------------------------------


def test_a_reset_forgets_buffer_and_request_and_keeps_the_interval(driven: Driven, memory: GuestMemory) -> None:
    driven.balloon.set_polling_interval(SECOND, 0)
    driven.post((4, 1))
    driven.post((4, 2))
    driven.balloon.request_stats(0)
    driven.balloon.reset()
    fresh = Balloon(memory)
    fresh.set_polling_interval(SECOND, 77)
    assert driven.balloon == fresh
    assert driven.balloon.next_deadline_ns() is None
