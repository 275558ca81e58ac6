"""One board without a CPU, the balloon on it, and a driver: what a check works with.

Owns the life of the board and the few verbs that checks need of the host's side and of RAM.  It refuses to know what is
checked.  Contents of RAM are read without the mapping, so that looking brings no page back that was given away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from devices.memory import PAGE_BYTES
from devices.virtio.spec import ByteOrder
from vmm.boards.pc import PcBoard
from vmm.config import make_config
from vmm.conformance.transports import TransportRow
from vmm.models import MODERN_ONLY
from vmm.testing import BalloonDriver, BenchBus, PageAllocator, RawQueue
from vmm.testing.balloon import INFLATEQ, STATSQ, Stats, pfn_bytes
from vmm.testing.bench import BusBench
from vmm.testing.legacy_pci import LegacyPciTransport
from vmm.testing.mmio import MmioTransport
from vmm.testing.pci import Function
from vmm.testing.protocols import Transport
from vmm.testing.ring import Used
from vmm.testing.virtio_pci import PciTransport

MIB = 1 << 20
MEMORY = "4M"
DRIVER_PAGES = (2 * MIB, 4 * MIB)
FILLED = 0x5A


class Violation(AssertionError):
    """The device breaks the statement; the message says what it did."""


class DoesNotApply(Exception):
    """The statement is about something that the device does not have; the message says what."""


class NotBuilt(Exception):
    """There is no board to try anything on."""


def equal(what: str, got: object, wanted: object) -> None:
    """Violation unless both are equal."""
    if got != wanted:
        raise Violation(f"{what} is {_show(got)}, not {_show(wanted)}")


def holds(what: str, condition: object) -> None:
    """Violation, with the sentence `what` denied, unless it is so."""
    if not condition:
        raise Violation(f"not so: {what}")


def applies(reason: str, condition: object) -> None:
    """DoesNotApply, for the reason, unless it is so."""
    if not condition:
        raise DoesNotApply(reason)


def _show(value: object) -> str:
    if isinstance(value, bytes) and len(value) > 16:
        return f"{value[:16].hex(' ')} … ({len(value)} bytes)"
    if isinstance(value, list) and len(value) > 16:
        return f"[{', '.join(map(_show, value[:16]))}, … ({len(value)} values)]"
    return repr(value)


class Rig:
    """A board whose balloon has `properties` besides those of the transport, in the spelling of `-device`, and whose
    driver runs on a processor of that byte order.  The driver looks for its device when it is first asked for."""

    def __init__(self, row: TransportRow, properties: str = "", processor: ByteOrder = "<") -> None:
        self.row = row
        config = make_config("hello", memory=MEMORY, devices=(_device(row.device, properties),))
        self.board = PcBoard(config)
        self.memory = self.board.memory
        self.bus = BenchBus(self.memory, self.board.ports, self.board.mmio)
        self.pages = PageAllocator(*DRIVER_PAGES)
        self._slot = config.devices[0].slot
        self._function, self.balloon = self.board.need_balloon()
        self.balloon.driver_order = self._processor = processor

    @cached_property
    def transport(self) -> Transport:
        """The driver's end of the transport."""
        return self.row.connect(self.bus, self.pages)

    @cached_property
    def driver(self) -> BalloonDriver:
        """The driver, which has not touched the device yet."""
        return BalloonDriver(self.transport, processor=self._processor)

    @cached_property
    def _bench(self) -> BusBench[Any]:
        return BusBench(self.bus, self.transport, self._function)

    def close(self) -> None:
        self.memory.close()

    # -- the driver's side ---------------------------------------------------------------------------------------------

    @property
    def pci(self) -> PciTransport:
        """The driver's end of the modern PCI transport."""
        if not isinstance(self.transport, PciTransport):
            raise TypeError(f"{self.row.name} is no modern PCI transport")
        return self.transport

    @property
    def mmio(self) -> MmioTransport:
        """The driver's end of virtio-mmio, of either version."""
        if not isinstance(self.transport, MmioTransport):
            raise TypeError(f"{self.row.name} is no virtio-mmio transport")
        return self.transport

    @property
    def any_pci(self) -> PciTransport | LegacyPciTransport:
        """The driver's end of either PCI transport."""
        if not isinstance(self.transport, PciTransport | LegacyPciTransport):
            raise TypeError(f"{self.row.name} is no PCI transport")
        return self.transport

    @property
    def function(self) -> Function:
        """The function in the balloon's slot of the PCI bus, whoever it says it is."""
        return Function(self.bus, self._slot)

    @property
    def offered(self) -> int:
        """The mask of features that the device offers."""
        return self.transport.read_device_features()

    def start(self, *, without: int = 0) -> None:
        """Initialise the device with all features that are offered but those in the mask; interrupts are forgotten."""
        self.driver.start(self.offered & self.driver.supported & ~without)
        self.driver.take_interrupts()

    def prepare(self) -> None:
        """Everything up to DRIVER_OK."""
        self.driver.reset()
        self.driver.acknowledge()
        self.driver.negotiate()
        self.driver.set_up_queues()

    def raw(self, queue: int = INFLATEQ) -> RawQueue:
        """Raw access to a queue."""
        return RawQueue(self.driver, queue)

    def inflate(self, *pfns: int) -> list[Used]:
        """One request for pages, each page in a buffer of its own."""
        return self.driver.transfer(INFLATEQ, readable=[pfn_bytes([pfn], self.driver.order) for pfn in pfns])

    def interrupts_for(self, queue: int) -> int:
        """Used buffer notifications since the last look."""
        return self.driver.take_interrupts().for_queue(queue)

    # -- the host's side -----------------------------------------------------------------------------------------------

    def set_target(self, pages: int) -> None:
        """The host wants `pages` in the balloon."""
        self._bench.host(self.balloon.set_target(pages, self._bench.now_ns))

    def request_stats(self) -> None:
        """The host wants statistics."""
        self._bench.host(self.balloon.request_stats(self._bench.now_ns))

    def start_hinting(self) -> None:
        """The host asks for hints of free pages."""
        self._bench.host(self.balloon.start_hinting(self._bench.now_ns))

    def stop_hinting(self) -> None:
        """The host wants no hints any more."""
        self._bench.host(self.balloon.stop_hinting(self._bench.now_ns))

    def done_hinting(self) -> None:
        """The host needs the hinted pages no longer."""
        self._bench.host(self.balloon.done_hinting(self._bench.now_ns))

    def statistics(self) -> dict[str, int]:
        """What the host knows of the guest's memory, by QEMU's names."""
        return dict(self.balloon.statistics(self._bench.now_ns).values)

    def advance(self, duration_ns: int) -> None:
        """Let guest time pass."""
        self._bench.advance(duration_ns)

    # -- RAM -----------------------------------------------------------------------------------------------------------

    def hear(self, stats: Stats) -> None:
        """The host asks for statistics, and the driver answers.

        What a legacy driver sends first says nothing (§5.5.6.3.1): it sends another buffer before."""
        if self.driver.is_legacy and not self.driver.queues[STATSQ].in_flight:
            self.driver.post_stats(b"\xff\xff" + bytes(8))
        if self.driver.queues[STATSQ].in_flight:
            self.request_stats()
            self.driver.collect(STATSQ)
        self.driver.post_stats(stats)

    def filled(self, count: int = 1) -> list[int]:
        """Page frame numbers of pages that nobody else uses, every byte of them set."""
        pfns = [self.pages.take() // PAGE_BYTES for _ in range(count)]
        for pfn in pfns:
            self.memory.write(pfn * PAGE_BYTES, bytes([FILLED]) * PAGE_BYTES)
        return pfns

    def page(self, pfn: int) -> bytes:
        return self.memory.peek(pfn * PAGE_BYTES, PAGE_BYTES)

    def are_kept(self, pfns: Iterable[int]) -> bool:
        """Whether the pages hold what `filled` put there."""
        return all(self.page(pfn) == bytes([FILLED]) * PAGE_BYTES for pfn in pfns)

    def are_given(self, pfns: Iterable[int]) -> bool:
        """Whether the host has taken the pages: they read as zeros."""
        return all(self.page(pfn) == bytes(PAGE_BYTES) for pfn in pfns)

    def changed_by(self, work: Callable[[], object], *, outside: Sequence[tuple[int, int]] = ()) -> list[str]:
        """The first addresses whose bytes `work` changes, other than those in the (gpa, length) ranges."""
        before = {region.gpa: self._copy(region.gpa, region.size) for region in self.memory.regions}
        work()
        found: list[str] = []
        for gpa, old in before.items():
            differs = np.frombuffer(old, np.uint8) != np.frombuffer(self._copy(gpa, len(old)), np.uint8)
            for start, length in outside:
                differs[max(start - gpa, 0) : max(start + length - gpa, 0)] = False
            found += [f"{gpa + int(offset):#x}" for offset in np.flatnonzero(differs)[:8]]
        return found[:8]

    def _copy(self, gpa: int, size: int) -> bytes:
        return self.memory.peek(gpa, size)


def _device(device: str, properties: str) -> str:
    """`device` with the `properties` that it can have: a legacy one has no bits for some features."""
    is_legacy = "disable-modern=on" in device or "force-legacy=on" in device
    words = [word for word in properties.split(",") if not is_legacy or word.partition("=")[0] not in MODERN_ONLY]
    return ",".join(filter(None, (device, *words)))


class Rigs:
    """Builds the rigs of one check over one transport, and takes them down again."""

    def __init__(self, row: TransportRow) -> None:
        self.row = row
        self._made: list[Rig] = []

    def __call__(self, properties: str = "", *, processor: ByteOrder = "<") -> Rig:
        """A rig whose driver has not touched the device.  NotBuilt if the board cannot be made."""
        try:
            rig = Rig(self.row, properties, processor)
        except Exception as error:
            raise NotBuilt(f"the board cannot be built: {type(error).__name__}: {error}") from error
        self._made.append(rig)
        return rig

    def started(self, properties: str = "", *, without: int = 0, processor: ByteOrder = "<") -> Rig:
        """A rig whose driver is at work."""
        rig = self(properties, processor=processor)
        rig.start(without=without)
        return rig

    def close(self) -> None:
        for rig in self._made:
            rig.close()
