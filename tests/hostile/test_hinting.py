"""A driver that hints what it may not, says what is no id, or breaks the ring while it does."""

from __future__ import annotations

import re

import pytest

from devices.virtio import spec
from devices.virtio.spec import Status
from tests.fixtures import MakeMachine
from tests.support import MIB, BalloonMachine, Way, build_with
from vmm.testing import Descriptor, RawQueue
from vmm.testing.balloon import DONE, STOP
from vmm.testing.driver import EVENT_IDX
from vmm.testing.mistakes import RANGE_MISTAKES, RING_MISTAKES, Mistake
from vmm.testing.raw import INDIRECT, NEXT, WRITE

pytestmark = pytest.mark.split_rings  # the rings written to here are split ones

PAGE = 4096
build_hinting = build_with(spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT)
EVERY_MISTAKE = pytest.mark.parametrize("mistake", [*RING_MISTAKES, *RANGE_MISTAKES], ids=lambda mistake: mistake.name)


def start(make_machine: MakeMachine, way: Way, without: int = 0) -> BalloonMachine:
    """A machine in the middle of a round: the id was answered."""
    machine = make_machine(way, build=build_hinting)
    machine.driver.start(machine.driver.transport.read_device_features() & ~without)
    machine.host(machine.balloon.start_hinting(machine.now_ns))
    machine.driver.send_id(machine.driver.hint_cmd_id)
    machine.driver.take_interrupts()
    machine.events.clear()
    return machine


@pytest.fixture
def hinting(make_machine: MakeMachine, way: Way) -> BalloonMachine:
    return start(make_machine, way)


def check_alive_after_reset(machine: BalloonMachine) -> None:
    machine.driver.start()
    assert machine.driver.hint_cmd_id == STOP
    machine.host(machine.balloon.start_hinting(machine.now_ns))
    before = machine.balloon.hinted_pages
    machine.driver.hint_round([(pfn * PAGE, PAGE) for pfn in machine.filled_pfns(1)])
    assert machine.balloon.hinted_pages == before + 1
    assert machine.driver.hint_cmd_id == DONE


@EVERY_MISTAKE
@pytest.mark.parametrize("without", [0, EVENT_IDX], ids=["event-idx", "no-event-idx"])
def test_a_mistake_costs_the_driver_its_device_and_nothing_else(
    make_machine: MakeMachine, way: Way, mistake: Mistake, without: int
) -> None:
    """A hint outside RAM is one: it is a broken descriptor, and nothing of its chain is discarded."""
    machine = start(make_machine, way, without | mistake.without)
    driver = machine.driver
    raw = RawQueue(driver, driver.free_page_vq)
    mistake.make(raw)
    before = machine.snapshot()
    raw.kick()
    assert driver.status & Status.DEVICE_NEEDS_RESET
    assert driver.take_interrupts().config == 1
    (event,) = [event for event in machine.events if event.kind == "needs-reset"]
    assert re.search(rf"§{re.escape(mistake.section)}\b", event.text), event.text
    layout = driver.queues[driver.free_page_vq].layout
    assert before.changed(outside=[(layout.device_gpa, layout.used_bytes)]) == []
    assert machine.balloon.hinted_pages == 0
    check_alive_after_reset(machine)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, PAGE])
def test_an_id_of_another_size_is_none_and_what_follows_belongs_to_nobody(hinting: BalloonMachine, size: int) -> None:
    cmd_id = hinting.driver.hint_cmd_id
    pfns = hinting.filled_pfns(2)
    hinting.driver.send_id(cmd_id.to_bytes(size, "little"))
    hinting.driver.hint([(pfn * PAGE, PAGE) for pfn in pfns])
    assert hinting.are_filled(pfns)
    assert hinting.balloon.ignored_bytes == size
    assert (hinting.balloon.hinted_pages, hinting.balloon.stale_hint_pages) == (0, 2)
    assert [event.kind for event in hinting.events] == ["ignored-bytes", *["stale-hints"] * len(hinting.events[1:])]
    assert hinting.driver.hint_cmd_id == cmd_id
    assert not hinting.driver.needs_reset


def test_a_stop_of_another_size_ends_no_round(hinting: BalloonMachine) -> None:
    cmd_id = hinting.driver.hint_cmd_id
    hinting.driver.send_id(bytes(8))
    assert hinting.driver.hint_cmd_id == cmd_id


def test_an_id_of_4_gib_of_ram_is_not_read(make_machine: MakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = start(make_machine, "direct")

    def refuse(*_arguments: object) -> bytes:
        raise AssertionError("it was read")

    raw = RawQueue(machine.driver, machine.driver.free_page_vq)
    entries = [Descriptor(0x100000, 3 * MIB, NEXT if i < 99 else 0, i + 1) for i in range(100)]
    raw.descriptor(0, raw.table(entries), 16 * 100, INDIRECT)
    raw.available(0)
    monkeypatch.setattr(type(machine.memory), "gather", refuse)
    raw.kick()
    assert raw.heads_returned() == [0]
    assert machine.balloon.ignored_bytes == 300 * MIB


def test_an_id_and_pages_in_one_buffer_belong_together(hinting: BalloonMachine) -> None:
    """No driver does it, and no rule of the ring forbids it."""
    driver, (pfn, other) = hinting.driver, hinting.filled_pfns(2)
    driver.offer(driver.free_page_vq, readable=[bytes([9, 9, 0, 0])], writable=[(pfn * PAGE, PAGE)])
    cmd_id = driver.hint_cmd_id.to_bytes(4, "little")
    driver.offer(driver.free_page_vq, readable=[cmd_id[:1], cmd_id[1:]], writable=[(other * PAGE, PAGE)])
    driver.kick(driver.free_page_vq)
    assert len(driver.collect(driver.free_page_vq)) == 2
    assert (hinting.balloon.stale_hint_pages, hinting.balloon.hinted_pages) == (1, 1)
    assert hinting.are_filled([pfn])


def test_hinting_its_own_ring_hurts_only_the_driver(hinting: BalloonMachine) -> None:
    """The part that was written since the id stays, so mostly nothing happens to it."""
    driver = hinting.driver
    pfns = hinting.filled_pfns(2)
    queue = driver.queues[driver.free_page_vq]
    before = hinting.snapshot()
    whole = queue.ring_gpa, queue.ring_pages * PAGE
    driver.hint([whole])
    assert before.changed(outside=[whole]) == []
    assert hinting.are_filled(pfns)
    check_alive_after_reset(hinting)


def test_hinting_all_of_ram_again_and_again_is_left_for_later(make_machine: MakeMachine) -> None:
    """No discard of all RAM follows another in one call."""
    machine = start(make_machine, "direct")
    raw = RawQueue(machine.driver, machine.driver.free_page_vq)
    machine.balloon.spend = spent = _Spent()  # type: ignore[method-assign]
    raw.descriptor(5, 0x100000, 3 * MIB, WRITE)
    raw.available(5)
    raw.kick()
    assert spent.total == 3 * MIB // PAGE


class _Spent:
    total = 0

    def __call__(self, work: int) -> None:
        self.total += work


def test_ids_and_stops_without_end_change_nothing(hinting: BalloonMachine) -> None:
    hinting.driver.send_id(STOP)
    assert hinting.driver.hint_cmd_id == DONE
    for value in (STOP, DONE, 2, 2, STOP, 0xFFFFFFFF) * 20:
        hinting.driver.send_id(value)
    assert hinting.driver.hint_cmd_id == DONE
    assert [event.kind for event in hinting.events].count("hinted") == 1
    assert not hinting.driver.needs_reset
