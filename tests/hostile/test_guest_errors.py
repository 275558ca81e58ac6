"""Guest errors by policy: a chain that breaks a rule is completed unread or dropped, and the queue goes on."""

from __future__ import annotations

import re

import pytest

from devices.errors import ConfigError, Fault
from devices.virtio import device, policy
from devices.virtio.policy import IGNORE, SKIP, Policy, Treatment
from tests.fixtures import MakeMachine
from tests.hostile.guest_errors import JUMPS, NO_HEADS, Requests, start
from tests.support import BalloonMachine, Way
from vmm.testing import RawPackedQueue, RawQueue
from vmm.testing.balloon import DEFLATEQ, STATSQ, pfn_bytes
from vmm.testing.mistakes import HEAD, RING_MISTAKES, Mistake
from vmm.testing.packed_mistakes import PACKED_MISTAKES, PackedMistake

EVERY_MISTAKE = pytest.mark.parametrize("mistake", RING_MISTAKES, ids=lambda mistake: mistake.name)
EVERY_PACKED_MISTAKE = pytest.mark.parametrize("mistake", PACKED_MISTAKES, ids=lambda mistake: mistake.name)
BOTH = pytest.mark.parametrize("how", [SKIP, IGNORE], ids=lambda how: how.name)
BEFORE, AFTER, LATER = (20, 21, 22), (30, 31), (40,)
STALL = Policy("stall", Treatment.STALL)


def check_goes_on(machine: BalloonMachine) -> None:
    """The driver hears nothing of a mistake, and the other queues know nothing of it."""
    assert not machine.driver.needs_reset
    assert machine.driver.take_interrupts().config == 0
    machine.driver.post_stats({4: 17})
    assert machine.statistics().values == {"stat-free-memory": 17}


def check_told(machine: BalloonMachine, section: str) -> None:
    """One event to the watchers, with the section."""
    (event,) = [event for event in machine.events if event.kind == "guest-error"]
    assert "queue 0 (inflateq): a chain is" in event.text
    assert re.search(rf"§{re.escape(section)}\b", event.text), event.text


@EVERY_MISTAKE
@BOTH
def test_good_chains_around_a_mistake_come_back_and_it_does_as_the_policy_says(
    make_machine: MakeMachine, mistake: Mistake, how: Policy
) -> None:
    requests = start(make_machine, "pci", how, mistake)
    machine, raw = requests.machine, requests.raw
    assert isinstance(raw, RawQueue)
    pfns = requests.make(*BEFORE)
    if mistake.name in JUMPS:
        raw.kick()
    requests.mistake(mistake)
    if mistake.name in JUMPS:
        raw.kick()
    pfns += requests.make(*AFTER)
    raw.kick()
    pfns += requests.make(*LATER)
    raw.kick()
    returnable = how is SKIP and mistake.name not in (*JUMPS, *NO_HEADS)
    twice = mistake.name == "same_head_twice"
    assert raw.heads_returned() == [*BEFORE, *[HEAD] * (returnable + twice), *AFTER, *LATER]
    assert machine.are_zero(pfns)
    assert (requests.skipped, requests.dropped) == (returnable, not returnable)
    check_told(machine, mistake.section)
    check_goes_on(machine)


@EVERY_MISTAKE
@BOTH
def test_nothing_is_touched_for_a_mistake_but_the_used_ring(
    make_machine: MakeMachine, mistake: Mistake, how: Policy
) -> None:
    requests = start(make_machine, "pci", how, mistake, event_idx=False)
    requests.mistake(mistake)
    before = requests.machine.snapshot()
    requests.raw.kick()
    layout = requests.machine.driver.queues[0].layout
    first_page = [(0, 4096)] if mistake.name == "same_head_twice" else []  # what its sound chain names
    used = (layout.device_gpa, layout.used_bytes)
    assert before.changed(outside=[used, *first_page]) == []
    if how is IGNORE and not first_page:
        assert before.changed() == []
        assert requests.machine.driver.take_interrupts().used == {}


@EVERY_PACKED_MISTAKE
@BOTH
@pytest.mark.parametrize("in_order", [False, True], ids=["any order", "in order"])
def test_a_packed_ring_goes_on_behind_a_mistake(
    make_machine: MakeMachine, mistake: PackedMistake, how: Policy, in_order: bool
) -> None:
    requests = start(make_machine, "packed-pci", how, mistake, in_order=in_order)
    machine, raw = requests.machine, requests.raw
    assert isinstance(raw, RawPackedQueue)
    pfns = requests.make(200)
    start_place = raw.next.index
    if mistake.name == "loop_over_the_whole_ring":
        raw.size -= 1  # no further than the good one
    requests.mistake(mistake)
    whole_ring = raw.next.index == 0
    slots = raw.size if whole_ring else raw.next.index - start_place
    raw.kick()
    assert (requests.skipped, requests.dropped) == (how is SKIP, how is IGNORE)
    check_told(machine, mistake.section)
    if not (whole_ring and how is IGNORE):
        pfns += requests.make(201)
        raw.kick()
    check_goes_on(machine)
    assert machine.are_zero(pfns)
    if whole_ring and how is SKIP:
        assert used_descriptors(raw) == [(0, 1)], "and place 0 has begun its second round"
        return
    twice = mistake.name == "buffer_id_twice"
    returned = [(200, 1)] + [(1, 1)] * twice
    if in_order and twice:
        returned = [(1, 2)]  # one used descriptor for the batch of sound ones
    if how is SKIP:
        returned += [(1 if twice else 0, slots - twice)]
    returned += [(201, 1)] * (len(pfns) - 1)
    assert used_descriptors(raw) == returned


def used_descriptors(raw: RawPackedQueue) -> list[tuple[int, int]]:
    """What was returned, as (buffer id, descriptors): the device puts them one behind the other."""
    found: list[tuple[int, int]] = []
    memory, place = raw.driver.memory, type(raw.next)(raw.size, 0, 1)
    ring = [memory.read(raw.layout.descriptor(index), 16) for index in range(raw.driver.queues[0].size)]
    places = [
        index for index, entry in enumerate(ring) if int.from_bytes(entry[14:], "little") & 0x8080 == place.used_flags
    ]
    for index, following in zip(places, [*places[1:], None], strict=True):
        name = int.from_bytes(ring[index][12:14], "little")
        found.append((name, 1 if following is None else following - index))
    return found


def test_a_descriptor_that_is_in_flight_is_left_alone_where_the_ring_is_full(make_machine: MakeMachine) -> None:
    """There is no place behind it: the queue waits for what it holds to be put."""
    for how in (SKIP, IGNORE):
        machine = start(make_machine, "packed-pci", how).machine
        machine.driver.start(queue_sizes={STATSQ: 1})
        machine.driver.post_stats({4: 1})
        raw = RawPackedQueue(machine.driver, STATSQ)
        raw.descriptor(raw.buffer(bytes(10)), 10, 0, 7)
        raw.kick()
        queue = machine.balloon.queues[STATSQ]
        assert not machine.driver.needs_reset
        assert (queue.requests, queue.skipped, queue.dropped) == (1, 0, 0)
        assert any(event.kind == "guest-error" and "waits" in event.text for event in machine.events)


@BOTH
def test_a_head_that_the_device_holds_is_not_returned_for_its_second_chain(
    make_machine: MakeMachine, how: Policy
) -> None:
    """The statistics buffer is made available again while the device has it: it comes back once, when asked for."""
    machine = start(make_machine, "pci", how).machine
    held = machine.driver.post_stats({4: 1})
    raw = RawQueue(machine.driver, STATSQ)
    raw.available(held)
    raw.kick()
    assert raw.heads_returned() == []
    assert machine.balloon.queues[STATSQ].dropped == 1
    machine.request_stats()
    assert raw.heads_returned() == [held]
    raw.available(held)
    raw.kick()
    assert machine.balloon.queues[STATSQ].requests == 2, "what was returned may be offered again"


@BOTH
def test_a_buffer_id_that_the_device_holds_is_not_returned_for_its_second_chain(
    make_machine: MakeMachine, how: Policy
) -> None:
    """The same in a packed ring, where the second chain keeps its place."""
    machine = start(make_machine, "packed-pci", how).machine
    held = machine.driver.post_stats({4: 1})
    raw = RawPackedQueue(machine.driver, STATSQ)
    raw.descriptor(raw.buffer(bytes(10)), 10, 0, held)
    raw.kick()
    queue = machine.balloon.queues[STATSQ]
    assert raw.ids_returned() == [] and (queue.skipped, queue.dropped) == (0, 1)
    machine.request_stats()
    assert used_descriptors(raw) == [(held, 1)]


@pytest.mark.ways("pci", "packed-pci")
def test_a_dropped_name_is_in_flight_until_the_queue_is_set_up_again(make_machine: MakeMachine, way: Way) -> None:
    """The driver never heard of it: a second chain of that name is at fault, however sound it is."""
    requests = start(make_machine, way, IGNORE)
    machine, raw = requests.machine, requests.raw
    if isinstance(raw, RawPackedQueue):
        raw.descriptor(0x7F00_0000_0000, 4, 0, 50)
    else:
        raw.descriptor(50, 0x7F00_0000_0000, 4)
        raw.available(50)
    raw.kick()
    pfns = requests.make(50)
    raw.kick()
    assert requests.dropped == 2 and machine.are_filled(pfns)
    machine.driver.reset_queue(0)
    machine.driver.set_up_queue(0, 128)
    assert len(machine.driver.inflate(pfns)) == 1
    again = Requests(machine, type(raw)(machine.driver, 0))
    again.make(50)
    again.raw.kick()
    assert again.dropped == 2


@BOTH
@pytest.mark.parametrize("neighbours", [3, 100])
def test_many_mistakes_of_one_kick_are_one_event(make_machine: MakeMachine, how: Policy, neighbours: int) -> None:
    """Every second chain is at fault; all of the others come back, and nothing is told chain by chain."""
    requests = start(make_machine, "pci", how)
    machine, raw = requests.machine, requests.raw
    assert isinstance(raw, RawQueue)
    bad, good = range(0, neighbours, 2), range(1, neighbours, 2)
    pfns: list[int] = []
    for head in range(neighbours):
        if head in bad:
            raw.descriptor(head, 0x7F00_0000_0000, 4)
            raw.available(head)
        else:
            pfns += requests.make(head)
    raw.kick()
    assert machine.are_zero(pfns)
    assert raw.heads_returned() == (list(range(neighbours)) if how is SKIP else list(good))
    assert requests.skipped + requests.dropped == len(bad)
    (event,) = [event for event in machine.events if event.kind == "guest-error"]
    assert f"{len(bad)} chains are" in event.text
    check_goes_on(machine)


@BOTH
def test_the_work_of_a_call_stays_bounded(
    make_machine: MakeMachine, how: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """128 loops through the whole table cost a call's bound each: the call ends, and the rest is done by and by."""
    requests = start(make_machine, "pci", how)
    machine, raw = requests.machine, requests.raw
    assert isinstance(raw, RawQueue)
    monkeypatch.setattr(device, "WORK_LIMIT", 1000)
    gpa = raw.buffer(bytes(4))
    for head in range(raw.size):
        raw.descriptor(head, gpa, 4, 1, (head + 1) % raw.size)
    raw.available(*range(raw.size))
    raw.kick()
    done = requests.skipped + requests.dropped
    assert 0 < done <= 1000 // raw.size + 1
    calls = 1
    while machine.balloon.next_deadline_ns() is not None:
        machine.bench.advance(1)
        calls += 1
        assert calls < 40
    assert requests.skipped + requests.dropped == raw.size
    check_goes_on(machine)


def test_a_queue_that_waits_goes_on_when_the_driver_has_put_it_right(make_machine: MakeMachine) -> None:
    requests = start(make_machine, "pci", STALL)
    machine, raw = requests.machine, requests.raw
    assert isinstance(raw, RawQueue)
    pfns = requests.make(20)
    raw.descriptor(HEAD, 0x7F00_0000_0000, 4)
    raw.available(HEAD)
    late = requests.make(30)
    raw.kick()
    raw.kick()
    assert raw.heads_returned() == [20] and machine.are_zero(pfns) and machine.are_filled(late)
    assert (requests.skipped, requests.dropped) == (0, 0)
    raw.descriptor(HEAD, raw.buffer(pfn_bytes(late)), 4)
    raw.kick()
    assert raw.heads_returned() == [20, HEAD, 30] and machine.are_zero(late)
    check_goes_on(machine)


@BOTH
def test_a_reset_forgets_what_was_dropped_and_equals_a_fresh_device(make_machine: MakeMachine, how: Policy) -> None:
    requests = start(make_machine, "pci", how)
    fresh = type(requests.machine.balloon)(requests.machine.memory, policy=how)
    fresh.set_dma_enabled(True, 0)
    requests.mistake(next(mistake for mistake in RING_MISTAKES if mistake.name == "chain_that_loops"))
    requests.raw.kick()
    requests.machine.driver.reset()
    assert requests.machine.balloon == fresh
    assert fresh != type(fresh)(requests.machine.memory, policy=policy.RESET)
    requests.machine.driver.start()
    assert requests.machine.driver.inflate(requests.machine.filled_pfns(2))


@BOTH
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_device_that_dropped_a_chain_is_saved_and_goes_on(
    make_machine: MakeMachine, how: Policy, packed: bool
) -> None:
    requests = start(make_machine, "packed" if packed else "direct", how, event_idx=False)
    machine = requests.machine
    name = "buffer_id_twice" if packed else "same_head_twice"
    mistakes: tuple[Mistake | PackedMistake, ...] = PACKED_MISTAKES if packed else RING_MISTAKES
    requests.mistake(next(mistake for mistake in mistakes if mistake.name == name))
    requests.raw.kick()
    saved = machine.balloon.save_state()
    other = type(machine.balloon)(machine.memory, policy=how)
    other.device_features = machine.balloon.device_features
    other.check_state(saved, "balloon")
    other.restore_state(saved)
    assert other == machine.balloon
    assert other.save_state() == saved
    assert (other.queues[0].skipped, other.queues[0].dropped) == (how is SKIP, how is IGNORE)
    pfns = requests.make(99)
    assert other.notify(0, 0).queues == (0,)
    assert machine.are_zero(pfns)


def test_a_nameless_chain_in_flight_is_refused_where_nothing_is_passed_over(make_machine: MakeMachine) -> None:
    """After `ignore` a packed ring may hold places without an id; under `reset` it cannot."""
    requests = start(make_machine, "packed", IGNORE)
    raw = requests.raw
    assert isinstance(raw, RawPackedQueue)
    held = requests.machine.driver.post_stats({4: 1})
    stats = RawPackedQueue(requests.machine.driver, STATSQ)
    stats.descriptor(stats.buffer(bytes(10)), 10, 0, held)
    stats.kick()
    requests.machine.request_stats()
    ring = requests.machine.balloon.queues[STATSQ].save_state()["ring"]
    assert isinstance(ring, dict) and ring["in_flight"] == [] and ring["next_available"] != ring["next_used"]
    saved = requests.machine.balloon.save_state()
    kind = type(requests.machine.balloon)
    for how, fits in ((IGNORE, True), (policy.RESET, False)):
        other = kind(requests.machine.memory, policy=how)
        other.device_features = requests.machine.balloon.device_features
        if fits:
            other.check_state(saved, "balloon")
        else:
            with pytest.raises(ConfigError, match="in_flight"):
                other.check_state(saved, "balloon")


def test_a_queue_that_cannot_be_set_up_needs_reset_whatever_the_policy(make_machine: MakeMachine) -> None:
    for how in (SKIP, IGNORE, STALL):
        driver = start(make_machine, "pci", how).machine.driver
        driver.reset()
        driver.acknowledge()
        driver.negotiate()
        driver.transport.set_up_queue(DEFLATEQ, 128, 0x7F00_0000_0000, 0x112000, 0x114000)
        driver.driver_ok()
        assert driver.needs_reset


@pytest.mark.parametrize(
    ("usual", "treatments", "message"),
    [
        (Treatment.RESET, {Fault.TABLE_PLACE: Treatment.TOLERATE}, "mine: TABLE_PLACE cannot be treated as tolerate"),
        (Treatment.RESET, {Fault.HEAD: Treatment.TOLERATE}, "mine: HEAD cannot be treated as tolerate"),
        (Treatment.RESET, {Fault.LOOP: Treatment.PLAIN}, "mine: LOOP cannot be treated as plain"),
        (Treatment.TOLERATE, {}, "mine: what is usual must not be tolerate"),
    ],
)
def test_a_policy_that_would_be_unsafe_cannot_be_made(
    usual: Treatment, treatments: dict[Fault, Treatment], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Policy("mine", usual, treatments)
