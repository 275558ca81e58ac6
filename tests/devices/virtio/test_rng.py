"""The entropy device (virtio 1.3 §5.4), built on the same core without a line changed there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.device import Notifications
from devices.virtio.rng import DEFAULT_FEATURES, MAX_BATCH_BYTES, Rng
from tests.devices.virtio.rings import BUFFERS, LAYOUT, NEXT, WRITE, RawRing
from vmm.testing import DirectTransport, Driver, PageAllocator

FEATURES = 1 << spec.VIRTIO_F_VERSION_1 | 1 << spec.VIRTIO_F_INDIRECT_DESC


class Source:
    """Bytes that count up from 1, so that a test can tell which went where; remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.position = 0

    def __call__(self, count: int) -> bytes:
        self.asked.append(count)
        start, self.position = self.position, self.position + count
        return bytes(1 + number % 255 for number in range(start, self.position))


class Rig:
    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.source = Source()
        self.rng = Rng(memory, self.source)
        self.ring = RawRing(8, memory)
        self.rng.set_dma_enabled(True, 0)
        self.rng.write_status(3, 0)
        self.rng.write_driver_features(FEATURES)
        self.rng.write_status(11, 0)
        places = (("desc_gpa", self.ring.desc), ("driver_gpa", self.ring.avail), ("device_gpa", self.ring.used))
        for field, value in (("size", 8), *places, ("enabled", 1)):
            self.rng.write_queue(0, field, value, 0)
        self.rng.write_status(15, 0)

    def ask(self, *heads: int) -> Notifications:
        self.ring.offer(*heads)
        return self.rng.notify(0, 0)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with GuestMemory(LAYOUT) as memory:
        yield Rig(memory)


def test_5_4_identity() -> None:
    with GuestMemory(LAYOUT) as memory:
        rng = Rng(memory, Source(), name="rng7")
        assert (rng.device_id, rng.config_size, [queue.name for queue in rng.queues]) == (4, 0, ["requestq"])
        assert rng.name == "rng7"


def test_5_4_6_the_buffer_is_filled_and_its_length_told(rig: Rig) -> None:
    rig.ring.set_descriptor(2, BUFFERS, 16, WRITE)
    assert rig.ask(2).queues == (0,)
    assert rig.memory.read(BUFFERS, 17) == bytes([*range(1, 17), 0])
    assert rig.ring.used_elements() == [(2, 16)]
    assert rig.rng.served_bytes == 16


def test_every_buffer_of_every_chain_gets_its_own_bytes(rig: Rig) -> None:
    rig.ring.set_descriptor(0, BUFFERS, 3, NEXT | WRITE, 1)
    rig.ring.set_descriptor(1, BUFFERS + 16, 4, WRITE)
    rig.ring.set_descriptor(2, BUFFERS + 32, 5, WRITE)
    rig.ask(2, 0)
    assert rig.memory.read(BUFFERS + 32, 5) == bytes(range(1, 6))
    assert rig.memory.read(BUFFERS, 3) + rig.memory.read(BUFFERS + 16, 4) == bytes(range(6, 13))
    assert rig.ring.used_elements() == [(2, 5), (0, 7)]


def test_2_7_5_1_a_device_readable_buffer_is_not_written(rig: Rig) -> None:
    rig.ring.set_descriptor(0, BUFFERS, 8, NEXT, 1)
    rig.ring.set_descriptor(1, BUFFERS + 8, 8, WRITE)
    rig.ring.set_descriptor(2, BUFFERS + 64, 8)
    rig.ask(0, 2)
    assert rig.memory.read(BUFFERS, 8) == bytes(8)
    assert rig.memory.read(BUFFERS + 64, 8) == bytes(8)
    assert rig.ring.used_elements() == [(0, 8), (2, 0)]


def test_a_request_is_bounded(rig: Rig) -> None:
    rig.ring.set_descriptor(0, 0x100000, 0x200000, WRITE)
    rig.ask(0)
    assert rig.ring.used_elements() == [(0, MAX_BATCH_BYTES)]
    assert rig.source.asked == [MAX_BATCH_BYTES]


def test_many_requests_share_the_bound_and_none_goes_away_empty(rig: Rig) -> None:
    for head in range(8):
        rig.ring.set_descriptor(head, 0x100000, 0x200000, WRITE)
    rig.ask(*range(8))
    assert rig.ring.used_elements() == [(head, MAX_BATCH_BYTES // 8) for head in range(8)]


def test_what_was_written_is_remembered_for_the_cpu(rig: Rig) -> None:
    rig.ring.set_descriptor(0, BUFFERS, 16, WRITE)
    rig.memory.take_writes()
    rig.ask(0)
    written = {gpa + i for gpa, length in rig.memory.take_writes() for i in range(length)}
    assert set(range(BUFFERS, BUFFERS + 16)) <= written


def test_the_same_source_gives_the_same_run_and_a_reset_equals_fresh(rig: Rig) -> None:
    rig.ring.set_descriptor(0, BUFFERS, 16, WRITE)
    rig.ask(0)
    rig.rng.reset()
    assert rig.rng == Rng(rig.memory, Source())


@pytest.mark.parametrize("bits", [(), (34,), (34, 35), (35,)], ids=["split", "packed", "packed in order", "in order"])
def test_5_4_6_random_bytes_come_over_every_kind_of_ring(bits: tuple[int, ...]) -> None:
    """RING_PACKED is bit 34, IN_ORDER bit 35.  What was written is never skipped: each buffer has its own length."""
    with GuestMemory(((0, 1 << 20),)) as memory:
        features = DEFAULT_FEATURES | sum(1 << bit for bit in bits)
        source = Source()
        driver = Driver(
            DirectTransport(Rng(memory, source, features=features), memory, PageAllocator(0x10000, 0xE0000))
        )
        driver.start(queue_sizes=8)
        assert driver.features == features
        for _ in range(9):
            start = source.position
            for length in (5, 4096, 1):
                driver.offer(writable=[length, 3])
            driver.kick()
            used = driver.collect()
            assert [each.length for each in used] == [8, 4099, 4]
            assert b"".join(each.data for each in used) == bytes(1 + n % 255 for n in range(start, source.position))
