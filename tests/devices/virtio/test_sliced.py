"""Batches of very many pages, which are worked off in slices (virtio 1.3 §5.5.6).

Most tests make the slices tiny, so that a few pages show what happens between two of them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import hostcalls
from devices.errors import ConfigError
from devices.memory import PAGE_BYTES, GuestMemory
from devices.virtio import reference, spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.device import DEFAULT_FEATURES
from devices.virtio.device import NO_NOTIFICATIONS, Notifications
from tests.devices.virtio.balloons import (
    DEFLATEQ,
    INFLATEQ,
    STATS_VQ,
    STATSQ,
    VERSION_1,
    Driven,
    le32,
    tiny_slices,
)
from tests.devices.virtio.rings import BUFFERS, LAYOUT, WRITE, RawRing

TIMES = int(os.environ.get("VMM_EXAMPLES", "1"))
REPORTING = 1 << spec.VIRTIO_BALLOON_F_PAGE_REPORTING
REPORTING_VQ = 3
FREE = 0x110
"""The first of many pages of RAM that nobody uses."""
NOT_RAM = 0xA5


@pytest.fixture(scope="module")
def shared() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT[:3]) as made:  # small maps: they are compared again and again
        yield made


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        yield made


@pytest.fixture
def tiny() -> Iterator[None]:
    with tiny_slices():
        yield


@pytest.fixture
def driven(memory: GuestMemory, tiny: None) -> Driven:
    return started(memory)


def started(memory: GuestMemory) -> Driven:
    balloon = Balloon(memory, features=DEFAULT_FEATURES | REPORTING)
    return Driven(memory, balloon).start(VERSION_1 | STATS_VQ | REPORTING)


def fill(memory: GuestMemory, pfns: range | list[int]) -> None:
    for pfn in pfns:
        memory.write(pfn * PAGE_BYTES, b"\x5a" * PAGE_BYTES)


def kept(memory: GuestMemory, pfns: range | list[int]) -> list[int]:
    """Those of `pfns` that still hold what `fill` put there; the others are zero."""
    pages = {pfn: memory.peek(pfn * PAGE_BYTES, PAGE_BYTES) for pfn in pfns}
    assert all(page in (bytes(PAGE_BYTES), b"\x5a" * PAGE_BYTES) for page in pages.values())
    return [pfn for pfn, page in pages.items() if any(page)]


def slice_once(driven: Driven) -> Notifications:
    due = driven.balloon.next_deadline_ns()
    assert due is not None and due <= driven.now_ns + 1
    driven.now_ns = max(driven.now_ns, due)
    return driven.balloon.advance(driven.now_ns)


def to_the_end(driven: Driven) -> Notifications:
    told = NO_NOTIFICATIONS
    for _ in range(10_000):
        due = driven.balloon.next_deadline_ns()
        if due is None or due > driven.now_ns + 1:
            return told
        driven.now_ns = max(driven.now_ns, due)
        told |= driven.balloon.advance(driven.now_ns)
    raise AssertionError("there is no end")


def rebuilt(driven: Driven) -> None:
    """Put the device's state into a new one, which takes its place."""
    state = copy.deepcopy(driven.balloon.save_state())
    fresh = Balloon(driven.memory, features=DEFAULT_FEATURES | REPORTING)
    fresh.check_state(state, "balloon")
    fresh.restore_state(state)
    assert fresh == driven.balloon and fresh.save_state() == state
    driven.balloon = fresh


# -- the same as at once -----------------------------------------------------------------------------------------------

PFNS = st.integers(0x100, 0x130) | st.sampled_from((0x9F, 0xA0, 0x1FF, 0x200, 0x2FF, 0x300, 0x10000F, 0xFFFFFFFF))
BATCHES = st.lists(st.tuples(st.booleans(), st.lists(PFNS, max_size=40)), min_size=1, max_size=4)


@settings(max_examples=300 * TIMES, deadline=None)
@given(BATCHES, st.integers(0, 12), st.integers(0, 12))
def test_slices_come_to_what_the_reference_says(
    shared: GuestMemory, batches: list[tuple[bool, list[int]]], cut: int, threshold: int
) -> None:
    """Any pages in any order, repeated or no RAM; the state goes to a new device after some slice of each batch."""
    inside: set[int] = set()
    expected = dict.fromkeys(("inflated", "deflated", "stray", "bad", "discarded"), 0)
    with tiny_slices(threshold):
        driven = started(shared)
        for inflates, entries in batches:
            payload = le32(*entries, 0x111)
            pages, bad = reference.pages_of(payload, shared)
            fill(shared, pages)
            told = driven.send(INFLATEQ if inflates else DEFLATEQ, payload)
            for _ in range(cut):
                if driven.balloon.next_deadline_ns() is not None:
                    told |= slice_once(driven)
            rebuilt(driven)
            told |= to_the_end(driven)
            assert told.queues == ((INFLATEQ if inflates else DEFLATEQ),)
            assert kept(shared, pages) == ([] if inflates else pages)
            moved = len(set(pages) - inside) if inflates else len(set(pages) & inside)
            expected["bad"] += bad
            expected["inflated" if inflates else "deflated"] += moved
            if inflates:
                inside |= set(pages)
                expected["discarded"] += len(pages) * PAGE_BYTES
            else:
                expected["stray"] += len(pages) - moved
                inside -= set(pages)
    balloon = driven.balloon
    assert {
        "inflated": balloon.inflated_pages,
        "deflated": balloon.deflated_pages,
        "stray": balloon.stray_pages,
        "bad": balloon.bad_pfns,
        "discarded": balloon.discarded_bytes,
    } == expected
    assert balloon.balloon_pages == len(inside)


@settings(max_examples=100 * TIMES, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=8), st.integers(0, 20))
def test_reports_in_slices_come_to_what_the_reference_says(
    shared: GuestMemory, ranges: list[tuple[int, int]], cut: int
) -> None:
    with tiny_slices():
        driven = started(shared)
        buffers = [reference.Buffer((FREE + first) * PAGE_BYTES, n * PAGE_BYTES, True) for first, n in ranges]
        pages, _ = reference.reported_of([reference.Chain(0, buffers)])
        fill(shared, range(FREE - 1, FREE + 92))
        ring = driven.rings[REPORTING_VQ]
        for index, buffer in enumerate(buffers):
            ring.set_descriptor(index, buffer.gpa, buffer.length, WRITE | (index + 1 < len(buffers)), index + 1)
        ring.offer(0)
        told = driven.kick(REPORTING_VQ)
        for _ in range(cut):
            if driven.balloon.next_deadline_ns() is not None:
                told |= slice_once(driven)
        rebuilt(driven)
        told |= to_the_end(driven)
        assert told.queues == (REPORTING_VQ,)
    assert set(range(FREE - 1, FREE + 92)) - set(kept(shared, range(FREE - 1, FREE + 92))) == set(pages)
    assert driven.balloon.discarded_bytes == len(pages) * PAGE_BYTES
    assert driven.balloon.reported_pages == len(pages) and driven.balloon.balloon_pages == 0


# -- between two slices ------------------------------------------------------------------------------------------------


def test_every_page_is_discarded_before_the_request_comes_back(driven: Driven) -> None:
    pages = range(FREE, FREE + 40)
    fill(driven.memory, pages)
    assert driven.inflate(*reversed(pages)).queues == ()
    slices, left = 0, len(pages)
    while driven.returned(INFLATEQ) == 0:
        slice_once(driven)
        slices += 1
        assert left - 8 <= len(kept(driven.memory, pages)) <= left, "a few pages a slice"
        left = len(kept(driven.memory, pages))
    assert left == 0 and slices > 10
    assert driven.balloon.next_deadline_ns() is None


def test_what_follows_on_the_same_queue_waits_and_comes_back_in_order(driven: Driven) -> None:
    fill(driven.memory, range(FREE, FREE + 41))
    heads = [driven.offer(INFLATEQ, le32(*range(FREE, FREE + 40)))]
    driven.kick(INFLATEQ)
    heads.append(driven.offer(INFLATEQ, le32(FREE + 40)))
    driven.kick(INFLATEQ)
    slice_once(driven)
    assert driven.returned(INFLATEQ) == 0 and kept(driven.memory, [FREE + 40])
    to_the_end(driven)
    ring = driven.rings[INFLATEQ]
    assert [driven.memory.read_int(ring.used + 4 + 8 * i, 4) for i in range(2)] == heads
    assert kept(driven.memory, [FREE + 40]) == []


def test_other_queues_are_served_between_two_slices(driven: Driven) -> None:
    fill(driven.memory, range(FREE, FREE + 60))
    driven.inflate(FREE + 50)
    driven.inflate(*range(FREE, FREE + 40))
    slice_once(driven)
    assert driven.deflate(FREE + 50).queues == (DEFLATEQ,)
    driven.post((0, 1))
    assert driven.balloon.request_stats(driven.now_ns).queues == (STATSQ,)
    driven.offer(DEFLATEQ, le32(FREE + 51))  # no kick: the device looks by itself
    assert slice_once(driven).queues == (DEFLATEQ,)
    assert driven.returned(INFLATEQ) == 1
    to_the_end(driven)
    assert driven.returned(INFLATEQ) == 2 and driven.balloon.inflated_pages == 41


def test_two_queues_may_have_a_batch_in_slices_at_once(driven: Driven) -> None:
    driven.inflate(FREE + 70, FREE + 71)
    driven.inflate(*range(FREE, FREE + 40))
    driven.deflate(FREE + 70, FREE + 71, *range(FREE + 80, FREE + 100))
    rebuilt(driven)
    told = to_the_end(driven)
    assert told.queues == (INFLATEQ, DEFLATEQ)
    assert (driven.balloon.balloon_pages, driven.balloon.stray_pages) == (40, 20)


def test_the_payload_is_never_read_again(driven: Driven) -> None:
    """The driver may write other numbers into its buffer meanwhile, or give the buffer's own page away."""
    own = BUFFERS // PAGE_BYTES
    pages = [own, *range(FREE, FREE + 20)]
    fill(driven.memory, [*pages[1:], *range(FREE + 40, FREE + 60)])
    driven.inflate(*pages)
    driven.memory.write(BUFFERS, le32(*range(FREE + 40, FREE + 61)))
    slice_once(driven)
    driven.memory.write(BUFFERS, le32(*range(FREE + 40, FREE + 61)))
    to_the_end(driven)
    assert kept(driven.memory, pages) == []
    assert len(kept(driven.memory, range(FREE + 40, FREE + 60))) == 20


@pytest.mark.parametrize("slices", [0, 1, 4, 9])
def test_a_reset_in_the_middle_leaves_a_new_device(driven: Driven, slices: int) -> None:
    pages = range(FREE, FREE + 40)
    fill(driven.memory, pages)
    driven.inflate(*pages)
    for _ in range(slices):
        slice_once(driven)
    driven.balloon.reset()
    assert driven.balloon == Balloon(driven.memory, features=DEFAULT_FEATURES | REPORTING)
    assert driven.balloon.next_deadline_ns() is None
    left = kept(driven.memory, pages)
    driven.start(VERSION_1 | STATS_VQ | REPORTING)
    to_the_end(driven)
    assert kept(driven.memory, pages) == left, "nothing of the old driver's is carried out for the new one"
    assert driven.inflate(FREE).queues == (INFLATEQ,)


def test_a_moment_has_one_slice_however_often_it_is_asked_for(driven: Driven) -> None:
    """A run that is stopped and gone on with at some moment does no more work there than one that is not."""
    pages = range(FREE, FREE + 40)
    fill(driven.memory, pages)
    driven.inflate(*pages)
    for _ in range(20):  # the payload is read, then pages are dealt with
        slice_once(driven)
        left = kept(driven.memory, pages)
        if 0 < len(left) < len(pages):
            break
    assert 0 < len(left) < len(pages)
    for _ in range(3):
        assert driven.balloon.advance(driven.now_ns) == NO_NOTIFICATIONS
    assert kept(driven.memory, pages) == left


def test_without_bus_mastering_it_rests(driven: Driven) -> None:
    pages = range(FREE, FREE + 40)
    fill(driven.memory, pages)
    driven.inflate(*pages)
    slice_once(driven)
    driven.balloon.set_dma_enabled(False, driven.now_ns)
    left = kept(driven.memory, pages)
    assert driven.balloon.next_deadline_ns() is None
    assert driven.balloon.advance(driven.now_ns + 1) == NO_NOTIFICATIONS
    assert kept(driven.memory, pages) == left
    driven.balloon.set_dma_enabled(True, driven.now_ns)
    assert to_the_end(driven).queues == (INFLATEQ,)
    assert kept(driven.memory, pages) == []


@pytest.mark.parametrize("way", ["reset", "disabled"])
@pytest.mark.parametrize("queue", [INFLATEQ, DEFLATEQ, REPORTING_VQ])
def test_a_queue_taken_out_of_use_meanwhile_forgets_its_batch(
    memory: GuestMemory, tiny: None, queue: int, way: str
) -> None:
    """§2.6.1: by RING_RESET, or as virtio-mmio and legacy drivers do it.  No page is touched any more, no head of the
    old ring appears in the new one, and the queue works again."""
    ring_reset = 1 << spec.VIRTIO_F_RING_RESET
    balloon = Balloon(memory, features=DEFAULT_FEATURES | REPORTING | ring_reset)
    driven = Driven(memory, balloon).start(VERSION_1 | STATS_VQ | REPORTING | ring_reset)
    pages = range(FREE, FREE + 40)
    fill(memory, pages)
    if queue == REPORTING_VQ:
        driven.rings[queue].set_descriptor(0, FREE * PAGE_BYTES, 40 * PAGE_BYTES, WRITE)
        driven.rings[queue].offer(0)
        driven.kick(queue)
    else:
        driven.send(queue, le32(*pages))
    slice_once(driven)
    if way == "reset":
        balloon.write_queue(queue, "reset", 1, driven.now_ns)
    else:
        balloon.stop_queue(queue)
    left = kept(memory, pages)

    assert to_the_end(driven) == NO_NOTIFICATIONS
    assert kept(memory, pages) == left and driven.returned(queue) == 0
    ring = RawRing(16, memory, 0x400 * queue)
    driven.rings[queue], driven.next_descriptor[queue] = ring, 0
    for place in (ring.desc, ring.avail, ring.used):
        memory.write(place, bytes(256))
    parts = (("size", 16), ("desc_gpa", ring.desc), ("driver_gpa", ring.avail), ("device_gpa", ring.used))
    for field, value in (*parts, ("enabled", 1)):
        balloon.write_queue(queue, field, value, driven.now_ns)
    if queue != REPORTING_VQ:
        assert driven.send(queue, le32(FREE)).queues == (queue,)
        assert driven.returned(queue) == 1
    assert not balloon.needs_reset


def test_a_ring_broken_meanwhile_ends_it(driven: Driven) -> None:
    pages = range(FREE, FREE + 40)
    fill(driven.memory, pages)
    driven.inflate(*pages)
    slice_once(driven)
    driven.rings[DEFLATEQ].offer(16)
    driven.kick(DEFLATEQ)
    assert driven.balloon.needs_reset and driven.balloon.next_deadline_ns() is None
    left = kept(driven.memory, pages)
    driven.balloon.advance(driven.now_ns + 1)
    assert kept(driven.memory, pages) == left and driven.returned(INFLATEQ) == 0


# -- what is said ------------------------------------------------------------------------------------------------------


def test_what_was_wrong_is_said_once_and_in_all(driven: Driven) -> None:
    told = driven.send(INFLATEQ, le32(*[NOT_RAM] * 7, *range(FREE, FREE + 20)) + b"\1")
    told |= to_the_end(driven)
    assert [(event.kind, event.text) for event in told.events] == [
        ("ignored-bytes", "inflateq: 1 bytes are no page frame numbers, or too many"),
        ("bad-pfns", "inflateq: 7 page frame numbers are outside guest RAM"),
    ]
    assert (driven.balloon.bad_pfns, driven.balloon.ignored_bytes) == (7, 1)


def test_pages_that_are_all_no_ram_come_back_too(driven: Driven) -> None:
    driven.inflate(*[NOT_RAM] * 10)
    assert to_the_end(driven).queues == (INFLATEQ,)
    assert driven.balloon.bad_pfns == 10


def test_a_host_that_refuses_is_told_of_once_a_batch(driven: Driven, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(28, "no")

    for name in ("discard_file", "discard_file_runs"):
        monkeypatch.setattr(hostcalls, name, refuse)
    driven.inflate(*range(FREE, FREE + 40, 2))
    told = to_the_end(driven)
    assert [event.kind for event in told.events] == ["discard-failed"]
    assert told.queues == (INFLATEQ,)
    assert (driven.balloon.failed_discards, driven.balloon.inflated_pages) == (20, 20)


# -- states that do not fit --------------------------------------------------------------------------------------------


def test_states_that_would_break_the_ring_or_stand_still_are_refused(driven: Driven) -> None:
    driven.inflate(*range(FREE, FREE + 40))
    slice_once(driven)

    def refused(change: Any, sentence: str) -> None:
        state: Any = copy.deepcopy(driven.balloon.save_state())
        change(state)
        fresh = Balloon(driven.memory, features=DEFAULT_FEATURES | REPORTING)
        with pytest.raises(ConfigError) as error:
            fresh.check_state(state, "balloon")
        assert sentence in str(error.value)

    def set_in(batch: dict[str, Any], name: str, value: Any) -> None:
        batch[name] = value

    place = "balloon.sliced[0]"
    refused(lambda s: set_in(s["sliced"][0]["chains"][0], "buffer_id", 3), f"{place}.chains must be a chain in flight")
    refused(lambda s: s["sliced"][0]["chains"].append(s["sliced"][0]["chains"][0]), f"{place}.chains must be a chain")
    refused(lambda s: set_in(s["sliced"][0], "chains", None), f"{place}.chains must be there")
    refused(lambda s: set_in(s["sliced"][0], "payload", b"12345"), f"{place}.payload must be whole page frame numbers")
    refused(lambda s: set_in(s["sliced"][0]["pages"], "runs", [[NOT_RAM, 1]]), f"{place}.pages must be pages of RAM")
    refused(lambda s: set_in(s, "carry_on_ns", None), "balloon.carry_on_ns must be a time")
    refused(lambda s: s["sliced"].pop(), "balloon.sliced must be a list of 3 entries")
