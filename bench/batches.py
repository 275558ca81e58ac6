"""Large batches beside one bare discard call over the same bytes: reports, hints, and many requests with one kick.

The driver library fills the rings, outside the timing; what is timed is the device from a notification to the used
ring, and the further calls that it asks for where a batch takes more than one turn.  Every page is written before each
pass.  The device and the bare call take turns, each over the same pages, and each after the driver has offered the
request, so that the driver's work costs both alike: it takes cache lines from the host's call too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from bench.measure import Times, alternate, gib_per_second, paired_difference_ns, paired_ratio, timed_ns
from bench.rig import BACKINGS, MIB, RAM_BYTES, RAM_START, REQUEST_PAGES, backed_by
from bench.table import Row
from devices import hostcalls
from devices.memory import PAGE_BYTES, PAGE_SHIFT, GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.device import DEFAULT_FEATURES
from vmm.testing import BalloonDriver, DirectTransport, PageAllocator
from vmm.testing.balloon import INFLATEQ, pfn_bytes

RINGS = ("split", "packed")
START = 128 * MIB  # where the pages lie that are given away
REPORT_RANGES, REPORT_BYTES = 32, 2 * MIB
HINTS, HINT_BYTES = 16, 4 * MIB
QUEUE_SIZE = 256
REPORT_BOUND, CHAIN_BOUND_US = 0.9, 6.0
PASSES = 45


class Batch:
    """A balloon with every feature, its driver, and RAM of `backing`; `ring` is "split" or "packed"."""

    def __init__(self, backing: str, ring: str) -> None:
        optional = (
            spec.VIRTIO_BALLOON_F_PAGE_REPORTING,
            spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT,
            *((spec.VIRTIO_F_RING_PACKED,) if ring == "packed" else ()),
        )
        with backed_by(backing):
            self.memory = GuestMemory(((0, 0xA0000), (RAM_START, RAM_BYTES - RAM_START)))
        features = DEFAULT_FEATURES | sum(1 << bit for bit in optional)
        self.balloon = Balloon(self.memory, features=features, queue_size=QUEUE_SIZE)
        self.transport = DirectTransport(self.balloon, self.memory, PageAllocator(RAM_START, START))
        self.driver = BalloonDriver(self.transport)
        self.driver.start()

    def touch(self, size_bytes: int) -> None:
        """Put host memory behind the pages from START on."""
        self.memory.view(START, size_bytes)[::PAGE_BYTES] = 1
        self.memory.take_writes()

    def kick(self, queue: int) -> int:
        """Nanoseconds until everything that was offered in `queue` has been used."""
        self.driver.queues[queue].publish()
        took = timed_ns(lambda: self._work(queue))
        used = len(self.driver.collect(queue))
        if self.driver.queues[queue].in_flight or not used:
            raise RuntimeError("a buffer did not come back")
        self.memory.take_writes()
        return took

    def _work(self, queue: int) -> None:
        self.balloon.notify(queue, 0)
        while (deadline := self.balloon.next_deadline_ns()) is not None:
            self.balloon.advance(deadline)

    def bare_discard(self, size_bytes: int) -> int:
        """Nanoseconds of the host call alone."""
        region = self.memory.region_of(START, size_bytes)
        if region is None:
            raise RuntimeError("the pages do not lie in one region")
        offset = START - region.gpa
        if self.memory.fd is None:
            return timed_ns(lambda: hostcalls.discard_anonymous(region.mapping, offset, size_bytes))
        fd = self.memory.fd
        return timed_ns(lambda: hostcalls.discard_file(fd, region.mapping, START, offset, size_bytes))

    def beside_the_bare_call(self, device: Callable[[], int], size_bytes: int) -> Times:
        """ "device" and "bare" by turns over `size_bytes` from START on."""
        loops = {"device": device, "bare": lambda: self.bare_discard(size_bytes)}
        return alternate(loops, lambda: self.touch(size_bytes), PASSES)

    def offered(self, queue: int, offer: Callable[[], None], size_bytes: int) -> Times:
        """The same for what `offer` puts into `queue`.  Behind the bare call the device returns it, out of the time."""

        def device() -> int:
            offer()
            return self.kick(queue)

        def bare() -> int:
            offer()
            took = self.bare_discard(size_bytes)
            self.kick(queue)
            return took

        return alternate({"device": device, "bare": bare}, lambda: self.touch(size_bytes), PASSES)


@contextmanager
def _batch(backing: str, ring: str) -> Iterator[Batch]:
    batch = Batch(backing, ring)
    yield batch
    batch.memory.close()


def reports(backing: str, ring: str) -> Times:
    """One request of 32 reports of 2 MiB each."""
    with _batch(backing, ring) as batch:
        queue = batch.driver.reporting_vq
        ranges = [(START + number * REPORT_BYTES, REPORT_BYTES) for number in range(REPORT_RANGES)]

        def offer() -> None:
            batch.driver.offer(queue, writable=ranges)

        return batch.offered(queue, offer, REPORT_RANGES * REPORT_BYTES)


def hints(backing: str, chains: int) -> Times:
    """16 hints of 4 MiB each, so many with one kick."""
    with _batch(backing, "split") as batch:
        queue = batch.driver.free_page_vq
        ranges = [(START + number * HINT_BYTES, HINT_BYTES) for number in range(HINTS)]

        def device() -> int:
            batch.transport.deliver(batch.balloon.start_hinting(0))
            batch.driver.send_id(batch.driver.hint_cmd_id)
            took = 0
            for start in range(0, HINTS, chains):
                for each in ranges[start : start + chains]:
                    batch.driver.offer(queue, writable=[each])
                took += batch.kick(queue)
            return took

        return batch.beside_the_bare_call(device, HINTS * HINT_BYTES)


def requests(backing: str, ring: str, chains: int) -> Times:
    """So many requests of 256 ascending pages each with one kick."""
    with _batch(backing, ring) as batch:
        first = START >> PAGE_SHIFT
        payloads = [
            pfn_bytes(np.arange(start, start + REQUEST_PAGES))
            for start in range(first, first + chains * REQUEST_PAGES, REQUEST_PAGES)
        ]

        def offer() -> None:
            for payload in payloads:
                batch.driver.offer(INFLATEQ, readable=[payload])

        return batch.offered(INFLATEQ, offer, chains * REQUEST_PAGES * PAGE_BYTES)


def rows() -> list[Row]:
    """All of it for the table."""
    found = []
    for ring in RINGS:
        ratios = {backing: paired_ratio(reports(backing, ring), "device", "bare") for backing in BACKINGS}
        name = f"{ring} ring: a request of 32 reports of 2 MiB over one bare discard"
        found.append(Row(name, "times", ratios, dict.fromkeys(BACKINGS, REPORT_BOUND)))
    for ring in RINGS:
        own = {}
        for backing in BACKINGS:
            own[backing] = paired_difference_ns(requests(backing, ring, 64), "device", "bare") / 64 / 1000
        name = f"{ring} ring: each of 64 requests a kick beyond one bare discard"
        found.append(Row(name, "µs", own, dict.fromkeys(BACKINGS, CHAIN_BOUND_US), at_most=True))
    speeds = {
        backing: gib_per_second(requests(backing, "split", 256), "device", 256 * REQUEST_PAGES * PAGE_BYTES)
        for backing in BACKINGS
    }
    found.append(Row("64 Ki pages a kick, in 256 requests", "GiB/s", speeds))
    for chains, name in ((1, "a kick each"), (HINTS, "with one kick")):
        ratios = {backing: paired_ratio(hints(backing, chains), "device", "bare") for backing in BACKINGS}
        found.append(Row(f"16 hints of 4 MiB {name} over one bare discard", "times", ratios))
    return found
