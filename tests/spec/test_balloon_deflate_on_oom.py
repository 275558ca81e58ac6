"""VIRTIO_BALLOON_F_DEFLATE_ON_OOM (§5.5.3, §5.5.6.1): the driver takes pages back that the target asks for.

Every statement about it is the driver's (R7, R8).  The device's part is to offer it, to serve such deflates like any
other, to leave the target alone, and to tell the host."""

from __future__ import annotations

import pytest

from devices.virtio import spec
from tests.fixtures import MakeMachine
from tests.support import BalloonMachine, Way, build_with
from vmm.testing.balloon import DEFLATE_ON_OOM

DEFLATED = "deflate-on-oom"


@pytest.fixture
def balloon(make_machine: MakeMachine, way: Way) -> BalloonMachine:
    """A started machine with the feature, its balloon at a target of 40 pages."""
    machine = make_machine(way, build=build_with(spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM))
    machine.driver.start()
    machine.set_target(40)
    machine.driver.follow_target()
    machine.driver.take_interrupts()
    machine.events.clear()
    return machine


def kinds(machine: BalloonMachine) -> list[str]:
    return [event.kind for event in machine.events]


def test_5_5_3_it_is_offered_only_when_asked_for(machine: BalloonMachine) -> None:
    assert not machine.driver.transport.read_device_features() & DEFLATE_ON_OOM


def test_5_5_3_it_adds_no_queue_and_can_be_negotiated(balloon: BalloonMachine) -> None:
    assert balloon.driver.features & DEFLATE_ON_OOM
    assert balloon.driver.transport.num_queues == 3


def test_r8_5_5_6_1_pages_taken_back_below_the_target_are_the_drivers(balloon: BalloonMachine) -> None:
    leaving = balloon.driver.deflate_on_oom(16)
    for pfn in leaving:
        balloon.memory.write(pfn * 4096, b"\x33" * 4096)
    balloon.driver.inflate(balloon.filled_pfns(2))
    balloon.bench.advance(10**9)
    assert balloon.are_filled(leaving, 0x33)
    assert balloon.balloon.deflated_pages == 16
    assert not balloon.driver.needs_reset


def test_5_5_6_the_target_stays_what_the_host_asked_for(balloon: BalloonMachine) -> None:
    balloon.driver.deflate_on_oom(16)
    assert (balloon.driver.num_pages, balloon.balloon.target_pages) == (40, 40)
    assert balloon.balloon.actual_pages == 24
    assert balloon.driver.take_interrupts().config == 0, "nothing changed that the driver does not know"


def test_5_5_6_the_host_is_told(balloon: BalloonMachine) -> None:
    balloon.driver.deflate_on_oom(16)
    assert kinds(balloon) == ["actual", DEFLATED]
    assert balloon.events[-1].text == "the driver took back 16 pages that the target asks for"
    assert balloon.balloon.oom_deflated_pages == 16
    balloon.driver.deflate_on_oom(4)
    assert balloon.balloon.oom_deflated_pages == 20


def test_5_5_6_the_driver_inflates_again_when_it_can(balloon: BalloonMachine) -> None:
    balloon.driver.deflate_on_oom(16)
    assert balloon.driver.follow_target() == 40
    assert (balloon.balloon.actual_pages, balloon.balloon.inflated_pages) == (40, 56)
    assert balloon.balloon.oom_deflated_pages == 16


def test_5_5_6_deflating_to_a_lower_target_is_no_such_thing(balloon: BalloonMachine) -> None:
    balloon.set_target(10)
    balloon.driver.follow_target()
    assert DEFLATED not in kinds(balloon)
    assert balloon.balloon.oom_deflated_pages == 0


def test_5_5_6_only_what_lies_below_a_lower_target_counts(balloon: BalloonMachine) -> None:
    balloon.set_target(30)
    balloon.driver.deflate_on_oom(16)
    assert balloon.balloon.oom_deflated_pages == 6


def test_5_5_6_it_counts_while_the_driver_has_not_reached_the_target_yet(balloon: BalloonMachine) -> None:
    balloon.set_target(200)
    balloon.driver.deflate_on_oom(5)
    assert balloon.balloon.oom_deflated_pages == 5


def test_5_5_6_without_the_feature_it_is_not_counted_as_that(balloon: BalloonMachine) -> None:
    """The device cannot tell it from a driver on its way out, and serves it all the same."""
    driver = balloon.driver
    driver.start(driver.features & ~DEFLATE_ON_OOM)
    driver.follow_target()
    balloon.events.clear()
    driver.deflate_on_oom(16)
    assert kinds(balloon) == ["actual"]
    assert balloon.balloon.oom_deflated_pages == 0
    assert balloon.balloon.deflated_pages == 16


def test_5_5_6_a_reset_is_no_deflation(balloon: BalloonMachine) -> None:
    balloon.driver.start()
    assert balloon.balloon.actual_pages == 0
    assert balloon.balloon.oom_deflated_pages == 0
