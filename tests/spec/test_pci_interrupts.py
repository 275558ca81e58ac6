"""§4.1.4.5 ISR status, §4.1.5.1.2 MSI-X vectors, §4.1.5.3 and §4.1.5.4 notifications over PCI."""

from __future__ import annotations

import pytest

from devices.virtio.spec import VIRTIO_MSI_NO_VECTOR, VIRTIO_PCI_ISR_CONFIG, VIRTIO_PCI_ISR_QUEUE
from tests.fixtures import MakeMachine
from tests.support import BalloonMachine
from vmm.testing import Msix
from vmm.testing.balloon import DEFLATEQ, INFLATEQ
from vmm.testing.pci import COMMAND_INTX_DISABLE, STATUS, STATUS_INTERRUPT

PAYLOAD = (0x8000, 4)


def msix_of(machine: BalloonMachine) -> Msix:
    assert machine.pci.msix is not None
    return machine.pci.msix


@pytest.fixture
def intx(make_machine: MakeMachine) -> BalloonMachine:
    """A started machine that uses INTx and the ISR."""
    machine = make_machine("pci-intx")
    machine.driver.start()
    machine.pci.read_isr()
    return machine


@pytest.fixture
def msix(make_machine: MakeMachine) -> BalloonMachine:
    """A started machine with one vector for the configuration and one for each queue."""
    machine = make_machine("pci")
    machine.driver.start()
    machine.driver.take_interrupts()
    return machine


def line(machine: BalloonMachine) -> bool:
    return machine.bus.line_level(machine.pci.line_name)


def interrupt_status(machine: BalloonMachine) -> bool:
    return bool(machine.pci.function.read(STATUS, 2) & STATUS_INTERRUPT)


# -- INTx --------------------------------------------------------------------------------------------------------------


def test_4_1_4_5_1_a_used_buffer_sets_isr_bit_0_and_the_line(intx: BalloonMachine) -> None:
    intx.driver.transfer(INFLATEQ, readable=[PAYLOAD])
    assert line(intx)
    assert interrupt_status(intx)
    assert intx.pci.read_isr() == VIRTIO_PCI_ISR_QUEUE


def test_4_1_4_5_1_a_configuration_change_sets_isr_bit_1_and_the_line(intx: BalloonMachine) -> None:
    intx.set_target(3)
    assert line(intx)
    assert intx.pci.read_isr() == VIRTIO_PCI_ISR_CONFIG


def test_4_1_4_5_1_reading_the_isr_clears_it_and_drops_the_line(intx: BalloonMachine) -> None:
    intx.set_target(3)
    intx.driver.transfer(INFLATEQ, readable=[PAYLOAD])
    assert intx.pci.read_isr() == VIRTIO_PCI_ISR_QUEUE | VIRTIO_PCI_ISR_CONFIG
    assert not line(intx)
    assert not interrupt_status(intx)
    assert intx.pci.read_isr() == 0


def test_4_1_4_5_1_with_intx_disabled_the_status_bit_shows_it_and_the_line_does_not(intx: BalloonMachine) -> None:
    function = intx.pci.function
    function.command |= COMMAND_INTX_DISABLE
    intx.set_target(3)
    assert not line(intx)
    assert interrupt_status(intx)
    function.command &= ~COMMAND_INTX_DISABLE
    assert line(intx)


def test_2_4_1_a_reset_takes_the_interrupt_back(intx: BalloonMachine) -> None:
    intx.set_target(3)
    intx.pci.write_status(0)
    assert not line(intx)
    assert intx.pci.read_isr() == 0


def test_4_1_5_3_the_driver_library_hears_queues_and_configuration_over_intx(intx: BalloonMachine) -> None:
    intx.set_target(3)
    intx.driver.transfer(DEFLATEQ, readable=[PAYLOAD])
    heard = intx.driver.take_interrupts()
    assert (heard.for_queue(DEFLATEQ), heard.config) == (1, 1)
    assert intx.driver.take_interrupts() == ({}, 0)


# -- MSI-X: mapping vectors --------------------------------------------------------------------------------------------


def test_4_1_5_1_2_1_the_table_has_at_least_2_and_at_most_800h_vectors(pci: BalloonMachine) -> None:
    assert 2 <= msix_of(pci).table_size <= 0x800


def test_4_1_5_1_2_1_any_event_may_have_any_vector(pci: BalloonMachine) -> None:
    for vector in range(msix_of(pci).table_size):
        pci.pci.write_common("config_msix_vector", vector)
        assert pci.pci.read_common("config_msix_vector") == vector
        for queue in range(pci.pci.num_queues):
            pci.pci.write_common("queue_select", queue)
            pci.pci.write_common("queue_msix_vector", vector)
            assert pci.pci.read_common("queue_msix_vector") == vector


def test_4_1_5_1_2_1_a_vector_that_does_not_exist_reads_back_as_no_vector(pci: BalloonMachine) -> None:
    pci.pci.write_common("queue_select", INFLATEQ)
    for field in ("config_msix_vector", "queue_msix_vector"):
        for vector in (msix_of(pci).table_size, 0x7FF, 0xFFFE):
            pci.pci.write_common(field, 0)
            pci.pci.write_common(field, vector)
            assert pci.pci.read_common(field) == VIRTIO_MSI_NO_VECTOR, (field, vector)


def test_4_1_5_1_2_1_all_events_are_unmapped_after_a_reset(msix: BalloonMachine) -> None:
    msix.pci.write_status(0)
    assert msix.pci.read_common("config_msix_vector") == VIRTIO_MSI_NO_VECTOR
    for queue in range(msix.pci.num_queues):
        msix.pci.write_common("queue_select", queue)
        assert msix.pci.read_common("queue_msix_vector") == VIRTIO_MSI_NO_VECTOR


# -- MSI-X: messages ---------------------------------------------------------------------------------------------------


def test_4_1_5_3_each_queue_interrupts_by_its_own_vector(msix: BalloonMachine) -> None:
    msix.driver.transfer(INFLATEQ, readable=[PAYLOAD])
    assert msix.driver.take_interrupts() == ({INFLATEQ: 1}, 0)
    msix.driver.transfer(DEFLATEQ, readable=[PAYLOAD])
    assert msix.driver.take_interrupts() == ({DEFLATEQ: 1}, 0)


def test_4_1_5_3_1_an_unmapped_queue_does_not_interrupt(msix: BalloonMachine) -> None:
    msix.pci.write_common("queue_select", INFLATEQ)
    msix.pci.write_common("queue_msix_vector", VIRTIO_MSI_NO_VECTOR)
    assert len(msix.driver.transfer(INFLATEQ, readable=[PAYLOAD])) == 1
    assert msix.driver.take_interrupts() == ({}, 0)
    assert not line(msix)


def test_4_1_5_4_1_an_unmapped_configuration_change_does_not_interrupt(msix: BalloonMachine) -> None:
    msix.pci.write_common("config_msix_vector", VIRTIO_MSI_NO_VECTOR)
    msix.set_target(3)
    assert msix.driver.take_interrupts() == ({}, 0)
    assert not line(msix)


def test_4_1_5_3_with_msix_the_line_and_isr_bit_0_are_not_used(msix: BalloonMachine) -> None:
    msix.driver.transfer(INFLATEQ, readable=[PAYLOAD])
    assert not line(msix)
    assert not interrupt_status(msix)
    assert msix.pci.read_isr() & VIRTIO_PCI_ISR_QUEUE == 0


def test_4_1_4_5_1_with_msix_a_configuration_change_still_sets_isr_bit_1(msix: BalloonMachine) -> None:
    msix.set_target(3)
    assert msix.pci.read_isr() == VIRTIO_PCI_ISR_CONFIG


def test_msix_a_message_is_a_bus_write_that_may_point_at_ram(msix: BalloonMachine) -> None:
    gpa = msix.pages.take()
    msix_of(msix).point(msix.pci.queue_vector(INFLATEQ), gpa, 0xFEEDBEEF)
    msix.driver.transfer(INFLATEQ, readable=[PAYLOAD])
    assert msix.memory.read_int(gpa, 4) == 0xFEEDBEEF


def test_msix_a_masked_vector_waits_and_is_sent_when_it_is_unmasked(msix: BalloonMachine) -> None:
    table, vector = msix_of(msix), msix.pci.queue_vector(INFLATEQ)
    table.mask(vector)
    msix.driver.transfer(INFLATEQ, readable=[PAYLOAD])
    msix.driver.transfer(INFLATEQ, readable=[PAYLOAD])
    assert msix.driver.take_interrupts() == ({}, 0)
    assert table.pending(vector)
    table.mask(vector, False)
    assert msix.driver.take_interrupts() == ({INFLATEQ: 1}, 0)
    assert not table.pending(vector)


def test_msix_the_function_mask_holds_every_vector_back(msix: BalloonMachine) -> None:
    table = msix_of(msix)
    table.enable(function_mask=True)
    msix.driver.transfer(INFLATEQ, readable=[PAYLOAD])
    msix.set_target(3)
    assert msix.driver.take_interrupts() == ({}, 0)
    table.enable()
    assert msix.driver.take_interrupts() == ({INFLATEQ: 1}, 1)


def test_msix_a_reset_forgets_what_was_pending(msix: BalloonMachine) -> None:
    table = msix_of(msix)
    table.enable(function_mask=True)
    msix.driver.transfer(INFLATEQ, readable=[PAYLOAD])
    msix.pci.write_status(0)
    table.enable()
    assert msix.driver.take_interrupts() == ({}, 0)


def test_msix_two_events_may_share_a_vector(msix: BalloonMachine) -> None:
    shared = msix.pci.queue_vector(INFLATEQ)
    msix.pci.write_common("queue_select", DEFLATEQ)
    msix.pci.write_common("queue_msix_vector", shared)
    msix.driver.transfer(DEFLATEQ, readable=[PAYLOAD])
    msix.driver.transfer(INFLATEQ, readable=[PAYLOAD])
    assert msix.driver.take_interrupts() == ({INFLATEQ: 2}, 0)
