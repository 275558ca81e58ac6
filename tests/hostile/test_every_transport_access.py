"""Accesses of every width, alignment and straddle to the registers of every transport but the board's usual one.

`test_every_access.py` has the rule, an access is what its bytes are, and goes through the board; here are the blocks
that the board has only where they are asked for.  Registers that act on a whole value (queue address, queue notify,
vectors, and all of virtio-mmio's) take no part of one: an access that covers all of them writes them, or none does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from devices.bus import AddressSpace
from devices.effects import NOTHING, Effects
from devices.memory import GuestMemory
from tests.support import MMIO_BASE, RAM_LAYOUT, BalloonMachine, Way
from vmm.testing import LegacyPciTransport, PciTransport

NOW_NS = 1_000_000
HEADER_WHOLE = {"without MSI-X": ((8, 4), (16, 2)), "with MSI-X": ((8, 4), (16, 2), (20, 2), (22, 2))}
"""(offset, bytes) of the legacy registers that are whole; behind 20 there is configuration without MSI-X."""
MMIO_REGISTERS_END, LARGEST = 0x100, 0x110


class Block(NamedTuple):
    """Registers of `length` bytes from `base` on, of which those at `whole` (offset, bytes) take whole values only."""

    machine: BalloonMachine
    space: AddressSpace
    base: int
    length: int
    whole: tuple[tuple[int, int], ...]

    def accesses(self) -> Iterator[tuple[int, int]]:
        """(offset, size), a few bytes before and behind included; half of a large block is what lies behind the end."""
        for offset in (*range(-3, min(self.length, LARGEST)), self.length - 1, self.length + 1):
            yield from ((offset, size) for size in ((2, 4) if self.space.name == "port" else (2, 4, 8)))

    def pieces(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """What an access is made of: whole registers where it covers one, and bytes."""
        position = offset
        while position < offset + size:
            width = next((each for at, each in self.whole if at == position and at + each <= offset + size), 1)
            yield position, width
            position += width

    def restart(self, state: object) -> None:
        if self.machine.function.save_state() != state:
            self.machine.function.restore_state(state)

    def outcome(self, effects: Effects) -> tuple[object, ...]:
        return self.machine.function.save_state(), set(effects.messages), effects.stop


CASES: dict[str, Way] = {
    "legacy with MSI-X": "legacy",
    "legacy without MSI-X": "legacy-intx",
    "transitional, legacy driver": "transitional-legacy",
    "transitional, modern driver": "transitional",
    "virtio-mmio": "mmio",
    "virtio-mmio version 1": "mmio-legacy",
}


@pytest.fixture(params=CASES)
def block(request: pytest.FixtureRequest) -> Iterator[Block]:
    """A balloon at work behind the registers."""
    way = CASES[request.param]
    machine = BalloonMachine(way, memory=GuestMemory(RAM_LAYOUT[:2]))  # a balloon's state is as large as its RAM
    machine.driver.start()
    machine.driver.inflate(machine.filled_pfns(3))
    yield make_block(machine, way)
    machine.close()


def make_block(machine: BalloonMachine, way: Way) -> Block:
    transport = machine.driver.transport
    if way.startswith("mmio"):
        registers = tuple((offset, 4) for offset in range(0, MMIO_REGISTERS_END, 4))
        assert isinstance(machine.bus.mmio, AddressSpace)
        return Block(machine, machine.bus.mmio, MMIO_BASE, 0x200, registers)
    assert isinstance(transport, LegacyPciTransport | PciTransport) and isinstance(machine.bus.ports, AddressSpace)
    with_msix = not way.endswith("intx")
    whole = HEADER_WHOLE["with MSI-X" if with_msix else "without MSI-X"]
    return Block(machine, machine.bus.ports, transport.bar_addresses[0], 32, whole)


def test_a_read_gives_what_its_bytes_give(block: Block) -> None:
    start = block.machine.function.save_state()
    for offset, size in block.accesses():
        address = block.base + offset
        block.restart(start)
        value, effects = block.space.read(address, size, NOW_NS)
        together = value, block.outcome(effects)
        block.restart(start)
        value, effects = 0, NOTHING
        for i in range(size):
            byte, more = block.space.read(address + i, 1, NOW_NS)
            value, effects = value | byte << 8 * i, effects | more
        assert together == (value, block.outcome(effects)), f"{size} bytes at {offset:#x}"


def test_a_write_does_what_its_whole_registers_and_bytes_do(block: Block) -> None:
    start, values = block.machine.function.save_state(), random.Random(block.base)
    before = block.machine.snapshot()
    for offset, size in block.accesses():
        address, value = block.base + offset, values.getrandbits(8 * size)
        block.restart(start)
        together = block.outcome(block.space.write(address, size, value, NOW_NS))
        block.restart(start)
        effects = NOTHING
        for position, width in block.pieces(offset, size):
            part = value >> 8 * (position - offset) & (1 << 8 * width) - 1
            effects |= block.space.write(block.base + position, width, part, NOW_NS)
        assert together == block.outcome(effects), f"{size} bytes at {offset:#x}: {value:#x}"
    assert before.changed() == []


def test_a_part_of_a_whole_register_is_never_written(block: Block) -> None:
    start = block.machine.function.save_state()
    for at, width in block.whole:
        for size in (1, 2):
            for offset in range(at, at + width - size + 1):
                if size < width:
                    effects = block.space.write(block.base + offset, size, (1 << 8 * size) - 1, NOW_NS)
                    assert effects == NOTHING and block.machine.function.save_state() == start, hex(offset)


def test_no_value_of_any_register_raises_or_reaches_ram_that_is_not_the_queues(block: Block) -> None:
    """Each register with extreme values, on a driver's device; afterwards a reset makes all of it good again."""
    machine, start = block.machine, block.machine.function.save_state()
    rings = [(queue.ring_gpa, 4096 * queue.ring_pages) for queue in machine.driver.queues.values()]
    before = machine.snapshot()
    for offset in range(0, min(block.length, LARGEST), 2):
        for size in (2, 4) if block.space.name == "port" else (4,):
            for value in (0, 1, 3, 0x7FFF_FFFF, 0xFFFF_FFFF):
                block.restart(start)
                block.space.write(block.base + offset, size, value & (1 << 8 * size) - 1, NOW_NS)
                for queue in range(3):
                    machine.balloon.notify(queue, NOW_NS)
    assert before.changed(outside=rings) == []
    block.restart(start)
    machine.driver.start()
    assert len(machine.driver.inflate(machine.filled_pfns(2))) == 1
