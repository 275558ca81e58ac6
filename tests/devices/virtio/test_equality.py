"""The fast code gives the same answer as the plain reference, or breaks the same rule, on every input.

Together they try 4,000 examples, which `VMM_EXAMPLES` multiplies: `make test-long` sets it.  Rings are in
`test_ring_equality`.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from devices.memory import PAGE_BYTES, GuestMemory
from devices.virtio import reference
from devices.virtio.balloon import reporting
from devices.virtio.balloon.hinting import FreePageHinting
from devices.virtio.balloon.pages import BalloonPages, PfnReader
from devices.virtio.balloon.reporting import free_pages
from devices.virtio.balloon.stats_formats import V2, parse
from devices.virtio.chains import Chains
from tests.devices.virtio.examples import examples
from tests.devices.virtio.rings import LAYOUT


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        yield made


@pytest.fixture(scope="module")
def reader(memory: GuestMemory) -> PfnReader:
    return PfnReader(memory)


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
    st.integers(0, 1 << 64),
    st.sampled_from((0.0, 0.1, 0.9)),
    st.integers(1, 12),
    st.sampled_from((4096, 16384, 65536)),
    st.sampled_from((0, 1000)),
)
def test_reports_are_understood_alike(
    memory: GuestMemory, seed: int, odd: float, count: int, host_page: int, few: int
) -> None:
    made = Reports(seed, odd)
    chains = [made.chain(head) for head in range(count)]
    expected, ignored = reference.reported_of(chains, host_page)
    with mock.patch.object(reporting, "FEW_RANGES", few):
        found = free_pages(as_arrays(chains), host_page)
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
