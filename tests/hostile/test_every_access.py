"""Accesses of every width, alignment and straddle to every register of the board.

One rule answers nearly all of them: an access is what its bytes are, one by one in ascending order, so that a register
reached in parts or together with its neighbours gives and takes what it would alone.  `WHOLE` are the registers that
answer in their own width only, or act once an access; their tests stand with their devices.  What straddles a range's
edge is cut there, and where nobody answers reads give ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from devices.bus import AddressSpace
from devices.effects import NOTHING, Effects
from devices.virtio import spec
from vmm.boards.pc import ECAM_BASE, PcBoard
from vmm.config import make_config
from vmm.testing import BalloonDriver, BenchBus, PageAllocator, PciTransport

NOW_NS = 1_000_000
DRIVER_RAM = (0x100000, 0x100000)
APIC_SLOT_BYTES, APIC_REGISTERS_END = 16, 0x400
LARGEST = 256
"""Of larger blocks the first bytes are looked at, and the last; behind them nothing else begins."""

WHOLE = {
    **dict.fromkeys((("port", 0xCF8 + i) for i in range(4)), "the configuration address, 32 bits (PCI 3.0 §3.2.2.3.2)"),
    ("port", 0x510): "fw_cfg's selector, 16 bits",
    **dict.fromkeys((("port", 0x514 + i) for i in range(8)), "fw_cfg's DMA address, two halves of 32 bits"),
    **dict.fromkeys((("memory", 0xFEE000B0 + i) for i in range(4)), "end of interrupt: one service an access"),
    **dict.fromkeys((("memory", 0xFEE00280 + i) for i in range(4)), "APIC errors: logged ones move up at each write"),
    **dict.fromkeys((("memory", 0xFEE00300 + i) for i in range(4)), "interrupt command: one an access"),
}


class Bench:
    """A whole board whose balloon is at work, put back to the same state for each access."""

    def __init__(self) -> None:
        self.board = PcBoard(make_config("hello", memory="2M", devices=("virtio-balloon-pci", "virtio-rng-pci")))
        bus = BenchBus(self.board.memory, self.board.ports, self.board.mmio)
        self.transport = PciTransport.find(bus, spec.DeviceId.BALLOON, PageAllocator(*DRIVER_RAM))
        BalloonDriver(self.transport).start()
        bus.mmio_write(0xFEE000F0, 4, 0x1FF)
        bus.mmio_write(0xFEE00380, 4, 100_000)
        for port, value in ((0x20, 0x11), (0x21, 0x08), (0x21, 0x04), (0x21, 0x01), (0x43, 0x34), (0x3FB, 0x83)):
            bus.port_write(port, 1, value)
        self.start = self.board.save_state()
        self.ram = self.board.memory.peek(*DRIVER_RAM)

    def space(self, name: str) -> AddressSpace:
        return self.board.ports if name == "port" else self.board.mmio

    def restart(self) -> None:
        if self.board.save_state() != self.start:
            self.board.restore_state(self.start)

    def outcome(self, effects: Effects) -> tuple[object, ...]:
        """What can be told from outside after an access: the state, and what left the devices."""
        return self.board.save_state(), set(effects.messages), effects.stop, effects.ended_vectors


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.board.memory.close()


def blocks() -> list[tuple[str, str, int, list[int]]]:
    """(space, name, first address, offsets worth looking at) of every register block that the board has."""
    bench = Bench()
    found = []
    for space in (bench.board.ports, bench.board.mmio):
        for block in space.ranges:
            if block.base == ECAM_BASE:
                continue
            size = block.length
            offsets = [*range(-7, min(size, LARGEST)), *range(max(size - 8, LARGEST), size)]
            if block.handler is bench.board.lapic:
                edges = (0, 1, 2, 3, 4, 8, 13, 15)
                offsets = [at + edge for at in range(0, APIC_REGISTERS_END, APIC_SLOT_BYTES) for edge in edges]
            found.append((space.name, f"{block.owner} at {block.base:#x}", block.base, offsets))
    for cfg_type in (spec.VIRTIO_PCI_CAP_ISR_CFG, spec.VIRTIO_PCI_CAP_DEVICE_CFG, spec.VIRTIO_PCI_CAP_NOTIFY_CFG):
        gpa = bench.transport.structure_gpa(cfg_type)
        found.append(("memory", f"structure {cfg_type} of the balloon", gpa, list(range(24))))
    assert bench.transport.msix is not None
    found.append(("memory", "pending bits of the balloon", bench.transport.msix.pba_gpa, list(range(-7, 16))))
    for function in bench.board.host_bridge.functions.values():
        config = ECAM_BASE + (function.devfn << 12)
        found.append(("memory", f"configuration of {function.name}", config, list(range(264))))
    bench.board.memory.close()
    return found


BLOCKS = blocks()
NAMES = [name for _, name, *_ in BLOCKS]
EVERY_BLOCK = pytest.mark.parametrize(
    ("space", "base", "offsets"), [(space, base, at) for space, _, base, at in BLOCKS], ids=NAMES
)


def accesses(space: str, base: int, offsets: list[int]) -> Iterator[tuple[int, int]]:
    """(address, size) of all that the rule is for."""
    for offset in offsets:
        for size in (2, 4) if space == "port" else (2, 4, 8):
            covered = range(base + offset, base + offset + size)
            if base + offset >= 0 and not any((space, address) in WHOLE for address in covered):
                yield base + offset, size


@EVERY_BLOCK
def test_a_read_gives_what_its_bytes_give(bench: Bench, space: str, base: int, offsets: list[int]) -> None:
    bus = bench.space(space)
    for address, size in accesses(space, base, offsets):
        bench.restart()
        value, effects = bus.read(address, size, NOW_NS)
        together = value, bench.outcome(effects)
        bench.restart()
        value, effects = 0, NOTHING
        for i in range(size):
            byte, more = bus.read(address + i, 1, NOW_NS)
            assert 0 <= byte <= 0xFF
            value, effects = value | byte << 8 * i, effects | more
        assert together == (value, bench.outcome(effects)), f"{size} bytes at {address:#x}"


@EVERY_BLOCK
def test_a_write_does_what_its_bytes_do(bench: Bench, space: str, base: int, offsets: list[int]) -> None:
    bus, values = bench.space(space), random.Random(base)
    for address, size in accesses(space, base, offsets):
        value = values.getrandbits(8 * size)
        bench.restart()
        together = bench.outcome(bus.write(address, size, value, NOW_NS))
        bench.restart()
        effects = NOTHING
        for i in range(size):
            effects |= bus.write(address + i, 1, value >> 8 * i & 0xFF, NOW_NS)
        assert together == bench.outcome(effects), f"{size} bytes at {address:#x}: {value:#x}"
    bench.restart()
    assert bench.board.memory.peek(*DRIVER_RAM) == bench.ram


@pytest.mark.parametrize(("space", "address"), WHOLE, ids=lambda value: hex(value) if isinstance(value, int) else value)
def test_a_register_that_is_only_whole_survives_every_width(bench: Bench, space: str, address: int) -> None:
    bus, values = bench.space(space), random.Random(address)
    for start in range(address - 3, address + 4):
        for size in (1, 2, 4):
            bench.restart()
            value, _ = bus.read(start, size, NOW_NS)
            assert 0 <= value < 1 << 8 * size
            bus.write(start, size, values.getrandbits(8 * size), NOW_NS)
    bench.restart()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_an_access_across_two_structures_of_the_transport_reaches_only_the_first(bench: Bench, size: int) -> None:
    """Each structure has a page of its own (§4.1.4): what begins in one page never acts on the next."""
    bench.restart()
    bus = bench.board.mmio
    for cfg_type in (spec.VIRTIO_PCI_CAP_ISR_CFG, spec.VIRTIO_PCI_CAP_DEVICE_CFG, spec.VIRTIO_PCI_CAP_NOTIFY_CFG):
        gpa = bench.transport.structure_gpa(cfg_type)
        assert bus.read(gpa - 1, size, NOW_NS) == (0, NOTHING)
        assert bus.write(gpa - 1, size, (1 << 8 * size) - 1, NOW_NS) == NOTHING
        assert bench.board.save_state() == bench.start


def test_an_apic_access_that_touches_a_slot_without_a_register_is_logged(bench: Bench) -> None:
    """Whichever of two slots it is: 2F0h has no register, 300h has one."""
    for address in (0xFEE002FE, 0xFEE002F0, 0xFEE0030E):
        bench.restart()
        bench.board.mmio.read(address, 4, NOW_NS)
        logged = bench.board.lapic.logged_errors
        assert logged == (0 if address == 0xFEE0030E else 1 << 7)
    bench.restart()
