"""The split ring on the device's side (virtio 1.3 §2.7): one test a rule, on rings written byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from struct import Struct

import pytest

from devices.errors import DriverError
from devices.memory import GuestMemory
from devices.virtio import split
from devices.virtio.chains import Chains
from devices.virtio.split import SplitQueue
from tests.devices.virtio.rings import BUFFERS, INDIRECT, LAYOUT, NEXT, TABLES, WRITE, RawRing, descriptor

Spoil = Callable[[RawRing], None]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        yield made


@pytest.fixture
def ring(memory: GuestMemory) -> RawRing:
    """Eight valid one-descriptor chains, none offered."""
    made = RawRing(8, memory)
    for index in range(8):
        made.set_descriptor(index, BUFFERS + 16 * index, 4)
    return made


@pytest.fixture(params=["one by one", "lock-step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule holds on both ways."""
    monkeypatch.setattr(split, "LOCK_STEP_FROM_CHAINS", 1 if request.param == "lock-step" else 1 << 16)


def heads_of(chains: Chains | None) -> list[int]:
    return [] if chains is None else chains.head.tolist()


# -- taking ------------------------------------------------------------------------------------------------------------


def test_nothing_available_is_nothing_taken(ring: RawRing) -> None:
    assert ring.queue().take_available() is None


@pytest.mark.usefixtures("way")
def test_chains_come_in_the_order_of_the_available_ring(ring: RawRing) -> None:
    ring.offer(5, 0, 3)
    queue = ring.queue()
    assert heads_of(queue.take_available()) == [5, 0, 3]
    assert queue.take_available() is None
    ring.offer(1)
    assert heads_of(queue.take_available()) == [1]


@pytest.mark.usefixtures("way")
def test_a_chain_keeps_its_buffers_in_order(ring: RawRing) -> None:
    ring.set_descriptor(3, BUFFERS, 10, NEXT, 6)
    ring.set_descriptor(6, BUFFERS + 64, 20, NEXT | WRITE, 1)
    ring.set_descriptor(1, BUFFERS + 128, 30, WRITE, 7)
    ring.offer(3, 0)
    chains = ring.queue().take_available()
    assert chains is not None
    assert chains.first.tolist() == [0, 3, 4]
    assert chains.addr.tolist() == [BUFFERS, BUFFERS + 64, BUFFERS + 128, BUFFERS]
    assert chains.length.tolist() == [10, 20, 30, 4]
    assert chains.writable.tolist() == [False, True, True, False]
    assert chains.slots.tolist() == [3, 1]


@pytest.mark.usefixtures("way")
def test_2_7_5_3_2_direct_descriptors_may_be_followed_by_an_indirect_one(ring: RawRing) -> None:
    """WRITE means nothing in the descriptor that refers to the table; `next` counts within the table."""
    ring.set_descriptor(0, BUFFERS, 10, NEXT, 2)
    ring.set_descriptor(2, TABLES, 48, INDIRECT | WRITE, 7)
    table = (descriptor(BUFFERS + 64, 20, NEXT, 2), b"\xff" * 16, descriptor(BUFFERS + 128, 30, WRITE))
    ring.set_table(TABLES, *table)
    ring.offer(0, 1)
    chains = ring.queue().take_available()
    assert chains is not None
    assert chains.first.tolist() == [0, 3, 4]
    assert chains.length.tolist() == [10, 20, 30, 4]
    assert chains.slots.tolist() == [2, 1]


@pytest.mark.usefixtures("way")
def test_a_call_takes_no_more_descriptors_than_the_queue_has_entries(ring: RawRing) -> None:
    """Tables of three: eight chains are 24 descriptors, so three calls are needed and none is lost."""
    for head in range(8):
        ring.set_descriptor(head, TABLES + 64 * head, 48, INDIRECT)
        links = [descriptor(BUFFERS, 4, NEXT, 1), descriptor(BUFFERS, 4, NEXT, 2), descriptor(BUFFERS, 4)]
        ring.set_table(TABLES + 64 * head, *links)
    ring.offer(*range(8))
    queue = ring.queue()
    batches = [heads_of(queue.take_available()) for _ in range(5)]
    assert batches == [[0, 1], [2, 3], [4, 5], [6, 7], []]


@pytest.mark.usefixtures("way")
def test_the_index_wraps_at_65536(ring: RawRing) -> None:
    queue = ring.queue()
    for _ in range(65536 // 8):
        ring.offer(*range(8))
        chains = queue.take_available()
        assert chains is not None
        queue.put_used(chains)
    ring.offer(4, 2)
    chains = queue.take_available()
    assert chains is not None and heads_of(chains) == [4, 2]
    queue.put_used(chains, 9)
    assert ring.used_idx() == 2
    assert ring.used_elements() == [(4, 9), (2, 9)]


def test_a_queue_of_32768_entries_works_at_once(memory: GuestMemory) -> None:
    ring = RawRing(1, memory)
    ring.size, ring.desc, ring.avail, ring.used = 32768, 0x100000, 0x190000, 0x1B0000
    for index in range(32768):
        ring.set_descriptor(index, BUFFERS, 4)
    for index in range(32768):
        memory.write_int(ring.avail + 4 + 2 * index, 2, 32767 - index)
    ring.set_avail_idx(32768)
    queue = ring.queue()
    chains = queue.take_available()
    assert chains is not None and len(chains) == 32768
    queue.put_used(chains, 1)
    assert ring.used_idx() == 32768
    assert memory.read_int(ring.used + 4 + 8 * 32767, 8) == 1 << 32


# -- what breaks a rule ------------------------------------------------------------------------------------------------


def set_chain(*descriptors: tuple[int, int, int, int]) -> Spoil:
    """Descriptors 0, 1, … as given; head 0 is offered."""

    def spoil(ring: RawRing) -> None:
        for index, given in enumerate(descriptors):
            ring.set_descriptor(index, *given)

    return spoil


def set_indirect(length: int, *table: bytes, flags: int = INDIRECT, gpa: int = TABLES) -> Spoil:
    def spoil(ring: RawRing) -> None:
        ring.set_descriptor(0, gpa, length, flags, 1)
        if table:
            ring.set_table(gpa, *table)

    return spoil


B = BUFFERS
BROKEN: dict[str, tuple[Spoil, str]] = {
    "next out of range": (set_chain((B, 4, NEXT, 8)), "2.7.5"),
    "next far out of range": (set_chain((B, 4, NEXT, 65535)), "2.7.5"),
    "loop of one": (set_chain((B, 4, NEXT, 0)), "2.7.5.2"),
    "loop of two": (set_chain((B, 4, NEXT, 1), (B, 4, NEXT, 0)), "2.7.5.2"),
    "length 0": (set_chain((B, 0, 0, 0)), "2.7.5"),
    "length 0 in the middle": (set_chain((B, 4, NEXT, 1), (B, 0, NEXT, 2), (B, 4, 0, 0)), "2.7.5"),
    "readable after writable": (set_chain((B, 4, NEXT | WRITE, 1), (B, 4, 0, 0)), "2.7.4.2"),
    "buffer in a hole": (set_chain((0xA0000, 4, 0, 0)), "2.7.5"),
    "buffer reaches a hole": (set_chain((0x9FFFE, 4, 0, 0)), "2.7.5"),
    "buffer behind RAM": (set_chain(((1 << 32) + 0x10000, 1, 0, 0)), "2.7.5"),
    "buffer of 4 GiB": (set_chain((B, 0xFFFFFFFF, 0, 0)), "2.7.5"),
    "address wraps": (set_chain(((1 << 64) - 4, 8, 0, 0)), "2.7.5"),
    "indirect of length 0": (set_indirect(0), "2.7.5.3"),
    "indirect of 24 bytes": (set_indirect(24), "2.7.5.3"),
    "indirect with next": (set_indirect(16, descriptor(B, 4), flags=INDIRECT | NEXT), "2.7.5.3.1"),
    "indirect outside RAM": (set_indirect(32, gpa=0xA0000 - 16), "2.7.5"),
    "indirect of 4 GiB": (set_indirect(0xFFFFFFF0), "2.7.5"),
    "nested indirect": (set_indirect(16, descriptor(TABLES, 16, INDIRECT)), "2.7.5.3.1"),
    "next outside the indirect table": (set_indirect(16, descriptor(B, 4, NEXT, 1)), "2.7.5"),
    "loop in the indirect table": (set_indirect(32, descriptor(B, 4, NEXT, 1), descriptor(B, 4, NEXT, 0)), "2.7.5.2"),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_chain_is_an_error_that_names_rule_and_head(ring: RawRing, name: str) -> None:
    spoil, section = BROKEN[name]
    spoil(ring)
    ring.offer(7, 0)
    with pytest.raises(DriverError) as raised:
        ring.queue().take_available()
    assert (raised.value.section, raised.value.head) == (section, 0)


@pytest.mark.usefixtures("way")
def test_2_7_5_3_1_indirect_needs_its_feature(ring: RawRing) -> None:
    set_indirect(16, descriptor(B, 4))(ring)
    ring.offer(7, 0)
    with pytest.raises(DriverError, match="INDIRECT_DESC was not negotiated") as raised:
        ring.queue(indirect=False).take_available()
    assert raised.value.section == "2.7.5.3.1"


@pytest.mark.usefixtures("way")
def test_2_7_5_3_1_a_chain_is_not_longer_than_the_queue(ring: RawRing) -> None:
    links = [descriptor(B, 4, NEXT if i < 8 else 0, i + 1) for i in range(9)]
    set_indirect(16 * 9, *links)(ring)
    ring.offer(0)
    with pytest.raises(DriverError, match="too long") as raised:
        ring.queue().take_available()
    assert raised.value.section == "2.7.5.2"


@pytest.mark.usefixtures("way")
def test_2_7_5_2_a_chain_is_not_larger_than_4_gib() -> None:
    with GuestMemory(((0, 0xA0000), (1 << 32, 1 << 32))) as memory:
        ring = RawRing(8, memory)
        ring.set_descriptor(0, 1 << 32, 0xFFFFFFFF, NEXT, 1)
        ring.set_descriptor(1, 1 << 32, 1)
        ring.offer(0)
        assert heads_of(ring.queue().take_available()) == [0]
        ring.set_descriptor(1, 1 << 32, 2)
        with pytest.raises(DriverError, match=r"2\^32"):
            ring.queue().take_available()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("head", [8, 65535])
def test_2_7_6_a_head_is_below_the_queue_size(ring: RawRing, head: int) -> None:
    ring.offer(0, head)
    with pytest.raises(DriverError) as raised:
        ring.queue().take_available()
    assert (raised.value.section, raised.value.head) == ("2.7.6", head)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("ahead", [9, 32768, 65535])
def test_2_7_13_3_the_index_is_never_ahead_by_more_than_the_queue_size(ring: RawRing, ahead: int) -> None:
    ring.set_avail_idx(ahead)
    with pytest.raises(DriverError, match=f"{ahead} entries ahead") as raised:
        ring.queue().take_available()
    assert raised.value.section == "2.7.13.3"


@pytest.mark.usefixtures("way")
def test_2_7_13_1_a_head_in_flight_is_not_offered_again(ring: RawRing) -> None:
    ring.offer(3, 4)
    queue = ring.queue()
    queue.take_available()
    ring.offer(5, 3)
    with pytest.raises(DriverError, match="in flight") as raised:
        queue.take_available()
    assert (raised.value.section, raised.value.head) == ("2.7.13.1", 3)


@pytest.mark.usefixtures("way")
def test_2_7_13_1_nor_twice_at_once(ring: RawRing) -> None:
    ring.offer(2, 6, 2)
    with pytest.raises(DriverError, match="in flight") as raised:
        ring.queue().take_available()
    assert raised.value.head == 2


@pytest.mark.parametrize(
    ("desc", "driver", "device", "part"),
    [(8, 0, 0, "descriptor table"), (0, 1, 0, "available ring"), (0, 0, 2, "used ring")],
)
def test_2_7_1_parts_are_aligned(memory: GuestMemory, desc: int, driver: int, device: int, part: str) -> None:
    with pytest.raises(DriverError, match=f"the {part} at .* must be aligned") as raised:
        SplitQueue(memory, 8, 0x1000 + desc, 0x2000 + driver, 0x3000 + device)
    assert raised.value.section == "2.7.1"


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("gpa", [0xA0000 - 16, 0xA0000, (1 << 32) + 0x10000, (1 << 64) - 16])
def test_parts_are_inside_ram(memory: GuestMemory, part: int, gpa: int) -> None:
    places = [0x1000, 0x2000, 0x3000]
    places[part] = gpa
    with pytest.raises(DriverError, match="not all in guest RAM"):
        SplitQueue(memory, 8, *places)


def test_2_7_1_used_event_and_avail_event_count_only_with_their_feature(memory: GuestMemory) -> None:
    """Both rings end exactly where RAM ends; two more bytes each do not fit."""
    places = (0x1000, 0xA0000 - 4 - 16, 0x100000)
    SplitQueue(memory, 8, *places)
    with pytest.raises(DriverError):
        SplitQueue(memory, 8, *places, event_idx=True)


# -- putting -----------------------------------------------------------------------------------------------------------


def test_2_7_8_elements_come_back_in_any_order(ring: RawRing) -> None:
    ring.offer(1, 2, 3)
    queue = ring.queue()
    chains = queue.take_available()
    assert chains is not None
    queue.put_used(chains.only(2), 7)
    queue.put_used(chains.only(0), 5)
    assert ring.used_elements() == [(3, 7), (1, 5)]
    ring.offer(3, 1)
    assert heads_of(queue.take_available()) == [3, 1]


def test_what_was_put_is_remembered_as_written(ring: RawRing) -> None:
    ring.offer(1, 2, 3)
    queue = ring.queue()
    chains = queue.take_available()
    assert chains is not None
    ring.memory.take_writes()
    queue.put_used(chains, [1, 2, 3])
    written = {gpa + i for gpa, length in ring.memory.take_writes() for i in range(length)}
    assert {ring.used + 2, ring.used + 3, *range(ring.used + 4, ring.used + 28)} <= written


def test_2_7_8_2_the_used_index_is_written_after_the_elements(ring: RawRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once: when the index moves, every element it covers is there."""
    monkeypatch.setattr(split, "LOCK_STEP_FROM_CHAINS", 1)
    ring.offer(*range(8))
    queue = ring.queue()
    seen: list[tuple[int, bytes]] = []
    chains = queue.take_available()
    assert chains is not None
    put_many = queue._put_many

    def watched(chains: Chains, written: int, position: int) -> None:
        put_many(chains, written, position)
        seen.append((ring.used_idx(), ring.memory.read(ring.used + 4, 64)))

    monkeypatch.setattr(queue, "_put_many", watched)
    queue.put_used(chains, 3)
    assert seen == [(0, b"".join(bytes([head, 0, 0, 0, 3, 0, 0, 0]) for head in range(8)))]
    assert ring.used_idx() == 8


# -- what stands before and after a fence ------------------------------------------------------------------------------
# A driver on another processor is played by a fence that lets it act: what it does there must count, since everything
# before the fence is visible to it and everything after it is read anew.


def test_2_7_13_ring_entries_are_read_after_the_available_index(ring: RawRing, monkeypatch: pytest.MonkeyPatch) -> None:
    ring.offer(0)
    late_entry = (2).to_bytes(2, "little")
    monkeypatch.setattr(ring.memory, "fence", lambda: ring.memory.write(ring.avail + 4, late_entry))
    chains = ring.queue().take_available()
    assert chains is not None and chains.head.tolist() == [2]


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("wants", [False, True])
def test_2_7_7_2_the_drivers_wish_is_read_after_the_used_index_is_there(
    ring: RawRing, monkeypatch: pytest.MonkeyPatch, event_idx: bool, wants: bool
) -> None:
    ring.offer(0)
    queue = ring.queue(event_idx=event_idx)
    chains = queue.take_available()
    assert chains is not None
    queue.put_used(chains)

    def wish(wanted: bool) -> None:
        ring.set_avail_flags(0 if wanted else 1)
        ring.set_used_event(0 if wanted else 100)

    def change_of_mind() -> None:
        assert ring.used_idx() == 1
        wish(wants)

    wish(not wants)
    monkeypatch.setattr(ring.memory, "fence", change_of_mind)
    assert queue.needs_notification() is wants


def test_2_7_10_2_a_chain_offered_while_avail_event_is_stored_is_not_lost(
    ring: RawRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver read the old avail_event and does not notify: the device must look once more after its store."""
    ring.offer(0)
    queue = ring.queue(event_idx=True)

    def offer_late() -> None:
        if ring.avail_event() == 1 and not late:
            late.append(1)
            ring.offer(1)

    late: list[int] = []
    monkeypatch.setattr(ring.memory, "fence", offer_late)
    assert queue.take_available() is not None
    chains = queue.take_available()
    assert chains is not None and chains.head.tolist() == [1]


def test_2_7_8_2_the_used_index_is_written_after_each_of_a_few_elements(
    ring: RawRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring.offer(*range(8))
    queue = ring.queue()
    chains = queue.take_available()
    assert chains is not None
    store = Struct("<II").pack_into
    seen: list[tuple[int, int]] = []

    class Watched:
        @staticmethod
        def pack_into(ring_bytes: memoryview, place: int, head: int, length: int) -> None:
            seen.append((head, ring.used_idx()))
            store(ring_bytes, place, head, length)

    monkeypatch.setattr(queue, "_used_elem", Watched)
    queue.put_used(chains, 3)
    assert seen == [(head, 0) for head in range(8)]
    assert ring.used_idx() == 8
    assert ring.memory.read(ring.used + 4, 64) == b"".join(bytes([head, 0, 0, 0, 3, 0, 0, 0]) for head in range(8))


# -- notifications -----------------------------------------------------------------------------------------------------


def served(queue: SplitQueue) -> bool:
    """Put everything available and say whether the driver wants to hear of it."""
    while (chains := queue.take_available()) is not None:
        queue.put_used(chains)
    return queue.needs_notification()


def test_2_7_7_2_without_event_idx_the_flag_decides_and_used_event_is_ignored(ring: RawRing) -> None:
    queue = ring.queue()
    ring.set_used_event(100)
    ring.offer(0)
    assert served(queue)
    ring.set_avail_flags(1)
    ring.offer(1)
    assert not served(queue)


def test_2_7_7_2_with_event_idx_used_event_decides_and_the_flag_is_ignored(ring: RawRing) -> None:
    queue = ring.queue(event_idx=True)
    ring.set_avail_flags(1)
    ring.set_used_event(2)
    wanted = []
    for head in (0, 1, 2, 3):
        ring.offer(head)
        wanted.append(served(queue))
    assert wanted == [False, False, True, False]


def test_nothing_put_is_nothing_to_hear_of(ring: RawRing) -> None:
    assert not ring.queue().needs_notification()
    assert not ring.queue(event_idx=True).needs_notification()


def test_2_7_10_2_avail_event_follows_what_was_taken(ring: RawRing) -> None:
    queue = ring.queue(event_idx=True)
    ring.offer(0, 1, 2)
    queue.take_available()
    assert ring.avail_event() == 3


def test_2_7_10_2_without_event_idx_the_field_is_not_touched(ring: RawRing) -> None:
    ring.memory.write_int(ring.used + 4 + 8 * 8, 2, 0x5555)
    ring.offer(0, 1, 2)
    assert served(ring.queue())
    assert ring.avail_event() == 0x5555
