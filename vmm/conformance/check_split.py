"""Split virtqueues (§2.7)."""

from __future__ import annotations

from itertools import pairwise

from vmm.conformance.registry import check
from vmm.conformance.rig import FILLED, Rig, Rigs, equal, holds
from vmm.testing import Descriptor
from vmm.testing.balloon import INFLATEQ, pfn_bytes
from vmm.testing.driver import EVENT_IDX, INDIRECT_DESC
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


# -- notifications -----------------------------------------------------------------------------------------------------


def _with_flags(rigs: Rigs) -> Rig:
    return rigs.started(without=EVENT_IDX)


def _send(rig: Rig, buffers: int = 1) -> int:
    """Use some buffers in one batch; how many notifications came."""
    for _ in range(buffers):
        rig.driver.offer(INFLATEQ, readable=[PAYLOAD])
    rig.driver.kick(INFLATEQ, force=True)
    equal("the number of buffers used", len(rig.driver.collect(INFLATEQ)), buffers)
    return rig.interrupts_for(INFLATEQ)


@check("S8")
def used_event_is_ignored_without_event_idx(rigs: Rigs) -> None:
    """Wrote several values to where used_event would be; each buffer is notified."""
    rig = _with_flags(rigs)
    place = rig.driver.queues[INFLATEQ].layout.used_event
    for value in (0, 1, 0x7FFF, 0xFFFF):
        rig.memory.write(place, value.to_bytes(2, "little"))
        equal(f"the number of notifications with used_event {value:#x}", _send(rig), 1)


@check("S9")
def flags_1_silence_the_device(rigs: Rigs) -> None:
    """Set the available ring's flags to 1 and used buffers."""
    rig = _with_flags(rigs)
    rig.driver.queues[INFLATEQ].suppress_notifications()
    equal("the number of notifications", [_send(rig, count) for count in (1, 3)], [0, 0])


@check("S10")
def flags_0_make_it_speak(rigs: Rigs) -> None:
    """Used buffers with the available ring's flags 0, also after they were 1."""
    rig = _with_flags(rigs)
    queue = rig.driver.queues[INFLATEQ]
    equal("the number of notifications", _send(rig), 1)
    queue.suppress_notifications()
    _send(rig)
    queue.want_notifications()
    equal("the number of notifications after the flags went back to 0", _send(rig), 1)


@check("S11")
def flags_are_ignored_with_event_idx(rigs: Rigs) -> None:
    """Set bit 0 of the available ring's flags with EVENT_IDX negotiated."""
    rig = rigs.started()
    rig.memory.write(rig.driver.queues[INFLATEQ].layout.avail_flags, b"\1\0")
    equal("the number of notifications", _send(rig), 1)


@check("S12")
def a_notification_comes_at_used_event(rigs: Rigs) -> None:
    """Asked for the next buffer, the third of three, and one in the middle of a batch of five."""
    rig = rigs.started()
    queue = rig.driver.queues[INFLATEQ]
    for after, buffers in ((0, 1), (2, 3), (2, 5)):
        queue.want_notifications(after=after)
        equal(f"the number of notifications for {buffers} buffers, asked for after {after}", _send(rig, buffers), 1)


@check("S13")
def and_at_no_other_entry(rigs: Rigs) -> None:
    """Asked for an entry that is not reached, and for one that has passed."""
    rig = rigs.started()
    queue = rig.driver.queues[INFLATEQ]
    queue.want_notifications(after=3)
    equal("the number of notifications before used_event", _send(rig, 2), 0)
    queue.suppress_notifications()
    equal("the number of notifications after used_event", [_send(rig) for _ in range(3)], [0, 0, 0])


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


@check("S16")
def used_flags_are_0_or_1(rigs: Rigs) -> None:
    """Read the used ring's flags after each of many buffers, without EVENT_IDX."""
    rig = _with_flags(rigs)
    queue = rig.driver.queues[INFLATEQ]
    for _ in range(2 * queue.size):
        _send(rig)
        flags = int.from_bytes(rig.memory.read(queue.layout.used_flags, 2), "little")
        holds(f"the used ring's flags are 0 or 1, not {flags:#x}", flags in (0, 1))


def _lose_nothing(rig: Rig) -> None:
    """A driver that notifies only when it is asked to gets every buffer back."""
    queue = rig.driver.queues[INFLATEQ]
    for count in range(1, 2 * queue.size):
        for _ in range(count % 3 + 1):
            rig.driver.offer(INFLATEQ, readable=[PAYLOAD])
        rig.driver.kick(INFLATEQ)
        equal("the number of buffers used", len(rig.driver.collect(INFLATEQ)), count % 3 + 1)


@check("S17")
def silence_by_flags_loses_nothing(rigs: Rigs) -> None:
    """Notified the device only while its flags asked for it, twice round the ring."""
    _lose_nothing(_with_flags(rigs))


@check("S18")
def used_flags_are_0_with_event_idx(rigs: Rigs) -> None:
    """Read the used ring's flags after each of many buffers, with EVENT_IDX."""
    rig = rigs.started()
    queue = rig.driver.queues[INFLATEQ]
    for _ in range(2 * queue.size):
        _send(rig)
        equal("the used ring's flags", rig.memory.read(queue.layout.used_flags, 2), b"\0\0")


@check("S19")
def avail_event_loses_nothing(rigs: Rigs) -> None:
    """Notified the device only when avail_event asked for it, twice round the ring."""
    _lose_nothing(rigs.started())


@check("S20")
def spurious_notifications_are_borne(rigs: Rigs) -> None:
    """Notified every queue with nothing new in it, before and after a request."""
    rig = rigs.started(without=INDIRECT_DESC)

    def notify() -> None:
        for index in (*range(rig.transport.num_queues), 0, 1):
            rig.transport.notify(index)

    for _ in range(2):
        equal("the addresses changed by notifications of nothing", rig.changed_by(notify), [])
        equal("the interrupts after notifications of nothing", tuple(rig.driver.take_interrupts()), ({}, 0))
        equal("the number of buffers used by a request", len(rig.inflate(*rig.filled())), 1)
        rig.driver.take_interrupts()
