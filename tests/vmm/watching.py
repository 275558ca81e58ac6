"""Drivers under watch for the tests: a machine without a CPU whose balloon tells which rules its driver breaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.support import BalloonMachine, Way, build_with
from vmm.boards.pc import BalloonUnderWatch
from vmm.testing.balloon import PAGE_POISON, STATS_VQ
from vmm.watch import RULES, Breach

SECOND_NS = 10**9
STATS = {4: 5 << 20, 5: 64 << 20}
MakeBench = Callable[..., "Bench"]


def watched(*bits: int, without: int = 0) -> Callable[..., BalloonUnderWatch]:
    """A watched balloon that offers `bits` besides its usual features."""
    plain = build_with(*bits, without=without)

    def build(memory: Any) -> BalloonUnderWatch:
        model = plain(memory)
        return BalloonUnderWatch(memory, features=model.device_features)

    return build


class Bench:
    """A machine whose driver is watched."""

    def __init__(self, way: Way, *bits: int, without: int = 0, **options: Any) -> None:
        self.machine = BalloonMachine(way, **{"build": watched(*bits, without=without)} | options)
        self.driver = self.machine.driver
        device = self.machine.balloon
        assert isinstance(device, BalloonUnderWatch)
        self.device = device

    def start(self, without: int = 0, *, poison_val: int | None = 0, stats: bool = True) -> Bench:
        """A good start, unless there shall be no poison_val or no statistics."""
        driver = self.driver
        driver.reset()
        driver.acknowledge()
        driver.negotiate(driver.transport.read_device_features() & driver.supported & ~without)
        driver.set_up_queues()
        if driver.features & PAGE_POISON and poison_val is not None:
            driver.poison_val = poison_val
        driver.driver_ok()
        if driver.features & STATS_VQ and stats:
            driver.post_stats(STATS)
        return self

    def wait(self, duration_ns: int = 2 * SECOND_NS) -> None:
        """Guest time passes, and the machine looks."""
        self.machine.bench.advance(duration_ns)
        self.machine.host(self.device.look(self.machine.now_ns))

    def end(self) -> None:
        self.machine.host(self.device.look(self.machine.now_ns, at_the_end=True))

    def refresh_stats(self, stats: Any = None) -> None:
        """The host asks, and the driver answers."""
        self.machine.request_stats()
        assert self.driver.stats_wanted()
        self.driver.post_stats(STATS if stats is None else stats)

    @property
    def breaches(self) -> list[Breach]:
        return list(self.device.breaches)

    @property
    def ids(self) -> list[str]:
        return [breach.id for breach in self.breaches]

    @property
    def lines(self) -> list[str]:
        return [event.text for event in self.machine.bench.events if event.kind == "breach"]

    def expect_only(self, rule_id: str, count: int = 1) -> Breach:
        """That one rule was broken, and told of in one line."""
        assert self.ids == [rule_id], self.breaches
        (breach,) = self.breaches
        assert breach.count == count
        (line,) = self.lines
        assert line.startswith(f"the driver breaks {rule_id} (§{RULES[rule_id].section}, ")
        return breach
