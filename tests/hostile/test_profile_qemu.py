"""The profile "qemu" beside QEMU itself: the same driver makes the same mistakes in both, over qtest.

What is known to differ is in a table with its reason, and must differ: a row that is no longer true shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from devices.virtio.profiles import PROFILES
from tests.fixtures import MakeMachine
from tests.hostile.guest_errors import WRONG_ROUND, start
from tests.hostile.qemu import PROGRAM, QemuBus
from vmm.testing import BalloonDriver, PageAllocator, PciTransport, RawPackedQueue, RawQueue
from vmm.testing.balloon import INFLATEQ, pfn_bytes
from vmm.testing.mistakes import RING_MISTAKES, Mistake
from vmm.testing.packed_mistakes import PACKED_MISTAKES, PackedMistake

pytestmark = [
    pytest.mark.beside_qemu,
    pytest.mark.skipif(PROGRAM is None, reason="qemu-system-x86_64 is not installed"),
]

BALLOON = 5
DIFFERS = {
    "buffer_of_4_gib": "QEMU reads no more than a page outside RAM",
    "chain_longer_than_the_queue": "QEMU takes tables of up to 1024 descriptors",
    "packed_buffer_of_4_gib": "QEMU reads no more than a page outside RAM",
    "table_longer_than_the_queue": "QEMU takes tables of up to 1024 descriptors",
    "list_that_goes_on_in_the_wrong_round": "QEMU takes what is not available",
    "packed_table_of_no_bytes": "QEMU 7.2 ends",
}


class Seen(NamedTuple):
    """What the driver sees: whether a reset is needed, and which names came back."""

    needs_reset: bool
    returned: tuple[int, ...]


def drive(driver: BalloonDriver, mistake: Mistake | PackedMistake) -> Seen:
    """A good request, the mistake, a good request, each with a notification of its own."""
    memory, packed = driver.memory, isinstance(mistake, PackedMistake)
    raw = RawPackedQueue(driver, INFLATEQ) if packed else RawQueue(driver, INFLATEQ)

    def request(name: int) -> int:
        gpa = driver.pages.take()
        memory.write(gpa, b"Z" * 64)
        at = raw.buffer(pfn_bytes([gpa >> 12]))
        if isinstance(raw, RawPackedQueue):
            raw.descriptor(at, 4, 0, name)
        else:
            raw.descriptor(name, at, 4)
            raw.available(name)
        raw.kick()
        return gpa

    first = request(20)
    mistake.make(raw)  # type: ignore[arg-type]
    raw.kick()
    needs_reset = driver.needs_reset
    if not needs_reset:
        if mistake.name == WRONG_ROUND and isinstance(raw, RawPackedQueue):
            raw.next.advance(2 * raw.size - 1)
        last = request(30)
        assert memory.read(last, 64) == bytes(64) or mistake.name == WRONG_ROUND
    assert memory.read(first, 64) == bytes(64)
    returned = raw.ids_returned() if isinstance(raw, RawPackedQueue) else raw.heads_returned()
    return Seen(needs_reset, tuple(returned))


@pytest.fixture
def boards(tmp_path: Path) -> Iterator[list[QemuBus]]:
    made: list[QemuBus] = []
    yield made
    for board in made:
        board.close()


@pytest.mark.parametrize("mistake", (*RING_MISTAKES, *PACKED_MISTAKES), ids=lambda mistake: mistake.name)
def test_a_mistake_has_the_same_effect_in_qemu(
    make_machine: MakeMachine, boards: list[QemuBus], tmp_path: Path, mistake: Mistake | PackedMistake
) -> None:
    packed = isinstance(mistake, PackedMistake)
    board = QemuBus(tmp_path, f"packed={'on' if packed else 'off'}")
    boards.append(board)
    transport = PciTransport.find(board, BALLOON, PageAllocator(0x100_0000, 0x100_0000), "intx")
    theirs = BalloonDriver(transport)
    theirs.start(transport.read_device_features() & ~mistake.without)
    assert theirs.features & mistake.needs == mistake.needs
    ours = start(make_machine, "packed-pci" if packed else "pci", PROFILES["qemu"].policy, mistake).machine.driver
    try:
        seen = drive(theirs, mistake)
    except EOFError:
        seen = None
    assert (seen == drive(ours, mistake)) == (mistake.name not in DIFFERS), DIFFERS.get(mistake.name, seen)
