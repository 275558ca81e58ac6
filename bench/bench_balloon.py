"""What the balloon costs beyond the memory it gives back: `make bench`.

Every round touches the pages again first, since discarding a hole costs next to nothing.  The bare discard call stands
beside each request with the same pages, in the same run: their difference is the device's own cost, which
`test_own_cost` prints and holds to 40 µs.  Most of it is cold caches: without pages to touch it is a third.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.pages import page_set
from devices.virtio.balloon.stats import parse
from devices.virtio.split import SplitQueue
from devices.virtio.walk import Walker

MIB = 1 << 20
QUEUE_SIZE = 256
DESC, AVAILABLE, USED, BUFFERS = 0x10000, 0x12000, 0x14000, 0x20000
FIRST_PFN, LAST_PFN = 0x1000, 0x3000
PATTERNS = ("ascending", "random")

Pfns = NDArray[Any]


def pfns_of(pattern: str, count: int = 256) -> Pfns:
    """`count` page frame numbers, without a gap or scattered over 32 MiB."""
    if pattern == "ascending":
        return np.arange(FIRST_PFN, FIRST_PFN + count, dtype="<u4")
    return np.random.default_rng(1).permutation(np.arange(FIRST_PFN, LAST_PFN, dtype="<u4"))[:count]


class Bench:
    """A live balloon and the smallest driver there can be: chains are written ready-made, one descriptor each."""

    def __init__(self) -> None:
        self.memory = GuestMemory(((0, 0xA0000), (0x100000, 255 * MIB)))
        self.balloon = Balloon(self.memory, queue_size=QUEUE_SIZE)
        self.available_index = 0
        device = self.balloon
        device.set_dma_enabled(True, 0)
        device.write_status(3, 0)
        device.write_driver_features(1 << spec.VIRTIO_F_VERSION_1 | 1 << spec.VIRTIO_F_EVENT_IDX)
        device.write_status(11, 0)
        for field, value in (("desc_gpa", DESC), ("driver_gpa", AVAILABLE), ("device_gpa", USED), ("enabled", 1)):
            device.write_queue(0, field, value, 0)
        device.write_status(15, 0)
        self._available = self.memory.view(AVAILABLE, 6 + 2 * QUEUE_SIZE).view("<u2")
        self._used = self.memory.view(USED, 6 + 8 * QUEUE_SIZE).view("<u2")
        self._pages = self.memory.regions[1].array

    def place(self, arrays: list[Pfns]) -> None:
        """Chain i is descriptor i, whose buffer holds arrays[i]."""
        descriptors = self.memory.view(DESC, 16 * QUEUE_SIZE).view(spec.virtq_desc)
        gpa = BUFFERS
        for index, pfns in enumerate(arrays):
            descriptors[index] = (gpa, 4 * len(pfns), 0, 0)
            self.memory.write(gpa, pfns.astype("<u4").tobytes())
            gpa += 4 * len(pfns)

    def offer(self, chains: int) -> None:
        """Make chains 0 .. chains - 1 available, without a kick."""
        for head in range(chains):
            self._available[2 + (self.available_index + head) % QUEUE_SIZE] = head
        self.available_index = self.available_index + chains & 0xFFFF
        self._available[1] = self.available_index
        self.memory.take_writes()

    def touch(self, pfns: Pfns) -> None:
        """Put host memory behind the pages."""
        self._pages[(pfns.astype(np.int64) << 12) - 0x100000] = 1

    def kick(self) -> None:
        """From the notification to the used ring."""
        self.balloon.notify(0, 0)

    def used_index(self) -> int:
        return int(self._used[1])


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.memory.close()


def rounds(
    benchmark: BenchmarkFixture, work: Callable[[], object], prepare: Callable[[], None], count: int = 1000
) -> None:
    benchmark.pedantic(work, setup=prepare, rounds=count, warmup_rounds=50)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_inflate_request_of_256_pages(benchmark: BenchmarkFixture, bench: Bench, pattern: str) -> None:
    """One chain, one descriptor, 256 page frame numbers: what Linux sends."""
    pfns = pfns_of(pattern)
    bench.place([pfns])

    def prepare() -> None:
        bench.touch(pfns)
        bench.offer(1)

    rounds(benchmark, bench.kick, prepare)
    assert bench.used_index() == bench.available_index
    assert bench.balloon.inflated_pages == 256


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bare_discard_of_256_pages(benchmark: BenchmarkFixture, bench: Bench, pattern: str) -> None:
    pfns = pfns_of(pattern)
    pages = page_set(pfns.tobytes(), bench.memory)
    rounds(benchmark, lambda: pages.discard(bench.memory), lambda: bench.touch(pfns))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_own_cost(benchmark: BenchmarkFixture, bench: Bench, pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Request and bare discard alternate, so that both see the same machine.  Other work on it only ever adds: the
    bound of 40 µs, for the request that drivers send most, is on the quickest fiftieth of the rounds."""
    pfns = pfns_of(pattern)
    pages = page_set(pfns.tobytes(), bench.memory)
    bench.place([pfns])
    discards: list[int] = []

    def prepare() -> None:
        bench.touch(pfns)
        bench.memory.take_writes()
        discards.append(_timed(lambda: pages.discard(bench.memory)))
        bench.touch(pfns)
        bench.offer(1)

    requests: list[int] = []
    rounds(benchmark, lambda: requests.append(_timed(bench.kick)), prepare, 2000)
    own_us = {}
    for name, rank in (("quickest 2 %", 0), ("median", 24)):
        request_us, discard_us = _quantile_us(requests, rank), _quantile_us(discards, rank)
        own_us[name] = benchmark.extra_info[name] = request_us - discard_us
        with capsys.disabled():
            print(
                f"\n256 pages, {pattern}, {name}: request {request_us:.1f} µs, bare discard {discard_us:.1f} µs, "
                f"own cost {own_us[name]:.1f} µs, ratio {request_us / discard_us:.3f}"
            )
    assert pattern != "ascending" or own_us["quickest 2 %"] <= 40


def _quantile_us(times_ns: list[int], rank: int) -> float:
    """The border of the lowest `rank` + 1 fiftieths."""
    return statistics.quantiles(times_ns, n=50)[rank] / 1000


def _timed(work: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - start


@pytest.mark.parametrize("chains", [4, 16, 64])
def test_kick_with_many_chains(benchmark: BenchmarkFixture, bench: Bench, chains: int) -> None:
    """The same 256 pages in many small requests."""
    pfns = pfns_of("ascending")
    bench.place(np.split(pfns, chains))

    def prepare() -> None:
        bench.touch(pfns)
        bench.offer(chains)

    rounds(benchmark, bench.kick, prepare, 300)
    assert bench.used_index() == bench.available_index


@pytest.mark.parametrize("way", ["one by one", "lock-step"])
@pytest.mark.parametrize("chains", [1, 4, 8, 12, 16, 24, 32, 64, 256])
def test_following_chains(benchmark: BenchmarkFixture, bench: Bench, way: str, chains: int) -> None:
    """Where the two ways cross is `split.LOCK_STEP_FROM_CHAINS`."""
    bench.place([pfns_of("ascending", 1)] * chains)
    walker = Walker(bench.memory, DESC, QUEUE_SIZE, False)
    heads = np.arange(chains)
    if way == "lock-step":
        benchmark(walker.in_lock_step, heads)
    else:
        benchmark(lambda: walker.one_by_one(heads.tolist(), bytearray(QUEUE_SIZE)))


@pytest.mark.parametrize("chains", [1, 256])
def test_take_and_put(benchmark: BenchmarkFixture, bench: Bench, chains: int) -> None:
    """The ring alone: no payload."""
    bench.place([pfns_of("ascending", 1)] * chains)
    ring = SplitQueue(bench.memory, QUEUE_SIZE, DESC, AVAILABLE, USED)

    def work() -> None:
        taken = ring.take_available()
        assert taken is not None
        ring.put_used(taken)
        ring.needs_notification()

    rounds(benchmark, work, lambda: bench.offer(chains))


@pytest.mark.parametrize("count", [256, 32768])
@pytest.mark.parametrize("pattern", ["ascending", "random", "repeated"])
def test_page_set(benchmark: BenchmarkFixture, bench: Bench, pattern: str, count: int) -> None:
    pfns = np.arange(FIRST_PFN, FIRST_PFN + count, dtype="<u4")
    if pattern != "ascending":
        pfns = np.random.default_rng(1).permutation(pfns)
    if pattern == "repeated":
        pfns[1::2] = pfns[::2]
    benchmark(page_set, pfns.tobytes(), bench.memory)


def test_stats_parse(benchmark: BenchmarkFixture) -> None:
    """Sixteen entries, as Linux sends them from 6.12 on."""
    entries = np.array([(tag, tag << 20) for tag in range(16)], spec.virtio_balloon_stat)
    payload = entries.tobytes()
    report = benchmark(parse, payload, len(payload))
    assert report.values["stat-free-memory"] == 4 << 20
