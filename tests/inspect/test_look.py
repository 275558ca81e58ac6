"""Rings and balloon of a device as they are seen from outside, by the tables and the memory map alone.

The device is in this process and stands still because nobody calls it; that other processes can be stopped is
`test_tracee`'s.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from devices import hostcalls
from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.spec import Status
from tests.support import RAM_LAYOUT, BalloonMachine, Way, build_with
from vmm.device_table import DeviceTable
from vmm.inspect import ptrace_import
from vmm.inspect.look import DeviceLook, MachineLook, look, runs_of
from vmm.inspect.rings import MOST_FAULTS, QueueLook, Request
from vmm.testing import RawPackedQueue, RawQueue
from vmm.testing.balloon import INFLATEQ, STATSQ, pfn_bytes
from vmm.testing.mistakes import NOWHERE, RING_MISTAKES, Mistake
from vmm.testing.packed_mistakes import PACKED_MISTAKES, PackedMistake
from vmm.testing.raw import INDIRECT

WAYS: tuple[Way, ...] = ("direct", "packed", "pci", "packed-pci", "mmio", "legacy", "mmio-legacy")
PAGE = 4096


class Seen:
    """A balloon with its driver, and how it is seen from outside."""

    def __init__(self, bench: BalloonMachine) -> None:
        self.bench = bench
        self.table = DeviceTable([bench.balloon], bench.memory)

    def machine(self) -> MachineLook:
        self.table.update()
        fd = self.bench.memory.fd
        assert fd is not None
        (found,) = look(os.getpid(), os.fstat(fd).st_ino)
        return found

    def device(self) -> DeviceLook:
        (device,) = self.machine().devices
        return device

    def queue(self, index: int = INFLATEQ) -> QueueLook:
        (queue,) = [each for each in self.device().queues if each.index == index]
        return queue

    def blocks(self) -> int:
        return self.bench.memory.backed_bytes()

    def deaf(self) -> None:
        """From now on what the driver offers waits: the device looks at nothing."""
        self.bench.balloon.dma_enabled = False

    def close(self) -> None:
        self.table.close()
        self.bench.close()


def made(way: Way = "direct", **options: Any) -> Iterator[Seen]:
    seen = Seen(BalloonMachine(way, **options))
    yield seen
    seen.close()


@pytest.fixture(params=WAYS)
def seen(request: pytest.FixtureRequest) -> Iterator[Seen]:
    yield from made(request.param)


@pytest.fixture
def split() -> Iterator[Seen]:
    yield from made()


@pytest.fixture
def packed() -> Iterator[Seen]:
    yield from made("packed")


def wrong(seen: Seen) -> list[str]:
    return seen.machine().findings()


# -- what is where ---------------------------------------------------------------------------------------------------


def test_before_a_driver_there_is_nothing_to_see(seen: Seen) -> None:
    device = seen.device()
    assert (device.name, device.device_id, device.status) == ("balloon0", 5, 0)
    assert [(queue.name, queue.enabled) for queue in device.queues] == [
        ("inflateq", False),
        ("deflateq", False),
        ("statsq", False),
    ]
    assert wrong(seen) == []


def test_ram_and_its_backing_are_told(seen: Seen) -> None:
    seen.bench.memory.write(0x1000, bytes(3 * PAGE))
    machine = seen.machine()
    assert machine.regions == [(gpa, size) for gpa, size in RAM_LAYOUT]
    assert machine.ram_bytes == sum(size for _, size in RAM_LAYOUT)
    assert machine.backed_bytes == seen.blocks()


def test_a_buffer_of_statistics_that_the_device_holds_is_in_flight(seen: Seen) -> None:
    seen.bench.driver.start()
    seen.bench.driver.post_stats({"stat-free-memory": 5 << 20})
    seen.bench.driver.inflate(seen.bench.filled_pfns(20))
    queue = seen.queue(STATSQ)
    ((gpa, length, writable),) = queue.in_flight[0].buffers
    assert (len(queue.in_flight), queue.available, length, writable) == (1, [], 10, False)
    order = seen.bench.driver.queues[STATSQ]
    assert seen.bench.memory.read(gpa, 2) == (spec.VIRTIO_BALLOON_S_MEMFREE).to_bytes(2, "little"), order
    assert seen.queue(INFLATEQ).in_flight == []
    assert wrong(seen) == []


def offered(seen: Seen, pieces: list[list[bytes]], *, indirect: bool | None = None) -> None:
    for readable in pieces:
        seen.bench.driver.offer(INFLATEQ, readable=readable, indirect=indirect)
    seen.bench.driver.kick(INFLATEQ, force=True)


def contents(seen: Seen, requests: list[Request]) -> list[list[bytes]]:
    read = seen.bench.memory.peek
    return [[read(gpa, length) for gpa, length, _ in request.buffers] for request in requests]


@pytest.mark.parametrize("indirect", [False, True])
def test_what_waits_is_shown_with_its_buffers(seen: Seen, indirect: bool) -> None:
    """After some rounds, so that places and wrap counters are not those of a fresh ring."""
    driver = seen.bench.driver
    driver.start()
    if indirect and not driver.features >> spec.VIRTIO_F_INDIRECT_DESC & 1:
        pytest.skip("this transport offers no indirect descriptors")
    for _ in range(150):
        driver.transfer(INFLATEQ, readable=[pfn_bytes([0x3F0])] * 2, indirect=False)
    seen.deaf()
    pieces = [[bytes([n, 1, 0, 0]), bytes([n, 2, 0, 0]) * 2][: 1 + n % 2] for n in range(1, 30)]
    offered(seen, pieces, indirect=indirect)
    queue = seen.queue()
    assert queue.in_flight == []
    assert contents(seen, queue.available) == pieces
    assert wrong(seen) == []


def test_what_waits_is_what_the_device_takes_then(seen: Seen) -> None:
    """Many chains at once: the way of numpy, over the end of the ring."""
    driver = seen.bench.driver
    driver.start()
    for _ in range(100):
        driver.transfer(INFLATEQ, readable=[pfn_bytes([0x3F0])], indirect=False)
    seen.deaf()
    offered(seen, [[bytes([n, 1, 0, 0])] for n in range(128)], indirect=False)
    shown = [request.buffer_id for request in seen.queue().available]
    seen.bench.balloon.dma_enabled = True
    ring = seen.bench.balloon.queues[INFLATEQ].ring
    assert ring is not None
    taken = ring.take_available()
    assert taken is not None
    assert shown == np.asarray(taken.buffer_id).tolist()
    in_flight = seen.queue()
    assert [request.buffer_id for request in in_flight.in_flight] == (shown if in_flight.packed else sorted(shown))
    assert in_flight.available == []


def test_a_packed_ring_is_read_from_where_the_device_stands(packed: Seen) -> None:
    """Two chains in flight and two that wait, behind used chains whose descriptors look available still."""
    driver = packed.bench.driver
    driver.start(driver.transport.read_device_features() & ~(1 << spec.VIRTIO_F_EVENT_IDX))
    driver.transfer(INFLATEQ, readable=[pfn_bytes([0x3F0])] * 3, indirect=False)
    packed.deaf()
    offered(packed, [[bytes([1, 1, 0, 0])] * 2, [bytes([2, 1, 0, 0])]], indirect=False)
    ring = packed.bench.balloon.queues[INFLATEQ].ring
    assert ring is not None and ring.take_available() is not None
    offered(packed, [[bytes([3, 1, 0, 0])], [bytes([4, 1, 0, 0])] * 2], indirect=False)
    queue = packed.queue()
    assert [each[0][0] for each in contents(packed, queue.in_flight)] == [1, 2]
    assert [each[0][0] for each in contents(packed, queue.available)] == [3, 4]
    assert queue.indices == {"used": 3, "next_available": 6}
    assert wrong(packed) == []


def test_heads_in_flight_are_found_in_any_order(split: Seen) -> None:
    """Taken long ago, and no longer in the available ring."""
    driver = split.bench.driver
    driver.start(queue_sizes={INFLATEQ: 8})
    split.deaf()
    offered(split, [[bytes([n, 1, 0, 0])] for n in range(3)], indirect=False)
    ring = split.bench.balloon.queues[INFLATEQ].ring
    assert ring is not None
    first = ring.take_available()
    assert first is not None
    held = first.only(0)
    for index in (1, 2):
        ring.put_used(first.only(index))
    driver.collect(INFLATEQ)
    for n in range(3, 40):
        offered(split, [[bytes([n, 1, 0, 0])]], indirect=False)
        chains = ring.take_available()
        assert chains is not None
        ring.put_used(chains)
        driver.collect(INFLATEQ)
    queue = split.queue()
    assert [request.head for request in queue.in_flight] == [held.id_of(0)]
    assert contents(split, queue.in_flight) == [[bytes([0, 1, 0, 0])]]
    assert queue.indices == {"available": 40, "used": 39, "next_available": 40}
    assert wrong(split) == []


@pytest.mark.parametrize("processor", ["<", ">"])
def test_a_legacy_driver_of_either_byte_order(processor: spec.ByteOrder) -> None:
    for seen in made("mmio-legacy", processor=processor):
        seen.bench.driver.start()
        seen.bench.driver.inflate(seen.bench.filled_pfns(300))
        seen.bench.driver.post_stats({"stat-free-memory": 5 << 20})
        device = seen.device()
        assert {queue.big_endian for queue in device.queues} == {processor == ">"}
        assert device.balloon is not None and device.balloon.pages == 300
        assert len(seen.queue(STATSQ).in_flight) == 1
        assert seen.queue().indices["used"] == 2  # 256 page frame numbers, and the rest
        assert wrong(seen) == []


# -- broken rules ----------------------------------------------------------------------------------------------------


def start_for(seen: Seen, mistake: Mistake | PackedMistake) -> None:
    offered_features = seen.bench.driver.transport.read_device_features()
    seen.bench.driver.start(offered_features & ~mistake.without)
    assert seen.bench.driver.features & mistake.needs == mistake.needs


def check_found(seen: Seen, mistake: Mistake | PackedMistake) -> None:
    """The same words that the device then says, and no page of RAM more or less."""
    before = seen.blocks()
    found = seen.queue().findings
    assert seen.blocks() == before
    seen.bench.balloon.dma_enabled = True
    seen.bench.driver.transport.notify(INFLATEQ)
    (said,) = [event.text for event in seen.bench.events if event.kind == "needs-reset"]
    words = said.split(": ", 2)[2]
    assert any(words in text for text in found), (found, said)
    assert re.search(rf"§{re.escape(mistake.section)}\b", words)


@pytest.mark.parametrize("mistake", RING_MISTAKES, ids=lambda mistake: mistake.name)
def test_every_mistake_in_a_split_ring_is_found_as_the_device_would(split: Seen, mistake: Mistake) -> None:
    start_for(split, mistake)
    split.deaf()
    mistake.make(RawQueue(split.bench.driver, INFLATEQ))
    check_found(split, mistake)


@pytest.mark.parametrize("mistake", PACKED_MISTAKES, ids=lambda mistake: mistake.name)
def test_every_mistake_in_a_packed_ring_is_found_as_the_device_would(packed: Seen, mistake: PackedMistake) -> None:
    start_for(packed, mistake)
    packed.deaf()
    mistake.make(RawPackedQueue(packed.bench.driver, INFLATEQ))
    check_found(packed, mistake)


def test_every_chain_behind_a_mistake_is_looked_at_too(split: Seen) -> None:
    split.bench.driver.start()
    split.deaf()
    raw = RawQueue(split.bench.driver, INFLATEQ)
    for slot, gpa in enumerate([raw.buffer(bytes(4)), NOWHERE, raw.buffer(bytes(4)), NOWHERE + 64]):
        raw.descriptor(slot, gpa, 4)
    raw.available(0, 1, 2, 3, 500, 2)
    queue = split.queue()
    assert [request.head for request in queue.available] == [0, 2]
    assert len(queue.findings) == 4
    assert all(text.startswith("available: ") for text in queue.findings)


def test_a_chain_that_was_changed_in_flight_is_found(split: Seen) -> None:
    split.bench.driver.start()
    split.bench.driver.post_stats({"stat-free-memory": 1})
    (request,) = split.queue(STATSQ).in_flight
    RawQueue(split.bench.driver, STATSQ).descriptor(request.head, NOWHERE, 10)
    (text,) = split.queue(STATSQ).findings
    assert text == f"in flight: the 10 bytes at {NOWHERE:#x} are not all in guest RAM (virtio §2.7.5)"
    assert wrong(split) == [f"balloon0 statsq: {text}"]


def test_used_elements_that_name_no_head_are_found(split: Seen) -> None:
    split.bench.driver.start()
    split.bench.driver.inflate(split.bench.filled_pfns(2), per_buffer=1)
    gpa = split.bench.balloon.queues[INFLATEQ].device_gpa
    split.bench.memory.write_int(gpa + 4 + 8, 4, 999)
    (text,) = split.queue().findings
    assert text == "the used element 1 names the head 999, which is not below the queue size 128 (virtio §2.7.8)"


def test_a_used_index_that_somebody_else_wrote_is_found(split: Seen) -> None:
    split.bench.driver.start()
    split.bench.driver.inflate(split.bench.filled_pfns(2), per_buffer=1)
    gpa = split.bench.balloon.queues[INFLATEQ].device_gpa
    split.bench.memory.write_int(gpa + 2, 2, 5000)
    assert any(text.startswith("the used index 5000 is not among the 128 before") for text in split.queue().findings)


def test_ids_that_are_not_in_the_packed_ring_are_found(packed: Seen) -> None:
    packed.bench.driver.start()
    ring = packed.bench.balloon.queues[INFLATEQ].ring
    assert ring is not None
    ring.marks[77] = 1
    assert packed.queue().findings == [
        "the buffer ids in flight are [77], those behind the next used position []",
    ]


def test_a_device_that_needs_a_reset_is_told(split: Seen) -> None:
    split.bench.driver.start()
    raw = RawQueue(split.bench.driver, INFLATEQ)
    raw.available(500)
    raw.kick()
    device = split.device()
    assert device.status & Status.DEVICE_NEEDS_RESET
    assert device.findings == ["the driver broke a rule: the device needs a reset"]


# -- the balloon -----------------------------------------------------------------------------------------------------


def test_ranges_and_backing_of_the_balloon(seen: Seen) -> None:
    bench = seen.bench
    bench.driver.start()
    pfns = bench.filled_pfns(64)
    chosen = sorted(random.Random(1).sample(pfns, 40))
    bench.driver.inflate(chosen)
    bench.driver.deflate(chosen[:3])
    inside = set(chosen[3:])
    balloon = seen.device().balloon
    assert balloon is not None
    assert {pfn + n for pfn, count in balloon.ranges for n in range(count)} == inside
    assert balloon.pages == len(inside)
    assert (balloon.backed_pages, balloon.backed) == (0, [])
    assert wrong(seen) == []


def test_pages_in_the_balloon_that_somebody_touched_are_found(seen: Seen) -> None:
    bench = seen.bench
    bench.driver.start()
    pfns = bench.filled_pfns(16)
    bench.driver.inflate(pfns)
    for pfn in (pfns[3], pfns[4], pfns[9]):
        bench.memory.write(pfn * PAGE, b"x")
    balloon = seen.device().balloon
    assert balloon is not None
    assert balloon.backed == runs_of(np.isin(np.arange(max(pfns) + 1), [pfns[3], pfns[4], pfns[9]]))
    assert seen.device().findings == [
        "3 pages in the balloon have host memory behind them: they were not given back, or somebody has touched them "
        "since"
    ]


def test_a_ring_on_pages_in_the_balloon_is_found(split: Seen) -> None:
    split.bench.driver.start()
    gpa = split.bench.balloon.queues[STATSQ].device_gpa
    split.bench.driver.inflate([gpa // PAGE])
    assert f"its used ring at {gpa:#x} is on pages in the balloon" in split.queue(STATSQ).findings


def test_a_buffer_on_pages_in_the_balloon_is_found(seen: Seen) -> None:
    bench = seen.bench
    bench.driver.start()
    (pfn,) = bench.filled_pfns(1)
    bench.driver.inflate([pfn])
    seen.deaf()
    bench.driver.offer(INFLATEQ, readable=[(pfn * PAGE + 8, 4)])
    bench.driver.kick(INFLATEQ, force=True)
    (request,) = seen.queue().available
    expected = f"the chain at {request.head} has a buffer at {pfn * PAGE + 8:#x}, on pages in the balloon"
    assert seen.queue().findings == [expected]


# -- nothing is changed ----------------------------------------------------------------------------------------------


def build_large(memory: GuestMemory) -> Balloon:
    return build_with(queue_size=32768)(memory)


@pytest.mark.parametrize("way", ["direct", "packed"])
def test_looking_at_large_rings_that_are_mostly_holes_backs_nothing(way: Way) -> None:
    for seen in made(way, build=build_large):
        bench = seen.bench
        bench.driver.start(queue_sizes={INFLATEQ: 32768, 1: 32768, STATSQ: 32768})
        bench.driver.inflate(bench.filled_pfns(3))
        for queue in bench.balloon.queues:  # but for the first page of each part, as if the driver had written no more
            for gpa, size in seen.device().queues[queue.index].parts.values():
                first, last = gpa // PAGE + 1, (gpa + size) // PAGE
                if last > first:
                    bench.memory.discard_run(first, last - first)
        bench.memory.take_writes()
        before, extents = seen.blocks(), hostcalls.data_extents(bench.memory.fd or -1, 0, 1 << 33)
        for _ in range(2):
            seen.machine()
        assert seen.blocks() == before
        assert hostcalls.data_extents(bench.memory.fd or -1, 0, 1 << 33) == extents
        assert not bench.memory.has_writes
        assert wrong(seen) == []


@pytest.mark.parametrize("way", ["direct", "packed"])
def test_rings_that_are_nothing_but_holes_stay_so(way: Way) -> None:
    """With everything in them available: each page of each part is read."""
    for seen in made(way, build=build_large):
        bench = seen.bench
        bench.driver.start(queue_sizes={INFLATEQ: 32768, 1: 32768, STATSQ: 32768})
        table = bench.pages.take(1)
        for queue in bench.balloon.queues:
            for gpa, size in seen.device().queues[queue.index].parts.values():
                bench.memory.discard_run(gpa // PAGE, -(-(gpa + size + 2) // PAGE) - gpa // PAGE)
        if way == "direct":
            bench.memory.write_int(bench.balloon.queues[INFLATEQ].driver_gpa + 2, 2, 32768)
            raw = RawQueue(bench.driver, INFLATEQ)
            raw.descriptor(0, table, PAGE, INDIRECT)
        before = seen.blocks()
        found = seen.queue()
        assert seen.blocks() == before
        if way == "direct":
            assert len(found.findings) == MOST_FAULTS + 1
            assert found.findings[-1] == "and so on: what is behind that was not looked at"


def test_not_a_byte_is_changed(seen: Seen) -> None:
    """EVENT_IDX too: the device writes to its ring when it takes something, an onlooker must not."""
    bench = seen.bench
    bench.driver.start()
    bench.driver.post_stats({"stat-free-memory": 1})
    seen.deaf()
    offered(seen, [[bytes([n, 1, 0, 0])] for n in range(9)])
    before = bench.snapshot()
    state = bench.balloon.save_state()
    seen.machine()
    assert before.changed() == []
    assert bench.balloon.save_state() == state


def test_the_map_of_the_balloon_is_read_without_making_memory_of_it(split: Seen) -> None:
    split.bench.driver.start()
    split.bench.driver.inflate([0x3F0])

    def backed() -> int:
        address = split.bench.balloon.given_away().ctypes.data
        (mapping,) = [each for each in ptrace_import.mappings_of(os.getpid()) if each.start <= address < each.end]
        return os.stat(f"/proc/self/map_files/{mapping.start:x}-{mapping.end:x}").st_blocks * 512

    before = backed()
    assert before == PAGE  # of the 257 pages of a map that ends beyond 4 GiB
    split.machine()
    assert backed() == before


def test_ram_without_a_table_is_shown_with_a_word() -> None:
    with GuestMemory([(0, PAGE)]) as memory:
        assert memory.fd is not None
        (found,) = look(os.getpid(), os.fstat(memory.fd).st_ino)
        assert (found.devices, found.regions) == ([], [(0, PAGE)])
        assert found.notes == ["there is no table of devices: nothing is known of its rings"]


def test_a_table_caught_while_it_is_written_is_said_to_be() -> None:
    for seen in made():
        mapping = seen.table._mapping
        assert mapping is not None
        generation = int.from_bytes(mapping[12:16], "little")
        mapping[12:16] = (generation | 1).to_bytes(4, "little")
        fd = seen.bench.memory.fd
        assert fd is not None
        (found,) = look(os.getpid(), os.fstat(fd).st_ino)
        assert found.notes == ["the VMM was caught while it wrote its table of devices: what follows may be half old"]
