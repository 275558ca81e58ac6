"""The value a device receives: payload in and out of chains of any shape."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.memory import GuestMemory
from devices.virtio.chains import ARRAYS, Chains, OneBuffer
from tests.devices.virtio.rings import BUFFERS, LAYOUT, NEXT, WRITE, RawRing


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made:
        made.write(BUFFERS, bytes(range(256)))
        yield made


@pytest.fixture
def chains(memory: GuestMemory) -> Chains:
    """Chain 0: 4 bytes to read, 3 to write.  Chain 1: 2 to read, 5 to read, 6 to write.  Chain 2: 1 to write."""
    ring = RawRing(8, memory)
    ring.set_descriptor(0, BUFFERS, 4, NEXT, 1)
    ring.set_descriptor(1, BUFFERS + 16, 3, WRITE)
    ring.set_descriptor(2, BUFFERS + 32, 2, NEXT, 3)
    ring.set_descriptor(3, BUFFERS + 48, 5, NEXT, 4)
    ring.set_descriptor(4, BUFFERS + 64, 6, WRITE)
    ring.set_descriptor(5, BUFFERS + 80, 1, WRITE)
    ring.offer(0, 2, 5)
    made = ring.queue().take_available()
    assert made is not None
    return made


def test_lengths_are_told_by_chain_and_direction(chains: Chains) -> None:
    assert chains.descriptors == 6
    assert chains.readable_bytes() == [4, 7, 0]
    assert chains.writable_bytes() == [3, 6, 1]


@pytest.mark.parametrize("limit", [0, 1, 4, 5, 6, 10, 11, 1 << 32])
def test_readable_bytes_come_in_order_up_to_the_limit(memory: GuestMemory, chains: Chains, limit: int) -> None:
    everything = bytes([0, 1, 2, 3, 32, 33, 48, 49, 50, 51, 52])
    assert chains.gather_readable(memory, limit) == everything[:limit]


@pytest.mark.parametrize(
    ("index", "expected"), [(0, bytes(range(4))), (1, bytes([32, 33, 48, 49, 50, 51, 52])), (2, b"")]
)
def test_one_chain_can_be_kept_alone(memory: GuestMemory, chains: Chains, index: int, expected: bytes) -> None:
    alone = chains.only(index)
    assert (len(alone), alone.id_of(0)) == (1, [0, 2, 5][index])
    assert alone.gather_readable(memory, 100) == expected
    assert alone.first.tolist() == [0, len(alone.addr)]


def test_what_was_gathered_does_not_change_with_ram(memory: GuestMemory, chains: Chains) -> None:
    before = chains.gather_readable(memory, 100)
    copy = bytes(before)
    memory.write(BUFFERS, bytes(256))
    assert before == copy


def test_writing_fills_the_writable_buffers_and_nothing_else(memory: GuestMemory, chains: Chains) -> None:
    assert chains.scatter_writable(memory, 0, b"abcdef") == 3
    assert chains.scatter_writable(memory, 1, b"ABCD") == 4
    assert chains.scatter_writable(memory, 2, b"") == 0
    expected = bytearray(range(256))
    expected[16:19], expected[64:68] = b"abc", b"ABCD"
    assert memory.read(BUFFERS, 256) == bytes(expected)


@pytest.mark.parametrize("flags", [0, WRITE])
def test_one_buffer_is_the_same_value_as_arrays_of_one(memory: GuestMemory, flags: int) -> None:
    ring = RawRing(8, memory)
    ring.set_descriptor(3, BUFFERS + 7, 9, flags)
    ring.offer(3)
    short = ring.queue().take_available()
    assert isinstance(short, OneBuffer)
    full = Chains(*(getattr(short, name) for name in ("head", "slots", "first", "addr", "length", "writable")))
    for name in ARRAYS:
        assert getattr(short, name).tolist() == getattr(full, name).tolist()
        assert getattr(short, name).dtype == getattr(full, name).dtype
    assert full.addr.tolist() == [BUFFERS + 7] and full.head.tolist() == [3]
    for ask in ("readable_bytes", "writable_bytes", "__len__"):
        assert getattr(short, ask)() == getattr(full, ask)()
    assert (
        (short.id_of(0), short.count, short.descriptors) == (full.id_of(0), full.count, full.descriptors) == (3, 1, 1)
    )
    for limit in (0, 4, 100):
        assert short.gather_readable(memory, limit) == full.gather_readable(memory, limit)
        assert short.gather_entries(memory, 4, limit) == full.gather_entries(memory, 4, limit)
    assert short.scatter_writable(memory, 0, b"xy") == full.scatter_writable(memory, 0, b"xy") == (2 if flags else 0)


def test_buffers_may_cross_regions_that_touch(memory: GuestMemory) -> None:
    ring = RawRing(8, memory)
    memory.write(0x200000 - 2, b"wxyz")
    ring.set_descriptor(0, 0x200000 - 2, 4)
    ring.offer(0)
    chains = ring.queue().take_available()
    assert chains is not None and chains.gather_readable(memory, 100) == b"wxyz"
