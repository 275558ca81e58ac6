"""Packed virtqueues: the driver's event suppression structure (§2.8.10, §2.8.14)."""

from __future__ import annotations

from collections.abc import Iterator

from devices.virtio import spec
from vmm.conformance.registry import check
from vmm.conformance.rig import Rig, Rigs, equal
from vmm.testing.balloon import INFLATEQ
from vmm.testing.driver import EVENT_IDX, RING_PACKED
from vmm.testing.packed_ring import PackedQueue, Place

PAYLOAD = (0x8000, 4)  # a page frame number: what lies there does not matter
ENABLE, DISABLE, AT = spec.RING_EVENT_FLAGS_ENABLE, spec.RING_EVENT_FLAGS_DISABLE, spec.RING_EVENT_FLAGS_DESC
BATCHES = (1, 3, 7)


class _Ring:
    """inflateq, and the driver's side of its event suppression."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        queue = rig.driver.queues[INFLATEQ]
        if not rig.driver.features & RING_PACKED or not isinstance(queue, PackedQueue):
            raise TypeError("the ring is not packed")
        self._queue = queue
        self.size = queue.size

    def ask(self, flags: int, ahead: int = 0, *, wrap: int = 0) -> None:
        """Set the flags, and the place `ahead` descriptors behind the next used one, or with the other wrap counter."""
        place = Place(self.size, self._queue.next_used.index, self._queue.next_used.wrap)
        place.advance(ahead)
        off_wrap = place.off_wrap ^ wrap << 15
        self._rig.memory.write(self._queue.layout.driver_off_wrap, off_wrap.to_bytes(2, "little"))
        self._rig.memory.write(self._queue.layout.driver_flags, flags.to_bytes(2, "little"))

    def send(self, buffers: int) -> int:
        """Use some buffers, each of one descriptor, in one batch; how many notifications came."""
        driver = self._rig.driver
        for _ in range(buffers):
            driver.offer(INFLATEQ, readable=[PAYLOAD])
        self._queue.suppressed = True  # so that collecting leaves the structure alone
        driver.kick(INFLATEQ, force=True)
        equal("the number of buffers used", len(driver.collect(INFLATEQ)), buffers)
        return self._rig.interrupts_for(INFLATEQ)

    def rounds(self) -> Iterator[int]:
        """Batches that go round the ring more than twice: every place is passed with both wrap counters."""
        sent = 0
        while sent <= 2 * self.size:
            for buffers in BATCHES:
                yield buffers
                sent += buffers


def _rings(rigs: Rigs) -> Iterator[_Ring]:
    """With EVENT_IDX and without."""
    for without in (0, EVENT_IDX):
        yield _Ring(rigs.started("packed=on", without=without))


@check("P9")
def disabled_means_silent(rigs: Rigs) -> None:
    """Set the driver's flags to DISABLE and used buffers twice round the ring, with EVENT_IDX and without."""
    for ring in _rings(rigs):
        ring.ask(DISABLE)
        for buffers in ring.rounds():
            equal("the number of notifications", ring.send(buffers), 0)


@check("P10")
def enabled_means_every_batch(rigs: Rigs) -> None:
    """Set the driver's flags to ENABLE, also after DISABLE, and used buffers twice round the ring, with EVENT_IDX and
    without."""
    for ring in _rings(rigs):
        ring.ask(DISABLE)
        ring.send(1)
        ring.ask(ENABLE)
        for buffers in ring.rounds():
            equal("the number of notifications", ring.send(buffers), 1)


@check("P11")
def it_comes_at_the_descriptor(rigs: Rigs) -> None:
    """Asked for one descriptor of the next batch, the first, the middle or the last one, twice round the ring."""
    ring = _Ring(rigs.started("packed=on"))
    for buffers in ring.rounds():
        for ahead in (0, buffers // 2, buffers - 1):
            ring.ask(AT, ahead)
            equal(f"the number of notifications of {buffers}, asked for {ahead:+}", ring.send(buffers), 1)


@check("P12")
def and_at_no_other(rigs: Rigs) -> None:
    """Asked for the descriptor behind the batch, for one that has passed, and for one of the batch with the other wrap
    counter, twice round the ring."""
    ring = _Ring(rigs.started("packed=on"))
    for buffers in ring.rounds():
        for ahead, wrap in ((buffers, 0), (2 * ring.size - 1, 0), (buffers // 2, 1)):
            ring.ask(AT, ahead, wrap=wrap)
            what = f"the number of notifications of {buffers}, asked for {ahead:+}{' in the other round' * wrap}"
            equal(what, ring.send(buffers), 0)
