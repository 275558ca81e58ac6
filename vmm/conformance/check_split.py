"""Split virtqueues (§2.7)."""

from __future__ import annotations

from itertools import pairwise

from vmm.conformance.registry import check
from vmm.conformance.rig import FILLED, Rig, Rigs, equal, holds
from vmm.testing import Descriptor
from vmm.testing.balloon import INFLATEQ, pfn_bytes
from vmm.testing.raw import INDIRECT, NEXT, WRITE, RawQueue

PAYLOAD = (0x8000, 4)  # a page frame number: what lies there does not matter


def _place(raw: RawQueue, pfns: list[int]) -> list[int]:
    """Each page's number in a buffer of its own; the buffers."""
    return [raw.buffer(pfn_bytes([pfn])) for pfn in pfns]


@check("S1")
def any_arrangement_will_do(rigs: Rigs) -> None:
    """Sent the numbers of six pages as one buffer, byte by byte, in pairs, across a table, and in scattered slots."""
    rig = rigs.started()
    pfns = rig.filled(6)
    payload = pfn_bytes(pfns)
    for cuts in ((), tuple(range(1, len(payload))), (1, 2, 7), (4, 8, 12, 16, 20)):
        borders = (0, *cuts, len(payload))
        pieces = [payload[a:b] for a, b in pairwise(borders)]
        for pfn in pfns:
            rig.memory.write(pfn * 4096, bytes([FILLED]) * 4096)
        rig.driver.transfer(INFLATEQ, readable=pieces, indirect=False)
        holds(f"all pages are given up with the payload cut at {cuts}", rig.are_given(pfns))


@check("S2")
def chains_as_long_as_the_queue(rigs: Rigs) -> None:
    """Sent a chain through every descriptor of a queue, and a table with as many entries."""
    rig = rigs.started()
    for indirect in (False, True):
        pfns = rig.filled(rig.driver.queues[INFLATEQ].size)
        used = rig.driver.transfer(INFLATEQ, readable=[pfn_bytes([pfn]) for pfn in pfns], indirect=indirect)
        equal("the number of buffers used", len(used), 1)
        holds("all pages are given up", rig.are_given(pfns))


@check("S3")
def readable_buffers_are_not_written(rigs: Rigs) -> None:
    """Sent readable pieces and compared all of RAM but the used ring and the pages that were given up."""
    rig = rigs.started()
    pfns = rig.filled(4)
    equal("the addresses changed", _changed_by_inflating(rig, pfns), [])


def _changed_by_inflating(rig: Rig, pfns: list[int]) -> list[str]:
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn]) for pfn in pfns], indirect=False)
    queue = rig.driver.queues[INFLATEQ]
    queue.publish()
    allowed = [(queue.layout.device_gpa, queue.layout.used_bytes), *((pfn * 4096, 4096) for pfn in pfns)]
    return rig.changed_by(lambda: rig.transport.notify(INFLATEQ), outside=allowed)


@check("S4")
def writable_buffers_are_not_read(rigs: Rigs) -> None:
    """Put page numbers into the device-writable part of a request: the pages stay, and so does the buffer."""
    rig = rigs.started()
    named, decoy = rig.filled(2)
    gpa = rig.pages.take()
    rig.memory.write(gpa, pfn_bytes([decoy]))
    rig.driver.transfer(INFLATEQ, readable=[pfn_bytes([named])], writable=[(gpa, 4)])
    holds("the page in the readable part is given up", rig.are_given([named]))
    holds("the page in the writable part is not", rig.are_kept([decoy]))


@check("S5")
def the_table_is_not_written(rigs: Rigs) -> None:
    """Used every descriptor of the table, plain and by way of tables, and compared the table."""
    rig = rigs.started()
    queue = rig.driver.queues[INFLATEQ]
    for indirect in (False, True):
        rig.driver.offer(INFLATEQ, readable=[pfn_bytes([pfn]) for pfn in rig.filled(4)], indirect=indirect)
        queue.publish()
        before = rig.memory.read(queue.layout.desc_gpa, 16 * queue.size)
        rig.transport.notify(INFLATEQ)
        equal("the descriptor table", rig.memory.read(queue.layout.desc_gpa, 16 * queue.size), before)
        rig.driver.collect(INFLATEQ)


@check("S6")
def the_write_flag_of_a_table_is_ignored(rigs: Rigs) -> None:
    """Referred to a table of readable buffers by a descriptor with VIRTQ_DESC_F_WRITE."""
    rig = rigs.started()
    pfns = rig.filled()
    raw = rig.raw()
    (place,) = _place(raw, pfns)
    raw.descriptor(0, raw.table([Descriptor(place, 4)]), 16, INDIRECT | WRITE)
    raw.available(0)
    raw.kick()
    equal("the heads returned", raw.heads_returned(), [0])
    holds("the page is given up", rig.are_given(pfns))


@check("S7")
def normal_descriptors_before_a_table(rigs: Rigs) -> None:
    """Sent chains of none, one and three normal descriptors that end in one with VIRTQ_DESC_F_INDIRECT."""
    rig = rigs.started()
    for count in (0, 1, 3):
        pfns = rig.filled(count + 1)
        raw = rig.raw()
        *normal, last = _place(raw, pfns)
        for slot, gpa in enumerate(normal):
            raw.descriptor(slot, gpa, 4, NEXT, slot + 1)
        raw.descriptor(count, raw.table([Descriptor(last, 4)]), 16, INDIRECT)
        raw.available(0)
        raw.kick()
        equal("the heads returned", raw.heads_returned(), [0])
        holds(f"all pages are given up with {count} normal descriptors", rig.are_given(pfns))
        rig.start()


@check("S15")
def written_bytes_are_written(rigs: Rigs) -> None:
    """Offered writable pieces to inflateq: what the used length claims must have been stored, the rest is untouched."""
    rig = rigs.started()
    gpa = rig.pages.take()
    rig.memory.write(gpa, b"\xee" * 64)
    (used,) = rig.driver.transfer(INFLATEQ, readable=[pfn_bytes(rig.filled())], writable=[(gpa, 64)])
    stored = rig.memory.read(gpa, 64)
    holds("the used length is within the writable part", used.length <= 64)
    equal("the bytes behind the used length", stored[used.length :], b"\xee" * (64 - used.length))
    equal("the used length of a request that has no answer", used.length, 0)
