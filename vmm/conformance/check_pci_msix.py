"""Virtio over PCI: MSI-X vectors (§4.1.5)."""

from __future__ import annotations

from vmm.conformance.pci_structures import NO_VECTOR, field_of_queue
from vmm.conformance.registry import check
from vmm.conformance.rig import Rig, Rigs, equal, holds
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, pfn_bytes
from vmm.testing.pci import Msix

# -- §4.1.5 MSI-X ------------------------------------------------------------------------------------------------------


def _msix(rig: Rig) -> Msix:
    if rig.pci.msix is None:
        raise TypeError("the function has no MSI-X capability")
    return rig.pci.msix


def _vector_of(rig: Rig, event: str) -> int:
    return rig.pci.read_common("config_msix_vector" if event == "config" else "queue_msix_vector")


def _map(rig: Rig, event: str, vector: int) -> int:
    """Map the configuration ("config") or the selected queue to a vector; what reads back."""
    rig.pci.write_common("config_msix_vector" if event == "config" else "queue_msix_vector", vector)
    return _vector_of(rig, event)


@check("C52")
def vector_count(rigs: Rigs) -> None:
    """Read the table size."""
    size = _msix(rigs()).table_size
    holds(f"the number of vectors, {size}, is from 2 to 800h", 2 <= size <= 0x800)


@check("C53")
def table_size(rigs: Rigs) -> None:
    """Used the last vector of the table, and tried to map the one behind it."""
    rig = rigs.started()
    last = _msix(rig).table_size - 1
    rig.pci.write_common("queue_select", INFLATEQ)
    equal("the last vector", _map(rig, "queue", last), last)
    equal("the vector behind it", _map(rig, "queue", last + 1), NO_VECTOR)


@check("C54")
def no_idle_vectors(rigs: Rigs) -> None:
    """Compared the table size with the events there are: one for each queue and one for the configuration."""
    rig = rigs()
    size, events = _msix(rig).table_size, rig.transport.num_queues + 1
    holds(f"there are no more vectors, {size}, than events, {events}", size <= events)


@check("C55")
def any_event_to_any_vector(rigs: Rigs) -> None:
    """Mapped every event to every vector, and saw events of two queues arrive over one shared vector."""
    rig = rigs.started()
    msix = _msix(rig)
    for vector in range(msix.table_size):
        equal(f"config_msix_vector after {vector}", _map(rig, "config", vector), vector)
        for queue in range(rig.transport.num_queues):
            rig.pci.write_common("queue_select", queue)
            equal(f"queue_msix_vector of queue {queue} after {vector}", _map(rig, "queue", vector), vector)
    rig.driver.take_interrupts()
    heard: list[int] = []
    address = rig.pages.take()
    rig.bus.listen(address, heard.append)
    msix.point(0, address, 0x77)
    for queue in (INFLATEQ, DEFLATEQ):
        rig.pci.write_common("queue_select", queue)
        _map(rig, "queue", 0)
        rig.driver.transfer(queue, readable=[pfn_bytes(rig.filled())])
    equal("the messages over the shared vector", heard, [0x77, 0x77])


@check("C56")
def any_event_unmapped(rigs: Rigs) -> None:
    """Unmapped the configuration and every queue, and mapped them again."""
    rig = rigs.started()
    equal("config_msix_vector", [_map(rig, "config", vector) for vector in (NO_VECTOR, 1)], [NO_VECTOR, 1])
    for queue in range(rig.transport.num_queues):
        rig.pci.write_common("queue_select", queue)
        got = [_map(rig, "queue", vector) for vector in (NO_VECTOR, 1)]
        equal(f"queue_msix_vector of queue {queue}", got, [NO_VECTOR, 1])


@check("C57")
def vectors_read_back(rigs: Rigs) -> None:
    """Gave every event a vector of its own and read all of them back."""
    rig = rigs()
    count = rig.transport.num_queues
    rig.pci.write_common("config_msix_vector", 0)
    for queue in range(count):
        rig.pci.write_common("queue_select", queue)
        rig.pci.write_common("queue_msix_vector", count - queue)
    equal("config_msix_vector", _vector_of(rig, "config"), 0)
    got = [field_of_queue(rig, queue, "queue_msix_vector") for queue in range(count)]
    equal("queue_msix_vector of every queue", got, [count - queue for queue in range(count)])


@check("C58")
def unmapped_after_reset(rigs: Rigs) -> None:
    """Mapped everything, reset the device and read the vectors."""
    rig = rigs.started()
    rig.driver.reset()
    equal("config_msix_vector", _vector_of(rig, "config"), NO_VECTOR)
    got = [field_of_queue(rig, queue, "queue_msix_vector") for queue in range(rig.transport.num_queues)]
    equal("queue_msix_vector of every queue", got, [NO_VECTOR] * len(got))


@check("C59")
def failed_mappings(rigs: Rigs) -> None:
    """Mapped vectors that the table does not have: NO_VECTOR reads back; those that it has are taken."""
    rig = rigs.started()
    size = _msix(rig).table_size
    rig.pci.write_common("queue_select", INFLATEQ)
    for event in ("config", "queue"):
        for vector in (size, size + 1, 0x7FF, 0xFFFE):
            equal(f"the {event} vector after {vector:#x}", _map(rig, event, vector), NO_VECTOR)
        equal(f"the {event} vector after 1", _map(rig, event, 1), 1)


@check("C60")
def unmapped_queue_is_silent(rigs: Rigs) -> None:
    """Unmapped inflateq with MSI-X enabled and used a buffer."""
    rig = rigs.started()
    rig.pci.write_common("queue_select", INFLATEQ)
    rig.pci.write_common("queue_msix_vector", NO_VECTOR)
    rig.inflate(*rig.filled())
    equal("the interrupts", tuple(rig.driver.take_interrupts()), ({}, 0))
    holds("INTx is not asserted either", not rig.bus.line_level(rig.pci.line_name))


@check("C61")
def unmapped_configuration_is_silent(rigs: Rigs) -> None:
    """Unmapped the configuration with MSI-X enabled and changed the target."""
    rig = rigs.started()
    rig.pci.write_common("config_msix_vector", NO_VECTOR)
    rig.set_target(9)
    equal("the interrupts", tuple(rig.driver.take_interrupts()), ({}, 0))
    holds("INTx is not asserted either", not rig.bus.line_level(rig.pci.line_name))
