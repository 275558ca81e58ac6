"""Resetting one queue (§2.6.1), and the order in which buffers are used (§6 IN_ORDER)."""

from __future__ import annotations

from vmm.conformance.pci_structures import NO_VECTOR, field_of_queue
from vmm.conformance.registry import check
from vmm.conformance.rig import Rig, Rigs, equal, holds
from vmm.testing.balloon import INFLATEQ, STATSQ, pfn_bytes
from vmm.testing.driver import EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_RESET
from vmm.testing.ring import SplitQueue
from vmm.testing.virtio_pci import PciTransport

PAYLOAD = (0x8000, 4)  # a page frame number: what lies there does not matter


def _resetting(rigs: Rigs) -> Rig:
    rig = rigs.started("queue_reset=on")
    holds("RING_RESET was negotiated", rig.driver.features & RING_RESET)
    return rig


def _held_stats(rig: Rig) -> None:
    """A statistics buffer that the device keeps until it wants another."""
    rig.driver.post_stats({"stat-free-memory": 1})
    rig.driver.take_interrupts()


@check("G15")
def a_reset_queue_carries_nothing_out(rigs: Rigs) -> None:
    """Made a request available, reset the queue before notifying, then notified: no page is touched."""
    rig = _resetting(rigs)
    pfns = rig.filled()
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes(pfns)])
    rig.driver.queues[INFLATEQ].publish()
    rig.transport.reset_queue(INFLATEQ)
    equal("the addresses changed", rig.changed_by(lambda: rig.transport.notify(INFLATEQ)), [])
    holds("the page is kept", rig.are_kept(pfns))


@check("G16")
def a_reset_queue_is_silent(rigs: Rigs) -> None:
    """Reset statsq while the device held its buffer, and asked for statistics: there is no notification."""
    rig = _resetting(rigs)
    _held_stats(rig)
    rig.transport.reset_queue(STATSQ)
    rig.request_stats()
    rig.advance(10**9)
    equal("the interrupts", tuple(rig.driver.take_interrupts()), ({}, 0))


@check("G17")
def a_reset_queue_begins_anew(rigs: Rigs) -> None:
    """Set a queue up smaller, used it, reset it and read all there is of it; then set it up again without its size: it
    begins at 0, and other queues go on."""
    rig = _resetting(rigs)
    largest = rig.transport.queue_max_size(INFLATEQ)
    _held_stats(rig)
    for number in range(3):
        for _ in range(5):
            rig.inflate(*rig.filled())
        rig.transport.reset_queue(INFLATEQ)
        equal("what the queue's registers show", _registers(rig, INFLATEQ), _defaults(rig, largest))
        if number:
            _set_up_with_the_default_size(rig, INFLATEQ, largest)
            for _ in range(2 * largest):
                used = rig.driver.transfer(INFLATEQ, readable=[PAYLOAD])
                equal("the number of buffers used by one of two rounds of requests", len(used), 1)
        rig.transport.reset_queue(INFLATEQ)
        rig.driver.set_up_queue(INFLATEQ, 16)
        pfns = rig.filled()
        equal("the number of buffers used after it", len(rig.inflate(*pfns)), 1)
        holds("the page is given up", rig.are_given(pfns))
    rig.request_stats()
    equal("the number of statistics buffers that came back", len(rig.driver.collect(STATSQ)), 1)


FIELDS = ("queue_size", "queue_msix_vector", "queue_enable", "queue_desc", "queue_driver", "queue_device")


def _registers(rig: Rig, queue: int) -> dict[str, int]:
    """What a driver can read of a queue."""
    if isinstance(rig.transport, PciTransport):
        return {field: field_of_queue(rig, queue, field) for field in FIELDS}
    rig.mmio.write("QueueSel", queue)
    return {field: rig.mmio.read(field) for field in ("QueueSizeMax", "QueueReady", "QueueReset")}


def _defaults(rig: Rig, largest: int) -> dict[str, int]:
    if isinstance(rig.transport, PciTransport):
        return dict.fromkeys(FIELDS, 0) | {"queue_size": largest, "queue_msix_vector": NO_VECTOR}
    return {"QueueSizeMax": largest, "QueueReady": 0, "QueueReset": 0}


def _set_up_with_the_default_size(rig: Rig, index: int, size: int) -> None:
    """A queue as a driver sets it up that relies on the size after a reset."""
    event_idx, indirect = bool(rig.driver.features & EVENT_IDX), bool(rig.driver.features & INDIRECT_DESC)
    queue = SplitQueue(rig.memory, rig.pages, index, size, event_idx=event_idx, indirect=indirect)
    place, transport = queue.layout, rig.transport
    parts = place.desc_gpa, place.driver_gpa, place.device_gpa
    if isinstance(transport, PciTransport):
        transport.write_common("queue_select", index)
        for field, gpa in zip(("queue_desc", "queue_driver", "queue_device"), parts, strict=True):
            transport.write_common(field, gpa)
        transport.write_common("queue_enable", 1)
    else:
        rig.mmio.write("QueueSel", index)
        for part, gpa in zip(("QueueDesc", "QueueDriver", "QueueDevice"), parts, strict=True):
            rig.mmio.write(part + "Low", gpa & 0xFFFF_FFFF)
            rig.mmio.write(part + "High", gpa >> 32)
        rig.mmio.write("QueueReady", 1)
    rig.driver.queues[index] = queue


@check("G18")
def a_changed_queue_is_observed(rigs: Rigs) -> None:
    """Gave a queue another size at each of its resets, and went round it more than once."""
    rig = _resetting(rigs)
    for size in (8, 32, 2):
        rig.transport.reset_queue(INFLATEQ)
        rig.driver.set_up_queue(INFLATEQ, size)
        for _ in range(size + 1):
            pfns = rig.filled()
            equal(f"the number of buffers used in a queue of {size}", len(rig.inflate(*pfns)), 1)
            holds("the page is given up", rig.are_given(pfns))


@check("G23")
def buffers_are_used_in_order(rigs: Rigs) -> None:
    """Sent batches of one to seven buffers over both kinds of ring: they come back in the order they were offered."""
    for properties in ("in_order=on", "in_order=on,packed=on"):
        rig = rigs.started(properties)
        holds("IN_ORDER was negotiated", rig.driver.features & IN_ORDER)
        for count in range(1, 8):
            offered = [rig.driver.offer(INFLATEQ, readable=[pfn_bytes(rig.filled())]) for _ in range(count)]
            rig.driver.kick(INFLATEQ)
            equal("the order of used buffers", [used.head for used in rig.driver.collect(INFLATEQ)], offered)
