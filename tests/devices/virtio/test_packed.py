"""The packed ring on the device's side (virtio 1.3 §2.8): one test a rule, on rings written byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from devices.errors import DriverError
from devices.memory import GuestMemory
from devices.virtio import packed
from devices.virtio.chains import Chains
from devices.virtio.packed import PackedQueue
from devices.virtio.packed_walk import PackedWalker
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


# -- taking ------------------------------------------------------------------------------------------------------------


def test_a_zeroed_ring_has_nothing_available(ring: RawPackedRing) -> None:
    assert ring.queue().take_available() is None


@pytest.mark.usefixtures("way")
def test_2_8_12_chains_come_in_the_order_of_the_ring(ring: RawPackedRing) -> None:
    offer(ring, 5, 0, 3)
    queue = ring.queue()
    chains = take(queue)
    assert (ids_of(chains), chains.head.tolist()) == ([5, 0, 3], [0, 1, 2])
    assert queue.take_available() is None
    offer(ring, 1)
    assert ids_of(queue.take_available()) == [1]


@pytest.mark.usefixtures("way")
def test_2_8_6_a_list_is_its_neighbours_and_its_id_is_the_last_one_s(ring: RawPackedRing) -> None:
    ring.write(B, 10, NEXT, 70)
    ring.write(B + 64, 20, NEXT | WRITE, 71)
    ring.write(B + 128, 30, WRITE, 72)
    ring.write(B, 4, 0, 9)
    chains = take(ring.queue())
    assert (ids_of(chains), chains.head.tolist(), chains.slots.tolist()) == ([72, 9], [0, 3], [3, 1])
    assert chains.first.tolist() == [0, 3, 4]
    assert chains.addr.tolist() == [B, B + 64, B + 128, B]
    assert chains.length.tolist() == [10, 20, 30, 4]
    assert chains.writable.tolist() == [False, True, True, False]


@pytest.mark.usefixtures("way")
def test_2_8_7_in_a_table_only_write_means_anything(ring: RawPackedRing) -> None:
    """Neither NEXT nor INDIRECT nor an id there, and not the WRITE flag of what refers to it; one slot."""
    entries = descriptor(B, 10, 0xFFFF, NEXT | AVAIL), descriptor(B + 64, 20, 5, INDIRECT), descriptor(B, 30, 6, WRITE)
    ring.memory.write(TABLES, b"".join(entries))
    ring.write(TABLES, 48, INDIRECT | WRITE, 7)
    ring.write(B, 4, 0, 8)
    chains = take(ring.queue())
    assert (ids_of(chains), chains.slots.tolist(), chains.first.tolist()) == ([7, 8], [1, 1], [0, 3, 4])
    assert chains.length.tolist() == [10, 20, 30, 4]
    assert chains.writable.tolist() == [False, False, True, False]


@pytest.mark.usefixtures("way")
def test_a_call_takes_no_more_descriptors_than_the_queue_has_entries(ring: RawPackedRing) -> None:
    ring.memory.write(TABLES, descriptor(B, 4) * 3)
    for name in range(8):
        ring.write(TABLES, 48, INDIRECT, name)
    queue = ring.queue()
    assert [ids_of(queue.take_available()) for _ in range(5)] == [[0, 1], [2, 3], [4, 5], [6, 7], []]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("size", "length"), [(size, length) for size in (1, 2, 3, 7, 8) for length in (1, 2, 3) if length <= size]
)
def test_2_8_1_the_wrap_counters_turn_for_ever(memory: GuestMemory, size: int, length: int) -> None:
    """Lists across the end of the ring included; the used descriptor stands where the list began, and a list that is
    put is not seen again."""
    ring = RawPackedRing(size, memory)
    queue = ring.queue()
    for round_ in range(5 * size):
        place, wrap = ring.place, ring.wrap
        for link in range(length):
            ring.write(B, 1 + link, NEXT if link < length - 1 else 0, round_)
        chains = take(queue)
        assert (ids_of(chains), chains.length.tolist()) == ([round_], [1 + link for link in range(length)])
        assert queue.take_available() is None
        queue.put_used(chains)
        assert ring.descriptor(place)[2:] == (round_, (AVAIL | USED_FLAG) if wrap else 0)
        assert queue.take_available() is None


def test_a_queue_of_32768_descriptors_works_at_once(memory: GuestMemory) -> None:
    ring = RawPackedRing(1, memory)
    ring.size, ring.desc, ring.driver_event, ring.device_event = 32768, 0x100000, 0x190000, 0x190004
    queue = ring.queue()
    for wrap in (1, 0):
        marks = AVAIL if wrap else USED_FLAG
        memory.write(ring.desc, b"".join(descriptor(B, 4, 65535 - name, marks) for name in range(32768)))
        chains = take(queue)
        assert len(chains) == 32768 and ids_of(chains)[-1] == 32768
        queue.put_used(chains, 1)
        assert ring.descriptor(32767) == (B, 1, 32768, WRITE | ((AVAIL | USED_FLAG) if wrap else 0))
        assert queue.take_available() is None


@pytest.mark.usefixtures("way")
def test_2_8_sets_no_bound_for_buffer_ids(ring: RawPackedRing) -> None:
    offer(ring, 65535, 32768, 8)
    queue = ring.queue()
    chains = take(queue)
    assert ids_of(chains) == [65535, 32768, 8]
    queue.put_used(chains)
    assert [ring.descriptor(place)[2] for place in range(3)] == [65535, 32768, 8]


def test_what_keeps_the_rules_is_read_in_bulk(ring: RawPackedRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists, tables and single descriptors, readable behind writable of another chain, over the end of the ring."""
    monkeypatch.setattr(packed, "BULK_FROM_CHAINS", 1)
    monkeypatch.setattr(PackedWalker, "one_by_one", None)
    queue = ring.queue()
    offer(ring, *range(5))
    queue.put_used(take(queue))
    ring.memory.write(TABLES, descriptor(B, 10) + descriptor(B, 20, 0, WRITE))
    ring.write(B, 1, NEXT, 10)
    ring.write(B, 2, WRITE, 11)
    ring.write(TABLES, 32, INDIRECT, 12)
    ring.write(B, 3, 0, 13)
    ring.write(B, 4, WRITE | NEXT, 14)
    ring.write(B, 5, WRITE, 15)
    ring.write(B, 6, 0, 16)
    chains = take(queue)
    assert (ids_of(chains), chains.head.tolist()) == ([11, 12, 13, 15, 16], [5, 7, 0, 1, 3])
    assert (chains.slots.tolist(), chains.first.tolist()) == ([2, 1, 1, 2, 1], [0, 2, 4, 5, 7, 8])
    assert chains.length.tolist() == [1, 2, 10, 20, 3, 4, 5, 6]
    assert chains.writable.tolist() == [False, True, False, True, False, True, True, False]


# -- what breaks a rule ------------------------------------------------------------------------------------------------


def written(*entries: tuple[int, int, int]) -> Spoil:
    """Descriptors with these addresses, lengths and flags; ids from 20 on."""

    def spoil(ring: RawPackedRing) -> None:
        for name, (gpa, length, flags) in enumerate(entries, 20):
            ring.write(gpa, length, flags, name)

    return spoil


def table(length: int, *entries: bytes, flags: int = INDIRECT, gpa: int = TABLES) -> Spoil:
    def spoil(ring: RawPackedRing) -> None:
        if entries:
            ring.memory.write(gpa, b"".join(entries))
        ring.write(gpa, length, flags, 20)
        if flags & NEXT:
            ring.write(B, 4, 0, 21)

    return spoil


BROKEN: dict[str, tuple[Spoil, str]] = {
    "a list to where nothing is": (written((B, 4, NEXT)), "2.8.17"),
    "a list all round the ring": (written(*[(B, 4, NEXT)] * 7), "2.8.17"),
    "length 0": (written((B, 0, 0)), "2.8.13"),
    "length 0 in the middle": (written((B, 4, NEXT), (B, 0, NEXT), (B, 4, 0)), "2.8.13"),
    "readable after writable": (written((B, 4, NEXT | WRITE), (B, 4, 0)), "2.8.17"),
    "buffer in a hole": (written((0xA0000, 4, 0)), "2.8.13"),
    "buffer reaches a hole": (written((0x9FFFE, 4, 0)), "2.8.13"),
    "buffer behind RAM": (written(((1 << 32) + 0x10000, 1, 0)), "2.8.13"),
    "buffer of 4 GiB": (written((B, 0xFFFFFFFF, 0)), "2.8.13"),
    "address wraps": (written(((1 << 64) - 4, 8, 0)), "2.8.13"),
    "indirect of length 0": (table(0), "2.8.7"),
    "indirect of 24 bytes": (table(24), "2.8.7"),
    "indirect with next": (table(16, descriptor(B, 4), flags=INDIRECT | NEXT), "2.8.19"),
    "indirect behind another": (written((B, 4, NEXT), (TABLES, 16, INDIRECT)), "2.8.19"),
    "indirect outside RAM": (table(32, gpa=0xA0000 - 16), "2.8.13"),
    "indirect of 4 GiB": (table(0xFFFFFFF0), "2.8.17"),
    "a table longer than the queue": (table(16 * 9, *[descriptor(B, 4)] * 9), "2.8.17"),
    "an empty buffer in a table": (table(16, descriptor(B, 0)), "2.8.13"),
    "readable after writable in a table": (table(32, descriptor(B, 4, 0, WRITE), descriptor(B, 4)), "2.8.17"),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_chain_is_an_error_that_names_rule_and_place(ring: RawPackedRing, name: str) -> None:
    spoil, section = BROKEN[name]
    offer(ring, 7)
    spoil(ring)
    with pytest.raises(DriverError) as raised:
        ring.queue().take_available()
    assert (raised.value.section, raised.value.head) == (section, 1)


@pytest.mark.usefixtures("way")
def test_2_8_19_indirect_needs_its_feature(ring: RawPackedRing) -> None:
    table(16, descriptor(B, 4))(ring)
    with pytest.raises(DriverError, match="INDIRECT_DESC was not negotiated") as raised:
        ring.queue(indirect=False).take_available()
    assert raised.value.section == "2.8.19"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("second", [NEXT, 0])
def test_2_8_6_every_descriptor_of_a_list_is_marked_available(ring: RawPackedRing, second: int) -> None:
    """The second one carries the marks of the other round."""
    ring.write(B, 4, NEXT, 1)
    ring.write(B, 4, second, 1, available=False)
    ring.write(B, 4, 0, 1)
    with pytest.raises(DriverError, match="goes on at 1, which is not available") as raised:
        ring.queue().take_available()
    assert (raised.value.section, raised.value.head) == ("2.8.17", 0)


@pytest.mark.usefixtures("way")
def test_2_8_16_a_descriptor_in_flight_is_not_made_available_again(ring: RawPackedRing) -> None:
    """The ring is full of chains that the device holds, and the driver marks the oldest for the next round."""
    offer(ring, *range(8))
    queue = ring.queue()
    take(queue)
    offer(ring, 8)
    with pytest.raises(DriverError, match="belongs to a chain in flight") as raised:
        queue.take_available()
    assert (raised.value.section, raised.value.head) == ("2.8.16", 0)


@pytest.mark.usefixtures("way")
def test_2_8_16_nor_behind_others_that_may_be(ring: RawPackedRing) -> None:
    offer(ring, *range(5))
    queue = ring.queue()
    take(queue)
    offer(ring, *range(5, 9))
    with pytest.raises(DriverError) as raised:
        queue.take_available()
    assert (raised.value.section, raised.value.head) == ("2.8.16", 0)


@pytest.mark.usefixtures("way")
def test_2_8_17_a_list_needs_room_for_all_of_it(ring: RawPackedRing) -> None:
    offer(ring, *range(6))
    queue = ring.queue()
    take(queue)
    for link in range(3):
        ring.write(B, 4, NEXT if link < 2 else 0, 6)
    with pytest.raises(DriverError, match="more descriptors than are free") as raised:
        queue.take_available()
    assert (raised.value.section, raised.value.head) == ("2.8.17", 6)


@pytest.mark.usefixtures("way")
def test_2_8_21_1_an_id_in_flight_is_not_used_again(ring: RawPackedRing) -> None:
    offer(ring, 3, 4)
    queue = ring.queue()
    chains = take(queue)
    offer(ring, 5, 3)
    with pytest.raises(DriverError, match="buffer id 3 is made available while in flight") as raised:
        queue.take_available()
    assert (raised.value.section, raised.value.head) == ("2.8.21.1", 3)
    other = RawPackedRing(8, ring.memory, 0x400)
    queue = other.queue()
    offer(other, 3, 4)
    chains = take(queue)
    queue.put_used(chains.only(0))
    offer(other, 5, 3)
    assert ids_of(queue.take_available()) == [5, 3]


@pytest.mark.usefixtures("way")
def test_2_8_21_1_nor_twice_at_once(ring: RawPackedRing) -> None:
    offer(ring, 2, 6, 2)
    with pytest.raises(DriverError, match="in flight") as raised:
        ring.queue().take_available()
    assert raised.value.head == 2


@pytest.mark.parametrize(
    ("desc", "driver", "device", "part"),
    [(8, 0, 0, "descriptor ring"), (0, 2, 0, "driver event"), (0, 0, 2, "device event")],
)
def test_2_8_11_parts_are_aligned(memory: GuestMemory, desc: int, driver: int, device: int, part: str) -> None:
    with pytest.raises(DriverError, match=f"the {part}.* at .* must be aligned") as raised:
        PackedQueue(memory, 8, 0x1000 + desc, 0x2000 + driver, 0x3000 + device)
    assert raised.value.section == "2.8.11"


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("gpa", [0xA0000, (1 << 32) + 0x10000, (1 << 64) - 16])
def test_parts_are_inside_ram(memory: GuestMemory, part: int, gpa: int) -> None:
    places = [0x1000, 0x2000, 0x3000]
    places[part] = gpa
    with pytest.raises(DriverError, match="not all in guest RAM"):
        PackedQueue(memory, 8, *places)


def test_a_ring_reaches_to_the_end_of_ram_and_no_further(memory: GuestMemory) -> None:
    PackedQueue(memory, 3, 0xA0000 - 48, 0x9FFFC - 48, 0x2000)
    with pytest.raises(DriverError):
        PackedQueue(memory, 4, 0xA0000 - 48, 0x2000, 0x3000)
