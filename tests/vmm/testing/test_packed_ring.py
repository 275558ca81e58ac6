"""The driver's half of a packed queue, with the device played by hand: what it writes, and what it will not take."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from devices.memory import GuestMemory
from vmm.testing import DeviceViolation, PackedQueue, PageAllocator, RingFull

AVAIL, USED, NEXT, WRITE, INDIRECT = 1 << 7, 1 << 15, 1, 2, 4
DISABLE, DESC = 1, 2


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([(0, 1 << 20)]) as ram:
        yield ram


def make(memory: GuestMemory, size: int = 4, *, event_idx: bool = False, **others: bool) -> PackedQueue:
    indirect, in_order = others.get("indirect", False), others.get("in_order", False)
    pages = PageAllocator(0x10000, 0x80000)
    return PackedQueue(memory, pages, 0, size, event_idx=event_idx, indirect=indirect, in_order=in_order)


def ring(queue: PackedQueue) -> list[tuple[int, int, int, int]]:
    """Address, length, id and flags of every descriptor."""
    return list(struct.iter_unpack("<QIHH", queue.table_bytes()))


def use(memory: GuestMemory, queue: PackedQueue, place: int, buffer_id: int, length: int, wrap: int = 1) -> None:
    """Play the device: one used descriptor."""
    flags = (AVAIL | USED if wrap else 0) | (WRITE if length else 0)
    memory.write(queue.layout.descriptor(place) + 8, struct.pack("<IHH", length, buffer_id, flags))


@pytest.mark.parametrize("size", [1, 3, 256, 32768])
def test_the_parts_have_the_alignment_and_sizes_of_2_8_10_1(size: int) -> None:
    with GuestMemory([(0, 1 << 21)]) as memory:
        place = PackedQueue(memory, PageAllocator(0x10000, 0x100000), 0, size).layout
    assert place.desc_gpa % 16 == place.driver_gpa % 4 == place.device_gpa % 4 == 0
    assert place.driver_gpa >= place.desc_gpa + 16 * size
    assert abs(place.device_gpa - place.driver_gpa) >= 4


def test_a_list_is_neighbours_readable_first_and_its_first_flags_come_last(memory: GuestMemory) -> None:
    queue = make(memory)
    buffer_id = queue.offer([(0x1000, 8), (0x2000, 16)], [(0x3000, 32)])
    assert ring(queue)[0][3] == 0
    assert [fields[3] for fields in ring(queue)[1:3]] == [AVAIL | NEXT, AVAIL | WRITE]
    queue.publish()
    assert ring(queue)[:3] == [
        (0x1000, 8, buffer_id, AVAIL | NEXT),
        (0x2000, 16, buffer_id, AVAIL | NEXT),
        (0x3000, 32, buffer_id, AVAIL | WRITE),
    ]


def test_an_indirect_buffer_takes_one_descriptor_and_its_table_has_only_write_flags(memory: GuestMemory) -> None:
    queue = make(memory, indirect=True)
    queue.offer([(0x1000, 8), (0x2000, 16)], [(0x3000, 32)])
    queue.publish()
    gpa, length, _, flags = ring(queue)[0]
    assert (length, flags, queue.free_descriptors) == (48, AVAIL | INDIRECT, 3)
    entries = list(struct.iter_unpack("<QIHH", memory.read(gpa, length)))
    assert entries == [(0x1000, 8, 0, 0), (0x2000, 16, 0, 0), (0x3000, 32, 0, WRITE)]


def test_the_marks_turn_with_the_wrap_counter(memory: GuestMemory) -> None:
    queue = make(memory, 3)
    for number in range(9):
        buffer_id = queue.offer([(0x1000, 8)])
        queue.publish()
        assert ring(queue)[number % 3][3] == (AVAIL, USED)[number // 3 % 2]
        use(memory, queue, number % 3, buffer_id, 0, wrap=1 - number // 3 % 2)
        assert [used.head for used in queue.collect()] == [buffer_id]


def test_a_full_ring_says_so_and_changes_nothing(memory: GuestMemory) -> None:
    queue = make(memory, 2)
    queue.offer([(0, 1)])
    before = queue.table_bytes()
    with pytest.raises(RingFull, match="2 descriptors wanted, 1 free"):
        queue.offer([(0, 1), (8, 1)])
    assert (queue.table_bytes(), queue.free_descriptors) == (before, 1)


def test_buffers_come_back_in_any_order_each_where_the_one_before_ended(memory: GuestMemory) -> None:
    queue = make(memory)
    first = queue.offer([(0x1000, 8), (0x1008, 8)])
    second = queue.offer(writable=[(0x3000, 8)])
    queue.publish()
    memory.write(0x3000, b"answered")
    use(memory, queue, 0, second, 6)
    (used,) = queue.collect()
    assert (used.head, used.length, used.data) == (second, 6, b"answer")
    use(memory, queue, 1, first, 0)
    assert [used.head for used in queue.collect()] == [first]
    assert (queue.free_descriptors, queue.in_flight) == (4, ())


def test_the_length_of_a_used_descriptor_without_write_is_ignored(memory: GuestMemory) -> None:
    queue = make(memory)
    buffer_id = queue.offer(writable=[(0x3000, 8)])
    queue.publish()
    memory.write(queue.layout.descriptor(0) + 8, struct.pack("<IHH", 4711, buffer_id, AVAIL | USED))
    (used,) = queue.collect()
    assert used.length == 0


@pytest.mark.parametrize(
    ("buffer_id", "length", "sentence"),
    [(3, 0, "head 3 was returned but is not in flight"), (0, 9, "9 bytes written to head 0, more than fit")],
)
def test_a_device_that_returns_nonsense_is_caught(
    memory: GuestMemory, buffer_id: int, length: int, sentence: str
) -> None:
    queue = make(memory)
    assert queue.offer(writable=[(0x3000, 8)]) == 0
    queue.publish()
    use(memory, queue, 0, buffer_id, length)
    with pytest.raises(DeviceViolation, match=sentence):
        queue.collect()


def test_in_order_the_last_of_a_batch_stands_for_all_and_skipped_ones_are_wholly_used(memory: GuestMemory) -> None:
    queue = make(memory, in_order=True)
    ids = [queue.offer(writable=[(0x3000 + 8 * number, 8)]) for number in range(3)]
    queue.publish()
    use(memory, queue, 0, ids[1], 3)
    assert [(used.head, used.length) for used in queue.collect()] == [(ids[0], 8), (ids[1], 3)]
    use(memory, queue, 2, ids[2], 1)
    assert [used.head for used in queue.collect()] == [ids[2]]


def test_the_devices_structure_decides_about_the_kick(memory: GuestMemory) -> None:
    queue = make(memory)
    queue.offer([(0, 1)])
    queue.publish()
    assert queue.must_notify()
    assert not queue.must_notify()  # nothing new
    memory.write_int(queue.layout.device_flags, 2, DISABLE)
    queue.offer([(0, 1)])
    queue.publish()
    assert not queue.must_notify()


def test_with_event_idx_a_descriptor_is_waited_for(memory: GuestMemory) -> None:
    """The second of the second round of three."""
    queue = make(memory, 3, event_idx=True)
    memory.write(queue.layout.device_gpa, struct.pack("<HH", 1, DESC))
    asked = []
    for number in range(6):
        buffer_id = queue.offer([(0, 1)])
        queue.publish()
        asked.append(queue.must_notify())
        use(memory, queue, number % 3, buffer_id, 0, wrap=1 - number // 3)
        queue.collect()
    assert asked == [False, False, False, False, True, False]


def test_a_notification_s_data_are_the_next_place_and_its_wrap_counter(memory: GuestMemory) -> None:
    queue = make(memory, 2)
    assert queue.notification_data() == 1 << 15
    queue.offer([(0, 1)])
    assert queue.notification_data() == 1 << 15  # not published yet
    queue.offer([(0, 1)])
    queue.publish()
    assert queue.notification_data() == 0


def test_release_gives_every_page_back(memory: GuestMemory) -> None:
    pages = PageAllocator(0x10000, 0x80000)
    queue = PackedQueue(memory, pages, 0, 256, indirect=True)
    queue.offer([b"x" * 5000, b"y"], [100])
    queue.release()
    assert pages.free_pages == 0x80
