"""Split virtqueues: notifications and their suppression (§2.7.7, §2.7.10)."""

from __future__ import annotations

from vmm.conformance.registry import check
from vmm.conformance.rig import Rig, Rigs, equal, holds
from vmm.testing.balloon import INFLATEQ
from vmm.testing.driver import EVENT_IDX, INDIRECT_DESC
from vmm.testing.raw import RawQueue

PAYLOAD = (0x8000, 4)  # a page frame number: what lies there does not matter
SHORT_OF_THE_SIGN, SHORT_OF_THE_END = 0x8000 - 8, 0x10000 - 8
"""Where the free-running indices are eight entries before what a signed and an unsigned 16-bit counter can hold."""


def _with_flags(rigs: Rigs) -> Rig:
    return rigs.started(without=EVENT_IDX)


def _send(rig: Rig, buffers: int = 1) -> int:
    """Use some buffers in one batch; how many notifications came."""
    for _ in range(buffers):
        rig.driver.offer(INFLATEQ, readable=[PAYLOAD])
    rig.driver.kick(INFLATEQ, force=True)
    equal("the number of buffers used", len(rig.driver.collect(INFLATEQ)), buffers)
    return rig.interrupts_for(INFLATEQ)


class _Indices:
    """A queue whose entries are all alike, so that its indices soon come to any value."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.raw: RawQueue = rig.raw()
        self.layout = self.raw.layout
        for slot in range(self.raw.size):
            self.raw.descriptor(slot, *PAYLOAD)
        self.raw.available(*range(self.raw.size))
        self.go_on(0)

    def go_to(self, index: int) -> None:
        """Use buffers until both indices are there."""
        while left := (index - self.raw.avail_idx) % 2**16:
            self.go_on(min(left, self.raw.size))

    def go_on(self, buffers: int) -> int:
        """Use some more in one batch; how many notifications came."""
        wanted = (self.raw.avail_idx + buffers) % 2**16
        self.raw.available_index(wanted)
        self.raw.kick()
        equal("the used index", self.raw.used_idx, wanted)
        return self._rig.interrupts_for(INFLATEQ)

    def used_event(self, index: int) -> None:
        """Ask for a notification of the entry at `index`."""
        self._put16(self.layout.used_event, index)

    def flags(self, value: int) -> None:
        """Set the available ring's flags."""
        self._put16(self.layout.avail_flags, value)

    def _put16(self, gpa: int, value: int) -> None:
        value %= 2**16
        self._rig.memory.write(gpa, value.to_bytes(2, "little" if self.raw.order == "<" else "big"))


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
    """Used buffers with the available ring's flags 0, also after they were 1, and where the used index passes 7FFFh and
    FFFFh."""
    rig = _with_flags(rigs)
    queue = rig.driver.queues[INFLATEQ]
    equal("the number of notifications", _send(rig), 1)
    queue.suppress_notifications()
    _send(rig)
    queue.want_notifications()
    equal("the number of notifications after the flags went back to 0", _send(rig), 1)
    indices = _Indices(_with_flags(rigs))
    for start in (SHORT_OF_THE_SIGN, SHORT_OF_THE_END):
        indices.flags(1)
        indices.go_to(start)
        indices.flags(0)
        equal("the number of notifications of 16 buffers", [indices.go_on(1) for _ in range(16)], [1] * 16)


@check("S11")
def flags_are_ignored_with_event_idx(rigs: Rigs) -> None:
    """Set bit 0 of the available ring's flags with EVENT_IDX negotiated."""
    rig = rigs.started()
    rig.memory.write(rig.driver.queues[INFLATEQ].layout.avail_flags, b"\1\0")
    equal("the number of notifications", _send(rig), 1)


@check("S12")
def a_notification_comes_at_used_event(rigs: Rigs) -> None:
    """Asked for the next buffer, the third of three, and one in the middle of a batch of five; and for entries
    around 7FFFh and FFFFh, in batches of one to five."""
    rig = rigs.started()
    queue = rig.driver.queues[INFLATEQ]
    for after, buffers in ((0, 1), (2, 3), (2, 5)):
        queue.want_notifications(after=after)
        equal(f"the number of notifications for {buffers} buffers, asked for after {after}", _send(rig, buffers), 1)
    indices = _Indices(rigs.started())
    for start in (SHORT_OF_THE_SIGN, SHORT_OF_THE_END):
        indices.go_to(start)
        for buffers in (1, 2, 3, 5, 5):
            here = indices.raw.avail_idx
            indices.used_event(here + buffers // 2)
            what = f"the number of notifications for {buffers} buffers from {here:#x} on, asked for {buffers // 2:+}"
            equal(what, indices.go_on(buffers), 1)


@check("S13")
def and_at_no_other_entry(rigs: Rigs) -> None:
    """Asked for an entry that is not reached, and for one that has passed, also around 7FFFh and FFFFh."""
    rig = rigs.started()
    queue = rig.driver.queues[INFLATEQ]
    queue.want_notifications(after=3)
    equal("the number of notifications before used_event", _send(rig, 2), 0)
    queue.suppress_notifications()
    equal("the number of notifications after used_event", [_send(rig) for _ in range(3)], [0, 0, 0])
    indices = _Indices(rigs.started())
    for start in (SHORT_OF_THE_SIGN, SHORT_OF_THE_END):
        indices.go_to(start)
        for buffers in (1, 3, 5, 7):
            for event in (-1, buffers, 0x7FFF):
                here = indices.raw.avail_idx
                indices.used_event(here + event)
                what = f"the number of notifications for {buffers} buffers from {here:#x} on, asked for {event:+}"
                equal(what, indices.go_on(buffers), 0)


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
