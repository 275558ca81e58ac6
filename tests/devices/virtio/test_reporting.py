"""Free page reporting inside the device (virtio 1.3 §5.5.6.7): batches, discards, the host's larger pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices import hostcalls
from devices.memory import PAGE_BYTES, U64, GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.device import DEFAULT_FEATURES
from devices.virtio.device import Notifications
from tests.devices.virtio.balloons import STATS_VQ, VERSION_1, Driven
from tests.devices.virtio.rings import BUFFERS, LAYOUT, NEXT, WRITE

REPORTING = 1 << spec.VIRTIO_BALLOON_F_PAGE_REPORTING
REPORTING_VQ = 3
FREE = 0x110
"""The first of many pages of RAM that nobody uses."""


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        yield made


@pytest.fixture
def driven(memory: GuestMemory) -> Driven:
    return Driven(memory, Balloon(memory, features=DEFAULT_FEATURES | REPORTING)).start(VERSION_1 | REPORTING)


def offer(driven: Driven, *ranges: tuple[int, int], first: int = 0, readable: int = 0) -> None:
    """One chain of (gpa, length), from descriptor `first` on; the first `readable` of them are device-readable."""
    ring = driven.rings[REPORTING_VQ]
    for index, (gpa, length) in enumerate(ranges):
        flags = (WRITE if index >= readable else 0) | (NEXT if index + 1 < len(ranges) else 0)
        ring.set_descriptor(first + index, gpa, length, flags, first + index + 1)
    ring.offer(first)


def report(driven: Driven, *ranges: tuple[int, int], readable: int = 0) -> Notifications:
    offer(driven, *ranges, readable=readable)
    return driven.kick(REPORTING_VQ)


def pages(first: int, count: int) -> tuple[int, int]:
    return first * PAGE_BYTES, count * PAGE_BYTES


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The (first page, pages) that the host was asked to take, in order; it takes nothing."""
    asked: list[tuple[int, int]] = []

    def one(_fd: int, _mapping: object, file_offset: int, _offset: int, length: int) -> None:
        asked.append((file_offset // PAGE_BYTES, length // PAGE_BYTES))

    def many(fd: int, mapping: object, at: int, offsets: U64, lengths: U64) -> None:
        for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
            one(fd, mapping, at + offset, offset, length)

    monkeypatch.setattr(hostcalls, "discard_file", one)
    monkeypatch.setattr(hostcalls, "discard_file_runs", many)
    return asked


def test_all_chains_of_a_kick_are_merged_into_the_fewest_runs(driven: Driven, runs: list[tuple[int, int]]) -> None:
    offer(driven, pages(FREE + 20, 4), pages(FREE, 2), first=0)
    offer(driven, pages(FREE + 2, 2), pages(FREE + 22, 4), first=4)
    offer(driven, pages(FREE + 40, 1), first=8)
    driven.kick(REPORTING_VQ)
    assert runs == [(FREE, 4), (FREE + 20, 6), (FREE + 40, 1)]
    assert driven.counters() == {"reported_pages": 11, "discarded_bytes": 11 * PAGE_BYTES}
    assert driven.rings[REPORTING_VQ].used_elements() == [(0, 0), (4, 0), (8, 0)]


def test_a_range_inside_another_adds_nothing(driven: Driven, runs: list[tuple[int, int]]) -> None:
    report(driven, pages(FREE, 10), pages(FREE + 2, 3), pages(FREE + 9, 2), pages(FREE + 12, 1))
    assert runs == [(FREE, 11), (FREE + 12, 1)]


def test_ranges_that_meet_at_a_regions_border_are_given_back_from_both(driven: Driven, memory: GuestMemory) -> None:
    """RAM below and above 2 MiB are two regions that touch."""
    memory.write(0x1FE000, b"\x5a" * 0x4000)
    report(driven, (0x1FF000, 0x2000))
    assert memory.peek(0x1FE000, 0x4000) == b"\x5a" * 0x1000 + bytes(0x2000) + b"\x5a" * 0x1000


def test_discards_of_a_batch_happen_before_any_of_it_is_acknowledged(
    driven: Driven, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    real = memory.discard

    def watched(*args: object) -> int:
        used.append(driven.returned(REPORTING_VQ))
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(memory, "discard", watched)
    for first in range(0, 8, 2):
        offer(driven, pages(FREE + 3 * first, 1), pages(FREE + 60 + first, 1), first=first)
    driven.kick(REPORTING_VQ)
    assert used == [0]
    assert driven.returned(REPORTING_VQ) == 4


def test_pages_of_the_host_that_are_larger_are_given_back_whole_or_not_at_all(
    driven: Driven, runs: list[tuple[int, int]]
) -> None:
    driven.memory.host_page_bytes = 4 * PAGE_BYTES
    told = report(driven, pages(FREE + 1, 9), pages(FREE + 32, 3), pages(FREE + 40, 4))
    assert runs == [(FREE + 4, 4), (FREE + 40, 4)]
    assert driven.counters() == {
        "reported_pages": 8,
        "discarded_bytes": 8 * PAGE_BYTES,
        "ignored_bytes": 8 * PAGE_BYTES,
    }
    assert [event.kind for event in told.events] == ["ignored-bytes", "reported"]


def test_device_readable_buffers_report_nothing(driven: Driven, memory: GuestMemory) -> None:
    memory.write(FREE * PAGE_BYTES, b"\x5a" * 2 * PAGE_BYTES)
    told = report(driven, pages(FREE, 1), pages(FREE + 1, 1), readable=1)
    assert memory.peek(FREE * PAGE_BYTES, 2 * PAGE_BYTES) == b"\x5a" * PAGE_BYTES + bytes(PAGE_BYTES)
    assert driven.counters() == {
        "reported_pages": 1,
        "discarded_bytes": PAGE_BYTES,
        "ignored_bytes": PAGE_BYTES,
    }
    assert told.queues == (REPORTING_VQ,) and not driven.balloon.needs_reset
    assert told.events[0].text == "reporting_vq: 4096 bytes are in no whole free page"


def test_a_report_of_nothing_completes_without_a_call_to_the_host(driven: Driven, runs: list[tuple[int, int]]) -> None:
    told = report(driven, (BUFFERS + 1, 100))
    assert told.queues == (REPORTING_VQ,)
    assert runs == []
    assert driven.counters() == {"ignored_bytes": 100}
    assert [event.kind for event in told.events] == ["ignored-bytes"]


def test_a_host_that_takes_nothing_back_costs_the_driver_nothing(
    driven: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses_some(_fd: int, _mapping: object, file_offset: int, _offset: int, _length: int) -> None:
        if file_offset != (FREE + 4) * PAGE_BYTES:
            raise OSError(12, "no")

    def refuses_all(*_arguments: object) -> None:
        raise OSError(12, "no")

    monkeypatch.setattr(hostcalls, "discard_file", refuses_some)
    monkeypatch.setattr(hostcalls, "discard_file_runs", refuses_all)
    told = report(driven, pages(FREE, 2), pages(FREE + 4, 1))
    assert told.queues == (REPORTING_VQ,)
    assert [event.kind for event in told.events] == ["discard-failed", "reported"]
    assert driven.counters() == {"reported_pages": 3, "discarded_bytes": PAGE_BYTES, "failed_discards": 1}


def test_pages_reported_count_towards_the_work_of_a_call(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like a descriptor each, and each page once."""
    spent: list[int] = []
    monkeypatch.setattr(driven.balloon, "spend", spent.append)
    report(driven, pages(FREE, 160), pages(FREE + 80, 100))
    assert spent == [180]


def test_5_5_2_queues_follow_what_is_offered(memory: GuestMemory) -> None:
    def names(features: int) -> list[str]:
        return [queue.name for queue in Balloon(memory, features=VERSION_1 | features).queues]

    assert names(REPORTING) == ["inflateq", "deflateq", "reporting_vq"]
    assert names(REPORTING | STATS_VQ) == ["inflateq", "deflateq", "statsq", "reporting_vq"]


def test_the_queue_is_never_too_small_for_linux(memory: GuestMemory) -> None:
    sizes = [queue.max_size for queue in Balloon(memory, features=VERSION_1 | REPORTING, queue_size=4).queues]
    assert sizes == [4, 4, 32]
    sizes = [queue.max_size for queue in Balloon(memory, features=VERSION_1 | REPORTING, queue_size=256).queues]
    assert sizes == [256, 256, 256]
