"""A balloon over huge pages of 2 MiB, on a host that is played: what goes back, when, and what is said."""

from __future__ import annotations

import errno
import random

import pytest

from devices import hostcalls
from devices.backing import Backing
from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.device import DEFAULT_FEATURES
from tests.devices.huge_host import HugeHost
from tests.devices.virtio.balloons import INFLATEQ, MUST_TELL_HOST, STATS_VQ, VERSION_1, Driven, tiny_slices
from tests.devices.virtio.rings import WRITE

PAGE, MIB = 4096, 1 << 20
HUGE = 2 * MIB
UNIT = HUGE // PAGE
# The rings are in the low RAM, which shares its huge page with the first MiB above the hole; huge page 3 is half RAM.
PC = [(0, 0xA0000), (MIB, 6 * MIB)]
REPORTING = 1 << spec.VIRTIO_BALLOON_F_PAGE_REPORTING
REPORTING_VQ = 3
FEATURES = VERSION_1 | STATS_VQ | REPORTING | MUST_TELL_HOST


class Setting:
    def __init__(self, patch: pytest.MonkeyPatch, features: int = FEATURES) -> None:
        self.host = HugeHost(patch)
        self.memory = GuestMemory(PC, backing=Backing("hugepages"))
        self.balloon = Balloon(self.memory, features=DEFAULT_FEATURES | REPORTING)
        self.driven = Driven(self.memory, self.balloon).start(features)
        for number in (1, 2):
            self.fill(range(number * UNIT, (number + 1) * UNIT))

    def fill(self, pfns: range) -> None:
        self.memory.write(pfns.start * PAGE, b"\x5a" * len(pfns) * PAGE)

    def reads_zero(self, pfns: range) -> bool:
        return self.memory.peek(pfns.start * PAGE, len(pfns) * PAGE) == bytes(len(pfns) * PAGE)


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(monkeypatch)


def test_512_scattered_pages_free_one_huge_page_with_the_last_of_them(setting: Setting) -> None:
    """As Linux does it: 256 pages a request, from all over the place."""
    pages = [*range(UNIT, 3 * UNIT)]
    random.Random(5).shuffle(pages)
    late = next(pfn for pfn in reversed(pages) if pfn // UNIT == 1)
    pages.remove(late)
    for start in range(0, len(pages), 256):
        setting.driven.inflate(*pages[start : start + 256])
    assert setting.host.holes == [2]
    assert setting.balloon.held_pages == UNIT - 1
    assert setting.reads_zero(range(UNIT, late)) and not setting.reads_zero(range(late, late + 1))
    setting.driven.inflate(late)
    assert setting.host.holes == [2, 1] and setting.host.calls == 2
    assert setting.balloon.held_pages == 0
    assert setting.driven.counters() == {"inflated_pages": 2 * UNIT, "discarded_bytes": 2 * HUGE}
    assert setting.reads_zero(range(UNIT, 3 * UNIT))


def test_a_batch_of_whole_pages_is_one_hole(setting: Setting) -> None:
    setting.driven.inflate(*range(UNIT, 3 * UNIT))
    assert setting.host.calls == 1 and setting.host.holes == [1, 2]
    assert setting.memory.backed_bytes() == HUGE, "where the rings are"


def test_what_is_no_ram_holds_no_page_back(setting: Setting) -> None:
    last = range(3 * UNIT, 3 * UNIT + UNIT // 2)
    setting.fill(last)
    setting.driven.inflate(*last)
    assert setting.host.holes == [3]


def test_a_deflated_page_is_waited_for_again(setting: Setting) -> None:
    setting.driven.inflate(*range(UNIT, 2 * UNIT - 1))
    setting.driven.deflate(UNIT + 7)
    setting.driven.inflate(2 * UNIT - 1)
    assert setting.host.holes == []
    setting.driven.inflate(UNIT + 7)
    assert setting.host.holes == [1]


def test_a_reset_forgets_what_waited(setting: Setting) -> None:
    setting.driven.inflate(*range(UNIT, 2 * UNIT - 1))
    setting.driven.start(FEATURES)
    assert setting.balloon.held_pages == 0
    setting.driven.inflate(2 * UNIT - 1)
    assert setting.host.holes == []


def test_without_must_tell_host_a_page_in_use_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """§5.5.6.1: its driver may use a page of the balloon before it tells."""
    setting = Setting(monkeypatch, FEATURES & ~MUST_TELL_HOST)
    setting.driven.inflate(*range(UNIT, 2 * UNIT - 1))
    setting.memory.write((UNIT + 7) * PAGE, b"mine")
    setting.driven.inflate(2 * UNIT - 1)
    assert setting.host.holes == []
    assert setting.memory.peek((UNIT + 7) * PAGE, 4) == b"mine"
    setting.driven.deflate(UNIT + 7)
    setting.driven.inflate(UNIT + 7)
    assert setting.host.holes == [1]


def test_the_processor_hears_of_all_that_may_read_otherwise(setting: Setting) -> None:
    setting.driven.inflate(*range(UNIT, 2 * UNIT - 1))
    setting.memory.take_writes()
    setting.driven.inflate(2 * UNIT - 1)
    covered = {
        pfn for gpa, length in setting.memory.take_writes() for pfn in range(gpa // PAGE, -(-(gpa + length) // PAGE))
    }
    assert {*range(UNIT, 2 * UNIT)} <= covered


def test_a_host_that_refuses_the_hole_costs_the_driver_nothing(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(hostcalls, "punch_hole", refuse)
    told = setting.driven.inflate(*range(UNIT, 2 * UNIT))
    assert [event.kind for event in told.events] == ["discard-failed"]
    assert told.queues == (INFLATEQ,)
    assert setting.driven.counters() == {"inflated_pages": UNIT, "failed_discards": 1}


@pytest.mark.parametrize("sliced", [False, True])
def test_a_report_gives_back_the_whole_pages_in_it(setting: Setting, sliced: bool) -> None:
    """In slices too, however small: none cuts a page of the host's in two."""
    ring, balloon = setting.driven.rings[REPORTING_VQ], setting.balloon
    ring.set_descriptor(0, (UNIT - 9) * PAGE, (2 * UNIT + 20) * PAGE, WRITE)
    ring.offer(0)
    with tiny_slices(2 if sliced else 1 << 20):
        setting.driven.kick(REPORTING_VQ)
        while (due := balloon.next_deadline_ns()) is not None:
            balloon.advance(due)
    assert setting.driven.returned(REPORTING_VQ) == 1
    assert sorted(setting.host.holes) == [1, 2]
    assert setting.reads_zero(range(UNIT, 3 * UNIT))
    assert setting.driven.counters() == {
        "reported_pages": 2 * UNIT,
        "discarded_bytes": 2 * HUGE,
        "ignored_bytes": 20 * PAGE,
    }
