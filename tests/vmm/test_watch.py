"""The watcher of the driver's side: a driver that breaks one rule is told of once, and a good one never.

Each bad driver is written from the statement of the specification that it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devices.memory import PAGE_BYTES, GuestMemory
from devices.virtio import spec
from tests.support import BalloonMachine, Way, build_with
from vmm.boards import BalloonUnderWatch
from vmm.testing.balloon import (
    ACTUAL,
    DEFLATE_ON_OOM,
    DEFLATEQ,
    INFLATEQ,
    MUST_TELL_HOST,
    PAGE_REPORTING,
    STATS_VQ,
    STATSQ,
    pfn_bytes,
    stats_bytes,
)
from vmm.watch import RULES, Breach

SECOND_NS = 10**9
STATS = {4: 5 << 20, 5: 64 << 20}
USUAL = MUST_TELL_HOST | STATS_VQ


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
        self.machine = BalloonMachine(way, build=watched(*bits, without=without), **options)
        self.driver = self.machine.driver
        device = self.machine.balloon
        assert isinstance(device, BalloonUnderWatch)
        self.device = device

    def start(self, without: int = 0) -> Bench:
        """A good start: a legacy driver primes the statistics as anybody does, once it is ready."""
        offered = self.driver.transport.read_device_features() & self.driver.supported
        self.driver.start(offered & ~without)
        if self.driver.features & STATS_VQ:
            self.driver.post_stats(STATS)
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


@pytest.fixture(params=("pci", "mmio-legacy"))
def way(request: pytest.FixtureRequest) -> Way:
    value: Way = request.param
    return value


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(way: Way) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(*bits: int, without: int = 0, **options: Any) -> Bench:
        made.append(Bench(way, *bits, without=without, **options))
        return made[-1]

    yield make
    for each in made:
        each.machine.close()


# -- the rules as data -------------------------------------------------------------------------------------------------


def test_every_statement_about_the_driver_has_its_row() -> None:
    assert [name for name in RULES if name.startswith("R")] == [f"R{number}" for number in range(1, 43)]
    for name, rule in RULES.items():
        assert rule.id == name
        assert rule.sentence.endswith(".")
        assert rule.level != "may" or not rule.is_watched, "nobody can break a permission"


# -- the good driver ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processor", ["<", ">"])
@pytest.mark.parametrize("without", [0, MUST_TELL_HOST, STATS_VQ])
def test_a_driver_that_keeps_the_rules_is_told_nothing_of(
    bench: MakeBench, without: int, processor: spec.ByteOrder
) -> None:
    bits = spec.VIRTIO_BALLOON_F_PAGE_REPORTING, spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
    made = bench(*bits, without=without, processor=processor).start()
    for target in (300, 20, 90):
        made.machine.set_target(target)
        made.driver.follow_target()
        if not without & STATS_VQ:
            made.refresh_stats()
        made.wait()
    taken = made.driver.deflate_on_oom(10)
    for pfn in taken:
        made.machine.memory.write(pfn * PAGE_BYTES, b"x" * PAGE_BYTES)
    made.driver.report([(taken[0] * PAGE_BYTES, PAGE_BYTES)])
    made.wait()
    made.driver.start()
    made.end()
    assert made.breaches == []
    assert made.lines == []


def test_a_page_may_be_moved_by_inflating_another_first(bench: MakeBench) -> None:
    """As a kernel does that compacts its memory."""
    made = bench().start()
    made.machine.set_target(10)
    made.driver.follow_target()
    (new,) = made.machine.filled_pfns(1)
    made.driver.inflate([new])
    made.driver.deflate([made.driver.held_pfns[0]])
    made.wait()
    assert made.breaches == []


# -- features and start ------------------------------------------------------------------------------------------------


def test_r1_must_tell_host_is_left_out(bench: MakeBench) -> None:
    made = bench().start(without=MUST_TELL_HOST)
    made.expect_only("R1")


def test_r1_says_nothing_where_it_is_not_offered(bench: MakeBench) -> None:
    made = bench(without=MUST_TELL_HOST).start()
    assert made.breaches == []


def test_g1_a_kick_before_driver_ok(bench: MakeBench) -> None:
    """Linux does this: it posts statistics while it probes."""
    made = bench()
    driver = made.driver
    driver.reset()
    driver.acknowledge()
    driver.negotiate()
    driver.set_up_queues()
    driver.offer(STATSQ, readable=[stats_bytes(STATS, driver.order)])
    driver.kick(STATSQ, force=True)
    driver.driver_ok()
    made.wait()
    assert "statsq" in made.expect_only("G1").detail


def test_g3_a_feature_is_accepted_that_was_not_offered(bench: MakeBench) -> None:
    made = bench()
    driver = made.driver
    driver.reset()
    driver.acknowledge()
    offered = driver.transport.read_device_features()
    driver.transport.write_driver_features(offered | PAGE_REPORTING)
    if driver.is_legacy:
        driver.features = offered & driver.supported & ~PAGE_REPORTING
        driver.set_up_queues()
        driver.driver_ok()
        driver.post_stats(STATS)
    else:
        driver.add_status(spec.Status.FEATURES_OK)
    made.wait()
    assert "VIRTIO_BALLOON_F_PAGE_REPORTING was not offered" in made.expect_only("G3").detail


def test_g4_a_status_bit_is_cleared(bench: MakeBench) -> None:
    made = bench().start()
    made.driver.transport.write_status(int(spec.Status.ACKNOWLEDGE))
    made.expect_only("G4")


def test_g5_configuration_is_written_before_features_are_negotiated(bench: MakeBench, way: Way) -> None:
    made = bench()
    made.driver.reset()
    made.driver.acknowledge()
    made.driver.write_config(ACTUAL, 4, 0)
    if way == "mmio-legacy":
        assert made.breaches == []
    else:
        made.expect_only("G5")


@pytest.mark.parametrize(("reach", "is_told"), [("legacy", True), ("mmio-legacy", True), ("pci", False)])
def test_g6_a_legacy_driver_writes_actual_in_pieces(reach: Way, is_told: bool) -> None:
    """As drivers for PCI used to: the specification tells of them, and asks for one access."""
    made = Bench(reach).start()
    made.driver.inflate(made.machine.filled_pfns(3))
    for index in range(4):
        made.driver.transport.write_config(ACTUAL + index, 1, 3 if index == 0 else 0)
    made.wait()
    if is_told:
        made.expect_only("G6", count=4)
    else:
        assert made.breaches == []
    made.machine.close()


# -- pages -------------------------------------------------------------------------------------------------------------


def test_r7_pages_leave_the_balloon_that_the_target_asks_for(bench: MakeBench) -> None:
    made = bench().start()
    made.machine.set_target(20)
    made.driver.follow_target()
    made.driver.deflate(made.driver.held_pfns[:5])
    made.driver.actual = 15
    made.wait()
    made.expect_only("R7", count=5)


def test_r7_says_nothing_of_a_target_that_the_driver_has_not_read(bench: MakeBench) -> None:
    made = bench().start()
    made.machine.set_target(20)
    made.driver.follow_target()
    made.machine.set_target(5)
    assert made.driver.num_pages == 5
    made.machine.set_target(20)
    made.driver.deflate(made.driver.held_pfns[5:])
    made.driver.actual = 5
    made.wait()
    assert made.breaches == []


def test_r8_says_nothing_with_deflate_on_oom(bench: MakeBench) -> None:
    made = bench(spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM).start()
    assert made.driver.features & DEFLATE_ON_OOM
    made.machine.set_target(20)
    made.driver.follow_target()
    made.driver.deflate_on_oom(5)
    made.wait()
    assert made.breaches == []


def test_r9_a_page_is_deflated_that_never_was_in_the_balloon(bench: MakeBench) -> None:
    made = bench().start()
    strays = made.machine.filled_pfns(3)
    made.driver.deflate(strays)
    made.driver.deflate(strays[:1])
    made.wait()
    breach = made.expect_only("R9", count=4)
    assert f"{strays[0] * PAGE_BYTES:#x}" in breach.detail


@pytest.mark.parametrize("scattered", [False, True])
def test_r10_a_page_is_used_before_its_deflation_is_acknowledged(bench: MakeBench, scattered: bool) -> None:
    made = bench().start()
    pages = made.machine.filled_pfns(64)
    chosen = pages[::2] if scattered else pages
    made.driver.inflate(chosen)
    made.machine.memory.write(chosen[3] * PAGE_BYTES + 17, b"mine")
    made.machine.memory.write(chosen[9] * PAGE_BYTES, b"\0")  # what is written counts for nothing
    before = made.machine.memory.backed_bytes()
    made.driver.deflate(chosen)
    made.driver.actual = 0
    made.wait()
    breach = made.expect_only("R10", count=2)
    assert f"{chosen[3] * PAGE_BYTES:#x}" in breach.detail
    assert made.machine.memory.backed_bytes() == before, "looking brings nothing back"


def test_r10_a_page_is_used_and_never_deflated(bench: MakeBench) -> None:
    """It is found when the driver says something again, and counted once however often somebody looks."""
    made = bench().start()
    pages = made.machine.filled_pfns(8)
    made.driver.inflate(pages)
    made.driver.actual = 8
    made.wait()
    made.machine.memory.write(pages[5] * PAGE_BYTES, b"mine")
    for _ in range(3):
        made.refresh_stats()
        made.wait()
    made.driver.deflate(pages)
    made.driver.actual = 0
    made.end()
    made.expect_only("R10")


def test_r10_is_found_at_the_end(bench: MakeBench) -> None:
    made = bench().start()
    pages = made.machine.filled_pfns(8)
    made.driver.inflate(pages)
    made.driver.actual = 8
    made.machine.memory.write(pages[5] * PAGE_BYTES, b"mine")
    made.end()
    made.expect_only("R10")


def test_r11_a_page_may_be_used_before_that_without_must_tell_host(bench: MakeBench) -> None:
    made = bench(without=MUST_TELL_HOST).start()
    pages = made.machine.filled_pfns(8)
    made.driver.inflate(pages)
    made.machine.memory.write(pages[0] * PAGE_BYTES, b"mine")
    made.driver.deflate(pages)
    made.driver.actual = 0
    made.end()
    assert made.breaches == []


def test_r9_a_page_is_used_and_the_deflateq_never_told_without_must_tell_host(bench: MakeBench) -> None:
    made = bench(without=MUST_TELL_HOST).start()
    pages = made.machine.filled_pfns(8)
    made.driver.inflate(pages)
    made.driver.actual = 8
    made.machine.memory.write(pages[0] * PAGE_BYTES, b"mine")
    for _ in range(4):
        made.refresh_stats()
        made.wait()
    made.expect_only("R9")


LARGE_BASE = 16 << 20  # behind what the driver takes for its rings


def large_memory() -> GuestMemory:
    return GuestMemory([(0, 0xA0000), (0x100000, 127 << 20)])


SLICED_PAGES = 600  # of RAM; the entries of a batch repeat them, so that it is worked off in slices
SLICED_ENTRIES = 40_000


def send_in_slices(made: Bench, pages: list[int]) -> None:
    """An inflate request that is not acknowledged at once: the driver goes on meanwhile."""
    pfns = (pages * (SLICED_ENTRIES // len(pages) + 1))[:SLICED_ENTRIES]
    area = made.machine.pages.take(-(-4 * SLICED_ENTRIES // PAGE_BYTES))
    payload = pfn_bytes(pfns, made.driver.order)
    made.machine.memory.write(area, payload)
    made.driver.offer(INFLATEQ, readable=[(area, len(payload))])
    made.driver.kick(INFLATEQ)
    assert made.driver.collect(INFLATEQ) == []


def test_r12_a_page_is_used_before_its_inflation_is_acknowledged(bench: MakeBench) -> None:
    made = bench(memory=large_memory()).start()
    pages = list(range(LARGE_BASE >> 12, (LARGE_BASE >> 12) + 6000))
    made.machine.memory.write(LARGE_BASE, b"x")
    send_in_slices(made, pages)
    while not made.machine.are_zero(pages[:1]):
        assert made.driver.collect(INFLATEQ) == []
        made.machine.bench.advance(1)
    assert made.driver.collect(INFLATEQ) == []
    made.machine.memory.write(pages[0] * PAGE_BYTES, b"mine")
    made.machine.bench.advance(SECOND_NS // 2)
    assert len(made.driver.collect(INFLATEQ)) == 1
    made.driver.actual = len(pages)
    made.expect_only("R12")


def test_r13_a_page_is_deflated_before_its_inflation_is_acknowledged(bench: MakeBench) -> None:
    made = bench().start()
    pages = made.machine.filled_pfns(SLICED_PAGES)
    send_in_slices(made, pages)
    made.driver.deflate(pages[:2])
    made.machine.bench.advance(SECOND_NS // 2)
    assert len(made.driver.collect(INFLATEQ)) == 1
    made.expect_only("R13", count=2)


@pytest.mark.parametrize("said", [None, 5, 100])
def test_r14_actual_does_not_follow(bench: MakeBench, said: int | None) -> None:
    made = bench().start()
    made.driver.inflate(made.machine.filled_pfns(7))
    if said is not None:
        made.driver.actual = said
    made.wait(SECOND_NS // 2)
    assert made.breaches == [], "a driver has its time"
    made.wait()
    assert "7 pages in the balloon" in made.expect_only("R14").detail


def test_r14_is_dated_by_when_the_time_was_over(bench: MakeBench) -> None:
    """Whoever looks, and however late."""
    made = bench().start()
    made.driver.inflate(made.machine.filled_pfns(7))
    began = made.machine.now_ns
    made.wait(100 * SECOND_NS)
    assert made.expect_only("R14").time_ns == began + SECOND_NS


def test_r15_actual_may_be_updated_once_after_several_requests(bench: MakeBench) -> None:
    made = bench().start()
    for pfn in made.machine.filled_pfns(5):
        made.driver.inflate([pfn])
        made.wait(SECOND_NS // 2)
    made.driver.actual = 5
    made.wait()
    assert made.breaches == []


# -- statistics --------------------------------------------------------------------------------------------------------


def test_r16_a_second_statistics_buffer(bench: MakeBench) -> None:
    made = bench().start()
    made.driver.post_stats(STATS)
    made.driver.post_stats(STATS)
    made.wait()
    made.expect_only("R16", count=2)


def test_r17_statistics_are_never_posted(bench: MakeBench) -> None:
    made = bench()
    made.driver.start()
    made.wait()
    assert made.expect_only("R17").time_ns == SECOND_NS


def test_r18_statistics_are_not_posted_again(bench: MakeBench) -> None:
    made = bench().start()
    made.refresh_stats()
    made.wait(5 * SECOND_NS)
    assert made.breaches == [], "a buffer that the device keeps is the driver's no more"
    made.machine.request_stats()
    asked = made.machine.now_ns
    assert made.driver.stats_wanted()
    made.wait()
    made.driver.post_stats(STATS)
    assert made.expect_only("R18").time_ns == asked + SECOND_NS


def test_r18_a_buffer_to_be_written_is_no_output_buffer(bench: MakeBench) -> None:
    made = bench().start()
    made.machine.request_stats()
    assert made.driver.stats_wanted()
    made.driver.offer(STATSQ, readable=[stats_bytes(STATS, made.driver.order)], writable=[100])
    made.driver.kick(STATSQ)
    made.expect_only("R18")


def test_r19_a_statistic_stands_twice_in_a_buffer(bench: MakeBench) -> None:
    made = bench().start()
    twice = [*STATS.items(), (4, 7)]
    made.refresh_stats(twice)
    made.expect_only("R19")


def test_r20_a_buffer_ends_within_an_entry(bench: MakeBench) -> None:
    made = bench().start()
    made.refresh_stats(stats_bytes(STATS, made.driver.order) + b"\0\0\0")
    assert "3 bytes" in made.expect_only("R20").detail


def test_r21_r22_any_order_and_any_subset(bench: MakeBench) -> None:
    made = bench().start()
    made.refresh_stats(dict(reversed(STATS.items())))
    assert made.breaches == []


def test_r23_the_set_of_statistics_changes(bench: MakeBench) -> None:
    made = bench().start()
    made.refresh_stats({4: 1, 5: 2})
    made.refresh_stats({4: 1, 5: 2, 7: 3})
    made.refresh_stats({4: 1, 7: 2, 5: 3})
    made.refresh_stats({4: 1})
    made.wait()
    assert made.expect_only("R23", count=2).detail.endswith("7")


def test_r23_another_driver_may_have_other_statistics(bench: MakeBench) -> None:
    made = bench().start()
    made.refresh_stats()
    made.start()
    made.driver.take_interrupts()
    assert made.breaches == []


# -- reports -----------------------------------------------------------------------------------------------------------


def test_r39_a_reported_page_is_used_before_the_report_is_acknowledged() -> None:
    """It takes a report so large that it is worked off in slices."""
    made = Bench("pci", spec.VIRTIO_BALLOON_F_PAGE_REPORTING, memory=large_memory()).start()
    machine, driver, memory, gpa = made.machine, made.driver, made.machine.memory, LARGE_BASE
    memory.write(gpa, b"x" * PAGE_BYTES)
    driver.offer(driver.reporting_vq, writable=[(gpa, 100 << 20)])
    driver.kick(driver.reporting_vq)
    while not machine.are_zero([gpa // PAGE_BYTES]):
        machine.bench.advance(1)
    assert driver.collect(driver.reporting_vq) == []
    memory.write(gpa, b"mine")
    machine.bench.advance(SECOND_NS // 2)
    assert len(driver.collect(driver.reporting_vq)) == 1
    made.expect_only("R39")
    machine.close()


# -- more than one -----------------------------------------------------------------------------------------------------


def test_each_rule_is_told_of_once_and_counted(bench: MakeBench) -> None:
    made = bench().start(without=MUST_TELL_HOST)
    for _ in range(3):
        made.driver.deflate(made.machine.filled_pfns(2))
        made.driver.post_stats(STATS)
    made.wait()
    assert [(breach.id, breach.count) for breach in made.breaches] == [("R1", 1), ("R9", 6), ("R16", 3)]
    assert len(made.lines) == 3


def test_what_the_device_answers_is_the_same() -> None:
    """Used elements, RAM, status and notifications: beside a balloon that nobody watches."""
    machines = [BalloonMachine("pci", build=watched()), BalloonMachine("pci")]
    seen = []
    for machine in machines:
        driver = machine.driver
        driver.start()
        driver.post_stats(STATS)
        machine.set_target(40)
        driver.follow_target()
        driver.deflate([5, 1 << 30, *driver.held_pfns[:3]])
        driver.post_stats(b"abc")
        driver.transfer(DEFLATEQ, readable=[b"12345"])
        machine.request_stats()
        seen.append(
            (driver.take_interrupts(), driver.status, driver.actual, driver.collect(STATSQ), machine.snapshot())
        )
    assert seen[0][:-1] == seen[1][:-1]
    assert seen[0][-1]._before.keys() == seen[1][-1]._before.keys()
    for gpa, ram in seen[0][-1]._before.items():
        assert (ram == seen[1][-1]._before[gpa]).all()
    for machine in machines:
        machine.close()
