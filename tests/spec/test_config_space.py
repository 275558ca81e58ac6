"""§2.5 device configuration space and its generation, on the balloon's configuration (§5.5.4)."""

from __future__ import annotations

import pytest

from tests.support import BalloonMachine
from vmm.testing.balloon import ACTUAL, NUM_PAGES, POISON_VAL
from vmm.testing.driver import Driver


def test_2_5_2_every_field_can_be_read_before_features_ok(machine: BalloonMachine) -> None:
    machine.set_target(0x304)
    assert machine.driver.status == 0
    assert machine.driver.transport.read_config(NUM_PAGES, 4) == 0x304
    assert machine.driver.transport.read_config(ACTUAL, 4) == 0


def test_5_5_4_fields_are_little_endian_and_readable_by_the_byte(started: BalloonMachine) -> None:
    started.set_target(0x304)
    started.driver.actual = 0xA1B2C3D4
    read = started.driver.transport.read_config
    assert [read(NUM_PAGES + i, 1) for i in range(8)] == [4, 3, 0, 0, 0xD4, 0xC3, 0xB2, 0xA1]
    assert [read(NUM_PAGES + i, 2) for i in (0, 2, 4, 6)] == [0x0304, 0, 0xC3D4, 0xA1B2]


def test_5_5_4_actual_reads_back_what_the_driver_wrote(started: BalloonMachine) -> None:
    started.driver.actual = 0xA1B2C3D4
    assert started.driver.actual == 0xA1B2C3D4
    assert started.balloon.actual_pages == 0xA1B2C3D4


def test_5_5_4_actual_may_be_written_in_parts(started: BalloonMachine) -> None:
    for i, byte in enumerate((0x44, 0x33, 0x22, 0x11)):
        started.driver.write_config(ACTUAL + i, 1, byte)
    assert started.driver.actual == 0x11223344


def test_5_5_4_num_pages_is_not_the_drivers_to_write(started: BalloonMachine) -> None:
    started.set_target(7)
    started.driver.write_config(NUM_PAGES, 4, 1234)
    assert started.driver.num_pages == 7
    assert started.balloon.target_pages == 7


def test_2_5_a_changed_target_sends_a_configuration_notification(started: BalloonMachine) -> None:
    started.set_target(12)
    assert started.driver.take_interrupts() == ({}, 1)


def test_2_5_an_unchanged_target_sends_none(started: BalloonMachine) -> None:
    started.set_target(12)
    started.driver.take_interrupts()
    started.set_target(12)
    assert started.driver.take_interrupts() == ({}, 0)


def test_2_5_a_drivers_own_write_sends_no_notification(started: BalloonMachine) -> None:
    started.driver.actual = 3
    assert started.driver.take_interrupts() == ({}, 0)


def test_2_1_2_a_target_set_before_driver_ok_is_not_announced_but_seen(machine: BalloonMachine) -> None:
    machine.driver.reset()
    machine.driver.acknowledge()
    machine.set_target(31)
    assert machine.driver.take_interrupts() == ({}, 0)
    machine.driver.start()
    assert machine.driver.num_pages == 31


@pytest.mark.modern
def test_4_1_4_3_1_generation_changes_when_a_value_changed_between_two_reads(started: BalloonMachine) -> None:
    transport = started.driver.transport
    transport.read_config(NUM_PAGES, 4)
    before = transport.read_config_generation()
    started.set_target(100)
    transport.read_config(NUM_PAGES, 4)
    assert transport.read_config_generation() != before


@pytest.mark.modern
def test_4_1_4_3_1_generation_tells_even_256_changes_from_none(started: BalloonMachine) -> None:
    """The note under §4.1.4.3.1: counting every change would wrap to the same 8 bits."""
    transport = started.driver.transport
    transport.read_config(NUM_PAGES, 4)
    before = transport.read_config_generation()
    for target in range(1, 257):
        started.set_target(target)
    transport.read_config(NUM_PAGES, 4)
    assert transport.read_config_generation() != before


def test_2_5_3_generation_stands_still_while_nothing_changes(started: BalloonMachine) -> None:
    transport = started.driver.transport
    first = transport.read_config_generation()
    for _ in range(3):
        transport.read_config(NUM_PAGES, 4)
        transport.read_config(ACTUAL, 4)
    assert transport.read_config_generation() == first


def test_2_5_1_a_torn_read_is_retried_until_it_is_whole(
    started: BalloonMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host changes num_pages between the two halves of a driver's read: the driver ends up with the new value."""
    started.set_target(0x101)
    transport, real = started.driver.transport, started.driver.transport.read_config
    changes = iter([0x202])

    def interrupted(offset: int, size: int) -> int:
        value = real(offset, size)
        if offset == NUM_PAGES and (new := next(changes, None)) is not None:
            started.set_target(new)
        return value

    monkeypatch.setattr(transport, "read_config", interrupted)
    # Eight bytes are read as two halves: num_pages, then actual.
    assert Driver.read_config(started.driver, NUM_PAGES, 8) & 0xFFFFFFFF == 0x202


@pytest.mark.ways("direct", "pci", "pci-intx", "transitional")  # the others have blocks of another size
@pytest.mark.parametrize(("offset", "size"), [(16, 4), (20, 4), (0xFF0, 4), (16, 1)])
def test_reads_beyond_the_configuration_are_zero_and_writes_vanish(
    started: BalloonMachine, offset: int, size: int
) -> None:
    started.driver.write_config(offset, size, 0xFF)
    assert started.driver.transport.read_config(offset, size) == 0
    assert not started.driver.needs_reset


@pytest.mark.ways("direct", "pci", "pci-intx", "transitional", "mmio", "mmio-legacy", "legacy-intx")
def test_a_read_across_the_end_of_the_configuration_gives_the_part_that_exists(started: BalloonMachine) -> None:
    started.driver.poison_val = 0x11223344
    assert started.driver.transport.read_config(POISON_VAL + 2, 4) == 0x1122
