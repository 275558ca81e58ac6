"""`python -m bench`: measures everything and prints one table; progress goes to standard error."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench import batches, device_path, whole_machine
from bench.loops import Loops
from bench.measure import gib_per_second, paired_ratio
from bench.rig import BACKINGS, PATTERNS
from bench.table import Row, machine, render

OWN_COST_BOUND_US = 20.0
END_TO_END_BOUND = 0.6
RING_BOUND = 0.9


def say(text: str) -> None:
    print(f"{time.perf_counter() - STARTED:4.0f} s  {text}", file=sys.stderr, flush=True)


def device_rows(loops: Loops) -> list[Row]:
    measured = {}
    for backing in BACKINGS:
        for pattern in PATTERNS:
            say(f"device path, {backing}, {pattern}")
            measured[backing, pattern] = device_path.throughput(loops, backing, pattern)
    return device_path.throughput_rows(measured)


def request_rows() -> list[Row]:
    say("one request, beyond the discard call")
    own = {backing: device_path.beyond_the_discard(backing) for backing in BACKINGS}
    after_faults = {backing: device_path.beyond_the_discard_after_faults(backing) for backing in BACKINGS}
    bounds = dict.fromkeys(BACKINGS, OWN_COST_BOUND_US)
    rows = [
        Row("one request of 256 ascending pages beyond the discard call", "µs", own, bounds, at_most=True),
        Row("the same, the host's 256 page faults right before it", "µs", after_faults, bounds, at_most=True),
    ]
    say("one request, layer by layer")
    split = {backing: device_path.layers(backing) for backing in BACKINGS}
    for layer in split[BACKINGS[0]]:
        rows.append(Row(f"one request, {layer}", "µs", {backing: split[backing][layer] for backing in BACKINGS}))
    return rows


def ring_rows() -> list[Row]:
    say("packed rings beside split ones")
    rows = []
    for chains, name in ((1, "one chain a kick"), (64, "64 chains a kick")):
        values = {backing: device_path.packed_over_split(backing, chains) for backing in BACKINGS}
        rows.append(Row(f"packed ring over split ring, {name}", "times", values, dict.fromkeys(BACKINGS, RING_BOUND)))
    say("reports, hints and large batches")
    return [*rows, *batches.rows()]


def machine_rows(folder: Path) -> list[Row]:
    speeds, ratios, latencies = {}, {}, {}
    for backing in BACKINGS:
        say(f"end to end, {backing}")
        times = whole_machine.end_to_end(backing)
        speeds[backing] = gib_per_second(times, "guest", whole_machine.BALLOON_BYTES)
        ratios[backing] = paired_ratio(times, "guest", "device")
        say(f"kick to interrupt, {backing}")
        latencies[backing] = whole_machine.kick_to_interrupt(backing)
    say("blocks a second, and hello")
    return [
        Row("end to end: inflating from the guest `balloon`", "GiB/s", speeds),
        Row("end to end over the device path", "times", ratios, dict.fromkeys(BACKINGS, END_TO_END_BOUND)),
        Row("notification to interrupt, one page deflated", "µs", latencies),
        Row("basic blocks in an endless loop", "million/s", {"": whole_machine.blocks_per_second(folder) / 1e6}),
        Row("`vmm boot hello`, wall time", "s", {"": whole_machine.hello_seconds()}),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("compiling the C loops")
        rows = [*device_rows(Loops(folder)), *request_rows(), *ring_rows(), *machine_rows(folder)]
    say("done")
    print(machine())
    print(render(rows))


STARTED = time.perf_counter()

if __name__ == "__main__":
    main()
