"""The hostile guest: each of its requests, what the device says about it, and that the guest would notice a device
that does anything else."""

from __future__ import annotations

import re
from unittest import mock

import pytest

import vmm
from devices.effects import Event
from devices.errors import DriverError
from devices.memory import PAGE_BYTES, Run
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.pages import PageSet
from devices.virtio.chains import Chains
from devices.virtio.device import NO_NOTIFICATIONS, Notifications, Queue, VirtioDevice
from devices.virtio.split import SplitQueue
from vmm.machine import Machine

RING_ERRORS = {
    "avail-jump": "2.7.13.3",
    "avail-back": "2.7.13.3",
    "head-range": "2.7.6",
    "head-twice": "2.7.13.1",
    "next-range": "2.7.5",
    "loop": "2.7.5.2",
    "zero-length": "2.7.5",
    "read-after-write": "2.7.4.2",
    "outside-ram": "2.7.5",
    "past-ram": "2.7.5",
    "wrap": "2.7.5",
    "huge": "2.7.5",
    "indirect-refused": "2.7.5.3.1",
    "indirect-nested": "2.7.5.3.1",
    "indirect-next": "2.7.5.3.1",
    "indirect-empty": "2.7.5.3",
    "indirect-odd": "2.7.5.3",
    "indirect-range": "2.7.5",
    "indirect-outside": "2.7.5",
    "table-misaligned": "2.7.1",
    "used-misaligned": "2.7.1",
    "ring-outside": "2.6",
    "ring-wrap": "2.6",
}
"""What breaks the ring, and the section that says so."""
WITHOUT_HEAD = ("avail-jump", "avail-back", "table-misaligned", "used-misaligned", "ring-outside", "ring-wrap")

PAYLOAD_ERRORS: dict[str, tuple[int, dict[str, int]]] = {
    "pfn-outside": (1, {"bad_pfns": 3}),
    "pfn-odd": (3, {"ignored_bytes": 3}),
    "pfn-short": (0, {"ignored_bytes": 3}),
    "pfn-twice": (2, {"bad_pfns": 0}),
    "write-only": (0, {"bad_pfns": 0}),
    "deflate-stranger": (0, {"stray_pages": 1}),
    "stats-two": (0, {"stats_reports": 2}),
    "stats-odd": (0, {"stats_reports": 1, "ignored_bytes": 3}),
    "stats-huge": (0, {"stats_reports": 1, "ignored_bytes": 65536 - 1024 * 10}),
}
"""What is wrong in a buffer: the pages that it gives away nevertheless, and the device's counters afterwards."""
WRONG_TIMES = ("kick-early", "kick-nowhere", "size-change", "kick-after-reset", "features-refused")
ALL = (*RING_ERRORS, *PAYLOAD_ERRORS, *WRONG_TIMES)
HONEST_PAGES = 4


class Watcher:
    """Remembers what the device told its watchers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, now_ns: int, event: Event) -> None:
        self.events.append(event)

    def on_console(self, data: bytes) -> None: ...

    def on_stats(self, now_ns: int) -> None: ...

    def on_target(self, now_ns: int) -> None: ...


def run(parameter: str, memory: str = "2M") -> tuple[Machine, list[Event]]:
    watcher = Watcher()
    with vmm.boot("hostile", memory=memory, parameter=parameter, duration="1s") as machine:
        machine.observers.append(watcher)
        machine.run()
    return machine, watcher.events


def said(machine: Machine) -> list[str]:
    return [line for line in machine.console.decode().splitlines() if line.startswith("hostile: ")]


def result(machine: Machine) -> tuple[str, int, str]:
    assert machine.outcome is not None
    return machine.outcome.kind, machine.outcome.exit_code, said(machine)[-1]


def device(machine: Machine) -> Balloon:
    return machine.board.need_balloon()[1]


def test_without_a_name_it_lists_every_request() -> None:
    machine, _ = run("")
    listed = [re.match(r"hostile: (\S+) +\S.* \([\d.]+\)$", line) for line in said(machine)[1:]]
    assert sorted(found[1] for found in listed if found) == sorted(ALL)
    assert all(listed) and result(machine)[:2] == ("quit", 0)


def test_a_name_that_it_does_not_know_is_an_error() -> None:
    machine, _ = run("nonsense")
    assert 'hostile: there is no request "nonsense"' in said(machine)
    assert result(machine)[:2] == ("quit", 1)


@pytest.mark.parametrize("name", ALL)
def test_the_device_answers_as_it_should_and_works_after_a_reset(name: str) -> None:
    machine, _ = run(name)
    assert result(machine) == ("quit", 0, f"hostile: {name}: as it should be")
    for when in ("before", "after a reset"):
        assert f"hostile: {when}: an honest inflate and deflate came back" in said(machine)
    assert device(machine).inflated_pages >= 2 * HONEST_PAGES


@pytest.mark.parametrize("name", RING_ERRORS)
def test_a_broken_ring_is_explained_with_its_queue_head_and_section(name: str) -> None:
    machine, events = run(name)
    (text,) = [event.text for event in events if event.kind == "needs-reset"]
    where = r"queue 0: " if name in WITHOUT_HEAD else r"queue 0, head \d+: "
    assert re.match(f"the device needs reset: {where}.*§{re.escape(RING_ERRORS[name])}\\)$", text)
    assert "hostile: the device needs a reset; configuration interrupts: 1; requests returned: 0" in said(machine)
    assert device(machine).inflated_pages == 2 * HONEST_PAGES, "part of the broken request was carried out"


@pytest.mark.parametrize("name", PAYLOAD_ERRORS)
def test_a_wrong_payload_is_counted_and_the_device_goes_on(name: str) -> None:
    machine, events = run(name)
    assert not [event for event in events if event.kind == "needs-reset"]
    taken, counters = PAYLOAD_ERRORS[name]
    honest = 3 * HONEST_PAGES  # before, in the same life, and after the reset
    assert device(machine).discarded_bytes == (honest + taken) * PAGE_BYTES
    assert {counter: getattr(device(machine), counter) for counter in counters} == counters


@pytest.mark.parametrize("name", ["huge", "outside-ram", "past-ram", "pfn-outside", "ring-outside"])
def test_the_edge_of_ram_is_where_it_is_at_every_size(name: str) -> None:
    for memory in ("1M", "64M", "4096M"):
        machine, _ = run(name, memory)
        assert result(machine) == ("quit", 0, f"hostile: {name}: as it should be")


def test_two_runs_are_the_same_to_the_byte() -> None:
    first, second = run("loop")[0], run("loop")[0]
    assert (first.console, first.blocks) == (second.console, second.blocks)


# -- it would notice ---------------------------------------------------------------------------------------------------


def test_a_device_that_ignores_broken_rings_is_noticed() -> None:
    genuine = SplitQueue.take_available

    def lenient(ring: SplitQueue) -> Chains | None:
        try:
            return genuine(ring)
        except DriverError:
            return None

    with mock.patch.object(SplitQueue, "take_available", lenient):
        machine, _ = run("loop")
    assert result(machine)[1:] == (1, "hostile: loop: WRONG: the device does not say that it needs a reset")


def test_a_device_that_breaks_over_a_payload_is_noticed() -> None:
    genuine = Balloon._named_pages

    def strict(balloon: Balloon, queue: Queue, chains: Chains) -> tuple[PageSet, Notifications]:
        pages, told = genuine(balloon, queue, chains)
        if pages.bad:
            raise DriverError("5.5.6", "no such page")
        return pages, told

    with mock.patch.object(Balloon, "_named_pages", strict):
        machine, _ = run("pfn-outside")
    assert result(machine)[1:] == (1, "hostile: pfn-outside: WRONG: the device needs a reset for nothing")


def test_a_device_that_stays_silent_about_its_trouble_is_noticed() -> None:
    genuine = VirtioDevice.notify

    def silent(balloon: VirtioDevice, index: int, now_ns: int, data: int | None = None) -> Notifications:
        return genuine(balloon, index, now_ns, data)._replace(config=False)

    with mock.patch.object(VirtioDevice, "notify", silent):
        machine, _ = run("wrap")
    expected = "hostile: wrap: WRONG: the device needs a reset, and there is no configuration interrupt"
    assert result(machine)[1:] == (1, expected)


def test_a_device_that_carries_out_part_of_a_broken_request_is_noticed() -> None:
    genuine = SplitQueue.take_available

    def eager(ring: SplitQueue) -> Chains | None:
        try:
            return genuine(ring)
        except DriverError:
            memory, descriptors = ring._memory, ring._used_gpa & ~0xFFF  # the guest's queues are one page each
            array = memory.read_int(descriptors + 16 * 3, 8)
            memory.discard([Run(memory.read_int(array, 4), 1)])
            raise

    with mock.patch.object(SplitQueue, "take_available", eager):
        machine, _ = run("loop")
    assert result(machine)[1:] == (
        1,
        "hostile: loop: WRONG: pages have changed that were none of the device's business",
    )


def test_a_request_that_is_lost_is_noticed() -> None:
    with mock.patch.object(Balloon, "_deflate", lambda *_: NO_NOTIFICATIONS):
        machine, _ = run("pfn-odd")
    assert result(machine)[1:] == (1, "hostile: pfn-odd: WRONG: an honest deflate request does not come back")
