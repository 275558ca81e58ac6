"""§5.5.6.6 page poison, and what it asks of free page reporting (§5.5.6.7).  D12 and D14 are the device's."""

from __future__ import annotations

import pytest

from devices.virtio import spec
from tests.fixtures import MakeMachine
from tests.support import BalloonMachine, Way, build_with
from vmm.testing.balloon import ACTUAL, PAGE_POISON, POISON_VAL

PAGE = 4096
build = build_with(spec.VIRTIO_BALLOON_F_PAGE_REPORTING, spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT)
POISON = 0xAAAAAAAA


def driver_with(machine: BalloonMachine, poison_val: int | None) -> BalloonMachine:
    """A driver that negotiates PAGE_POISON and says what it fills pages with before DRIVER_OK; None: without it."""
    driver = machine.driver
    driver.reset()
    driver.acknowledge()
    offered = driver.transport.read_device_features() & driver.supported
    driver.negotiate(offered & ~PAGE_POISON if poison_val is None else offered)
    driver.set_up_queues()
    if poison_val is not None:
        driver.poison_val = poison_val
    driver.driver_ok()
    return machine


@pytest.fixture
def balloon(make_machine: MakeMachine, way: Way) -> BalloonMachine:
    return make_machine(way, build=build)


def report(machine: BalloonMachine, pfns: list[int]) -> None:
    (used,) = machine.driver.report([(pfn * PAGE, PAGE) for pfn in pfns])
    assert used.length == 0


def test_5_5_3_poison_is_offered_as_in_qemu(machine: BalloonMachine) -> None:
    assert machine.driver.transport.read_device_features() & PAGE_POISON
    assert machine.balloon.config_size == 16


def test_d12_the_value_reads_back_and_is_forgotten_with_the_driver(balloon: BalloonMachine) -> None:
    driver_with(balloon, POISON)
    assert balloon.driver.poison_val == POISON == balloon.balloon.poison_val
    balloon.driver.reset()
    assert balloon.driver.poison_val == 0


def test_d12_it_may_be_written_byte_by_byte(balloon: BalloonMachine) -> None:
    driver_with(balloon, 0)
    for index, byte in enumerate((0x11, 0x22, 0x33, 0x44)):
        balloon.driver.write_config(POISON_VAL + index, 1, byte)
    assert balloon.driver.poison_val == 0x44332211


@pytest.mark.parametrize("when", ["before negotiation", "without the feature"])
def test_5_5_6_6_only_a_driver_that_negotiated_it_has_a_value(balloon: BalloonMachine, when: str) -> None:
    if when == "without the feature":
        driver_with(balloon, None)
    balloon.driver.write_config(POISON_VAL, 4, POISON)
    balloon.driver.write_config(ACTUAL, 4, 7)
    assert balloon.driver.poison_val == 0
    assert balloon.driver.actual == 7


# -- what pages may hold -----------------------------------------------------------------------------------------------


def test_d14_5_5_6_7_2_a_reported_page_that_must_hold_the_value_stays_as_it_is(balloon: BalloonMachine) -> None:
    """A page given back to the host would read as zeros, which is neither poison_val nor what was there."""
    driver_with(balloon, POISON)
    pfns = balloon.filled_pfns(8, POISON & 0xFF)
    balloon.events.clear()
    report(balloon, pfns)
    assert balloon.are_filled(pfns, POISON & 0xFF)
    assert (balloon.balloon.reported_pages, balloon.balloon.poisoned_pages) == (8, 8)
    assert balloon.balloon.discarded_bytes == 0
    assert [event.text for event in balloon.events] == ["8 reported pages stay, since they must hold 0xaaaaaaaa"]


@pytest.mark.parametrize("byte", [0, 0x5A])
def test_d14_5_5_6_7_2_with_a_value_of_0_a_reported_page_is_given_back(balloon: BalloonMachine, byte: int) -> None:
    """A discarded page reads as the value, whatever a driver that breaks its promise had left there."""
    driver_with(balloon, 0)
    pfns = balloon.filled_pfns(8, byte)
    before = balloon.memory.backed_bytes()
    report(balloon, pfns)
    assert balloon.are_zero(pfns)
    assert balloon.memory.backed_bytes() <= before - 4 * PAGE
    assert balloon.balloon.poisoned_pages == 0


def test_d13_5_5_6_7_2_without_the_feature_a_value_of_an_earlier_driver_does_not_count(balloon: BalloonMachine) -> None:
    driver_with(balloon, POISON)
    driver_with(balloon, None)
    pfns = balloon.filled_pfns(2)
    report(balloon, pfns)
    assert balloon.are_zero(pfns)


@pytest.mark.parametrize("poison_val", [0, POISON])
def test_d2_5_5_6_6_1_an_inflated_page_is_given_back_whatever_the_value(
    balloon: BalloonMachine, poison_val: int
) -> None:
    """The driver fills it again when it takes it back."""
    driver_with(balloon, poison_val)
    pfns = balloon.filled_pfns(4)
    balloon.driver.inflate(pfns)
    assert balloon.are_zero(pfns)


def test_d9_5_5_6_5_1_a_hinted_page_is_given_back_whatever_the_value(balloon: BalloonMachine) -> None:
    """Its contents are uninitialised memory, and the driver fills it before it releases it."""
    driver_with(balloon, POISON)
    pfns = balloon.filled_pfns(4)
    balloon.host(balloon.balloon.start_hinting(balloon.now_ns))
    balloon.driver.hint_round([(pfn * PAGE, PAGE) for pfn in pfns])
    kept = balloon.balloon.hinted_pages - balloon.balloon.hint_discarded_pages
    assert balloon.are_zero(pfns) if kept == 0 else balloon.are_filled(pfns)
    assert kept in (0, 4), "all of them, or none where the host does not track writes"
