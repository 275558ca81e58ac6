"""§5.5.2: three ways to number the queues, and what is said to a driver that numbers otherwise."""

from __future__ import annotations

from itertools import product

import pytest

from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.features import SUPPORTED_FEATURES
from devices.virtio.balloon.numbering import NUMBERINGS, Numbering
from tests.fixtures import MakeMachine
from tests.support import BalloonMachine, Way
from vmm.testing import DeviceViolation, LegacyPciTransport, PciTransport
from vmm.testing.balloon import FREE_PAGE_HINT, PAGE_REPORTING, STATS_VQ, STATSQ
from vmm.testing.driver import VERSION_1

PAGE = 4096
OPTIONAL = {STATS_VQ: "statsq", FREE_PAGE_HINT: "free_page_vq", PAGE_REPORTING: "reporting_vq"}
OFFERS = [sum(chosen) for chosen in product(*((0, bit) for bit in OPTIONAL))]


def machine_with(make: MakeMachine, way: Way, numbering: Numbering, offered: int) -> BalloonMachine:
    def build(memory: GuestMemory) -> Balloon:
        features = SUPPORTED_FEATURES & ~sum(OPTIONAL) | offered
        return Balloon(memory, features=features, numbering=numbering)

    return make(way, build=build)


def works(machine: BalloonMachine) -> bool:
    """Whether every queue that was negotiated does what it is for."""
    driver = machine.driver
    pfns = machine.filled_pfns(2)
    driver.inflate(pfns[:1])
    answer = machine.are_zero(pfns[:1])
    if driver.features & STATS_VQ:
        driver.post_stats({"stat-free-memory": 4096})
        machine.request_stats()
        driver.collect(STATSQ)  # a legacy driver's first buffer says nothing
        driver.post_stats({"stat-free-memory": 4096})
        answer &= machine.statistics().reason == "ok"
    if driver.features & FREE_PAGE_HINT:
        machine.host(machine.balloon.start_hinting(machine.now_ns))
        driver.hint_round([(pfns[1] * PAGE, PAGE)])
        answer &= machine.balloon.hinted_pages == 1
    if driver.features & PAGE_REPORTING:
        driver.report([(pfns[1] * PAGE, PAGE)])
        answer &= machine.balloon.reported_pages == 1
    return answer and not driver.needs_reset


@pytest.mark.parametrize("numbering", NUMBERINGS)
@pytest.mark.parametrize("offered", OFFERS)
def test_a_driver_that_numbers_alike_finds_every_queue(
    make_machine: MakeMachine, way: Way, numbering: Numbering, offered: int
) -> None:
    """Whatever is offered, and whatever of it is accepted; one driver after the other on the same device."""
    machine = machine_with(make_machine, way, numbering, offered)
    machine.driver.numbering = numbering
    everything = machine.driver.transport.read_device_features() & machine.driver.supported
    for declined in OFFERS:
        if declined & ~offered == 0:
            machine.balloon.hinted_pages = machine.balloon.reported_pages = 0
            machine.driver.start(everything & ~declined)
            assert works(machine), f"without {declined:#x}"
    assert "queue-numbering" not in [event.kind for event in machine.events]


def numbers(machine: BalloonMachine) -> dict[str, int]:
    return {queue.name: queue.index for queue in machine.balloon.queues}


def test_the_specifications_numbers_are_fixed_and_leave_gaps(make_machine: MakeMachine, way: Way) -> None:
    machine = machine_with(make_machine, way, "spec", PAGE_REPORTING)
    transport = machine.driver.transport
    assert transport.num_queues == 5
    assert [transport.queue_max_size(index) for index in range(5)] == [128, 128, 0, 0, 128]
    assert numbers(machine)["reporting_vq"] == 4


def test_offered_queues_are_counted_densely_whatever_is_accepted(make_machine: MakeMachine, way: Way) -> None:
    machine = machine_with(make_machine, way, "offered", FREE_PAGE_HINT | PAGE_REPORTING)
    assert machine.driver.transport.num_queues == 4
    machine.driver.start(VERSION_1 | PAGE_REPORTING)
    assert [machine.driver.transport.queue_max_size(index) for index in range(4)] == [128, 128, 0, 128]
    assert machine.driver.reporting_vq == 3


def test_negotiated_queues_move_up_when_the_features_are_agreed_and_back_at_a_reset(
    make_machine: MakeMachine, way: Way
) -> None:
    machine = machine_with(make_machine, way, "negotiated", sum(OPTIONAL))
    before = numbers(machine)
    machine.driver.numbering = "negotiated"
    machine.driver.start(VERSION_1 | PAGE_REPORTING)
    assert numbers(machine)["reporting_vq"] == 2
    assert [machine.driver.transport.queue_max_size(index) for index in range(5)] == [128, 128, 128, 0, 0]
    machine.driver.reset()
    assert numbers(machine) == before


def test_a_saved_state_of_negotiated_queues_goes_to_a_new_device(make_machine: MakeMachine) -> None:
    first = machine_with(make_machine, "direct", "negotiated", sum(OPTIONAL))
    first.driver.numbering = "negotiated"
    first.driver.start(first.driver.transport.read_device_features() & ~FREE_PAGE_HINT)
    first.driver.post_stats({"stat-free-memory": 1})
    state = first.balloon.save_state()
    second = Balloon(first.memory, features=first.balloon.device_features, numbering="negotiated")
    second.check_state(state, "balloon")
    second.restore_state(state)
    assert second.save_state() == state
    assert {queue.name: queue.index for queue in second.queues} == numbers(first)
    assert second == first.balloon


# -- the diagnosis -----------------------------------------------------------------------------------------------------


def told(machine: BalloonMachine) -> list[str]:
    return [event.text for event in machine.events if event.kind == "queue-numbering"]


def set_up_by(machine: BalloonMachine, numbering: Numbering, features: int) -> None:
    """What a driver does that counts like `numbering` and does not look whether a queue is there."""
    driver = machine.driver
    driver.numbering = numbering
    driver.reset()
    driver.acknowledge()
    driver.negotiate(features)
    indices = [0, 1] + [driver._number(bit) for bit in OPTIONAL if features & bit]
    for index in indices:
        driver.transport.set_up_queue(index, 32, 0x110000, 0x112000, 0x114000)
    driver.driver_ok()
    for index in indices:
        driver.transport.notify(index)


def kick(machine: BalloonMachine, index: int) -> None:
    """Notify the device of a queue that may not be there: over modern PCI at the address that it would have."""
    if machine.way not in ("pci", "pci-intx", "packed-pci", "transitional"):
        machine.driver.transport.notify(index)
    else:
        machine.bus.mmio_write(machine.pci.structure_gpa(spec.VIRTIO_PCI_CAP_NOTIFY_CFG) + 4 * index, 2, index)


CASES = list(product(NUMBERINGS, NUMBERINGS, OFFERS, OFFERS))


def test_every_disagreement_is_noticed_and_no_agreement_is_complained_of(make_machine: MakeMachine) -> None:
    """All numberings against each other, all offers, all choices among them."""
    disagreements = 0
    for own, theirs, offered, declined in CASES:
        if declined & ~offered:
            continue
        machine = machine_with(make_machine, "direct", own, offered)
        set_up_by(machine, theirs, accepting(machine, offered, declined))
        meant = {name: machine.driver._number(bit) for bit, name in OPTIONAL.items() if offered & ~declined & bit}
        agreed = all(numbers(machine).get(name) == index for name, index in meant.items())
        assert bool(told(machine)) is not agreed, (own, theirs, offered, declined)
        if not agreed:
            disagreements += 1
            assert any(theirs in text.partition(" set ")[2] for text in told(machine))
        machine.close()
    assert disagreements > 50


def test_the_sentence_names_the_queue_once_for_each_number(make_machine: MakeMachine, way: Way) -> None:
    machine = machine_with(make_machine, way, "offered", FREE_PAGE_HINT | PAGE_REPORTING)
    machine.driver.start()
    for _ in range(3):
        kick(machine, 4)
    assert told(machine) == [
        "the driver uses queue 4, which does not exist with queue-numbering=offered; "
        "set queue-numbering=spec if it means reporting_vq"
    ]
    machine.driver.start()
    kick(machine, 4)
    assert len(told(machine)) == 2, "another driver is told again"


def test_a_driver_that_never_kicks_is_told_when_it_enables_the_queue(make_machine: MakeMachine) -> None:
    machine = machine_with(make_machine, "pci", "offered", FREE_PAGE_HINT | PAGE_REPORTING)
    machine.driver.start()
    machine.pci.write_common("queue_select", 4)
    machine.pci.write_common("queue_enable", 1)
    assert len(told(machine)) == 1
    assert machine.pci.read_common("queue_enable") == 0


def test_a_queue_that_no_numbering_has_is_ignored_in_silence(make_machine: MakeMachine, way: Way) -> None:
    machine = machine_with(make_machine, way, "offered", STATS_VQ)
    machine.driver.start()
    for index in (3, 4, 5, 100):
        kick(machine, index)
    assert told(machine) == []
    assert not machine.driver.needs_reset


# -- drivers that look first, and stop where there is no queue ---------------------------------------------------------

LOOKING = ("pci", "transitional", "mmio", "legacy", "transitional-legacy", "mmio-legacy")
FAILED = int(spec.Status.FAILED)
LOOKED_FOR_2 = (
    "the driver looks for queue 2, which does not exist with queue-numbering=spec; "
    "set queue-numbering=offered or negotiated if it means reporting_vq"
)


def negotiate(machine: BalloonMachine, numbering: Numbering, features: int) -> None:
    driver = machine.driver
    driver.numbering = numbering
    driver.reset()
    driver.acknowledge()
    driver.negotiate(features)


def set_up_like_linux(machine: BalloonMachine, numbering: Numbering, features: int) -> bool:
    """Set up what was negotiated, one queue after the other; where one is not there, give up and say so."""
    negotiate(machine, numbering, features)
    driver = machine.driver
    for index in [0, 1] + [driver._number(bit) for bit in OPTIONAL if driver.features & bit]:
        largest = driver.transport.queue_max_size(index)
        if not largest:
            driver.transport.write_status(driver.transport.read_status() | FAILED)
            return False
        driver.set_up_queue(index, largest)
    driver.driver_ok()
    return True


def accepting(machine: BalloonMachine, offered: int, declined: int) -> int:
    return machine.driver.transport.read_device_features() & ~sum(OPTIONAL) | offered & ~declined


@pytest.mark.ways("pci", "mmio", "legacy", "mmio-legacy")
def test_every_driver_that_gives_up_over_a_missing_queue_is_told_why(make_machine: MakeMachine, way: Way) -> None:
    """All numberings against each other.  Of a legacy driver features stay open, and so each queue that is offered
    exists: it goes on, and is told at the end that it has set up one that it declined."""
    gave_up = 0
    for own, theirs, offered, declined in CASES:
        if declined & ~offered or own == theirs:
            continue
        machine = machine_with(make_machine, way, own, offered)
        if not set_up_like_linux(machine, theirs, accepting(machine, offered, declined)):
            gave_up += 1
            (text,) = told(machine)
            assert text.startswith("the driver looks for queue ") and f"queue-numbering={own};" in text
            assert theirs in text.partition(" set ")[2], (own, theirs, offered, declined)
        else:
            counts = [driver_numbers(machine, each, offered & ~declined) for each in (own, theirs)]
            assert bool(told(machine)) is (counts[0] != counts[1]), (own, theirs, offered, declined)
        machine.close()
    assert gave_up > 10


def driver_numbers(machine: BalloonMachine, numbering: Numbering, accepted: int) -> list[int]:
    machine.driver.numbering = numbering
    return [machine.driver._number(bit) for bit in OPTIONAL if accepted & bit]


@pytest.mark.ways(*LOOKING)
@pytest.mark.parametrize("ends", ["failed", "reset", "driver-ok", "run over"])
def test_it_is_told_when_the_driver_gets_no_further(make_machine: MakeMachine, way: Way, ends: str) -> None:
    machine = machine_with(make_machine, way, "spec", PAGE_REPORTING)
    negotiate(machine, "offered", accepting(machine, PAGE_REPORTING, 0))
    transport = machine.driver.transport
    for _ in range(2):
        assert transport.queue_max_size(2) == 0
    assert told(machine) == [], "it may only be counting what there is"
    if ends == "failed":
        transport.write_status(transport.read_status() | FAILED)
    elif ends == "reset":
        transport.write_status(0)
    elif ends == "driver-ok":
        machine.driver.driver_ok()
    else:
        machine.host(machine.balloon.run_over())
    assert told(machine) == [LOOKED_FOR_2]
    machine.host(machine.balloon.run_over())
    assert len(told(machine)) == 1, "once"


@pytest.mark.ways(*LOOKING)
def test_who_counts_all_queues_and_finds_its_own_is_left_in_peace(make_machine: MakeMachine, way: Way) -> None:
    machine = machine_with(make_machine, way, "spec", PAGE_REPORTING)
    negotiate(machine, "spec", accepting(machine, PAGE_REPORTING, 0))
    assert [machine.driver.transport.queue_max_size(index) for index in range(5)] == [128, 128, 0, 0, 128]
    machine.driver.set_up_queues()
    machine.driver.driver_ok()
    machine.host(machine.balloon.run_over())
    assert told(machine) == []


@pytest.mark.ways("pci", "mmio", "mmio-legacy", "legacy", "transitional-legacy")
@pytest.mark.parametrize(
    ("own", "theirs", "index", "others"),
    [("spec", "offered", 2, "offered or negotiated"), ("offered", "spec", 4, "spec")],
    ids=["a gap", "behind the last"],
)
def test_a_queue_that_is_set_up_without_a_look_is_told_of_at_once(
    make_machine: MakeMachine, way: Way, own: Numbering, theirs: Numbering, index: int, others: str
) -> None:
    machine = machine_with(make_machine, way, own, PAGE_REPORTING)
    negotiate(machine, theirs, accepting(machine, PAGE_REPORTING, 0))
    transport = machine.driver.transport
    if isinstance(transport, LegacyPciTransport):
        transport.write_register("queue_select", index)
        transport.write_register("queue_address", 0x110)
    elif isinstance(transport, PciTransport):
        machine.pci.write_common("queue_select", index)
        machine.pci.write_common("queue_enable", 1)
    else:
        with pytest.raises(DeviceViolation, match="did not become enabled"):
            machine.driver.set_up_queue(index, 32)
    assert told(machine) == [
        f"the driver uses queue {index}, which does not exist with queue-numbering={own}; "
        f"set queue-numbering={others} if it means reporting_vq"
    ]


@pytest.mark.ways(*LOOKING)
def test_what_one_driver_looked_for_is_not_told_of_the_next(make_machine: MakeMachine, way: Way) -> None:
    machine = machine_with(make_machine, way, "spec", PAGE_REPORTING)
    negotiate(machine, "offered", accepting(machine, PAGE_REPORTING, 0))
    assert machine.driver.transport.queue_max_size(2) == 0
    negotiate(machine, "spec", accepting(machine, PAGE_REPORTING, 0))
    machine.events.clear()
    machine.driver.transport.write_status(machine.driver.transport.read_status() | FAILED)
    assert told(machine) == []


def test_a_look_is_saved_and_told_by_the_device_that_goes_on(make_machine: MakeMachine) -> None:
    first = machine_with(make_machine, "pci", "spec", PAGE_REPORTING)
    negotiate(first, "offered", accepting(first, PAGE_REPORTING, 0))
    assert first.driver.transport.queue_max_size(2) == 0
    second = Balloon(first.memory, features=first.balloon.device_features, numbering="spec")
    state = first.balloon.save_state()
    second.check_state(state, "balloon")
    second.restore_state(state)
    assert [event.text for event in second.run_over().events] == [LOOKED_FOR_2]
