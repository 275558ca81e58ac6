"""The packed ring on the device's side: what is put, who is told of it, and in which order (virtio 1.3 §2.8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from devices.errors import ConfigError
from devices.memory import GuestMemory
from devices.virtio import packed
from devices.virtio.chains import Chains
from devices.virtio.packed import PackedQueue
from tests.devices.virtio.rings import (
    AVAIL,
    BUFFERS,
    LAYOUT,
    NEXT,
    USED_FLAG,
    WRITE,
    RawPackedRing,
    descriptor,
)

Spoil = Callable[[RawPackedRing], None]
B = BUFFERS
ENABLE, DISABLE, DESC = 0, 1, 2


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        yield made


@pytest.fixture
def ring(memory: GuestMemory) -> RawPackedRing:
    """Eight descriptors, none available."""
    return RawPackedRing(8, memory)


@pytest.fixture(params=["one by one", "in bulk"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule holds on both ways."""
    monkeypatch.setattr(packed, "BULK_FROM_CHAINS", 1 if request.param == "in bulk" else 1 << 16)


def offer(ring: RawPackedRing, *ids: int) -> None:
    """Chains of one descriptor, the buffer of id n at B + 16 n."""
    for name in ids:
        ring.write(B + 16 * (name % 256), 4, 0, name)


def ids_of(chains: Chains | None) -> list[int]:
    return [] if chains is None else chains.buffer_id.tolist()


def take(queue: PackedQueue) -> Chains:
    chains = queue.take_available()
    assert chains is not None
    return chains


# -- putting -----------------------------------------------------------------------------------------------------------


def used(ring: RawPackedRing, place: int) -> tuple[int, int, int]:
    """Id, length and flags of the descriptor there."""
    _, length, name, flags = ring.descriptor(place)
    return name, length, flags


FIRST_ROUND = AVAIL | USED_FLAG


@pytest.mark.usefixtures("way")
def test_2_8_6_chains_come_back_in_any_order_and_skip_their_own_slots(ring: RawPackedRing) -> None:
    ring.write(B, 4, NEXT, 1)
    ring.write(B, 4, 0, 1)
    offer(ring, 2)
    ring.write(B, 4, NEXT, 3)
    ring.write(B, 4, NEXT, 3)
    ring.write(B, 4, WRITE, 3)
    queue = ring.queue()
    chains = take(queue)
    queue.put_used(chains.only(2), 2)  # at 0, three slots
    queue.put_used(chains.only(1))  # at 3, one
    queue.put_used(chains.only(0))  # at 4, two
    assert used(ring, 0) == (3, 2, FIRST_ROUND | WRITE)
    assert used(ring, 3)[::2] == (2, FIRST_ROUND)
    assert used(ring, 4)[::2] == (1, FIRST_ROUND)
    offer(ring, 1, 3)
    assert take(queue).head.tolist() == [6, 7]


@pytest.mark.usefixtures("way")
def test_2_8_3_write_says_whether_anything_was_written(ring: RawPackedRing) -> None:
    for name in range(3):
        ring.write(B, 4, WRITE, name)
    queue = ring.queue()
    queue.put_used(take(queue), [4, 0, 1])
    assert [used(ring, place) for place in range(3)] == [
        (0, 4, FIRST_ROUND | WRITE),
        (1, 0, FIRST_ROUND),
        (2, 1, FIRST_ROUND | WRITE),
    ]


@pytest.mark.usefixtures("way")
def test_2_8_15_nothing_else_of_the_ring_is_written(ring: RawPackedRing) -> None:
    """Not the addresses, not the descriptors that a used one skips, and nothing after it is used."""
    for name in range(4):
        ring.write(B + name, 4, NEXT, name)
        ring.write(B + name, 5, 0, name)
    queue = ring.queue()
    chains = take(queue)
    before = ring.ring_bytes()
    queue.put_used(chains)
    after = ring.ring_bytes()
    assert {i // 16 for i in range(128) if before[i] != after[i]} == {0, 2, 4, 6}
    assert all(before[16 * i : 16 * i + 8] == after[16 * i : 16 * i + 8] for i in range(8))
    queue.needs_notification()
    assert queue.take_available() is None and ring.ring_bytes() == after


@pytest.mark.usefixtures("way")
def test_what_was_put_is_remembered_as_written(ring: RawPackedRing) -> None:
    ring.advance(6)
    queue = ring.queue()
    queue._next_available = queue._next_used = queue._notified_used = 6
    offer(ring, 1, 2, 3, 4)
    chains = take(queue)
    ring.memory.take_writes()
    queue.put_used(chains, [1, 2, 3, 4])
    told = {gpa + i for gpa, length in ring.memory.take_writes() for i in range(length)}
    assert {ring.desc + 16 * place + i for place in (6, 7, 0, 1) for i in range(8, 16)} <= told


# -- what stands before and after a fence, and what is one store -------------------------------------------------------
# A driver on another processor is played by a fence that lets it act, and by a word that is stored.


class WatchedWords:
    """The ring as 16-bit words; `seen` has the place and the whole ring at each store."""

    def __init__(self, ring: RawPackedRing, words: memoryview) -> None:
        self.ring = ring
        self.words = words
        self.seen: list[tuple[int, bytes]] = []

    def __getitem__(self, index: int) -> int:
        return int(self.words[index])

    def __setitem__(self, index: int, value: int) -> None:
        self.seen.append((index, self.ring.ring_bytes()))
        self.words[index] = value


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("count", [1, 2, 8])
def test_2_8_6_one_16_bit_store_shows_what_was_put(ring: RawPackedRing, count: int) -> None:
    """The first descriptor's flags, behind its body and behind all others that were put with it."""
    for name in range(count):
        ring.write(B, 4, WRITE, name)
    queue = ring.queue()
    chains = take(queue)
    words = WatchedWords(ring, queue._words)
    queue._words = words  # type: ignore[assignment]
    queue.put_used(chains, [10 + name for name in range(count)])
    ((index, before),) = words.seen
    assert index == 7
    assert before[8:16] == (10).to_bytes(4, "little") + bytes(2) + (AVAIL | WRITE).to_bytes(2, "little")
    after = ring.ring_bytes()
    assert after[16:] == before[16:] and used(ring, 0) == (0, 10, FIRST_ROUND | WRITE)
    assert [used(ring, place) for place in range(count)] == [
        (name, 10 + name, FIRST_ROUND | WRITE) for name in range(count)
    ]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("count", [1, 3])
def test_the_body_is_read_after_the_flags(ring: RawPackedRing, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    offer(ring, *range(count))

    def late() -> None:
        for place in range(count):
            ring.memory.write(ring.desc + 16 * place, descriptor(B, 99, 40 + place)[:14])

    monkeypatch.setattr(ring.memory, "fence", late)
    chains = take(ring.queue())
    assert (ids_of(chains), chains.length.tolist()) == ([40 + place for place in range(count)], [99] * count)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("wants", [False, True])
def test_2_8_10_the_drivers_wish_is_read_after_the_used_descriptor_is_there(
    ring: RawPackedRing, monkeypatch: pytest.MonkeyPatch, event_idx: bool, wants: bool
) -> None:
    offer(ring, 0)
    queue = ring.queue(event_idx=event_idx)
    queue.put_used(take(queue))

    def wish(wanted: bool) -> None:
        if event_idx:
            ring.set_driver_event((0 if wanted else 5) | 1 << 15, DESC)
        else:
            ring.set_driver_event(0, ENABLE if wanted else DISABLE)

    def change_of_mind() -> None:
        assert used(ring, 0)[2] == FIRST_ROUND
        wish(wants)

    wish(not wants)
    monkeypatch.setattr(ring.memory, "fence", change_of_mind)
    assert queue.needs_notification() is wants


def test_a_chain_offered_while_the_event_is_stored_is_not_lost(
    ring: RawPackedRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver read the old event and does not notify: the device must look once more after its store."""
    offer(ring, 0)
    queue = ring.queue(event_idx=True)
    late: list[int] = []

    def offer_late() -> None:
        if ring.read_device_event()[0] == 1 | 1 << 15 and not late:
            late.append(1)
            offer(ring, 1)

    monkeypatch.setattr(ring.memory, "fence", offer_late)
    assert ids_of(queue.take_available()) == [0]
    assert ids_of(queue.take_available()) == [1]


# -- notifications -----------------------------------------------------------------------------------------------------


def served(queue: PackedQueue) -> bool:
    """Put everything available and say whether the driver wants to hear of it."""
    while (chains := queue.take_available()) is not None:
        queue.put_used(chains)
    return queue.needs_notification()


def test_2_8_10_flags_decide(ring: RawPackedRing) -> None:
    queue = ring.queue()
    wanted = []
    for name, flags in enumerate((ENABLE, DISABLE, ENABLE, 3, 0xFFFC)):  # reserved bits and values silence nobody
        ring.set_driver_event(0, flags)
        offer(ring, name)
        wanted.append(served(queue))
    assert wanted == [True, False, True, True, True]


def test_2_8_10_a_descriptor_counts_only_with_event_idx(ring: RawPackedRing) -> None:
    ring.set_driver_event(5 | 1 << 15, DESC)
    queue = ring.queue()
    offer(ring, 0)
    assert served(queue)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_2_8_10_with_event_idx_a_descriptor_is_named_with_its_round(memory: GuestMemory, size: int) -> None:
    """The second descriptor of the second round, or what comes as near as the size allows."""
    ring = RawPackedRing(size, memory)
    queue = ring.queue(event_idx=True)
    wanted_place = min(1, size - 1)
    ring.set_driver_event(wanted_place, DESC)  # wrap counter 0
    told = []
    for name in range(4 * size):
        offer(ring, name)
        told.append(served(queue))
    assert [index for index, wanted in enumerate(told) if wanted] == [
        round_ * 2 * size + size + wanted_place for round_ in range(2)
    ]


def test_2_8_10_a_descriptor_that_is_skipped_counts_as_used(ring: RawPackedRing) -> None:
    queue = ring.queue(event_idx=True)
    ring.set_driver_event(1 | 1 << 15, DESC)
    for link in range(3):
        ring.write(B, 4, NEXT if link < 2 else 0, 1)
    assert served(queue)


def test_a_place_that_the_ring_does_not_have_is_never_reached(ring: RawPackedRing) -> None:
    queue = ring.queue(event_idx=True)
    for wrap in (0, 1):
        ring.set_driver_event(8 | wrap << 15, DESC)
        for name in range(16):
            offer(ring, name)
            assert not served(queue)


def test_nothing_put_is_nothing_to_hear_of(ring: RawPackedRing) -> None:
    assert not ring.queue().needs_notification()
    ring.set_driver_event(0 | 1 << 15, DESC)
    assert not ring.queue(event_idx=True).needs_notification()


def test_with_event_idx_the_device_asks_for_the_next_descriptor(ring: RawPackedRing) -> None:
    queue = ring.queue(event_idx=True)
    offer(ring, *range(5))
    take(queue)
    assert ring.read_device_event() == (5 | 1 << 15, DESC)
    offer(ring, *range(5, 8))
    queue.put_used(take(queue))
    assert ring.read_device_event() == (0, DESC)  # the next round, whose wrap counter is 0


def test_without_event_idx_the_structure_is_not_touched(ring: RawPackedRing) -> None:
    ring.memory.write(ring.device_event, b"\x55\x66\x00\x00")
    offer(ring, 0, 1, 2)
    assert served(ring.queue())
    assert ring.memory.read(ring.device_event, 4) == b"\x55\x66\x00\x00"


# -- in order (§2.8.8) -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
def test_2_8_8_one_used_descriptor_stands_for_a_batch(ring: RawPackedRing) -> None:
    """Its id is the last one's, it stands where the first one's would, and the next one behind the whole batch."""
    offer(ring, 1)
    ring.write(B, 4, NEXT, 2)
    ring.write(B, 4, 0, 2)
    offer(ring, 3)
    queue = ring.queue(in_order=True)
    chains = take(queue)
    before = ring.ring_bytes()
    queue.put_used(chains)
    assert used(ring, 0) == (3, 0, FIRST_ROUND)
    assert ring.ring_bytes()[16:] == before[16:]
    offer(ring, 1)
    queue.put_used(take(queue))
    assert used(ring, 4) == (1, 0, FIRST_ROUND)


@pytest.mark.usefixtures("way")
def test_2_8_8_what_was_not_wholly_written_is_not_skipped(ring: RawPackedRing) -> None:
    """A skipped buffer counts as completely used, and these have room that nothing was written to."""
    for name in range(3):
        ring.write(B, 4, WRITE, name)
    queue = ring.queue(in_order=True)
    queue.put_used(take(queue))
    assert [used(ring, place) for place in range(3)] == [(name, 0, FIRST_ROUND) for name in range(3)]


# -- what a notification announces (§2.9) ------------------------------------------------------------------------------


def test_2_9_an_announcement_is_compared_with_the_ring(ring: RawPackedRing) -> None:
    queue = ring.queue()
    offer(ring, *range(6))
    queue.put_used(take(queue))

    def data(offset: int, wrap: int) -> int:
        return offset << 16 | wrap << 31

    assert queue.misannounced(data(6, 1)) == ""
    assert queue.misannounced(data(3, 1)) == ""  # an older notification
    told = "next offset 7 and wrap counter 1, the ring goes on at 6 with 1"
    assert queue.misannounced(data(7, 1)) == told
    assert queue.misannounced(data(0, 0)) != "" and queue.misannounced(data(8, 1)) != ""


def test_states_of_other_rings_do_not_fit(ring: RawPackedRing) -> None:
    """What is in flight and where it lies must agree."""
    offer(ring, 4, 9)
    queue = ring.queue()
    take(queue)
    saved = queue.save_state()
    assert saved["in_flight"] == [4, 9]
    fresh = ring.queue()
    fresh.check_state(saved, "ring")
    fresh.restore_state(saved)
    assert fresh == queue
    changes: tuple[dict[str, object], ...] = (
        {"next_available": 16},
        {"next_used": 2},
        {"in_flight": [4, 9, 10]},
        {"in_flight": [9, 4]},
        {"in_flight": []},
        {"next_used": 5},
    )
    for change in changes:
        with pytest.raises(ConfigError, match="does not fit this machine: ring"):
            ring.queue().check_state({**saved, **change}, "ring")


def test_positions_of_both_ends_never_pass_each_other(ring: RawPackedRing) -> None:
    """Through five rounds of held chains: what is in flight is what lies between the two ends."""
    queue = ring.queue()
    held: list[Chains] = []
    for name in range(40):
        if len(held) == 8:
            queue.put_used(held.pop(0))
        offer(ring, name)
        held.append(take(queue))
        state = queue.save_state()
        between = (int(state["next_available"]) - int(state["next_used"])) % 16  # type: ignore[arg-type]
        assert between == len(held)
    assert all(first < second for first, second in pairwise(int(each.buffer_id[0]) for each in held))
