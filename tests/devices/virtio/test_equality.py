"""The fast code gives the same answer as the plain reference, or breaks the same rule, on every input.

Together they try 9,000 examples.  `VMM_EXAMPLES` multiplies that: `make test-long` sets it.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from devices import hostcalls
from devices.errors import DriverError
from devices.memory import PAGE_BYTES, GuestMemory
from devices.virtio import reference, split
from devices.virtio.balloon.hinting import FreePageHinting
from devices.virtio.balloon.pages import BalloonPages, PfnReader
from devices.virtio.balloon.reporting import free_pages
from devices.virtio.balloon.stats_formats import V2, parse
from devices.virtio.chains import Chains
from tests.devices.virtio.rings import BUFFERS, INDIRECT, LAYOUT, NEXT, TABLES, WRITE, RawRing, descriptor

TIMES = int(os.environ.get("VMM_EXAMPLES", "1"))
SIZE = 8
ALWAYS, NEVER = 1, 1 << 16


def examples(count: int) -> settings:
    """So many examples, or that many times VMM_EXAMPLES."""
    return settings(max_examples=count * TIMES, deadline=None)


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        yield made


@pytest.fixture(scope="module")
def reader(memory: GuestMemory) -> PfnReader:
    return PfnReader(memory)


# -- rings -------------------------------------------------------------------------------------------------------------

RAM_ENDS = (0xA0000, 0x100000, 0x200000, 0x300000, 1 << 32, (1 << 32) + 0x10000, 1 << 64)
FLAGS = (0, 0, NEXT, NEXT, NEXT, WRITE, NEXT | WRITE, 0x8000 | NEXT)
INDIRECT_GPAS = (*(TABLES + 0x100 * i for i in range(4)), 0xA0000 - 16, 0x200000 - 32)
INDIRECT_LENGTHS = (16, 32, 64, 128, 16, 32, 64, 0, 8, 20, 4096)
INDIRECT_FLAGS = (INDIRECT, INDIRECT, INDIRECT, INDIRECT | WRITE, INDIRECT | NEXT)
EDGE_LENGTHS = (0, 1, 64, 0x100000, 0x80000000, 0xFFFFFFFF)


class Maker:
    """Rings that are mostly as they should be, made from one number: `flaws` is how likely a field is anything at all.

    Hypothesis chooses both; drawing every field from it would cost most of the time."""

    def __init__(self, seed: int, flaws: float) -> None:
        self.random = random.Random(seed)
        self.flaws = flaws

    def flawed(self) -> bool:
        return self.random.random() < self.flaws

    def gpa(self) -> int:
        if not self.flawed():
            return BUFFERS + self.random.randrange(0x1000)
        end = self.random.choice(RAM_ENDS)
        return self.random.choice(
            (self.random.randrange(1 << 64), min(end - 64 + self.random.randrange(80), (1 << 64) - 1))
        )

    def length(self) -> int:
        return self.random.choice(EDGE_LENGTHS) if self.flawed() else 1 + self.random.randrange(300)

    def entry(self, count: int) -> bytes:
        flags = self.random.randrange(8) if self.flawed() else self.random.choice(FLAGS)
        link = self.random.randrange(65536) if self.flawed() else self.random.randrange(count)
        return descriptor(self.gpa(), self.length(), flags, link)

    def indirect(self) -> bytes:
        choose = self.random.choice
        return descriptor(choose(INDIRECT_GPAS), choose(INDIRECT_LENGTHS), choose(INDIRECT_FLAGS), choose(range(SIZE)))

    def place(self, memory: GuestMemory) -> RawRing:
        """A ring with all its tables in RAM."""
        ring = RawRing(SIZE, memory)
        table = [self.entry(SIZE) for _ in range(SIZE)]
        for _ in range(self.random.randrange(4)):
            table[self.random.randrange(SIZE)] = self.indirect()
        ring.set_table(ring.desc, *table)
        for number in range(4):
            ring.set_table(TABLES + 0x100 * number, *(self.entry(8) for _ in range(8)))
        ring.offer(*self.random.sample(range(SIZE), SIZE))
        if self.random.random() < 0.2:
            ring.offer(*(self.random.randrange(SIZE + 1) for _ in range(SIZE)))
            ring.set_avail_idx(SIZE)
        return ring


def as_chains(chains: Chains | None) -> list[reference.Chain]:
    """The arrays, chain by chain."""
    if chains is None:
        return []
    rows = list(zip(chains.addr.tolist(), chains.length.tolist(), chains.writable.tolist(), strict=True))
    bounds = list(pairwise(chains.first.tolist()))
    assert chains.buffer_id.tolist() == chains.head.tolist()
    assert [end - start for start, end in bounds] and all(end > start for start, end in bounds)
    return [
        reference.Chain(head, [reference.Buffer(*row) for row in rows[start:end]])
        for head, (start, end) in zip(chains.head.tolist(), bounds, strict=True)
    ]


def drained_by_reference(ring: RawRing, indirect: bool) -> tuple[list[list[reference.Chain]], tuple[str, int] | None]:
    """All batches until nothing is left, and the rule that was broken, with its head."""
    plain = reference.Ring(ring.memory, ring.size, ring.desc, ring.avail, ring.used, indirect)
    batches = []
    try:
        while batch := plain.take_available():
            batches.append(batch)
    except DriverError as error:
        return batches, (error.section, error.head)
    return batches, None


def drained(
    ring: RawRing, indirect: bool, lock_step_from: int
) -> tuple[list[list[reference.Chain]], tuple[str, int] | None]:
    queue = ring.queue(indirect=indirect)
    batches = []
    with mock.patch.object(split, "LOCK_STEP_FROM_CHAINS", lock_step_from):
        try:
            while batch := as_chains(queue.take_available()):
                batches.append(batch)
        except DriverError as error:
            return batches, (error.section, error.head)
    return batches, None


aheads = st.sampled_from((*range(SIZE + 1), SIZE, SIZE, SIZE + 1, 65535))


@examples(2000)
@given(st.integers(0, 1 << 64), st.sampled_from((0.0, 0.01, 0.1)), aheads, st.booleans())
def test_rings_are_read_alike(memory: GuestMemory, seed: int, flaws: float, ahead: int, indirect: bool) -> None:
    ring = Maker(seed, flaws).place(memory)
    ring.set_avail_idx(ahead)
    expected = drained_by_reference(ring, indirect)
    event("valid" if expected[1] is None else f"breaks §{expected[1][0]}")
    assert drained(ring, indirect, NEVER) == expected
    assert drained(ring, indirect, ALWAYS) == expected


@examples(1000)
@given(st.integers(0, 1 << 64), st.sampled_from((0, 1, 1, 2, SIZE)), st.sampled_from((1, 4)), st.integers(0, 700))
def test_arrays_of_entries_are_gathered_alike(
    memory: GuestMemory, seed: int, ahead: int, entry_bytes: int, limit_bytes: int
) -> None:
    """One buffer, few chains and many: what is longer than the limit is not read, and nothing is counted twice."""
    ring = Maker(seed, 0).place(memory)
    memory.write(BUFFERS, random.Random(seed).randbytes(0x1200))
    ring.set_avail_idx(ahead)
    batches = drained_by_reference(ring, True)[0]
    queues = ring.queue(indirect=True), ring.queue(indirect=True)
    for expected in batches:
        few = queues[0].take_available()
        with mock.patch.object(split, "LOCK_STEP_FROM_CHAINS", ALWAYS):
            many = queues[1].take_available()
        assert few is not None and many is not None
        event(f"{type(few).__name__} and {type(many).__name__}")
        wanted = reference.entries_of(expected, memory, entry_bytes, limit_bytes)
        assert few.gather_entries(memory, entry_bytes, limit_bytes) == wanted
        assert many.gather_entries(memory, entry_bytes, limit_bytes) == wanted


@examples(1000)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=40), st.integers(0, 65535))
def test_valid_rings_are_walked_in_lock_step_and_put_alike(memory: GuestMemory, lengths: list[int], start: int) -> None:
    """Chains of one to three descriptors anywhere in the life of the indices: taken, put, and told of alike."""
    ring = RawRing(128, memory)
    heads, index = [], 0
    for length in lengths:
        heads.append(index)
        for link in range(length):
            flags = NEXT if link < length - 1 else WRITE
            ring.set_descriptor(index, BUFFERS + 64 * index, 1 + index, flags, index + 1)
            index += 1
    ring.avail_idx = start
    ring.offer(*heads)
    plain = reference.Ring(memory, 128, ring.desc, ring.avail, ring.used, False)
    plain.next_avail = plain.next_used = start
    expected = plain.take_available()
    for chain in expected:
        plain.put_used(chain.head, chain.head * 3)
    after = memory.read(ring.used, 4 + 8 * 128)
    memory.write(ring.used, bytes(4 + 8 * 128))
    queue = ring.queue(indirect=False)
    queue._next_available = queue._next_used = start
    with (
        mock.patch.object(split, "LOCK_STEP_FROM_CHAINS", ALWAYS),
        mock.patch("devices.virtio.walk.Walker.one_by_one", side_effect=AssertionError("not in lock-step")),
    ):
        if len(heads) == 1:
            return  # a single chain is never worth it
        chains = queue.take_available()
    assert chains is not None and as_chains(chains) == expected
    queue.put_used(chains, [head * 3 for head in heads])
    written = memory.read(ring.used, 4 + 8 * 128)
    places = [4 + 8 * ((start + i) % 128) for i in range(len(heads))]
    assert written[2:4] == after[2:4]
    assert [written[place : place + 8] for place in places] == [after[place : place + 8] for place in places]


@examples(1000)
@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(1, 64))
def test_used_event_is_understood_alike(memory: GuestMemory, used_event: int, old: int, count: int) -> None:
    ring = RawRing(64, memory)
    ring.set_used_event(used_event)
    queue = ring.queue(event_idx=True)
    queue._notified_used = old
    queue._next_used = (old + count) % 65536
    assert queue.needs_notification() == reference.wants_notification(used_event, old, (old + count) % 65536)


# -- page frame numbers ------------------------------------------------------------------------------------------------

LAST_PAGES = (0, 0x9F, 0xA0, 0xFF, 0x100, 0x1FF, 0x200, 0x2FF, 0x300, 0x100000, 0x10000F, 0x100010, 0xFFFFFFFF)
pfns = st.one_of(st.integers(0, 0x320), st.sampled_from(LAST_PAGES), st.integers(0, 0xFFFFFFFF))
runs = st.tuples(st.integers(0, 0x300) | st.sampled_from((*LAST_PAGES, 0xFFFE0)), st.integers(1, 40)).map(
    lambda run: list(range(run[0], min(run[0] + run[1], 1 << 32)))
)
pfn_arrays = st.one_of(
    st.lists(pfns, max_size=60),
    runs,
    st.lists(runs, max_size=4).map(lambda several: [pfn for one in several for pfn in one]),
    st.lists(runs, max_size=3).map(lambda several: [pfn for one in several for pfn in reversed(one)]),
)


@examples(1500)
@given(st.lists(pfn_arrays, min_size=1, max_size=4))
def test_page_frame_numbers_are_understood_alike(
    memory: GuestMemory, reader: PfnReader, arrays: list[list[int]]
) -> None:
    inside, plain = BalloonPages(memory), set[int]()
    for number, array in enumerate(arrays):
        payload = struct.pack(f"<{len(array)}I", *array)
        expected, bad = reference.pages_of(payload, memory)
        found = reader.read(payload)
        runs = found.runs()
        assert [pfn for start, count in runs for pfn in range(start, start + count)] == expected
        assert (found.pages, found.bad) == (len(expected), bad)
        assert all(start + count < after for (start, count), (after, _) in pairwise(runs))
        if number % 3 < 2:
            assert inside.move(found, inside=True) == len(set(expected) - plain)
            plain |= set(expected)
        else:
            assert inside.move(found, inside=False) == len(set(expected) & plain)
            plain -= set(expected)
        assert inside.count == len(plain)


@pytest.mark.parametrize("order", ["ascending", "descending", "gaps", "repeated"])
def test_large_arrays_are_understood_alike(memory: GuestMemory, reader: PfnReader, order: str) -> None:
    array = [pfn for pfn in range(0x300) for _ in range(8)]
    array = {
        "ascending": list(range(0x1000)),
        "descending": list(range(0x2FFF, -1, -1)),
        "gaps": list(range(0, 0x6000, 2)),
        "repeated": array,
    }[order]
    payload = struct.pack(f"<{len(array)}I", *array)
    expected, bad = reference.pages_of(payload, memory)
    found = reader.read(payload)
    assert [pfn for start, count in found.runs() for pfn in range(start, start + count)] == expected
    assert found.bad == bad
    assert found.discard(memory) == len(expected) * PAGE_BYTES


# -- reported ranges ---------------------------------------------------------------------------------------------------

RAM_RANGES = tuple((gpa, gpa + size) for gpa, size in LAYOUT)


class Reports:
    """Chains of ranges inside RAM, made from one number: near each other and over each other, or anywhere.

    `odd` is how likely an end of a range is no multiple of 4096; lengths go up to a whole region."""

    def __init__(self, seed: int, odd: float) -> None:
        self.random = random.Random(seed)
        self.odd = odd

    def range(self) -> reference.Buffer:
        start, end = self.random.choice(RAM_RANGES)
        if self.random.random() < 0.5:  # crowded, so that ranges meet
            start, end = 0x100000, 0x118000
        gpa = self.random.randrange(start, end, PAGE_BYTES)
        length = PAGE_BYTES * self.random.randint(1, (end - gpa) // PAGE_BYTES)
        if self.random.random() < 0.6:
            length = min(length, PAGE_BYTES * self.random.randint(1, 4))
        if self.random.random() < self.odd:
            cut = self.random.randrange(min(length, 2 * PAGE_BYTES))
            gpa, length = gpa + cut, length - cut
        if self.random.random() < self.odd:
            length -= self.random.randrange(length)
        return reference.Buffer(gpa, length, True)

    def chain(self, head: int) -> reference.Chain:
        buffers = [self.range() for _ in range(self.random.randint(1, 8))]
        readable = self.random.randint(1, len(buffers)) if self.random.random() < 0.2 else 0
        return reference.Chain(head, [buffer._replace(writable=i >= readable) for i, buffer in enumerate(buffers)])


def as_arrays(chains: list[reference.Chain]) -> Chains:
    """The same chains as a device receives them."""
    buffers = [buffer for chain in chains for buffer in chain.buffers]
    return Chains(
        np.array([chain.head for chain in chains], np.uint16),
        np.array([len(chain.buffers) for chain in chains], np.intp),
        np.cumsum([0, *(len(chain.buffers) for chain in chains)]),
        np.array([buffer.gpa for buffer in buffers], np.uint64),
        np.array([buffer.length for buffer in buffers], np.uint64),
        np.array([buffer.writable for buffer in buffers], np.bool_),
    )


@examples(1500)
@given(
    st.integers(0, 1 << 64), st.sampled_from((0.0, 0.1, 0.9)), st.integers(1, 12), st.sampled_from((4096, 16384, 65536))
)
def test_reports_are_understood_alike(memory: GuestMemory, seed: int, odd: float, count: int, host_page: int) -> None:
    made = Reports(seed, odd)
    chains = [made.chain(head) for head in range(count)]
    expected, ignored = reference.reported_of(chains, host_page)
    with mock.patch.object(hostcalls, "PAGE_BYTES", host_page):
        found = free_pages(as_arrays(chains))
    runs = found.runs()
    event("nothing" if not runs else "one run" if len(runs) == 1 else "many runs")
    assert [pfn for start, pages in runs for pfn in range(start, start + pages)] == expected
    assert (found.pages, found.ignored_bytes) == (len(expected), ignored)
    assert all(start + pages < after for (start, pages), (after, _) in pairwise(runs))
    assert found.discard(memory) == PAGE_BYTES * len(expected)


# -- hints -------------------------------------------------------------------------------------------------------------

IDS = 0x2000  # where the ids lie


class Rounds(Reports):
    """Chains of ids, of ranges, and of both, made from one number."""

    def __init__(self, seed: int, memory: GuestMemory, cmd_id: int) -> None:
        super().__init__(seed, 0.2)
        self.memory = memory
        self.cmd_id = cmd_id

    def said(self, head: int) -> list[reference.Buffer]:
        """An id in one or several pieces, or something that is none."""
        value = self.random.choice((self.cmd_id, self.cmd_id, self.cmd_id + 1, 0, 0, 1, 2))
        data = value.to_bytes(4, "little")
        if self.random.random() < 0.15:
            data = self.random.randbytes(self.random.choice((1, 2, 3, 5, 8)))
        gpa = IDS + 16 * head
        self.memory.write(gpa, data)
        cut = self.random.randrange(len(data))
        pieces = [(gpa, cut), (gpa + cut, len(data) - cut)] if cut else [(gpa, len(data))]
        return [reference.Buffer(place, length, False) for place, length in pieces]

    def chain(self, head: int) -> reference.Chain:
        said = self.said(head) if self.random.random() < 0.4 else []
        ranges = [self.range() for _ in range(self.random.randint(0 if said else 1, 3))]
        return reference.Chain(head, said + ranges)


@examples(1500)
@given(st.integers(0, 1 << 64), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.sampled_from((0, 1, 2, 77)))
def test_hints_are_understood_alike(memory: GuestMemory, seed: int, counts: list[int], cmd_id: int) -> None:
    made, answered = Rounds(seed, memory, cmd_id), False
    hinting = FreePageHinting(memory)
    hinting.cmd_id = cmd_id
    for count in counts:
        chains = [made.chain(head) for head in range(count)]
        expected = reference.hints_of(chains, memory, cmd_id, answered)
        found = hinting.take(as_arrays(chains))
        answered = expected.answered
        event("hints" if expected.pages else "no hints")
        runs = found.hinted.runs()
        assert [pfn for start, pages in runs for pfn in range(start, start + pages)] == expected.pages
        assert (found.hinted.pages, found.stale_pages) == (len(expected.pages), len(expected.stale))
        assert (found.ignored_bytes, found.ended) == (expected.ignored, expected.ended)
        assert found.free.pages == 0, "nobody watched"


@examples(300)
@given(st.lists(st.integers(0x100, 0x11F), max_size=8), st.lists(runs, min_size=1, max_size=4), st.booleans())
def test_of_all_pages_those_that_were_written_are_found(
    written: list[int], hinted: list[list[int]], save: bool
) -> None:
    wanted = {pfn for run in hinted for pfn in run if 0x100 <= pfn < 0x120}
    ascending = np.array(sorted(wanted), np.uint64)
    with GuestMemory([(0x100000, 0x20000)]) as small:
        small.write(0x100000, b"\x5a" * 0x20000)
        tracking = small.track_writes()
        if tracking.start():
            pytest.skip("this kernel does not track writes")
        for pfn in written:
            small.write(pfn * PAGE_BYTES + pfn, b"1")
        if save:
            tracking.restore_state(tracking.save_state())
        starts, counts = tracking.unwritten(ascending, np.ones_like(ascending))
        found = [
            pfn
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
            for pfn in range(start, start + count)
        ]
        tracking.stop()
    assert found == sorted(wanted - set(written))


# -- statistics --------------------------------------------------------------------------------------------------------

stat_entries = st.lists(
    st.tuples(st.integers(0, 20) | st.integers(0, 65535), st.integers(0, (1 << 64) - 1)), max_size=30
)


@examples(1000)
@given(stat_entries, st.binary(max_size=9))
def test_statistics_are_understood_alike(sent: list[tuple[int, int]], tail: bytes) -> None:
    payload = b"".join(struct.pack("<HQ", *entry) for entry in sent) + tail
    raw, values = reference.stats_of(payload)
    report = parse(payload, len(payload))
    assert (list(report.raw), report.values) == (raw, values) and raw == sent
    assert report.ignored_bytes == len(tail)


@examples(500)
@given(
    st.lists(st.tuples(st.integers(0, 8) | st.integers(0, 65535), st.integers(0, (1 << 32) - 1)), max_size=30),
    st.binary(max_size=7),
    st.booleans(),
)
def test_statistics_of_the_first_patch_are_understood_alike(
    sent: list[tuple[int, int]], tail: bytes, big: bool
) -> None:
    payload = b"".join(
        struct.pack(">H" if big else "<H", tag) + b"\xee\xee" + struct.pack("<I", value) for tag, value in sent
    )
    report = parse(payload + tail, len(payload + tail), V2, ">" if big else "<")
    assert list(report.raw) == reference.stats_v2_of(payload + tail, "big" if big else "little") == sent
    assert report.ignored_bytes == len(tail)
    known = {tag: value for tag, value in sent if tag == 5}
    assert report.values.get("stat-free-memory") == (known[5] * 1024 if known else None)
