"""Accesses to the PCI side that no driver should make: any width, any offset, any value, and the device stays up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.virtio import spec
from tests.support import BalloonMachine
from vmm.testing.balloon import INFLATEQ, pfn_bytes
from vmm.testing.pci import CONFIG_ADDRESS, CONFIG_DATA

COMMON, NOTIFY, ISR = spec.VIRTIO_PCI_CAP_COMMON_CFG, spec.VIRTIO_PCI_CAP_NOTIFY_CFG, spec.VIRTIO_PCI_CAP_ISR_CFG
DEVICE, WINDOW = spec.VIRTIO_PCI_CAP_DEVICE_CFG, spec.VIRTIO_PCI_CAP_PCI_CFG

SIZES = st.sampled_from([1, 2, 4, 8])
FORTY = settings(max_examples=40)


@contextmanager
def running() -> Iterator[BalloonMachine]:
    """A started machine on PCI for one example."""
    machine = BalloonMachine("pci")
    machine.driver.start()
    yield machine
    machine.close()


def check_alive(machine: BalloonMachine) -> None:
    """A new start makes everything good."""
    machine.driver.start()
    pfns = machine.filled_pfns(1)
    machine.driver.inflate(pfns)
    assert machine.are_zero(pfns)
    machine.pages.give(pfns[0] * 4096)


@FORTY
@given(
    accesses=st.lists(
        st.tuples(
            st.sampled_from([COMMON, NOTIFY, ISR, DEVICE]),
            st.integers(0, 0x1010),
            SIZES,
            st.none() | st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 0xFF, 0xFFFF, 0xFFFFFFFF]),
        ),
        max_size=60,
    )
)
def test_any_access_to_the_structures_is_survived(accesses: list[tuple[int, int, int, int | None]]) -> None:
    with running() as pci:
        for structure, offset, size, value in accesses:
            gpa = pci.pci.structure_gpa(structure) + offset
            if value is None:
                assert 0 <= pci.bus.mmio_read(gpa, size) < 1 << 8 * size
            else:
                pci.bus.mmio_write(gpa, size, value % (1 << 8 * size))
        check_alive(pci)


@FORTY
@given(
    accesses=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 63), SIZES, st.none() | st.integers(0, 2**32 - 1)), max_size=60
    )
)
def test_any_access_to_the_queue_fields_of_a_live_device_leaves_ram_alone(
    accesses: list[tuple[int, int, int, int | None]],
) -> None:
    """Behind DRIVER_OK the addresses and the size of an enabled queue are fixed: no write makes the device use others.

    See CVE-2026-5747, a queue's size changed after activation."""
    with running() as pci:
        pci.driver.start(queue_sizes=8)
        rings = [(queue.ring_gpa, 4096 * queue.ring_pages) for queue in pci.driver.queues.values()]
        before = pci.snapshot()
        for select, offset, size, value in accesses:
            pci.pci.write_common("queue_select", select)
            if value is not None and offset not in range(0x14 - size + 1, 0x15):  # anything but the status
                pci.bus.mmio_write(pci.pci.common_gpa("device_feature_select") + offset, size, value)
            pci.pci.notify(select % 3)
        assert before.changed(outside=rings) == []
        check_alive(pci)


@FORTY
@given(
    window=st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    value=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 2, 4]),
)
def test_regression_pci_cfg_window_of_any_length(window: tuple[int, int, int], value: int, size: int) -> None:
    """cap.length is the driver's to write, and only 1, 2 and 4 mean anything (§4.1.4.9).  Seed: QEMU #2576."""
    with running() as pci:
        at, function = pci.pci.capability(WINDOW).position, pci.pci.function
        for offset, width, field in ((4, 1, window[0]), (8, 4, window[1]), (12, 4, window[2])):
            function.write(at + offset, width, field)
        function.write(at + 16, size, value % (1 << 8 * size))
        assert 0 <= function.read(at + 16, size) < 1 << 8 * size
        check_alive(pci)


@pytest.mark.parametrize("length", [0, 3, 5, 8, 0x1000, 0x80000000, 0xFFFFFFFF])
def test_regression_pci_cfg_window_of_a_wrong_length_makes_no_access(pci: BalloonMachine, length: int) -> None:
    """Seed: QEMU #2576."""
    pci.driver.start()
    capability, at, function = pci.pci.capability(COMMON), pci.pci.capability(WINDOW).position, pci.pci.function
    function.write(at + 4, 1, capability.bar)
    function.write(at + 8, 4, capability.offset + 0x14)  # device_status
    function.write(at + 12, 4, length)
    function.write(at + 16, 4, 0)
    assert pci.driver.status & spec.Status.DRIVER_OK


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_regression_msix_mmio_out_of_bounds(pci: BalloonMachine, size: int) -> None:
    """Accesses across and behind the table and the pending bits.  Seed: CVE-2020-13754."""
    msix = pci.pci.msix
    assert msix is not None
    table_end = msix.table_gpa + 16 * msix.table_size
    bar = next(bar for bar in pci.pci.function.bars() if bar.address <= msix.table_gpa < bar.address + bar.size)
    for gpa in (table_end - 1, table_end, msix.pba_gpa - 1, msix.pba_gpa, bar.address + bar.size - 1):
        pci.bus.mmio_write(gpa, size, (1 << 8 * size) - 1)
        assert 0 <= pci.bus.mmio_read(gpa, size) < 1 << 8 * size
    check_alive(pci)


@pytest.mark.parametrize("vector", [4, 5, 0x7FF, 0x800, 0xFFFE])
def test_regression_msix_vector_out_of_bounds(pci: BalloonMachine, vector: int) -> None:
    """A vector behind the table is refused, and an event mapped to it interrupts nobody and nothing.

    Seed: MSI-X vector bounds."""
    msix = pci.pci.msix
    assert msix is not None and vector >= msix.table_size
    pci.driver.start()
    pci.pci.write_common("queue_select", INFLATEQ)
    pci.pci.write_common("queue_msix_vector", vector)
    pci.pci.write_common("config_msix_vector", vector)
    pci.driver.take_interrupts()
    pci.driver.transfer(INFLATEQ, readable=[(0x8000, 4)])
    pci.set_target(9)
    assert pci.driver.take_interrupts() == ({}, 0)


def test_regression_vectors_are_released_and_taken_again(pci: BalloonMachine) -> None:
    """Mapping, unmapping and resetting in turn, with something pending, many times.  Seed: CVE-2024-4693."""
    msix = pci.pci.msix
    assert msix is not None
    for round_ in range(20):
        pci.driver.start()
        msix.mask(pci.pci.queue_vector(INFLATEQ), bool(round_ % 2))
        pci.driver.transfer(INFLATEQ, readable=[(0x8000, 4)])
        pci.pci.write_common("queue_select", INFLATEQ)
        pci.pci.write_common("queue_msix_vector", spec.VIRTIO_MSI_NO_VECTOR)
        if round_ % 3 == 0:
            msix.enable(False)
            msix.enable(True)
    msix.mask(pci.pci.queue_vector(INFLATEQ), False)
    pci.driver.start()
    pci.driver.take_interrupts()
    pci.driver.transfer(INFLATEQ, readable=[(0x8000, 4)])
    assert pci.driver.take_interrupts() == ({INFLATEQ: 1}, 0)


def test_regression_config_offset_overflow(pci: BalloonMachine) -> None:
    """Offsets at and over the end of the device configuration, and of its whole page.  Seed: config offset overflow."""
    pci.driver.start()
    gpa = pci.pci.structure_gpa(DEVICE)
    length = pci.pci.capability(DEVICE).length
    for offset in (length - 1, length, 0xFF8, 0xFFC, 0xFFF):
        for size in (1, 2, 4, 8):
            pci.bus.mmio_write(gpa + offset, size, (1 << 8 * size) - 1)
            assert 0 <= pci.bus.mmio_read(gpa + offset, size) < 1 << 8 * size
    assert pci.driver.num_pages == 0
    check_alive(pci)


def test_regression_queue_size_changed_after_activation(pci: BalloonMachine) -> None:
    """Once enabled, a queue keeps the size its rings were made for.  Seed: CVE-2026-5747."""
    pci.driver.start(queue_sizes=8)
    for size in (128, 1, 4, 0x8000):
        pci.pci.write_common("queue_select", INFLATEQ)
        pci.pci.write_common("queue_size", size)
        assert pci.pci.read_common("queue_size") == 8
    pfns = pci.filled_pfns(20)
    for pfn in pfns:
        assert len(pci.driver.transfer(INFLATEQ, readable=[pfn_bytes([pfn])])) == 1
    assert pci.are_zero(pfns)


@FORTY
@given(
    accesses=st.lists(
        st.tuples(st.integers(0, 255), st.sampled_from([1, 2, 4]), st.none() | st.integers(0, 2**32 - 1)), max_size=40
    )
)
def test_any_access_to_configuration_space_is_survived(accesses: list[tuple[int, int, int | None]]) -> None:
    """BARs over RAM, over each other, decoding on and off: the RAM stays RAM and no call raises."""
    with running() as pci:
        select = 0x80000000 | pci.pci.function.slot << 11
        before = pci.snapshot()
        for offset, size, value in accesses:
            pci.bus.port_write(CONFIG_ADDRESS, 4, select | offset & 0xFC)
            port = CONFIG_DATA + (offset & 3)
            if value is None:
                assert 0 <= pci.bus.port_read(port, size) < 1 << 8 * size
            else:
                pci.bus.port_write(port, size, value % (1 << 8 * size))
        rings = [(queue.ring_gpa, 4096 * queue.ring_pages) for queue in pci.driver.queues.values()]
        assert before.changed(outside=rings) == []


def test_notifications_of_queues_that_do_not_exist_are_ignored(pci: BalloonMachine) -> None:
    pci.driver.start()
    gpa = pci.pci.structure_gpa(NOTIFY)
    for offset in range(0, pci.pci.capability(NOTIFY).length + 64, 2):
        pci.bus.mmio_write(gpa + offset, 2, 0xFFFF)
    assert not pci.driver.needs_reset
    check_alive(pci)
