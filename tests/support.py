"""Machines without a CPU for the tests: RAM, one virtio device, and the driver library on it, reached both ways.

This is where the concrete device side meets `vmm.testing`, which knows none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from devices.bus import AddressSpace
from devices.memory import PAGE_BYTES, Bytes, GuestMemory, Integers, Run
from devices.pci.host_bridge import HostBridge
from devices.virtio import spec
from devices.virtio.balloon import Balloon, Statistics
from devices.virtio.balloon.device import DEFAULT_FEATURES
from devices.virtio.device import Notifications
from devices.virtio.transport.mmio import BLOCK_BYTES, VirtioMmio
from devices.virtio.transport.mmio_legacy import VirtioMmioLegacy
from devices.virtio.transport.pci_function import VirtioPciFunction
from devices.virtio.transport.pci_legacy import VirtioPciLegacy
from devices.virtio.transport.pci_modern import VirtioPciModern
from devices.virtio.transport.pci_transitional import VirtioPciTransitional
from vmm.testing import (
    BalloonDriver,
    BenchBus,
    BusBench,
    DirectBench,
    DirectTransport,
    LegacyMmioTransport,
    LegacyPciTransport,
    MmioTransport,
    PageAllocator,
    PciTransport,
)
from vmm.testing.protocols import EventLike, Transport

MIB = 1 << 20
Way = Literal[
    "direct",
    "pci",
    "pci-intx",
    "transitional",
    "mmio",
    "packed",
    "packed-pci",
    "legacy",
    "legacy-intx",
    "transitional-legacy",
    "mmio-legacy",
]
"""How a driver reaches its device: by contract methods; over PCI with MSI-X, or with INTx, the modern function or the
legacy one; over a transitional function's modern or legacy face; over virtio-mmio version 2 or 1.
With packed rings "packed" is the direct way, "packed-pci" PCI with MSI-X."""
MODERN_WAYS: tuple[Way, ...] = ("direct", "pci", "pci-intx", "transitional", "mmio", "packed-pci")
PACKED_WAYS: tuple[Way, ...] = ("packed", "packed-pci")
LEGACY_WAYS: tuple[Way, ...] = ("legacy", "legacy-intx", "transitional-legacy", "mmio-legacy")
ONE_LINE_WAYS: tuple[Way, ...] = ("pci-intx", "mmio", "legacy-intx", "mmio-legacy")
"""Where a line tells that there is an interrupt, and not of which queue."""
SIZED_WAYS: tuple[Way, ...] = (*MODERN_WAYS, "mmio-legacy")
"""Where the driver chooses the size of a queue; over legacy PCI it cannot (§4.1.5.1.3.1)."""
MMIO_BASE, MMIO_LINE = 0xFEB00000, "isa12"

RAM_LAYOUT = ((0, 0xA0000), (0x100000, 3 * MIB), (1 << 32, MIB))
"""Low RAM with the PC's hole above it, RAM above the hole, and some beyond 4 GiB."""
DRIVER_RAM = (0x100000, 3 * MIB)
BALLOON_SLOT = 3


def build_with(*bits: int, without: int = 0, queue_size: int = 128) -> Callable[[GuestMemory], Balloon]:
    """Makes a balloon that offers the feature `bits` besides its usual ones, and not the mask `without`."""
    features = (DEFAULT_FEATURES | sum(1 << bit for bit in bits)) & ~without
    return lambda memory: Balloon(memory, features=features, queue_size=queue_size)


build_reporting = build_with(spec.VIRTIO_BALLOON_F_PAGE_REPORTING, spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM)
"""A balloon with everything that this device can offer."""

_FUNCTIONS: dict[Way, Callable[[Balloon, int], VirtioPciFunction]] = {
    "pci": VirtioPciModern,
    "pci-intx": VirtioPciModern,
    "packed-pci": VirtioPciModern,
    "transitional": VirtioPciTransitional,
    "transitional-legacy": VirtioPciTransitional,
    "legacy": VirtioPciLegacy,
    "legacy-intx": VirtioPciLegacy,
}


class BalloonMachine:
    """A balloon and its driver on `layout`'s RAM; the driver takes its pages from 1 MiB on.

    `way` is how the driver reaches the device, and by which kind of ring ("packed" is the direct way); `processor` is
    the byte order of its processor.  Nothing is initialised until `driver.start()`.
    """

    def __init__(
        self,
        way: Way = "direct",
        *,
        memory: GuestMemory | None = None,
        build: Callable[[GuestMemory], Balloon] = Balloon,
        processor: spec.ByteOrder = "<",
    ) -> None:
        self.way = way
        self.memory = memory if memory is not None else GuestMemory(RAM_LAYOUT)
        self.pages = PageAllocator(*DRIVER_RAM)
        self.balloon = build(self.memory)
        if way in PACKED_WAYS:
            self.balloon.device_features |= 1 << spec.VIRTIO_F_RING_PACKED
        self.balloon.driver_order = processor
        self.bench: DirectBench | BusBench[Notifications]
        if way in ("direct", "packed"):
            direct = DirectTransport(self.balloon, self.memory, self.pages)
            self.bench = DirectBench(direct, self.balloon)
            self.driver = BalloonDriver(direct, processor=processor)
        else:
            transport = self._plug(way)
            self.bench = BusBench(self.bus, transport, self.function)
            self.driver = BalloonDriver(transport, processor=processor)

    def _plug(self, way: Way) -> Transport:
        ports, mmio = AddressSpace("port", 16), AddressSpace("memory", 52)
        self.bus = BenchBus(self.memory, ports, mmio)
        if way in ("mmio", "mmio-legacy"):
            registers = (VirtioMmio if way == "mmio" else VirtioMmioLegacy)(self.balloon, MMIO_LINE)
            mmio.add(MMIO_BASE, BLOCK_BYTES, registers, "balloon")
            self.function: VirtioPciFunction | VirtioMmio = registers
            reach = MmioTransport if way == "mmio" else LegacyMmioTransport
            return reach(self.bus, MMIO_BASE, MMIO_LINE, self.pages)
        bridge = HostBridge(ports, mmio, self.memory)
        function = _FUNCTIONS[way](self.balloon, BALLOON_SLOT)
        bridge.plug(function)
        self.function = function
        find = LegacyPciTransport.find if way in LEGACY_WAYS else PciTransport.find
        return find(self.bus, self.balloon.device_id, self.pages, "intx" if way.endswith("intx") else "msix")

    @property
    def pci(self) -> PciTransport:
        """The driver's end of the modern PCI transport."""
        assert isinstance(self.driver.transport, PciTransport)
        return self.driver.transport

    # -- the host's side -----------------------------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        return self.bench.now_ns

    def host(self, notifications: Notifications) -> None:
        self.bench.host(notifications)

    def set_target(self, pages: int) -> None:
        self.host(self.balloon.set_target(pages, self.now_ns))

    def request_stats(self) -> None:
        self.host(self.balloon.request_stats(self.now_ns))

    def hear_stats(self, stats: dict[int, int]) -> None:
        """The driver's statistics reach the device.  Of a legacy driver the first buffer says nothing (§5.5.6.3): it
        posts one before."""
        if self.driver.is_legacy:
            self.driver.post_stats(b"\xff\xff" + bytes(8))
            self.request_stats()
            assert self.driver.stats_wanted()
        self.driver.post_stats(stats)

    def set_polling_interval(self, interval_ns: int) -> None:
        self.host(self.balloon.set_polling_interval(interval_ns, self.now_ns))

    def statistics(self) -> Statistics:
        return self.balloon.statistics(self.now_ns)

    @property
    def events(self) -> list[EventLike]:
        return self.bench.events

    # -- RAM -----------------------------------------------------------------------------------------------------------

    def filled_pfns(self, count: int, byte: int = 0x5A) -> list[int]:
        """`count` pages that nobody else uses, every byte of them set, so that it shows when they are discarded."""
        gpas = [self.pages.take() for _ in range(count)]
        for gpa in gpas:
            self.memory.write(gpa, bytes([byte]) * PAGE_BYTES)
        return [gpa // PAGE_BYTES for gpa in gpas]

    def page(self, pfn: int) -> bytes:
        return self.memory.peek(pfn * PAGE_BYTES, PAGE_BYTES)

    def are_zero(self, pfns: Iterable[int]) -> bool:
        return all(self.page(pfn) == bytes(PAGE_BYTES) for pfn in pfns)

    def are_filled(self, pfns: Iterable[int], byte: int = 0x5A) -> bool:
        return all(self.page(pfn) == bytes([byte]) * PAGE_BYTES for pfn in pfns)

    def snapshot(self) -> Snapshot:
        """All of RAM as it is now."""
        return Snapshot(self.memory)

    def close(self) -> None:
        self.memory.close()


class Snapshot:
    """A copy of all RAM, to find out what somebody changed."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self._before = {region.gpa: self._copy(region.gpa, region.size) for region in memory.regions}

    def _copy(self, gpa: int, size: int) -> NDArray[np.uint8]:
        return np.frombuffer(self.memory.peek(gpa, size), np.uint8)

    def changed(self, *, outside: Iterable[tuple[int, int]] = ()) -> list[int]:
        """The first addresses (at most 16) that hold another byte now and lie in none of the (gpa, length) ranges."""
        found: list[int] = []
        for gpa, before in self._before.items():
            differs = before != self._copy(gpa, len(before))
            for start, length in outside:
                differs[max(start - gpa, 0) : max(start + length - gpa, 0)] = False
            found += [gpa + int(offset) for offset in np.flatnonzero(differs)[:16]]
        return found[:16]


class CountingMemory(GuestMemory):
    """Guest RAM that counts what is asked of it: the work behind one kick, without a clock.

    `copied_bytes` were read or gathered, `discarded_runs` given to `discard`, in any number of calls."""

    def __init__(self, layout: Sequence[tuple[int, int]] = RAM_LAYOUT) -> None:
        super().__init__(layout)
        self.restart()

    def restart(self) -> None:
        self.copied_bytes = 0
        self.discarded_runs = 0
        self.discarded_pages = 0

    def read(self, gpa: int, length: int) -> bytes:
        self.copied_bytes += length
        return super().read(gpa, length)

    def gather(self, gpas: Integers, lengths: Integers) -> Bytes:
        self.copied_bytes += int(np.sum(lengths))
        return super().gather(gpas, lengths)

    def discard(self, runs: Iterable[Run] | Integers, counts_pages: Integers | None = None) -> int:
        runs = list(runs) if counts_pages is None else runs
        self.discarded_runs += len(runs)  # type: ignore[arg-type]
        total = super().discard(runs, counts_pages)
        self.discarded_pages += total // PAGE_BYTES
        return total

    def discard_run(self, pfn: int, count_pages: int) -> int:
        self.discarded_runs += 1
        total = super().discard_run(pfn, count_pages)
        self.discarded_pages += total // PAGE_BYTES
        return total
