"""The balloon without its statistics (virtio 1.3 §5.5): pages, counters, target."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from devices import hostcalls
from devices.memory import PAGE_BYTES, U64, GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.device import DEFAULT_FEATURES
from devices.virtio.device import NO_NOTIFICATIONS
from tests.devices.virtio.balloons import DEFLATEQ, INFLATEQ, VERSION_1, Driven, le32
from tests.devices.virtio.rings import BUFFERS, LAYOUT, NEXT, WRITE

FREE = range(0x110, 0x200)
"""Page frame numbers of RAM that nobody uses."""


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        yield made


@pytest.fixture
def driven(memory: GuestMemory) -> Driven:
    return Driven(memory).start()


def fill(memory: GuestMemory, *pfns: int) -> None:
    for pfn in pfns:
        memory.write(pfn * PAGE_BYTES, b"\x5a" * PAGE_BYTES)


def holds(memory: GuestMemory, pfn: int) -> bool:
    """Whether the page still has what `fill` put there; otherwise all of it is zero."""
    content = memory.peek(pfn * PAGE_BYTES, PAGE_BYTES)
    assert content in (bytes(PAGE_BYTES), b"\x5a" * PAGE_BYTES)
    return content[0] != 0


# -- inflate -----------------------------------------------------------------------------------------------------------


def test_inflated_pages_go_back_to_the_host_and_others_stay(driven: Driven, memory: GuestMemory) -> None:
    fill(memory, *FREE[:8], BUFFERS // PAGE_BYTES)
    backed = memory.backed_bytes()
    told = driven.inflate(FREE[1], FREE[2], FREE[5])
    assert [holds(memory, pfn) for pfn in FREE[:8]] == [True, False, False, True, True, False, True, True]
    assert memory.backed_bytes() == backed - 3 * PAGE_BYTES
    assert told.queues == (INFLATEQ,) and told.events == ()
    assert driven.rings[INFLATEQ].used_elements() == [(0, 0)]
    assert driven.counters() == {"inflated_pages": 3, "discarded_bytes": 3 * PAGE_BYTES}


def test_neighbours_are_discarded_as_one_run_in_any_order(
    driven: Driven, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[int, int]] = []

    def watched(_fd: int, _mapping: object, file_offset: int, _offset: int, length: int) -> None:
        runs.append((file_offset // PAGE_BYTES, length // PAGE_BYTES))

    def watched_runs(fd: int, mapping: object, at: int, offsets: U64, lengths: U64) -> None:
        for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
            watched(fd, mapping, at + offset, offset, length)

    monkeypatch.setattr(hostcalls, "discard_file", watched)
    monkeypatch.setattr(hostcalls, "discard_file_runs", watched_runs)
    driven.inflate(*FREE[:100])
    driven.inflate(*reversed(FREE[:50]), *FREE[60:70], FREE[80])
    assert runs == [(FREE[0], 100), (FREE[0], 50), (FREE[60], 10), (FREE[80], 1)]


def test_discards_of_a_batch_happen_before_any_of_it_is_acknowledged(
    driven: Driven, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    real = memory.discard

    def watched(*args: object) -> int:
        used.append(driven.returned(INFLATEQ))
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(memory, "discard", watched)
    for pfn in FREE[0:30:2]:
        driven.offer(INFLATEQ, le32(pfn))
    driven.kick(INFLATEQ)
    assert used == [0]
    assert driven.returned(INFLATEQ) == 15


def test_an_array_of_any_length_in_any_number_of_descriptors_is_done_completely(memory: GuestMemory) -> None:
    """Longer than Linux's 256 entries, cut at odd places, between entries' own bytes too."""
    driven = Driven(memory).start()
    payload = le32(*range(0x100, 0x2F0))
    driven.send(INFLATEQ, payload[:3], payload[3:1001], payload[1001:])
    assert driven.counters() == {"inflated_pages": 0x1F0, "discarded_bytes": 0x1F0 * PAGE_BYTES}


def test_a_page_named_twice_counts_once_and_is_discarded_again_when_asked_again(driven: Driven) -> None:
    driven.inflate(FREE[0], FREE[1], FREE[0])
    assert driven.counters() == {"inflated_pages": 2, "discarded_bytes": 2 * PAGE_BYTES}
    driven.inflate(FREE[1], FREE[2])
    assert driven.counters() == {"inflated_pages": 3, "discarded_bytes": 4 * PAGE_BYTES}
    assert driven.balloon.balloon_pages == 3


def test_the_last_page_of_every_region_can_be_inflated_and_none_beyond(driven: Driven) -> None:
    driven.inflate(0x9F, 0x1FF, 0x200, 0x2FF, 0x10000F)
    driven.inflate(0xA0, 0xFF, 0x300, 0xFFFFF, 0x100010, 0xFFFFFFFF)
    assert driven.counters() == {"inflated_pages": 5, "discarded_bytes": 5 * PAGE_BYTES, "bad_pfns": 6}


def test_an_array_of_zero_pages_of_ram_completes(driven: Driven) -> None:
    told = driven.inflate(0xA0, 0xA1)
    assert told.queues == (INFLATEQ,)
    assert driven.counters() == {"bad_pfns": 2}


# -- deflate -----------------------------------------------------------------------------------------------------------


def test_deflated_pages_leave_the_balloon_and_keep_their_contents(driven: Driven, memory: GuestMemory) -> None:
    driven.inflate(*FREE[:10])
    fill(memory, *FREE[:10])
    told = driven.deflate(*FREE[2:5], FREE[7])
    assert told.queues == (DEFLATEQ,)
    assert all(holds(memory, pfn) for pfn in FREE[:10])
    assert (driven.balloon.balloon_pages, driven.balloon.deflated_pages) == (6, 4)


def test_deflating_what_is_not_in_the_balloon_is_counted_not_trusted(driven: Driven) -> None:
    driven.inflate(FREE[0])
    driven.deflate(FREE[0], FREE[1], 0xA0)
    driven.deflate(FREE[0])
    assert driven.counters() == {
        "inflated_pages": 1,
        "deflated_pages": 1,
        "discarded_bytes": PAGE_BYTES,
        "stray_pages": 2,
        "bad_pfns": 1,
    }
    assert driven.balloon.balloon_pages == 0


# -- payloads that mean less than they should --------------------------------------------------------------------------


def test_bad_page_numbers_are_skipped_counted_and_reported_and_the_rest_is_done(driven: Driven) -> None:
    told = driven.inflate(FREE[0], 0xA0, FREE[1], 0xA0)
    assert driven.counters() == {"inflated_pages": 2, "discarded_bytes": 2 * PAGE_BYTES, "bad_pfns": 2}
    (event,) = told.events
    assert event[:] == ("balloon0", "bad-pfns", "inflateq: 2 page frame numbers are outside guest RAM")
    assert told.queues == (INFLATEQ,) and not driven.balloon.needs_reset


@pytest.mark.parametrize("tail", [1, 2, 3])
def test_bytes_behind_the_last_entry_are_ignored_and_counted_for_each_array(driven: Driven, tail: int) -> None:
    driven.offer(INFLATEQ, le32(FREE[0]) + b"\xff" * tail)
    driven.offer(INFLATEQ, le32(FREE[2]))
    driven.offer(INFLATEQ, b"\xff" * tail)
    told = driven.kick(INFLATEQ)
    assert driven.counters() == {"inflated_pages": 2, "discarded_bytes": 2 * PAGE_BYTES, "ignored_bytes": 2 * tail}
    assert [event.kind for event in told.events] == ["ignored-bytes"]
    assert driven.returned(INFLATEQ) == 3


def test_device_writable_buffers_name_no_pages_and_are_not_written(driven: Driven, memory: GuestMemory) -> None:
    ring = driven.rings[INFLATEQ]
    ring.set_descriptor(0, BUFFERS, 4, NEXT, 1)
    ring.set_descriptor(1, BUFFERS + 4, 4, WRITE)
    memory.write(BUFFERS, le32(FREE[0], FREE[1]))
    ring.offer(0)
    driven.kick(INFLATEQ)
    assert driven.counters() == {"inflated_pages": 1, "discarded_bytes": PAGE_BYTES}
    assert memory.read(BUFFERS, 8) == le32(FREE[0], FREE[1])


def test_an_array_that_brings_a_batch_above_what_ram_can_hold_is_left_out(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("devices.virtio.balloon.device._MIN_PFN_LIMIT", 0)
    driven = Driven(memory).start()
    ram_pages = memory.size_bytes // PAGE_BYTES
    driven.offer(INFLATEQ, le32(*[FREE[0]] * (ram_pages - 1)))
    driven.offer(INFLATEQ, le32(FREE[5], FREE[6]))
    driven.offer(INFLATEQ, le32(FREE[8]))
    driven.offer(INFLATEQ, le32(FREE[9]))
    driven.kick(INFLATEQ)
    assert driven.counters() == {"inflated_pages": 2, "discarded_bytes": 2 * PAGE_BYTES, "ignored_bytes": 12}
    assert driven.returned(INFLATEQ) == 4
    driven.send(INFLATEQ, le32(*[FREE[5]] * ram_pages))
    assert driven.balloon.inflated_pages == 3, "exactly as many entries as pages are taken"


def test_regression_a_4_gib_descriptor_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen elsewhere as a hang."""
    with GuestMemory(((0, 0xA0000), (1 << 32, 1 << 32))) as memory:
        driven = Driven(memory).start()
        driven.rings[INFLATEQ].set_descriptor(0, 1 << 32, 0xFFFFFFFF)
        driven.rings[INFLATEQ].offer(0)
        with monkeypatch.context() as patched:
            patched.delattr(GuestMemory, "read")
            patched.delattr(GuestMemory, "gather")
            driven.kick(INFLATEQ)
        assert driven.returned(INFLATEQ) == 1
        assert driven.counters() == {"ignored_bytes": 0xFFFFFFFF}


def test_a_host_that_takes_nothing_back_costs_the_driver_nothing(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses_some(_fd: int, _mapping: object, file_offset: int, _offset: int, _length: int) -> None:
        if file_offset != FREE[4] * PAGE_BYTES:
            raise OSError(12, "no")

    def refuses_all(*_arguments: object) -> None:
        raise OSError(12, "no")

    monkeypatch.setattr(hostcalls, "discard_file", refuses_some)
    monkeypatch.setattr(hostcalls, "discard_file_runs", refuses_all)
    told = driven.inflate(FREE[0], FREE[4])
    assert told.queues == (INFLATEQ,)
    assert [event.kind for event in told.events] == ["discard-failed"]
    assert driven.counters() == {"inflated_pages": 2, "discarded_bytes": PAGE_BYTES, "failed_discards": 1}


# -- features and queues -----------------------------------------------------------------------------------------------


def test_5_5_2_queues_follow_what_is_offered(memory: GuestMemory) -> None:
    assert [queue.name for queue in Balloon(memory).queues] == ["inflateq", "deflateq", "statsq"]
    assert [queue.name for queue in Balloon(memory, features=VERSION_1).queues] == ["inflateq", "deflateq"]


def test_5_5_3_1_a_driver_without_must_tell_host_is_served(memory: GuestMemory) -> None:
    driven = Driven(memory).start(VERSION_1)
    driven.inflate(FREE[0])
    assert driven.balloon.status == 15 and driven.balloon.inflated_pages == 1
    assert not driven.balloon.queues[2].enabled, "statsq does not exist without its feature"


def test_what_is_not_supported_cannot_be_offered(memory: GuestMemory) -> None:
    with pytest.raises(ValueError, match="does not support VIRTIO_F_ACCESS_PLATFORM, bit 62"):
        Balloon(memory, features=VERSION_1 | 1 << 33 | 1 << 62)


@pytest.mark.parametrize(
    "bit",
    [
        spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM,
        spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT,
        spec.VIRTIO_BALLOON_F_PAGE_REPORTING,
    ],
    ids=["oom", "hint", "reporting"],
)
def test_what_costs_the_host_or_the_guest_something_is_not_offered_by_default(memory: GuestMemory, bit: int) -> None:
    assert not DEFAULT_FEATURES >> bit & 1
    assert Balloon(memory, features=DEFAULT_FEATURES | 1 << bit).device_features >> bit & 1


# -- target and actual -------------------------------------------------------------------------------------------------


def test_5_5_6_a_new_target_is_told_once(driven: Driven) -> None:
    told = driven.balloon.set_target(77, 0)
    assert told.config and [event.text for event in told.events] == ["the balloon shall have 77 pages"]
    assert driven.balloon.read_config(0, 4) == driven.balloon.target_pages == 77
    assert driven.balloon.set_target(77, 0) == NO_NOTIFICATIONS


@pytest.mark.parametrize(("wanted", "given"), [(-5, 0), (1 << 40, (0xA0 + 0x200 + 0x10))])
def test_a_target_is_clamped_to_ram(driven: Driven, wanted: int, given: int) -> None:
    driven.balloon.set_target(3, 0)
    driven.balloon.set_target(wanted, 0)
    assert driven.balloon.target_pages == given


def test_5_5_4_actual_is_the_drivers_to_write_and_num_pages_is_not(driven: Driven) -> None:
    told = driven.balloon.write_config(4, 4, 12, 0)
    assert [event.text for event in told.events] == ["the driver has 12 pages in the balloon"]
    assert driven.balloon.write_config(4, 4, 12, 0) == NO_NOTIFICATIONS
    driven.balloon.write_config(0, 4, 9, 0)
    assert (driven.balloon.actual_pages, driven.balloon.target_pages) == (12, 0)


# -- reset -------------------------------------------------------------------------------------------------------------


def test_a_reset_empties_the_balloon_and_keeps_target_and_counters(driven: Driven, memory: GuestMemory) -> None:
    driven.balloon.set_target(50, 0)
    driven.inflate(*FREE[:5])
    driven.balloon.write_config(4, 4, 5, 0)
    driven.balloon.reset()
    fresh = Balloon(memory)
    assert driven.balloon != fresh
    fresh.set_target(50, 0)
    assert driven.balloon == fresh
    assert (driven.balloon.actual_pages, driven.balloon.balloon_pages) == (0, 0)
    assert driven.counters() == {"inflated_pages": 5, "discarded_bytes": 5 * PAGE_BYTES}


def test_balloons_with_different_pages_inside_differ(memory: GuestMemory) -> None:
    one, other = Driven(memory).start(), Driven(memory).start()
    one.inflate(FREE[0])
    other.start()
    other.inflate(FREE[1])
    assert one.balloon != other.balloon


def test_a_clock_is_never_asked(monkeypatch: pytest.MonkeyPatch, driven: Driven) -> None:
    """Guest time arrives as an argument; a device that looked at the host's would not be repeatable."""
    for name in ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns"):
        monkeypatch.delattr(time, name)
    driven.inflate(FREE[0])
    driven.post((4, 1))
    driven.balloon.request_stats(5)
    assert driven.balloon.statistics(9).age_ns == 9
