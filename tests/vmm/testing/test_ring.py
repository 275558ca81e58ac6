"""The driver's half of a split queue, with the device played by hand: what it writes, and what it will not take."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from devices.memory import GuestMemory
from vmm.testing import DeviceViolation, PageAllocator, RingFull, SplitQueue


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([(0, 1 << 20)]) as ram:
        yield ram


def make(memory: GuestMemory, size: int = 4, *, event_idx: bool = False, indirect: bool = False) -> SplitQueue:
    return SplitQueue(memory, PageAllocator(0x10000, 0x80000), 0, size, event_idx=event_idx, indirect=indirect)


def put_used(memory: GuestMemory, queue: SplitQueue, *elements: tuple[int, int]) -> None:
    """Play the device: return buffers (head, length)."""
    position = memory.read_int(queue.layout.used_idx, 2)
    for head, length in elements:
        memory.write(queue.layout.used_ring(position), struct.pack("<II", head, length))
        position = (position + 1) % 2**16
    memory.write_int(queue.layout.used_idx, 2, position)


def test_the_parts_have_the_alignment_and_sizes_of_2_7(memory: GuestMemory) -> None:
    for size in (1, 2, 256, 1024):
        place = make(memory, size).layout
        assert place.desc_gpa % 16 == place.driver_gpa % 2 == place.device_gpa % 4 == 0
        assert place.driver_gpa >= place.desc_gpa + 16 * size
        assert place.device_gpa >= place.driver_gpa + 6 + 2 * size


def test_a_buffer_is_chained_readable_first(memory: GuestMemory) -> None:
    queue = make(memory)
    head = queue.offer([(0x1000, 8), (0x2000, 16)], [(0x3000, 32)])
    queue.publish()
    table = list(struct.iter_unpack("<QIHH", queue.table_bytes()))
    first = table[head]
    second = table[first[3]]
    third = table[second[3]]
    assert (first[:3], second[:3], third[:3]) == ((0x1000, 8, 1), (0x2000, 16, 1), (0x3000, 32, 2))
    assert memory.read_int(queue.layout.avail_idx, 2) == 1
    assert memory.read_int(queue.layout.avail_ring(0), 2) == head


def test_an_indirect_buffer_takes_one_descriptor(memory: GuestMemory) -> None:
    queue = make(memory, indirect=True)
    head = queue.offer([(0x1000, 8), (0x2000, 16)], [(0x3000, 32)])
    gpa, length, flags, _ = struct.unpack_from("<QIHH", queue.table_bytes(), 16 * head)
    assert (length, flags, queue.free_descriptors) == (48, 4, 3)
    entries = list(struct.iter_unpack("<QIHH", memory.read(gpa, length)))
    assert entries == [(0x1000, 8, 1, 1), (0x2000, 16, 1, 2), (0x3000, 32, 2, 0)]


def test_nothing_is_visible_before_it_is_published(memory: GuestMemory) -> None:
    queue = make(memory)
    queue.offer([b"hello"])
    assert memory.read_int(queue.layout.avail_idx, 2) == 0


def test_a_full_ring_says_so_and_changes_nothing(memory: GuestMemory) -> None:
    queue = make(memory, 2)
    queue.offer([(0, 1)])
    before = queue.table_bytes()
    with pytest.raises(RingFull, match="2 descriptors wanted, 1 free"):
        queue.offer([(0, 1), (8, 1)])
    assert (queue.table_bytes(), queue.free_descriptors) == (before, 1)


def test_what_the_device_wrote_comes_back_with_the_buffer(memory: GuestMemory) -> None:
    queue = make(memory)
    head = queue.offer([b"question"], [(0x3000, 4), (0x4000, 4)])
    memory.write(0x3000, b"answ")
    memory.write(0x4000, b"er!!")
    put_used(memory, queue, (head, 6))
    (used,) = queue.collect()
    assert (used.head, used.length, used.data) == (head, 6, b"answer")
    assert queue.free_descriptors == 4


@pytest.mark.parametrize(
    ("elements", "sentence"),
    [
        ([(3, 0)], "head 3 was returned but is not in flight"),
        ([(0, 0), (0, 0)], "1 buffers in flight"),
        ([(0, 9)], "9 bytes written to head 0, more than fit"),
    ],
)
def test_a_device_that_returns_nonsense_is_caught(
    memory: GuestMemory, elements: list[tuple[int, int]], sentence: str
) -> None:
    queue = make(memory)
    assert queue.offer(writable=[(0x3000, 8)]) == 0
    put_used(memory, queue, *elements)
    with pytest.raises(DeviceViolation, match=sentence):
        queue.collect()


def test_unknown_flags_of_the_used_ring_are_caught(memory: GuestMemory) -> None:
    queue = make(memory, event_idx=True)
    memory.write_int(queue.layout.used_flags, 2, 1)
    with pytest.raises(DeviceViolation, match="flags are 0x1"):
        queue.collect()


def test_without_event_idx_the_flag_alone_decides_about_the_kick(memory: GuestMemory) -> None:
    queue = make(memory)
    queue.offer([(0, 1)])
    queue.publish()
    assert queue.must_notify()
    assert not queue.must_notify()  # nothing new
    memory.write_int(queue.layout.used_flags, 2, 1)
    queue.offer([(0, 1)])
    queue.publish()
    assert not queue.must_notify()


def test_with_event_idx_avail_event_alone_decides(memory: GuestMemory) -> None:
    """§2.7.10.1: notify if the entry at index avail_event was among those just made available."""
    queue = make(memory, 8, event_idx=True)
    memory.write_int(queue.layout.avail_event, 2, 2)
    asked = []
    for _ in range(4):
        queue.offer([(0, 1)])
        queue.publish()
        asked.append(queue.must_notify())
    assert asked == [False, False, True, False]


def test_release_gives_every_page_back(memory: GuestMemory) -> None:
    pages = PageAllocator(0x10000, 0x80000)
    queue = SplitQueue(memory, pages, 0, 256, indirect=True)
    queue.offer([b"x" * 5000, b"y"], [100])
    queue.release()
    assert pages.free_pages == 0x80
