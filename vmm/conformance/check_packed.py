"""Packed virtqueues (§2.8)."""

from __future__ import annotations

from vmm.conformance.registry import check
from vmm.conformance.rig import FILLED, Rig, Rigs, equal, holds
from vmm.testing import RawPackedQueue
from vmm.testing.balloon import INFLATEQ, STATSQ, pfn_bytes
from vmm.testing.driver import RING_PACKED

DESCRIPTOR_BYTES = 16


def _packed(rigs: Rigs) -> Rig:
    rig = rigs.started("packed=on")
    holds("RING_PACKED was negotiated", rig.driver.features & RING_PACKED)
    return rig


def _raw(rig: Rig, queue: int = INFLATEQ) -> RawPackedQueue:
    return RawPackedQueue(rig.driver, queue)


@check("P1")
def taken_in_the_order_of_the_ring(rigs: Rigs) -> None:
    """Put statistics into three descriptors in a row with ids that count down: the last in the ring is what counts."""
    rig = _packed(rigs)
    raw = _raw(rig, STATSQ)
    for value, buffer_id in ((1, 9), (2, 5), (3, 1)):
        payload = b"\x04\x00" + value.to_bytes(8, "little")
        raw.descriptor(raw.buffer(payload), len(payload), 0, buffer_id)
    raw.kick()
    equal("the statistics", rig.statistics(), {"stat-free-memory": 3})
    equal("the ids of the buffers that came back", raw.ids_returned(), [9, 5])


@check("P2")
def used_in_the_order_of_completion(rigs: Rigs) -> None:
    """Offered requests with ids in no order: used descriptors follow each other in the order of completion."""
    rig = _packed(rigs)
    raw = _raw(rig)
    payload = raw.buffer(pfn_bytes(rig.filled()))
    for start in range(0, raw.size, 4):
        before = len(raw.ids_returned())
        ids = [start + step for step in (3, 0, 2, 1)]
        for buffer_id in ids:
            raw.descriptor(payload, 4, 0, buffer_id)
        raw.kick()
        equal("the ids of used descriptors", raw.ids_returned()[before:], ids)
    # The second round overwrites the first: only its last descriptors can still be told.
    for buffer_id in range(raw.size):
        raw.descriptor(payload, 4, 0, buffer_id)
    raw.kick()
    holds("the device does not need a reset", not rig.driver.needs_reset)


def _changed_by_inflating(rig: Rig, pfns: list[int]) -> list[str]:
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn]) for pfn in pfns], indirect=False)
    queue = rig.driver.queues[INFLATEQ]
    queue.publish()
    ring = (queue.layout.desc_gpa, DESCRIPTOR_BYTES * queue.size)
    allowed = [ring, (queue.layout.device_gpa, 4), *((pfn * 4096, 4096) for pfn in pfns)]
    return rig.changed_by(lambda: rig.transport.notify(INFLATEQ), outside=allowed)


@check("P3")
def readable_buffers_are_not_written(rigs: Rigs) -> None:
    """Sent readable pieces and compared all of RAM but the ring, the device's event area and the pages given up."""
    rig = _packed(rigs)
    equal("the addresses changed", _changed_by_inflating(rig, rig.filled(4)), [])


@check("P4")
def writable_buffers_are_not_read(rigs: Rigs) -> None:
    """Put page numbers into the device-writable part of a request: those pages stay."""
    rig = _packed(rigs)
    named, decoy = rig.filled(2)
    gpa = rig.pages.take()
    rig.memory.write(gpa, pfn_bytes([decoy]))
    rig.driver.transfer(INFLATEQ, readable=[pfn_bytes([named])], writable=[(gpa, 4)])
    holds("the page in the readable part is given up", rig.are_given([named]))
    holds("the page in the writable part is not", rig.are_kept([decoy]))


@check("P5")
def unavailable_descriptors_are_left(rigs: Rigs) -> None:
    """Wrote whole descriptors with the marks of the other wrap counter, one and three of them, at the beginning of the
    ring and behind others, and notified: nothing of them is used."""
    for used_before in (0, 5):
        for count in (1, 3):
            rig = _packed(rigs)
            for _ in range(used_before):
                rig.inflate(*rig.filled())
            raw = _raw(rig)
            pfns = rig.filled(count)
            for number, pfn in enumerate(pfns):
                raw.descriptor(raw.buffer(pfn_bytes([pfn])), 4, 0, number, available=False)
            equal("the addresses changed", rig.changed_by(raw.kick), [])
            holds("the pages are kept", rig.are_kept(pfns))


@check("P6")
def used_descriptors_are_left(rigs: Rigs) -> None:
    """Used some buffers, then others further on: what was written as used before stays as it is."""
    rig = _packed(rigs)
    rig.inflate(*rig.filled())
    rig.inflate(*rig.filled())
    queue = rig.driver.queues[INFLATEQ]
    before = queue.table_bytes()[: 2 * DESCRIPTOR_BYTES]
    for _ in range(5):
        rig.inflate(*rig.filled())
    equal("the first descriptors", queue.table_bytes()[: 2 * DESCRIPTOR_BYTES], before)


@check("P7")
def lists_are_used_in_order(rigs: Rigs) -> None:
    """Sent one array of page numbers cut into pieces of odd lengths, chained, and through a table."""
    rig = _packed(rigs)
    pfns = rig.filled(6)
    payload = pfn_bytes(pfns)
    for indirect in (False, True):
        for pfn in pfns:
            rig.memory.write(pfn * 4096, bytes([FILLED]) * 4096)
        pieces = [payload[:3], payload[3:10], payload[10:11], payload[11:]]
        rig.driver.transfer(INFLATEQ, readable=pieces, indirect=indirect)
        holds("all pages are given up", rig.are_given(pfns))


@check("P8")
def lists_as_long_as_the_queue(rigs: Rigs) -> None:
    """Sent a list through every descriptor of the ring, and a table with as many entries."""
    rig = _packed(rigs)
    for indirect in (False, True):
        pfns = rig.filled(rig.driver.queues[INFLATEQ].size)
        used = rig.driver.transfer(INFLATEQ, readable=[pfn_bytes([pfn]) for pfn in pfns], indirect=indirect)
        equal("the number of buffers used", len(used), 1)
        holds("all pages are given up", rig.are_given(pfns))
