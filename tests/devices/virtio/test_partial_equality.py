"""Inflated pages over larger pages of the host: the fast code against the plain rule, whatever a driver does.

The model knows what each page of RAM reads as, and which of the host's pages have memory.  Nothing else may be read,
given back or brought into being: parts of the host's pages are given back by nobody (`huge_host` sees to that).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devices.backing import Backing
from devices.memory import GuestMemory
from devices.virtio import reference, spec
from devices.virtio.balloon import Balloon
from tests.devices.huge_host import HugeHost
from tests.devices.virtio.balloons import DEFLATEQ, INFLATEQ, MUST_TELL_HOST, STATS_VQ, VERSION_1, Driven, tiny_slices
from tests.devices.virtio.examples import TIMES
from tests.devices.virtio.rings import WRITE

UNIT = 8
PAGE_BYTES = 4096
HOST_PAGE = UNIT * PAGE_BYTES
# The rings and buffers are in the first region.  Host page 10h has RAM at both ends of a hole and none at its start;
# RAM ends within page 12h.
LAYOUT = [(0, 0x80000), (0x82000, 0x3000), (0x86000, 0xC000)]
RAM = frozenset(pfn for gpa, size in LAYOUT for pfn in range(gpa >> 12, gpa + size >> 12))
POOL = sorted(pfn for pfn in RAM if pfn >= 0x70)
PARTS = {number: {pfn for pfn in RAM if pfn // UNIT == number} for number in range(0x13)}
NOT_RAM = (0x80, 0x85, 0x92, 0x93, 0xFFFFFFFF)
REPORTING_VQ = 3
OOM = 1 << spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
REPORTING = 1 << spec.VIRTIO_BALLOON_F_PAGE_REPORTING

run_lists = st.lists(
    st.tuples(st.sampled_from(POOL), st.integers(1, 20), st.booleans()).map(
        lambda run: sorted((pfn for pfn in range(run[0], run[0] + run[1]) if pfn in RAM), reverse=run[2])
    ),
    min_size=1,
    max_size=3,
).map(lambda runs: [pfn for run in runs for pfn in run])
pfn_lists = st.one_of(
    st.lists(st.sampled_from((*POOL, *NOT_RAM)), min_size=1, max_size=30),
    run_lists,
    st.permutations(POOL).map(lambda pool: pool[:-3]),
)


class PartialModel(RuleBasedStateMachine):
    @initialize(must_tell=st.booleans(), oom=st.booleans(), sliced=st.booleans())
    def build(self, must_tell: bool, oom: bool, sliced: bool) -> None:
        self.patch = pytest.MonkeyPatch()
        self.host = HugeHost(self.patch, HOST_PAGE, pages=64)
        self.slices = tiny_slices(from_entries=9) if sliced else None
        if self.slices is not None:
            self.slices.__enter__()
        self.must_tell = must_tell
        self.features = VERSION_1 | STATS_VQ | REPORTING | OOM * oom | MUST_TELL_HOST * must_tell
        self.memory = GuestMemory(LAYOUT, backing=Backing("hugepages"))
        self.driven = Driven(self.memory, self.make_balloon()).start(self.features)
        self.inside: set[int] = set()
        self.content = dict.fromkeys(POOL, 0)
        self.backed: set[int] = set()
        self.discarded = 0

    def make_balloon(self) -> Balloon:
        return Balloon(self.memory, features=VERSION_1 | STATS_VQ | REPORTING | OOM | MUST_TELL_HOST)

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            self.memory.close()
            if self.slices is not None:
                self.slices.__exit__(None, None, None)
            self.patch.undo()

    def finish(self, queue: int, before: int) -> None:
        """Let the device work off its slices."""
        balloon = self.driven.balloon
        for _ in range(1000):
            if self.driven.returned(queue) != before:
                return
            deadline_ns = balloon.next_deadline_ns()
            assert deadline_ns is not None
            self.driven.now_ns = max(deadline_ns, self.driven.now_ns)
            balloon.advance(self.driven.now_ns)
        raise AssertionError("the request never came back")

    def send(self, queue: int, pfns: list[int]) -> None:
        before = self.driven.returned(queue)
        (self.driven.inflate if queue == INFLATEQ else self.driven.deflate)(*pfns)
        self.finish(queue, before)

    # -- what a driver does ------------------------------------------------------------------------------------------

    @rule(pfns=pfn_lists)
    def inflate(self, pfns: list[int]) -> None:
        named = set(pfns) & RAM
        before = dict(self.content)
        self.inside |= named
        for pfn in named:
            self.content[pfn] = 0
        clear: Callable[[int], bool] = (lambda _pfn: True) if self.must_tell else (lambda pfn: not before[pfn])
        given = reference.given_back(named, self.inside, RAM, UNIT, clear)
        event(f"{min(len(given), 2)} pages of the host given back")
        self.give_back(given)
        self.send(INFLATEQ, pfns)

    def give_back(self, numbers: list[int]) -> None:
        self.backed -= set(numbers)
        self.discarded += len(numbers) * HOST_PAGE
        for pfn in POOL:
            if pfn // UNIT in numbers:
                self.content[pfn] = 0

    @rule(pfns=pfn_lists)
    def deflate(self, pfns: list[int]) -> None:
        """For a lower target, or since memory is short: the device sees the same."""
        self.inside -= set(pfns)
        self.send(DEFLATEQ, pfns)

    @rule(pfns=st.lists(st.sampled_from(POOL), min_size=1, max_size=20), value=st.integers(1, 255))
    def use(self, pfns: list[int], value: int) -> None:
        """Pages of its own; without MUST_TELL_HOST those of the balloon too, before it tells."""
        for pfn in set(pfns):
            if not (self.must_tell and pfn in self.inside):
                self.memory.write(pfn * PAGE_BYTES, bytes([value]) * PAGE_BYTES)
                self.content[pfn] = value
                self.backed.add(pfn // UNIT)

    @rule(
        ranges=st.lists(
            st.tuples(st.sampled_from(POOL), st.integers(1, 24), st.sampled_from((0, 0, 100))), min_size=1, max_size=4
        )
    )
    def report(self, ranges: list[tuple[int, int, int]]) -> None:
        """Of pages that are not in the balloon."""
        ring, before = self.driven.rings[REPORTING_VQ], self.driven.returned(REPORTING_VQ)
        whole: set[int] = set()
        buffers = []
        for first, count, cut in ranges:
            pages = []
            for pfn in range(first, first + count):
                if pfn not in RAM or pfn in self.inside:
                    break
                pages.append(pfn)
            if pages:
                buffers.append((pages[0] * PAGE_BYTES + cut, len(pages) * PAGE_BYTES - cut))
                pages = pages[1:] if cut else pages
                numbers = {pfn // UNIT for pfn in pages}
                whole |= {n for n in numbers if {*range(n * UNIT, (n + 1) * UNIT)} <= {*pages}}
        if not buffers:
            return
        for index, (gpa, length) in enumerate(buffers):
            ring.set_descriptor(index, gpa, length, WRITE | (1 if index + 1 < len(buffers) else 0), index + 1)
        ring.offer(0)
        self.give_back(sorted(whole))
        self.driven.kick(REPORTING_VQ)
        self.finish(REPORTING_VQ, before)

    @rule()
    def reset(self) -> None:
        self.driven.balloon.write_status(0, self.driven.now_ns)
        self.inside.clear()
        self.driven.start(self.features)

    @precondition(lambda self: hasattr(self, "driven"))
    @rule()
    def move_to_another_device(self) -> None:
        """What the host's pages wait for is in a saved state."""
        state = self.driven.balloon.save_state()
        self.driven.balloon = self.make_balloon()
        self.driven.balloon.check_state(state, "balloon")
        self.driven.balloon.restore_state(state)

    # -- what is always true -----------------------------------------------------------------------------------------

    @invariant()
    def everything_is_as_the_rule_says(self) -> None:
        if not hasattr(self, "driven"):
            return
        for pfn in POOL:
            assert self.memory.peek(pfn * PAGE_BYTES, PAGE_BYTES) == bytes([self.content[pfn]]) * PAGE_BYTES, hex(pfn)
        fd = self.memory.fd
        assert fd is not None
        assert {n for n in self.host.backed(fd) if n >= POOL[0] // UNIT} == self.backed
        balloon = self.driven.balloon
        assert balloon.balloon_pages == len(self.inside)
        if self.slices is None:
            assert balloon.discarded_bytes == self.discarded
        else:  # what is complete already is given back with each slice that names some of it
            assert balloon.discarded_bytes >= self.discarded
        held = [pfn for pfn in self.inside if not PARTS[pfn // UNIT] <= self.inside]
        assert balloon.held_pages == len(held)


PartialModel.TestCase.settings = settings(max_examples=60 * TIMES, stateful_step_count=30, deadline=None)
TestPartialModel = PartialModel.TestCase
