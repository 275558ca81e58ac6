"""Hints of very many pages, which are worked off in slices (virtio 1.3 §5.5.6.5): what happens between two of them.

Slices are tiny here, and the tracking of writes is played at the system-call boundary: the tests say what was written.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from devices import hostcalls
from devices.errors import ConfigError
from devices.memory import PAGE_BYTES, GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.device import DEFAULT_FEATURES
from devices.virtio.balloon.hinting import DONE, STOP
from devices.virtio.device import NO_NOTIFICATIONS, Notifications
from tests.devices.virtio.balloons import STATS_VQ, VERSION_1, Driven, tiny_slices
from tests.devices.virtio.rings import LAYOUT, NEXT, WRITE

HINT = 1 << spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT
FREE_PAGE_VQ = 3
FREE, COUNT = 0x110, 40
HINTED = range(FREE, FREE + COUNT)
ID_GPA = 0x9000


class Tracking:
    """A kernel that tracks writes, to pages of one memory; `written` are their page frame numbers since the start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, memory: GuestMemory) -> None:
        self.memory = memory
        self.written: set[int] = set()
        monkeypatch.setattr(hostcalls, "open_write_watch", self.start)
        monkeypatch.setattr(hostcalls, "watch_writes", lambda fd, address, length: None)
        monkeypatch.setattr(hostcalls, "unwritten_runs", self.unwritten_runs)

    def start(self) -> int:
        self.written.clear()
        return os.open("/dev/null", os.O_RDONLY)

    def unwritten_runs(self, pagemap: int, address: int, length: int) -> NDArray[np.uint64]:
        region = next(each for each in self.memory.regions if each.address <= address < each.address + each.size)
        first = region.gpa + address - region.address >> 12
        kept = [pfn for pfn in range(first, first + (length >> 12)) if pfn not in self.written]
        places = [region.address + (pfn << 12) - region.gpa for pfn in kept]
        return np.array([[place, place + PAGE_BYTES] for place in places], np.uint64).reshape(-1, 2)

    def write(self, pfn: int) -> None:
        self.memory.write(pfn * PAGE_BYTES, b"\x77" * PAGE_BYTES)
        self.written.add(pfn)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(LAYOUT) as made, tiny_slices():
        for pfn in HINTED:
            made.write(pfn * PAGE_BYTES, b"\x5a" * PAGE_BYTES)
        yield made


@pytest.fixture
def tracking(monkeypatch: pytest.MonkeyPatch, memory: GuestMemory) -> Tracking:
    return Tracking(monkeypatch, memory)


@pytest.fixture
def driven(memory: GuestMemory, tracking: Tracking) -> Driven:
    made = Driven(memory, Balloon(memory, features=DEFAULT_FEATURES | HINT)).start(VERSION_1 | STATS_VQ | HINT)
    made.balloon.start_hinting(made.now_ns)
    return made


def hint(driven: Driven, stop: bool = False) -> Notifications:
    """The id, all pages in one range, and STOP if asked for, in one batch."""
    ring, memory = driven.rings[FREE_PAGE_VQ], driven.memory
    memory.write_int(ID_GPA, 4, driven.balloon.free_page_hint_cmd_id)
    memory.write_int(ID_GPA + 4, 4, STOP)
    ring.set_descriptor(0, ID_GPA, 4, NEXT, 1)
    ring.set_descriptor(1, FREE * PAGE_BYTES, COUNT * PAGE_BYTES, WRITE)
    ring.offer(0)
    if stop:
        ring.set_descriptor(2, ID_GPA + 4, 4)
        ring.offer(2)
    return driven.kick(FREE_PAGE_VQ)


def kept(driven: Driven) -> list[int]:
    return [pfn for pfn in HINTED if any(driven.memory.peek(pfn * PAGE_BYTES, PAGE_BYTES))]


def slice_once(driven: Driven) -> Notifications:
    due = driven.balloon.next_deadline_ns()
    assert due is not None and due <= driven.now_ns + 1
    driven.now_ns = max(driven.now_ns, due)
    return driven.balloon.advance(driven.now_ns)


def to_the_end(driven: Driven) -> Notifications:
    told = NO_NOTIFICATIONS
    for _ in range(1000):
        if driven.balloon.next_deadline_ns() is None:
            return told
        told |= slice_once(driven)
    raise AssertionError("there is no end")


def half_way(driven: Driven) -> list[int]:
    """Some slices later: what is left."""
    for _ in range(3):
        slice_once(driven)
    left = kept(driven)
    assert 0 < len(left) < COUNT
    return left


def test_hints_come_back_after_the_last_slice(driven: Driven) -> None:
    hint(driven)
    assert kept(driven) == [*HINTED] and driven.returned(FREE_PAGE_VQ) == 0
    half_way(driven)
    assert driven.returned(FREE_PAGE_VQ) == 0
    assert to_the_end(driven).queues == (FREE_PAGE_VQ,)
    assert kept(driven) == [] and driven.returned(FREE_PAGE_VQ) == 1
    assert driven.counters() == {
        "hinted_pages": COUNT,
        "hint_discarded_pages": COUNT,
        "discarded_bytes": COUNT * PAGE_BYTES,
    }
    assert driven.balloon.free_page_hint_cmd_id >= 2, "the driver has not ended the round"


def test_the_round_ends_after_the_last_slice_and_not_before(driven: Driven) -> None:
    hint(driven, stop=True)
    round_id = driven.balloon.free_page_hint_cmd_id
    half_way(driven)
    assert driven.balloon.free_page_hint_cmd_id == round_id >= 2
    told = to_the_end(driven)
    assert driven.balloon.free_page_hint_cmd_id == DONE
    text = f"the driver hinted {COUNT} free pages, {COUNT} of them were given back"
    assert [event.text for event in told.events] == [text]
    assert (told.queues, told.config) == ((FREE_PAGE_VQ,), True)


def test_a_page_that_is_used_between_two_slices_stays(driven: Driven, tracking: Tracking) -> None:
    """§5.5.6.5.2: the driver may use a hinted page at any time; what it wrote is not lost."""
    hint(driven)
    left = half_way(driven)
    for pfn in (left[0], left[-1]):
        tracking.write(pfn)
    to_the_end(driven)
    assert kept(driven) == [left[0], left[-1]]
    assert driven.memory.peek(left[0] * PAGE_BYTES, PAGE_BYTES) == b"\x77" * PAGE_BYTES
    assert driven.balloon.hint_discarded_pages == COUNT - 2


@pytest.mark.parametrize("what", ["stop", "done", "start"])
def test_nothing_more_is_discarded_when_the_host_ends_the_round(driven: Driven, what: str) -> None:
    """D10; and a hint under one id is none under the next, although nobody has written since that one."""
    hint(driven, stop=True)
    left = half_way(driven)
    host = driven.balloon
    {"stop": host.stop_hinting, "done": host.done_hinting, "start": host.start_hinting}[what](driven.now_ns)
    cmd_id = host.free_page_hint_cmd_id
    told = to_the_end(driven)
    assert kept(driven) == left
    assert told.queues == (FREE_PAGE_VQ,) and driven.returned(FREE_PAGE_VQ) == 2
    assert host.free_page_hint_cmd_id == cmd_id, "a STOP for another round ends none"
    assert not told.events


def test_a_reset_between_two_slices_ends_it(driven: Driven) -> None:
    hint(driven, stop=True)
    left = half_way(driven)
    driven.balloon.write_status(0, driven.now_ns)
    assert driven.balloon.next_deadline_ns() is None
    assert kept(driven) == left and driven.returned(FREE_PAGE_VQ) == 0
    driven.start(VERSION_1 | STATS_VQ | HINT)
    driven.balloon.start_hinting(driven.now_ns)
    hint(driven)
    to_the_end(driven)
    assert kept(driven) == []


def test_it_goes_on_in_another_machine(driven: Driven) -> None:
    hint(driven, stop=True)
    half_way(driven)
    state = copy.deepcopy(driven.balloon.save_state())
    fresh = Balloon(driven.memory, features=DEFAULT_FEATURES | HINT)
    fresh.check_state(state, "balloon")
    fresh.restore_state(state)
    assert fresh == driven.balloon
    driven.balloon = fresh
    told = to_the_end(driven)
    assert kept(driven) == [] and driven.returned(FREE_PAGE_VQ) == 2
    assert driven.balloon.free_page_hint_cmd_id == DONE and told.config


def test_a_state_in_which_a_round_ends_with_no_batch_is_refused(driven: Driven) -> None:
    hint(driven, stop=True)
    to_the_end(driven)
    state: Any = copy.deepcopy(driven.balloon.save_state())
    state["hinting"]["ending"] = True
    with pytest.raises(ConfigError, match=r"balloon\.hinting\.ending must be false where no hints are worked off"):
        Balloon(driven.memory, features=DEFAULT_FEATURES | HINT).check_state(state, "balloon")
