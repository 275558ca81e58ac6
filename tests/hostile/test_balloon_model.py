"""A driver, a host and a clock doing anything in any order over PCI, against a model of what must come of it.

The model knows which pages hold what, which requests are on their way, and whether the device may touch its queues now.
After every step all of the pages are compared, so that a request lost, carried out twice, carried out too early or on
the wrong page shows at once.  The driver library itself checks each head and each index that comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devices.memory import PAGE_BYTES, GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from tests.support import BalloonMachine, Way, build_with
from vmm.testing import RawPackedQueue, RawQueue
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, PAGE_REPORTING, STATS_VQ, STATSQ, pfn_bytes
from vmm.testing.driver import EVENT_IDX, IN_ORDER, INDIRECT_DESC, NOTIFICATION_DATA, RING_PACKED, RING_RESET
from vmm.testing.mistakes import RANGE_MISTAKES, RING_MISTAKES, Mistake
from vmm.testing.packed_mistakes import PACKED_MISTAKES, PackedMistake
from vmm.testing.pci import COMMAND_MASTER

POOL_PAGES = 10
NOT_RAM = 0xA5
REPORTING_VQ = 3  # statsq is always offered here
SECOND_NS = 10**9

RARELY = st.sampled_from([False] * 3 + [True])
"""What ends or stops a device must not happen so often that nothing else can."""
PFN_QUEUES = st.sampled_from([INFLATEQ, DEFLATEQ])
PAGE_QUEUES = st.sampled_from([INFLATEQ, DEFLATEQ, REPORTING_VQ])
RANGES = st.lists(st.tuples(st.integers(0, POOL_PAGES - 1), st.booleans()), min_size=1, max_size=6)
"""Pages of the pool to report; True for all but the first byte of one, which is no page."""
WITHOUT = (
    *(0, 0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC, STATS_VQ, PAGE_REPORTING),
    *(RING_RESET, IN_ORDER, NOTIFICATION_DATA, IN_ORDER | EVENT_IDX),
)
SIZES = st.sampled_from([8, 32, 128, 5, 100])
ENTRIES = st.lists(st.integers(0, POOL_PAGES - 1) | st.just(NOT_RAM), max_size=12)


@dataclass
class Requests:
    """Page requests of one queue: placed, and published to the device but not yet carried out."""

    placed: list[list[int]] = field(default_factory=list)
    published: list[list[int]] = field(default_factory=list)
    armed: bool = True
    """Whether a driver with EVENT_IDX has asked for the next notification: `collect` does."""


def no_requests() -> dict[int, Requests]:
    return {INFLATEQ: Requests(), DEFLATEQ: Requests(), REPORTING_VQ: Requests()}


build_everything: Callable[[GuestMemory], Balloon] = build_with(
    spec.VIRTIO_BALLOON_F_PAGE_REPORTING,
    spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM,
    spec.VIRTIO_F_IN_ORDER,
    spec.VIRTIO_F_NOTIFICATION_DATA,
)


class BalloonModel(RuleBasedStateMachine):
    """Pages of the pool are named by their index in it; `NOT_RAM` stands for one that is no page of RAM."""

    @initialize(way=st.sampled_from(["pci", "packed-pci"]))
    def build(self, way: Way) -> None:
        self.machine = BalloonMachine(way, build=build_everything)
        self.packed = way == "packed-pci"
        self.driver = self.machine.driver
        self.pool = self.machine.filled_pfns(POOL_PAGES, 1)
        self.content = [1] * POOL_PAGES
        self.inside: set[int] = set()
        self.requests = no_requests()
        self.prepared = self.driver_ok = self.broken = False
        self.mastering = True
        self.target = self.actual = self.inflated = self.deflated = self.bad = self.freed = 0
        self.interval_ns = 0
        self.posted: int | None = None  # a statistics buffer on its way or held: its value
        self.reported: int | None = None  # the last value the device must know of
        self.prepare(0, 128)
        self.set_driver_ok()

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            self.machine.close()

    # -- what the model knows ----------------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        return self.driver_ok and self.mastering and not self.broken

    def pfn(self, index: int) -> int:
        return NOT_RAM if index == NOT_RAM else self.pool[index]

    def carry_out(self) -> None:
        """What a device that may use its queues now must have done to everything published."""
        if not self.live:
            return
        for entries in self.requests[INFLATEQ].published:
            self.bad += entries.count(NOT_RAM)
            new = set(entries) - {NOT_RAM} - self.inside
            self.inside |= new
            self.inflated += len(new)
            for index in set(entries) - {NOT_RAM}:
                self.content[index] = 0
        for entries in self.requests[DEFLATEQ].published:
            self.bad += entries.count(NOT_RAM)
            old = (set(entries) - {NOT_RAM}) & self.inside
            self.inside -= old
            self.deflated += len(old)
        freed = {index for entries in self.requests[REPORTING_VQ].published for index in entries} - {NOT_RAM}
        self.freed += len(freed)  # they are one batch, and a page counts once in it
        for index in freed:
            self.content[index] = 0
        for requests in self.requests.values():
            requests.armed &= not requests.published
            requests.published.clear()
        if self.posted is not None:
            self.reported = self.posted

    def forget(self) -> None:
        """A reset: everything on its way is gone, what is done is done."""
        self.requests = no_requests()
        self.inside.clear()
        self.prepared = self.driver_ok = self.broken = False
        self.actual = 0
        self.posted = self.reported = None

    # -- the driver's life -------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.prepared)
    @rule(
        without=st.sampled_from(WITHOUT),
        size=SIZES,
    )
    def prepare(self, without: int, size: int) -> None:
        """Everything of §3.1.1 up to DRIVER_OK."""
        self.driver.reset()
        self.forget()
        self.driver.acknowledge()
        self.driver.negotiate(self.driver.transport.read_device_features() & ~without)
        self.driver.set_up_queues(self.possible(size))
        self.prepared = True

    def possible(self, size: int) -> int:
        """Only a packed ring has any size."""
        return size if self.packed else 1 << size.bit_length() - 1

    @precondition(lambda self: self.prepared and not self.driver_ok)
    @rule()
    def set_driver_ok(self) -> None:
        self.driver.driver_ok()
        self.driver_ok = True
        self.carry_out()

    @rule(now=RARELY)
    def reset(self, now: bool) -> None:
        """A driver's reset leaves a device like a new one with the host's settings."""
        if not (now or self.broken):
            return
        self.driver.reset()
        self.forget()
        self.driver.take_interrupts()
        fresh = build_everything(self.machine.memory)
        fresh.device_features |= self.packed * RING_PACKED
        fresh.set_target(self.target, 0)
        fresh.set_polling_interval(self.interval_ns, 0)
        fresh.reset()
        fresh.set_dma_enabled(self.mastering, 0)
        assert self.machine.balloon == fresh

    @rule(disabled=RARELY)
    def set_bus_mastering(self, disabled: bool) -> None:
        enabled = not disabled
        function = self.machine.pci.function
        function.command = function.command & ~COMMAND_MASTER | (COMMAND_MASTER if enabled else 0)
        self.mastering = enabled
        self.carry_out()

    @precondition(lambda self: self.live)
    @rule(
        now=RARELY,
        queue=PAGE_QUEUES,
        mistake=st.sampled_from(RING_MISTAKES + RANGE_MISTAKES) | st.sampled_from(PACKED_MISTAKES),
    )
    def break_a_ring(self, now: bool, queue: int, mistake: Mistake | PackedMistake) -> None:
        if (
            not now
            or isinstance(mistake, PackedMistake) != self.packed
            or queue not in self.driver.queues
            or mistake.needs & ~self.driver.features
            or mistake.without & self.driver.features
        ):
            return
        self.driver.collect(queue)
        if isinstance(mistake, PackedMistake):
            mistake.make(RawPackedQueue(self.driver, queue))
        else:
            mistake.make(RawQueue(self.driver, queue))
        self.driver.transport.notify(queue)
        self.broken = True
        assert self.driver.needs_reset

    @precondition(lambda self: self.prepared and not self.broken)
    @rule(now=RARELY, queue=st.sampled_from([INFLATEQ, DEFLATEQ, REPORTING_VQ, STATSQ]), size=SIZES)
    def reset_queue(self, now: bool, queue: int, size: int) -> None:
        """One queue begins anew, with what was on its way in it forgotten (§2.6.1); the others go on."""
        if not now or queue not in self.driver.queues or not self.driver.features & RING_RESET:
            return
        self.driver.reset_queue(queue)
        self.driver.set_up_queue(queue, self.possible(size))
        if queue == STATSQ:
            self.posted = None
        else:
            self.requests[queue] = Requests()

    # -- requests ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.prepared and not self.broken)
    @rule(queue=PFN_QUEUES, entries=ENTRIES, pieces=st.integers(1, 3), odd=st.booleans())
    def offer(self, queue: int, entries: list[int], pieces: int, odd: bool) -> None:
        """Place a request, unless that takes more descriptors than are free; an empty one is a single stray byte."""
        payload = pfn_bytes(self.pfn(index) for index in entries) + (b"\xff" if odd or not entries else b"")
        step = -(-len(payload) // pieces)
        parts = [payload[i : i + step] for i in range(0, len(payload), step)]
        if self.driver.queues[queue].free_descriptors >= len(parts):
            self.driver.offer(queue, readable=parts)
            self.requests[queue].placed.append(entries)

    @precondition(lambda self: self.prepared and not self.broken)
    @rule(ranges=RANGES)
    def offer_report(self, ranges: list[tuple[int, bool]]) -> None:
        """Place a report of pages that nobody uses until it is back; no more ranges than the device takes at once."""
        queue, reports = self.driver.queues.get(REPORTING_VQ), self.requests[REPORTING_VQ]
        waiting = sum(map(len, reports.placed + reports.published))
        if queue is not None and queue.free_descriptors >= len(ranges) and waiting + len(ranges) <= queue.size:
            pieces = [(self.pool[index] * PAGE_BYTES + less, PAGE_BYTES - less) for index, less in ranges]
            self.driver.offer(REPORTING_VQ, writable=pieces)
            reports.placed.append([NOT_RAM if less else index for index, less in ranges])

    @precondition(lambda self: self.prepared and not self.broken)
    @rule(queue=PAGE_QUEUES, force=st.booleans())
    def kick(self, queue: int, force: bool) -> None:
        """Publish, and notify if the device asked for it: while it is live it must have."""
        if queue not in self.driver.queues:
            return
        requests = self.requests[queue]
        asked = requests.armed or not self.driver.features & EVENT_IDX
        expected = bool(requests.placed) and self.live and asked
        self.driver.take_interrupts()
        self.driver.kick(queue, force=force or not self.live)
        requests.published += requests.placed
        requests.placed = []
        self.carry_out()
        heard = self.driver.take_interrupts().for_queue(queue)
        assert heard == expected

    @precondition(lambda self: self.prepared and not self.broken)
    @rule(queue=PAGE_QUEUES)
    def collect(self, queue: int) -> None:
        """Nothing stays with a live device, and nothing comes back from one that is not."""
        if queue not in self.driver.queues:
            return
        used = self.driver.collect(queue)
        assert all(entry.length == 0 for entry in used)
        waiting = self.requests[queue]
        waiting.armed = True
        assert len(self.driver.queues[queue].in_flight) == len(waiting.placed) + len(waiting.published)

    @precondition(lambda self: self.prepared and not self.broken)
    @rule(queue=PFN_QUEUES, entries=ENTRIES)
    def transfer(self, queue: int, entries: list[int]) -> None:
        """A whole request, as a driver makes it that waits for each."""
        self.offer(queue, entries, 1, False)
        self.kick(queue, False)
        self.collect(queue)

    @rule(index=st.integers(0, POOL_PAGES - 1), value=st.integers(1, 255))
    def use_page(self, index: int, value: int) -> None:
        """The guest writes to a page that is its own: not in the balloon, and not on its way there or in a report."""
        leaving = [
            entries
            for queue in (INFLATEQ, REPORTING_VQ)
            for entries in self.requests[queue].placed + self.requests[queue].published
        ]
        if index not in self.inside and not any(index in entries for entries in leaving):
            self.machine.memory.write(self.pool[index] * PAGE_BYTES, bytes([value]) * PAGE_BYTES)
            self.content[index] = value

    @precondition(lambda self: self.prepared)
    @rule(pages=st.integers(0, 2**32 - 1))
    def write_actual(self, pages: int) -> None:
        self.driver.actual = pages
        self.actual = pages

    # -- statistics --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.prepared and not self.broken and STATSQ in self.driver.queues)
    @rule(value=st.integers(0, 2**64 - 1))
    def post_stats(self, value: int) -> None:
        """At most one buffer at a time, as §5.5.6.3.1 asks."""
        self.driver.collect(STATSQ)
        if not self.driver.queues[STATSQ].in_flight:
            self.driver.offer(STATSQ, readable=[b"\x04\x00" + value.to_bytes(8, "little")])
            self.driver.kick(STATSQ, force=True)
            self.posted = value
            self.carry_out()

    @rule()
    def request_stats(self) -> None:
        """A live device returns the buffer it holds at once."""
        self.machine.request_stats()
        if self.live and STATSQ in self.driver.queues:
            self.driver.collect(STATSQ)
            assert self.driver.queues[STATSQ].in_flight == ()

    @rule(interval_ns=st.sampled_from([0, 1, SECOND_NS]))
    def set_polling(self, interval_ns: int) -> None:
        self.machine.set_polling_interval(interval_ns)
        self.interval_ns = interval_ns

    @rule(duration_ns=st.sampled_from([0, 1, SECOND_NS, 7 * SECOND_NS]))
    def let_time_pass(self, duration_ns: int) -> None:
        self.machine.bench.advance(duration_ns)
        if self.live and STATSQ in self.driver.queues and 0 < self.interval_ns <= duration_ns:
            self.driver.collect(STATSQ)
            assert self.driver.queues[STATSQ].in_flight == ()

    @rule(pages=st.integers(0, 1184))
    def set_target(self, pages: int) -> None:
        self.driver.take_interrupts()
        self.machine.set_target(pages)
        told = self.driver.take_interrupts().config
        assert told == (pages != self.target and self.driver_ok and self.mastering)
        self.target = pages

    # -- what is always true -----------------------------------------------------------------------------------------

    @invariant()
    def pages_hold_what_they_must(self) -> None:
        if hasattr(self, "machine"):
            for index, value in enumerate(self.content):
                assert self.machine.page(self.pool[index]) == bytes([value]) * PAGE_BYTES, (index, value)

    @invariant()
    def counters_and_configuration_agree(self) -> None:
        if not hasattr(self, "machine"):
            return
        balloon = self.machine.balloon
        assert (balloon.inflated_pages, balloon.deflated_pages, balloon.bad_pfns) == (
            self.inflated,
            self.deflated,
            self.bad,
        )
        assert balloon.balloon_pages == len(self.inside)
        assert balloon.reported_pages == self.freed
        assert (self.driver.num_pages, self.driver.actual) == (self.target, self.actual)
        assert self.driver.needs_reset == self.broken

    @invariant()
    def statistics_are_those_reported(self) -> None:
        if hasattr(self, "machine") and self.live and STATSQ in self.driver.queues:
            expected = {} if self.reported is None else {"stat-free-memory": self.reported}
            assert self.machine.statistics().values == expected


BalloonModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestBalloonModel = BalloonModel.TestCase
