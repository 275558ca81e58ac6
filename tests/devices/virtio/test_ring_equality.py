"""Rings: the fast code takes the same chains as the plain reference, or breaks the same rule, on every input.

Split and packed rings are made alike and pass the same tests.  Together these try 8,000 examples."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from itertools import pairwise
from unittest import mock

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from devices.errors import DriverError
from devices.memory import GuestMemory
from devices.virtio import packed, reference, split
from devices.virtio.chains import Chains
from devices.virtio.packed import PackedQueue
from devices.virtio.split import SplitQueue
from tests.devices.virtio.examples import examples
from tests.devices.virtio.rings import (
    AVAIL,
    BUFFERS,
    INDIRECT,
    LAYOUT,
    NEXT,
    TABLES,
    USED_FLAG,
    WRITE,
    RawPackedRing,
    RawRing,
    descriptor,
)

SIZE = 8
ALWAYS, NEVER = 1, 1 << 16


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        yield made


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

    def place(self, memory: GuestMemory, ahead: int) -> SplitRing:
        """A ring with all its tables in RAM, whose available index is `ahead`."""
        ring = RawRing(SIZE, memory)
        table = [self.entry(SIZE) for _ in range(SIZE)]
        for _ in range(self.random.randrange(4)):
            table[self.random.randrange(SIZE)] = self.indirect()
        ring.set_table(ring.desc, *table)
        self.place_tables(memory)
        ring.offer(*self.random.sample(range(SIZE), SIZE))
        if self.random.random() < 0.2:
            ring.offer(*(self.random.randrange(SIZE + 1) for _ in range(SIZE)))
        ring.set_avail_idx(ahead)
        return SplitRing(ring)

    def place_tables(self, memory: GuestMemory) -> None:
        for number in range(4):
            memory.write(TABLES + 0x100 * number, b"".join(self.entry(8) for _ in range(8)))

    def place_packed(self, memory: GuestMemory, ahead: int) -> PackedRing:
        """A packed ring of some size, anywhere in its rounds, with `ahead` descriptors available: chains that end
        there, and tables, unless a flaw has it otherwise."""
        ring = RawPackedRing(self.random.choice((1, 2, 3, 5, 7, SIZE, SIZE, 13)), memory)
        self.place_tables(memory)
        ring.advance(self.random.randrange(2 * ring.size))
        start = ring.place, ring.wrap
        for place in range(ring.size):  # what an earlier round left: used, or not the first of a chain
            ring.set(place, 0, 0, 0, self.random.choice((AVAIL | USED_FLAG, 0, ring.marks() ^ (AVAIL | USED_FLAG))))
        ids = self.random.sample(range(1 << 16), SIZE) if self.random.random() < 0.5 else list(range(ring.size))
        for left in range(min(ahead, ring.size), 0, -1):
            self.write_packed(ring, left, ids)
        return PackedRing(ring, start)

    def write_packed(self, ring: RawPackedRing, left: int, ids: list[int]) -> None:
        flags = self.random.choice(FLAGS) & ~0x8000
        gpa, length = self.gpa(), self.length()
        if self.random.random() < 0.15:
            flags, gpa, length = self.random.choice(INDIRECT_FLAGS), self.random.choice(INDIRECT_GPAS), 64
            length = self.random.choice(INDIRECT_LENGTHS) if self.random.random() < 0.2 else length
        if left == 1 and not self.flawed():
            flags &= ~NEXT
        name = ids[ring.place % len(ids)] if not self.flawed() else self.random.choice(ids)
        ring.write(gpa, length, flags, name, available=not self.flawed())


Batches = tuple[list[list[reference.Chain]], tuple[str, int] | None]
"""Everything that was taken, batch by batch, and the rule that was broken, with its head."""


class SplitRing:
    """What one made ring is read by: the plain reference and the device's queue."""

    bulk = (split, "LOCK_STEP_FROM_CHAINS")

    def __init__(self, raw: RawRing) -> None:
        self.raw = raw

    def reference(self, indirect: bool) -> reference.Ring:
        return reference.Ring(self.raw.memory, self.raw.size, self.raw.desc, self.raw.avail, self.raw.used, indirect)

    def queue(self, indirect: bool) -> SplitQueue:
        return self.raw.queue(indirect=indirect)


class PackedRing:
    """The same for a packed ring, whose first unread descriptor is at `start`: place and wrap counter."""

    bulk = (packed, "BULK_FROM_CHAINS")

    def __init__(self, raw: RawPackedRing, start: tuple[int, int]) -> None:
        self.raw = raw
        self.start = start

    def reference(self, indirect: bool) -> reference.PackedRing:
        plain = reference.PackedRing(self.raw.memory, self.raw.size, self.raw.desc, indirect)
        plain.avail_place, plain.avail_wrap = plain.used_place, plain.used_wrap = self.start
        return plain

    def queue(self, indirect: bool) -> PackedQueue:
        queue = self.raw.queue(indirect=indirect)
        at_packed(queue, *self.start)
        return queue


def at_packed(queue: PackedQueue, place: int, wrap: int) -> None:
    """Put a queue that has taken nothing yet to another place."""
    queue._next_available = queue._next_used = queue._notified_used = place if wrap else place + queue.size


MadeRing = SplitRing | PackedRing
rings = st.sampled_from(("split", "packed"))


def made_ring(kind: str, memory: GuestMemory, seed: int, flaws: float, ahead: int) -> MadeRing:
    maker = Maker(seed, flaws)
    return maker.place(memory, ahead) if kind == "split" else maker.place_packed(memory, ahead)


def as_chains(chains: Chains | None, kind: str = "split") -> list[reference.Chain]:
    """The arrays, chain by chain, with what the reference says of a ring of that kind."""
    if chains is None:
        return []
    rows = list(zip(chains.addr.tolist(), chains.length.tolist(), chains.writable.tolist(), strict=True))
    bounds = list(pairwise(chains.first.tolist()))
    assert [end - start for start, end in bounds] and all(end > start for start, end in bounds)
    assert [chains.id_of(index) for index in range(len(chains))] == chains.buffer_id.tolist()
    assert [chains.slots_of(index) for index in range(len(chains))] == chains.slots.tolist()
    assert chains.are_readable() == (not chains.writable.any())
    names = [(name, slots) for name, slots in zip(chains.buffer_id.tolist(), chains.slots.tolist(), strict=True)]
    if kind == "split":
        assert chains.buffer_id.tolist() == chains.head.tolist()
        names = [(-1, 0)] * len(names)
    return [
        reference.Chain(head, [reference.Buffer(*row) for row in rows[start:end]], *name)
        for head, (start, end), name in zip(chains.head.tolist(), bounds, names, strict=True)
    ]


def drained_by_reference(ring: MadeRing, indirect: bool) -> Batches:
    plain = ring.reference(indirect)
    batches = []
    try:
        while batch := plain.take_available():
            batches.append(batch)
    except DriverError as error:
        return batches, (error.section, error.head)
    return batches, None


def drained(ring: MadeRing, indirect: bool, bulk_from: int) -> Batches:
    queue, kind = ring.queue(indirect), "split" if isinstance(ring, SplitRing) else "packed"
    batches = []
    with mock.patch.object(*ring.bulk, bulk_from):
        try:
            while batch := as_chains(queue.take_available(), kind):
                batches.append(batch)
        except DriverError as error:
            return batches, (error.section, error.head)
    return batches, None


aheads = st.sampled_from((*range(SIZE + 1), SIZE, SIZE, SIZE + 1, 65535))


@pytest.mark.parametrize("kind", ["split", "packed"])
@examples(2000)
@given(seed=st.integers(0, 1 << 64), flaws=st.sampled_from((0.0, 0.01, 0.1)), ahead=aheads, indirect=st.booleans())
def test_rings_are_read_alike(
    memory: GuestMemory, kind: str, seed: int, flaws: float, ahead: int, indirect: bool
) -> None:
    ring = made_ring(kind, memory, seed, flaws, ahead)
    expected = drained_by_reference(ring, indirect)
    event("valid" if expected[1] is None else f"breaks §{expected[1][0]}")
    assert drained(ring, indirect, NEVER) == expected
    assert drained(ring, indirect, ALWAYS) == expected


@examples(1000)
@given(
    rings, st.integers(0, 1 << 64), st.sampled_from((0, 1, 1, 2, SIZE)), st.sampled_from((1, 4)), st.integers(0, 700)
)
def test_arrays_of_entries_are_gathered_alike(
    memory: GuestMemory, kind: str, seed: int, ahead: int, entry_bytes: int, limit_bytes: int
) -> None:
    """One buffer, few chains and many: what is longer than the limit is not read, and nothing is counted twice."""
    ring = made_ring(kind, memory, seed, 0, ahead)
    memory.write(BUFFERS, random.Random(seed).randbytes(0x1200))
    batches = drained_by_reference(ring, True)[0]
    queues = ring.queue(True), ring.queue(True)
    for expected in batches:
        few = queues[0].take_available()
        with mock.patch.object(*ring.bulk, ALWAYS):
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


@examples(500)
@given(st.integers(1, 40), st.data())
def test_used_positions_of_a_packed_ring_are_understood_alike(
    memory: GuestMemory, size: int, data: st.DataObject
) -> None:
    ring = RawPackedRing(size, memory)
    place, wrap = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 1))
    off, off_wrap = data.draw(st.integers(0, size + 2)), data.draw(st.integers(0, 1))
    slots = data.draw(st.integers(1, size))
    ring.set_driver_event(off | off_wrap << 15, 2)
    queue = ring.queue(event_idx=True)
    at_packed(queue, place, wrap)
    queue._next_used = (queue._next_used + slots) % (2 * size)
    expected = reference.wants_packed_notification(size, off, off_wrap, place, wrap, slots)
    assert queue.needs_notification() == expected


@examples(400)
@given(st.integers(0, 1 << 64), st.sampled_from((1, 2, 3, 5, 8, 31)), st.sampled_from((ALWAYS, NEVER)))
def test_a_packed_ring_lives_alike(memory: GuestMemory, seed: int, size: int, bulk_from: int) -> None:
    """Chains of several lengths, taken together, held, and returned in any order and grouping, over many rounds: the
    ring has the same bytes at each step."""
    random_, other = random.Random(seed), memory_like(memory)
    ours, theirs = RawPackedRing(size, memory), RawPackedRing(size, other)
    for ring in (ours, theirs):
        ring.memory.write(ring.desc, bytes(16 * size))
    queue, plain = ours.queue(), reference.PackedRing(other, size, theirs.desc, True)
    held: list[Chains] = []
    free, names = size, set(range(size))
    with mock.patch.object(packed, "BULK_FROM_CHAINS", bulk_from):
        for _ in range(30):
            while free and random_.random() < 0.7:
                length = random_.randint(1, min(3, free))
                name = random_.choice(sorted(names))
                names.remove(name)
                free -= length
                for link in range(length):
                    flags = NEXT if link < length - 1 else random_.choice((0, WRITE))
                    for ring in (ours, theirs):
                        ring.write(BUFFERS, 1 + link, flags, name)
            taken = queue.take_available()
            assert as_chains(taken, "packed") == plain.take_available()
            if taken is not None:
                cut = random_.random() < 0.5
                held += [taken.only(index) for index in range(len(taken))] if cut else [taken]
            random_.shuffle(held)
            while held and random_.random() < 0.6:
                chains = held.pop()
                written = [random_.choice((0, 7)) for _ in range(len(chains))]
                queue.put_used(chains, written)
                for index in range(len(chains)):
                    plain.put_used(chains.id_of(index), written[index])
                    names.add(chains.id_of(index))
                    free += chains.slots_of(index)
            assert ours.ring_bytes() == theirs.ring_bytes()


@functools.cache
def memory_like(memory: GuestMemory) -> GuestMemory:
    """Another RAM of the same layout, for what the reference does."""
    return GuestMemory(LAYOUT)
