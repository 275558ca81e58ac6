"""The same balloon scenario over MSI-X and over INTx, through every controller of the board: the results are equal.

The driver is the public library on the whole board's buses; a processor is played by asking for vectors, as the CPU
does, and by answering each with the ends of interrupt that a handler would write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from devices.effects import Effects
from devices.virtio.transport.pci_modern import VirtioPciModern
from vmm.boards.pc import PcBoard
from vmm.config import make_config
from vmm.testing import BalloonDriver, BenchBus, PageAllocator, PciTransport
from vmm.testing.pci import PciBus

Path = Literal["msix", "intx through the I/O APIC", "intx through the 8259"]
PATHS: tuple[Path, ...] = ("msix", "intx through the I/O APIC", "intx through the 8259")

APIC, IO_APIC = 0xFEE00000, 0xFEC00000
MSIX_VECTOR, IO_APIC_VECTOR, PIC_BASE = 0x40, 0x60, 0x20
BALLOON_PIN, BALLOON_INPUT = 18, 11  # slot 3: PIRQC


class WiredBus(BenchBus):
    """A board's buses whose lines, messages and ends of interrupt reach the controllers."""

    def __init__(self, board: PcBoard) -> None:
        super().__init__(board.memory, board.ports, board.mmio)
        self.board = board

    def deliver(self, effects: Effects) -> None:  # type: ignore[override]
        super().deliver(effects)
        wiring = self.board.interrupts
        for line in effects.lines:
            self.deliver(wiring.set_line(line.name, line.level))
        for message in effects.messages:
            if self.board.is_interrupt_address(message.address):
                self.deliver(self.board.lapic.message(message.address, message.data))
        for vector in effects.ended_vectors:
            self.deliver(wiring.end_of_interrupt(vector))
        if effects.rewired:
            self.deliver(wiring.rewire())


@dataclass
class Bench:
    """The board, its driver, and what a processor has seen."""

    path: Path
    bus: WiredBus
    driver: BalloonDriver
    vectors: Counter[int]

    def take_interrupts(self) -> int:
        """Serve everything that waits; returns how many interrupts there were."""
        wiring, served = self.bus.board.interrupts, 0
        while wiring.is_pending():
            vector = wiring.acknowledge()
            self.vectors[vector] += 1
            served += 1
            assert served < 10, "the device does not let its line go"
            self.driver.transport.take_interrupts()  # over INTx this reads the ISR, which lets the line go
            if PIC_BASE <= vector < PIC_BASE + 16:
                self.bus.port_write(0xA0, 1, 0x20)
                self.bus.port_write(0x20, 1, 0x20)
            else:
                self.bus.mmio_write(APIC + 0xB0, 4, 0)
        return served


def set_up(board: PcBoard, path: Path) -> Bench:
    bus = WiredBus(board)
    bus.mmio_write(APIC + 0xF0, 4, 0x1FF)
    PciBus(bus).assign_bars()
    interrupts: Literal["msix", "intx"] = "msix" if path == "msix" else "intx"
    transport = PciTransport.find(bus, 5, PageAllocator(0x100000, 4 << 20), interrupts)
    if path == "msix":
        assert transport.msix is not None
        for vector in range(transport.msix.table_size):
            transport.msix.point(vector, APIC, MSIX_VECTOR + vector)
    elif path == "intx through the I/O APIC":
        for index, value in ((0x10 + 2 * BALLOON_PIN, 1 << 15 | IO_APIC_VECTOR), (0x11 + 2 * BALLOON_PIN, 0)):
            bus.mmio_write(IO_APIC, 4, index)
            bus.mmio_write(IO_APIC + 0x10, 4, value)
    else:
        bus.mmio_write(APIC + 0x350, 4, 0x700)  # the virtual wire
        for port, words in ((0x20, (0x11, PIC_BASE, 4, 1)), (0xA0, (0x11, PIC_BASE + 8, 2, 1))):
            bus.port_write(port, 1, words[0])
            for word in words[1:]:
                bus.port_write(port + 1, 1, word)
        bus.port_write(0x4D1, 1, 1 << BALLOON_INPUT - 8)
        bus.port_write(0xCF8, 4, 0x8000_0860)
        bus.port_write(0xCFC, 4, 0x80008080 | BALLOON_INPUT << 16)
    return Bench(path, bus, BalloonDriver(transport), Counter())


@pytest.fixture(params=PATHS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    board = PcBoard(make_config("hello", memory="16M"))
    yield set_up(board, request.param)
    board.memory.close()


def scenario(bench: Bench) -> dict[str, object]:
    """Target, inflate, statistics, deflate; after each step the interrupts are served."""
    board, driver, steps = bench.bus.board, bench.driver, []
    transport, device = board.need_balloon()
    driver.start()
    bench.take_interrupts()

    def host(effects: Effects) -> None:
        bench.bus.deliver(effects)
        steps.append(bench.take_interrupts() > 0)

    host(transport.signal(device.set_target(64, 0)))
    pfns = list(range(0x800, 0x840))
    driver.inflate(pfns)
    steps.append(bench.take_interrupts() > 0)
    driver.post_stats([(4, 0x1000)])
    steps.append(bench.take_interrupts() > 0)
    host(transport.signal(device.request_stats(0)))
    driver.deflate(pfns[:16])
    steps.append(bench.take_interrupts() > 0)
    return {
        "steps": steps,
        "statistics": device.statistics(0).raw,
        "inflated": device.inflated_pages,
        "deflated": device.deflated_pages,
        "target": device.target_pages,
        "bad": device.bad_pfns,
        "discarded": device.discarded_bytes,
    }


EXPECTED_VECTORS: dict[Path, set[int]] = {
    "msix": {MSIX_VECTOR, MSIX_VECTOR + 1, MSIX_VECTOR + 2, MSIX_VECTOR + 3},
    "intx through the I/O APIC": {IO_APIC_VECTOR},
    "intx through the 8259": {PIC_BASE + BALLOON_INPUT},
}


def test_the_interrupts_come_the_way_that_was_set_up(bench: Bench) -> None:
    scenario(bench)
    assert bench.vectors.keys() == EXPECTED_VECTORS[bench.path]


def test_every_way_gives_the_same_results() -> None:
    results = []
    for path in PATHS:
        board = PcBoard(make_config("hello", memory="16M"))
        results.append(scenario(set_up(board, path)))
        board.memory.close()
    assert results[0]["steps"] == [True, True, False, True, True]
    assert (results[0]["inflated"], results[0]["deflated"]) == (64, 16)
    assert results[1:] == results[:1] * 2


def test_an_interrupt_that_the_command_register_disables_waits_in_the_status(bench: Bench) -> None:
    if bench.path == "msix":
        assert scenario(bench)["steps"] == [True, True, False, True, True]
        return
    transport, device = bench.bus.board.need_balloon()
    assert isinstance(transport, VirtioPciModern)
    bench.driver.start()
    bench.take_interrupts()
    command = transport.config["command"]
    bench.bus.port_write(0xCF8, 4, 0x8000_1804)
    bench.bus.port_write(0xCFC, 2, command | 1 << 10)
    bench.bus.deliver(transport.signal(device.set_target(64, 0)))
    assert bench.take_interrupts() == 0
    assert transport.config["status"] & 1 << 3
    bench.bus.port_write(0xCF8, 4, 0x8000_1804)
    bench.bus.port_write(0xCFC, 2, command)
    assert bench.take_interrupts() == 1
    assert not transport.config["status"] & 1 << 3
