"""One request beside its bare host call, and parts of the device on their own: `pytest bench`.

The parts run in a loop, with warm caches, for choosing between two ways of writing them.  `make bench` runs the request
here too, and compares whole batches with C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.device_path import bare_discard
from bench.rig import AVAILABLE, BACKINGS, DESC, FIRST_PFN, QUEUE_SIZE, REQUEST_PAGES, USED, Rig, pfns_of
from devices.virtio import spec
from devices.virtio.balloon.pages import PfnReader
from devices.virtio.balloon.stats_formats import parse
from devices.virtio.split import SplitQueue
from devices.virtio.walk import Walker


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def rounds(
    benchmark: BenchmarkFixture, work: Callable[[], object], prepare: Callable[[], None], count: int = 1000
) -> None:
    benchmark.pedantic(work, setup=prepare, rounds=count, warmup_rounds=50)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("what", ["request", "bare discard"])
@pytest.mark.parametrize("backing", BACKINGS)
def test_one_request(benchmark: BenchmarkFixture, backing: str, what: str) -> None:
    """256 ascending pages, touched again before each round: from the kick to the used ring, and the host call alone."""
    rig, pfns = Rig(backing), pfns_of("ascending", REQUEST_PAGES)
    rig.place([pfns])

    def prepare() -> None:
        rig.touch(pfns)
        rig.offer(0)

    rounds(benchmark, rig.kick if what == "request" else bare_discard(rig, pfns), prepare, 2000)
    rig.close()


@pytest.mark.parametrize("chains", [4, 16, 64])
def test_kick_with_many_chains(benchmark: BenchmarkFixture, rig: Rig, chains: int) -> None:
    """The same 256 pages in many small requests."""
    pfns = pfns_of("ascending", 256)
    rig.place(np.split(pfns, chains))

    def prepare() -> None:
        rig.touch(pfns)
        rig.offer(*range(chains))

    rounds(benchmark, rig.kick, prepare, 300)
    assert rig.used_index() == rig.available_index


@pytest.mark.parametrize("way", ["one by one", "lock-step"])
@pytest.mark.parametrize("chains", [1, 4, 16, 32, 48, 64, 128, 256])
def test_following_chains(benchmark: BenchmarkFixture, rig: Rig, way: str, chains: int) -> None:
    """Where the two ways cross is the least that `split.LOCK_STEP_FROM_CHAINS` may be."""
    rig.place([pfns_of("ascending", 8)] * chains)
    walker = Walker(rig.memory, DESC, QUEUE_SIZE, False)
    heads = np.arange(chains)
    if way == "lock-step":
        benchmark(walker.in_lock_step, heads)
    else:
        benchmark(lambda: walker.one_by_one(heads.tolist(), bytearray(QUEUE_SIZE)))


@pytest.mark.parametrize("chains", [1, 64, 256])
def test_take_and_put(benchmark: BenchmarkFixture, rig: Rig, chains: int) -> None:
    """The ring alone: no payload."""
    rig.place([pfns_of("ascending", 8)] * chains)
    ring = SplitQueue(rig.memory, QUEUE_SIZE, DESC, AVAILABLE, USED)

    def work() -> None:
        taken = ring.take_available()
        assert taken is not None
        ring.put_used(taken)
        ring.needs_notification()

    rounds(benchmark, work, lambda: rig.offer(*range(chains)))


@pytest.mark.parametrize("count", [256, 65536])
@pytest.mark.parametrize("pattern", ["ascending", "random", "repeated"])
def test_page_set(benchmark: BenchmarkFixture, rig: Rig, pattern: str, count: int) -> None:
    pfns = np.arange(FIRST_PFN, FIRST_PFN + count, dtype="<u4")
    if pattern != "ascending":
        pfns = np.random.default_rng(1).permutation(pfns)
    if pattern == "repeated":
        pfns[1::2] = pfns[::2]
    benchmark(PfnReader(rig.memory).read, pfns.tobytes())


def test_stats_parse(benchmark: BenchmarkFixture) -> None:
    """Sixteen entries, as Linux sends them from 6.12 on."""
    entries = np.array([(tag, tag << 20) for tag in range(16)], spec.virtio_balloon_stat)
    payload = entries.tobytes()
    report = benchmark(parse, payload, len(payload))
    assert report.values["stat-free-memory"] == 4 << 20
