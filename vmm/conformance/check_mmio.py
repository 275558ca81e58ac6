"""Virtio over MMIO (§4.2)."""

from __future__ import annotations

from devices.virtio import spec
from vmm.conformance.registry import check
from vmm.conformance.rig import Rig, Rigs, equal, holds
from vmm.conformance.transports import MMIO_BASE
from vmm.testing.balloon import INFLATEQ, STATSQ, pfn_bytes
from vmm.testing.driver import RING_RESET

VRING, CONFIG = spec.VIRTIO_MMIO_INT_VRING, spec.VIRTIO_MMIO_INT_CONFIG


@check("M1")
def magic(rigs: Rigs) -> None:
    """Read the register."""
    equal("MagicValue", rigs().bus.mmio_read(MMIO_BASE, 4), 0x7472_6976)


@check("M2")
def version(rigs: Rigs) -> None:
    """Read the register."""
    equal("Version", rigs().bus.mmio_read(MMIO_BASE + 4, 4), 2)


def _events(rig: Rig) -> tuple[int, bool]:
    """InterruptStatus, and the level of the line."""
    return rig.mmio.read("InterruptStatus"), rig.bus.line_level(rig.mmio.line)


@check("M3")
def events_stay_until_acknowledged(rigs: Rigs) -> None:
    """Caused both kinds of event, acknowledged one after the other, and caused one again before acknowledging it."""
    rig = rigs.started()
    rig.inflate(*rig.filled())
    equal("InterruptStatus and the line after a used buffer", _events(rig), (VRING, True))
    rig.set_target(5)
    equal("InterruptStatus after a configuration change", _events(rig), (VRING | CONFIG, True))
    rig.mmio.write("InterruptACK", VRING)
    equal("InterruptStatus after acknowledging the first", _events(rig), (CONFIG, True))
    rig.set_target(6)
    rig.mmio.write("InterruptACK", CONFIG)
    equal("InterruptStatus after acknowledging the second", _events(rig), (0, False))


@check("M4")
def other_bits_are_zero(rigs: Rigs) -> None:
    """Read InterruptStatus at rest, and after each kind of event alone."""
    rig = rigs.started()
    equal("InterruptStatus at rest", _events(rig), (0, False))
    rig.set_target(5)
    equal("InterruptStatus after a configuration change", rig.mmio.read("InterruptStatus"), CONFIG)
    rig.mmio.write("InterruptACK", CONFIG)
    rig.inflate(*rig.filled())
    equal("InterruptStatus after a used buffer", rig.mmio.read("InterruptStatus"), VRING)


@check("M5")
def no_event_survives_a_reset(rigs: Rigs) -> None:
    """Reset the device with both events unacknowledged."""
    rig = rigs.started()
    rig.inflate(*rig.filled())
    rig.set_target(5)
    rig.transport.write_status(0)
    equal("InterruptStatus and the line after a reset", _events(rig), (0, False))


@check("M6")
def no_queue_is_ready_after_a_reset(rigs: Rigs) -> None:
    """Made every queue ready, reset the device, and read QueueReady of each."""
    rig = rigs.started()
    count = rig.transport.num_queues
    equal("QueueReady before", [rig.transport.queue_enabled(index) for index in range(count)], [True] * count)
    rig.transport.write_status(0)
    equal("QueueReady after", [rig.transport.queue_enabled(index) for index in range(count)], [False] * count)


@check("M7")
def generation(rigs: Rigs) -> None:
    """Changed num_pages between two reads, once and 256 times, and compared ConfigGeneration."""
    rig = rigs.started()
    for changes in (1, 256):
        rig.transport.read_config(0, 4)
        before = rig.transport.read_config_generation()
        for target in range(changes):
            rig.set_target(changes + target % 2)
        rig.transport.read_config(0, 4)
        holds(f"ConfigGeneration differs after {changes}", rig.transport.read_config_generation() != before)


@check("M8")
def a_queue_that_is_not_ready_is_left(rigs: Rigs) -> None:
    """Took QueueReady back with a request waiting and a statistics buffer held, notified and asked for statistics."""
    rig = rigs.started()
    rig.driver.post_stats({"stat-free-memory": 1})
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes(rig.filled())])
    rig.driver.queues[INFLATEQ].publish()
    for index in (INFLATEQ, STATSQ):
        rig.mmio.write("QueueSel", index)
        rig.mmio.write("QueueReady", 0)

    def provoke() -> None:
        for index in (INFLATEQ, STATSQ):
            rig.transport.notify(index)
        rig.request_stats()
        rig.advance(10**9)

    equal("the addresses changed", rig.changed_by(provoke), [])


def _queue_reset(rig: Rig, queue: int) -> int:
    rig.mmio.write("QueueSel", queue)
    return rig.mmio.read("QueueReset")


@check("M9")
def not_resetting_after_a_reset(rigs: Rigs) -> None:
    """Read QueueReset of every queue after a reset of the device."""
    rig = rigs.started("queue_reset=on")
    holds("RING_RESET was negotiated", rig.driver.features & RING_RESET)
    count = rig.transport.num_queues
    rig.driver.reset()
    equal("QueueReset", [_queue_reset(rig, index) for index in range(count)], [0] * count)


@check("M10")
def not_resetting_once_ready(rigs: Rigs) -> None:
    """Reset a queue, made it ready again and read QueueReset."""
    rig = rigs.started("queue_reset=on")
    rig.transport.reset_queue(INFLATEQ)
    rig.driver.set_up_queue(INFLATEQ, 16)
    equal("QueueReset", _queue_reset(rig, INFLATEQ), 0)
    holds("QueueReady is 1", rig.transport.queue_enabled(INFLATEQ))


@check("M11")
def the_queue_is_reset(rigs: Rigs) -> None:
    """Wrote 1 to QueueReset with a request waiting: it is never carried out, and the queue can be set up anew."""
    rig = rigs.started("queue_reset=on")
    pfns = rig.filled()
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes(pfns)])
    rig.driver.queues[INFLATEQ].publish()
    rig.transport.reset_queue(INFLATEQ)
    rig.transport.notify(INFLATEQ)
    holds("the page is kept", rig.are_kept(pfns))
    rig.driver.set_up_queue(INFLATEQ, 16)
    equal("the number of buffers used afterwards", len(rig.inflate(*rig.filled())), 1)


@check("M12")
def both_are_zero_afterwards(rigs: Rigs) -> None:
    """Reset a queue and read QueueReset and QueueReady."""
    rig = rigs.started("queue_reset=on")
    rig.transport.reset_queue(INFLATEQ)
    equal("QueueReset", _queue_reset(rig, INFLATEQ), 0)
    holds("QueueReady is 0", not rig.transport.queue_enabled(INFLATEQ))
