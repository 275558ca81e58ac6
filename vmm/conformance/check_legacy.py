"""The balloon's legacy interface (§5.5), where its driver's byte order counts."""

from __future__ import annotations

from devices.virtio import spec
from vmm.conformance.registry import check
from vmm.conformance.rig import Rig, Rigs, equal, holds
from vmm.testing.balloon import ACTUAL, DEFLATEQ, MUST_TELL_HOST, NUM_PAGES, STATSQ, pfn_bytes
from vmm.testing.legacy_pci import LegacyPciTransport


def _read_config(rig: Rig, offset: int, size: int) -> int:
    """One access of `size` bytes to the configuration, which the driver library makes byte by byte over PCI."""
    if isinstance(rig.transport, LegacyPciTransport):
        return rig.bus.port_read(rig.transport.config_port + offset, size)
    return rig.bus.mmio_read(rig.mmio.base + spec.VIRTIO_MMIO_CONFIG + offset, size)


def _write_config(rig: Rig, offset: int, size: int, value: int) -> None:
    """As `_read_config`."""
    if isinstance(rig.transport, LegacyPciTransport):
        rig.bus.port_write(rig.transport.config_port + offset, size, value)
    else:
        rig.bus.mmio_write(rig.mmio.base + spec.VIRTIO_MMIO_CONFIG + offset, size, value)


def _actuals_told(rig: Rig) -> list[str]:
    return [event.text for event in rig.bus.events if event.kind == "actual"]


@check("L1")
def without_must_tell_host(rigs: Rigs) -> None:
    """Did not accept MUST_TELL_HOST, and inflated and deflated."""
    rig = rigs.started(without=MUST_TELL_HOST)
    pfns = rig.filled(2)
    rig.inflate(*pfns)
    holds("the pages are given up", rig.are_given(pfns))
    equal("the number of deflate requests used", len(rig.driver.deflate(pfns)), 1)


@check("L2")
def use_before_notification(rigs: Rigs) -> None:
    """Wrote to an inflated page before telling the device of it: the page keeps what was written."""
    rig = rigs.started(without=MUST_TELL_HOST)
    (pfn,) = rig.filled()
    rig.inflate(pfn)
    rig.memory.write(pfn * 4096, b"mine")
    rig.driver.transfer(DEFLATEQ, readable=[pfn_bytes([pfn], rig.driver.order)])
    equal("the page afterwards", rig.page(pfn)[:4], b"mine")
    holds("the device does not need a reset", not rig.driver.needs_reset)


@check("L3")
def configuration_is_little_endian(rigs: Rigs) -> None:
    """Wrote `actual` and read it and a target, in accesses of one, two and four bytes, for drivers of both byte
    orders."""
    for rig in (rigs.started(), rigs.started(processor=">")):
        rig.set_target(0x304)
        rig.driver.write_config(ACTUAL, 4, 0xA1B2C3D4)
        read = [rig.transport.read_config(NUM_PAGES + offset, 1) for offset in range(8)]
        equal("the configuration's bytes", bytes(read), bytes.fromhex("04 03 00 00 d4 c3 b2 a1"))
        for size in (2, 4):
            values = [_read_config(rig, NUM_PAGES + offset, size) for offset in range(0, 8, size)]
            read_back = b"".join(value.to_bytes(size, "little") for value in values)
            equal(f"the configuration read {size} bytes at a time", read_back, bytes(read))
        _write_config(rig, ACTUAL, 4, 0x01020304)
        equal("`actual` written by one access", rig.balloon.actual_pages, 0x01020304)


@check("L4")
def used_length(rigs: Rigs) -> None:
    """Read the used length of inflate, deflate and statistics buffers: 0, as nothing was written."""
    rig = rigs.started()
    pfns = rig.filled()
    lengths = [used.length for used in (*rig.inflate(*pfns), *rig.driver.deflate(pfns))]
    rig.driver.post_stats({"stat-free-memory": 1})
    rig.request_stats()
    lengths += [used.length for used in rig.driver.collect(STATSQ)]
    equal("the used lengths", lengths, [0, 0, 0])


@check("L5")
def a_part_of_actual_does_not_count(rigs: Rigs) -> None:
    """Wrote the first three bytes of `actual`, one after the other, and its first half, and looked at what the host
    knows."""
    for size in (1, 2):
        rig = rigs.started()
        rig.bus.events.clear()
        for offset in range(0, 4 - size, size):
            _write_config(rig, ACTUAL + offset, size, 0x11 * (offset + 1))
            equal(f"what the host was told after {offset + size} bytes", _actuals_told(rig), [])


@check("L6")
def actual_counts_when_whole(rigs: Rigs) -> None:
    """Wrote all four bytes of `actual`, one after the other, its two halves, and the whole."""
    for size in (1, 2, 4):
        rig = rigs.started()
        rig.bus.events.clear()
        for offset in range(0, 4, size):
            _write_config(rig, ACTUAL + offset, size, 0x11223344 >> 8 * offset & (1 << 8 * size) - 1)
        equal("the number of pages that the host was told of", rig.balloon.actual_pages, 0x11223344)
        equal("how often it was told", len(_actuals_told(rig)), 1)


@check("L7")
def statistics_are_native(rigs: Rigs) -> None:
    """Sent statistics from drivers of both byte orders."""
    for rig in (rigs.started(), rigs.started(processor=">")):
        rig.hear({"stat-free-memory": 0x0102030405, "stat-swap-in": 7})
        equal("the statistics", rig.statistics(), {"stat-free-memory": 0x0102030405, "stat-swap-in": 7})


@check("L8")
def the_first_buffer_is_ignored(rigs: Rigs) -> None:
    """Posted a first buffer full of junk, as drivers did that had not initialised it, then a real one."""
    rig = rigs.started()
    rig.driver.post_stats(b"\x04\x00" + b"\xee" * 8)
    equal("the statistics after the first buffer", rig.statistics(), {})
    rig.request_stats()
    equal("the number of buffers that came back", len(rig.driver.collect(STATSQ)), 1)
    rig.driver.post_stats({"stat-free-memory": 4096})
    equal("the statistics after the second", rig.statistics(), {"stat-free-memory": 4096})
