"""How things are timed here: loops take turns, and what is compared was measured side by side.

Other work on the machine changes the speed of everything from one second to the next.  So the loops of one comparison
alternate, each pass in another order, and a comparison is the median of the ratios (or differences) of each pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

PASSES = 9

Times = dict[str, list[int]]


def timed_ns(work: Callable[[], object]) -> int:
    """How long `work` takes on the host."""
    start = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - start


def alternate(loops: Mapping[str, Callable[[], int]], prepare: Callable[[], None], passes: int = PASSES) -> Times:
    """Nanoseconds of each loop in each pass.  `prepare` comes before each loop; a loop returns its own time."""
    names = list(loops)
    times: Times = {name: [] for name in names}
    for number in range(passes):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            prepare()
            times[name].append(loops[name]())
    return times


def paired_ratio(times: Times, ours: str, theirs: str) -> float:
    """How many times as fast as `theirs` `ours` is."""
    return statistics.median(b / a for a, b in zip(times[ours], times[theirs], strict=True))


def paired_difference_ns(times: Times, longer: str, shorter: str) -> float:
    """What `longer` takes more than `shorter`."""
    return statistics.median(a - b for a, b in zip(times[longer], times[shorter], strict=True))


def gib_per_second(times: Times, name: str, size_bytes: int) -> float:
    """The median speed."""
    return size_bytes / statistics.median(times[name]) * 1e9 / (1 << 30)
