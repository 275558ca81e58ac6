"""The device without a CPU: from a notification to the used ring, beside C loops with the same discard calls.

What one request costs beyond its discard call is measured as the throughput is: all pages of a pass of 64 requests are
written before it.  In the pass a request and a bare discard call take turns, each on pages of its own, so that both
find the same caches and page tables, and both orders are as frequent.  A second row has the host's first touch of the
256 pages right before each request, which pushes the device out of the caches; the layers are those of such a request.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

from bench.loops import Loops, PreparedBatch
from bench.measure import Times, alternate, gib_per_second, paired_difference_ns, paired_ratio, timed_ns
from bench.rig import PATTERNS, REQUEST_PAGES, PackedRig, Pfns, Rig, pfns_of
from bench.table import Row
from devices import hostcalls
from devices.memory import PAGE_BYTES, PAGE_SHIFT
from devices.virtio import split
from devices.virtio.balloon import device as balloon
from devices.virtio.balloon import pages
from devices.virtio.chains import OneBuffer

REQUESTS = 64
PAGES = REQUESTS * REQUEST_PAGES
PAIRED_PASSES = 40  # of 32 pairs each
RING_KICKS, RING_PASSES = 100, 30
SMALL_PASSES = 600  # of a single request, which takes a tenth of a millisecond

LOOPS = {
    "one": "device, a kick for each request",
    "many": "device, one kick for 64 requests",
    "page": "C, page by page",
    "sort": "C, sort and merge each request",
    "batch": "C, sort and merge all 64 requests",
}


def throughput(loops: Loops, backing: str, pattern: str) -> Times:
    """64 requests of 256 pages each, by each loop of LOOPS."""
    rig, pfns = Rig(backing), pfns_of(pattern, PAGES)
    gpas = rig.place(np.split(pfns, REQUESTS))
    whole = PreparedBatch(rig.memory, gpas, [REQUEST_PAGES] * REQUESTS)
    single = [PreparedBatch(rig.memory, [gpa], [REQUEST_PAGES]) for gpa in gpas]

    def one_by_one() -> int:
        return sum(kick(head) for head in range(REQUESTS))

    def kick(*heads: int) -> int:
        rig.offer(*heads)
        return timed_ns(rig.kick)

    times = alternate(
        {
            "one": one_by_one,
            "many": lambda: kick(*range(REQUESTS)),
            "page": lambda: timed_ns(lambda: loops.page_by_page(whole)),
            "sort": lambda: timed_ns(lambda: [loops.sort_and_merge(request) for request in single]),
            "batch": lambda: timed_ns(lambda: loops.sort_and_merge(whole)),
        },
        lambda: rig.touch(pfns),
    )
    if rig.used_index() != rig.available_index:
        raise RuntimeError("a request did not come back")
    rig.close()
    return times


def throughput_rows(measured: dict[tuple[str, str], Times]) -> list[Row]:
    """GiB/s of every loop, then the ratios that must be reached."""
    rows = []
    backings = list(dict.fromkeys(backing for backing, _ in measured))
    for pattern in PATTERNS:
        for loop, name in LOOPS.items():
            speeds = {b: gib_per_second(measured[b, pattern], loop, PAGES * PAGE_BYTES) for b in backings}
            rows.append(Row(f"{pattern}: {name}", "GiB/s", speeds))

    def ratio(name: str, pattern: str, ours: str, theirs: str, bounds: dict[str, float], note: str = "") -> Row:
        values = {b: paired_ratio(measured[b, pattern], ours, theirs) for b in backings}
        return Row(name, "times", values, bounds, note=note)

    no_vector = "" if hostcalls.process_madvise_works() else "process_madvise refused here"
    both, merged = {"memfd": 4.0, "anonymous": 4.0}, {"memfd": 0.85, "anonymous": 0.75}
    return [
        *rows,
        ratio("ascending: 64 requests over C, sort and merge", "ascending", "many", "batch", merged),
        ratio("ascending: 64 requests over C, page by page", "ascending", "many", "page", both),
        ratio("random: 64 requests over C, sort and merge", "random", "many", "batch", {"anonymous": 1.3}, no_vector),
        ratio("random: a kick for each over C, sort and merge", "random", "one", "sort", {"anonymous": 1.3}, no_vector),
    ]


# -- the two kinds of ring --------------------------------------------------------------------------------------------


def packed_over_split(backing: str, chains: int) -> float:
    """How many times as fast as a split ring a packed one is, with so many chains of 8 pages a kick.

    The pages are not backed, so that it is the rings that count and not the host's calls."""
    rigs, pfns = {"split": Rig(backing), "packed": PackedRig(backing)}, pfns_of("ascending", 8 * chains)
    for rig in rigs.values():
        rig.place(np.split(pfns, chains))

    def kicks(rig: Rig) -> int:
        spent = 0
        for _ in range(RING_KICKS):
            rig.offer(*range(chains))
            spent += timed_ns(rig.kick)
        return spent

    times = alternate({name: partial(kicks, rig) for name, rig in rigs.items()}, lambda: None, RING_PASSES)
    for rig in rigs.values():
        if rig.used_index() % 65536 != rig.available_index % 65536:
            raise RuntimeError("a request did not come back")
        rig.close()
    return paired_ratio(times, "packed", "split")


# -- a single request --------------------------------------------------------------------------------------------------


def bare_discard(rig: Rig, pfns: Pfns) -> Callable[[], None]:
    """The host call alone that a request for the ascending `pfns` ends in."""
    region, start, size = rig.memory.regions[1], int(pfns[0]) << PAGE_SHIFT, len(pfns) * PAGE_BYTES
    offset = start - region.gpa

    def discard() -> None:
        if rig.memory.fd is None:
            hostcalls.discard_anonymous(region.mapping, offset, size)
        else:
            hostcalls.discard_file(rig.memory.fd, region.mapping, start, offset, size)

    return discard


def beyond_the_discard(backing: str) -> float:
    """Microseconds that a kick with 256 ascending pages takes beyond the bare discard call, in passes of 64 MiB."""
    rig, pfns = Rig(backing), pfns_of("ascending", PAGES)
    arrays = np.split(pfns, REQUESTS)
    rig.place(arrays)
    bare = [bare_discard(rig, array) for array in arrays]
    times: Times = {"request": [], "discard": []}

    def request(head: int) -> None:
        rig.offer(head)
        times["request"].append(timed_ns(rig.kick))

    def discard(head: int) -> None:
        times["discard"].append(timed_ns(bare[head]))

    for _ in range(PAIRED_PASSES):
        rig.touch(pfns)
        for head in range(0, REQUESTS, 4):
            request(head)
            discard(head + 1)
            discard(head + 2)
            request(head + 3)
    rig.close()
    return paired_difference_ns(times, "request", "discard") / 1000


def beyond_the_discard_after_faults(backing: str) -> float:
    """The same where the host writes the 256 pages for the first time right before each request."""
    rig, pfns = Rig(backing), pfns_of("ascending", REQUEST_PAGES)
    rig.place([pfns])
    bare = bare_discard(rig, pfns)

    def prepare() -> None:
        rig.touch(pfns)
        rig.offer(0)

    def discard() -> int:
        rig.kick()  # the request that was offered; nothing of it is timed here
        rig.touch(pfns)
        return timed_ns(bare)

    times = alternate({"request": lambda: timed_ns(rig.kick), "discard": discard}, prepare, SMALL_PASSES)
    rig.close()
    return paired_difference_ns(times, "request", "discard") / 1000


class Stopwatch:
    """Adds up the time that is spent inside wrapped functions, less what is spent in wrapped functions inside them."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self._inner = 0

    def wrap(self, layer: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            outside, self._inner = self._inner, 0
            start = time.perf_counter_ns()
            try:
                return work(*args, **kwargs)
            finally:
                took = time.perf_counter_ns() - start
                self.spent[layer] = self.spent.get(layer, 0) + took - self._inner
                self._inner = outside + took

        return wrapped


LAYERS = (
    ("dispatch", balloon.Balloon, "notify"),
    ("ring: take", split.SplitQueue, "take_available"),
    ("payload: copy", OneBuffer, "gather_entries"),
    ("pages: sort and merge", pages.PfnReader, "read"),
    ("pages: the map of the balloon", pages.BalloonPages, "move"),
    ("RAM: discard", pages.PageSet, "discard"),
    ("ring: put and notify", balloon.Balloon, "complete"),
)


@contextmanager
def _watched(stopwatch: Stopwatch) -> Iterator[None]:
    with ExitStack() as stack:
        for layer, owner, name in LAYERS:
            stack.enter_context(mock.patch.object(owner, name, stopwatch.wrap(layer, getattr(owner, name))))
        yield


def layers(backing: str) -> dict[str, float]:
    """Median microseconds of a request of 256 ascending pages in each layer."""
    rig, pfns = Rig(backing), pfns_of("ascending", REQUEST_PAGES)
    rig.place([pfns])
    seen: dict[str, list[int]] = {}
    stopwatch = Stopwatch()
    with _watched(stopwatch):  # once: after each change of a class the interpreter has to learn its shortcuts anew
        for _ in range(SMALL_PASSES):
            rig.touch(pfns)
            rig.offer(0)
            stopwatch.spent.clear()
            rig.kick()
            for layer, spent in stopwatch.spent.items():
                seen.setdefault(layer, []).append(spent)
    rig.close()
    return {layer: statistics.median(seen[layer]) / 1000 for layer, _, _ in LAYERS}
