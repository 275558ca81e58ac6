"""What the tests of policies share: a balloon with a policy, and requests written into its rings by hand."""

from __future__ import annotations

from typing import NamedTuple

from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon
from devices.virtio.balloon.device import DEFAULT_FEATURES
from devices.virtio.policy import Policy
from tests.fixtures import MakeMachine
from tests.support import BalloonMachine, Way
from vmm.testing import RawPackedQueue, RawQueue
from vmm.testing.balloon import INFLATEQ, pfn_bytes
from vmm.testing.driver import EVENT_IDX
from vmm.testing.mistakes import Mistake
from vmm.testing.packed_mistakes import PackedMistake

JUMPS = ("available_index_jumps", "available_index_goes_back", "available_index_half_way_round")
"""Mistakes without a chain: what is pending then is lost."""
NO_HEADS = ("head_out_of_range", "head_far_out_of_range")
WRONG_ROUND = "list_that_goes_on_in_the_wrong_round"


class Requests(NamedTuple):
    """Inflate requests of one page each, under names that no mistake uses."""

    machine: BalloonMachine
    raw: RawQueue | RawPackedQueue

    def make(self, *names: int) -> list[int]:
        """Make one request for each name available; their pages, which are full."""
        pfns = self.machine.filled_pfns(len(names))
        for name, pfn in zip(names, pfns, strict=True):
            gpa = self.raw.buffer(pfn_bytes([pfn]))
            if isinstance(self.raw, RawPackedQueue):
                self.raw.descriptor(gpa, 4, 0, name)
            else:
                self.raw.descriptor(name, gpa, 4)
                self.raw.available(name)
        return pfns

    def mistake(self, mistake: Mistake | PackedMistake) -> None:
        """Make the mistake; where a packed list is cut short, the driver goes on behind the cut."""
        if isinstance(mistake, PackedMistake):
            assert isinstance(self.raw, RawPackedQueue)
            mistake.make(self.raw)
            if mistake.name == WRONG_ROUND:
                self.raw.next.advance(2 * self.raw.size - 1)
        else:
            assert isinstance(self.raw, RawQueue)
            mistake.make(self.raw)

    @property
    def skipped(self) -> int:
        return self.machine.balloon.queues[self.raw.index].skipped

    @property
    def dropped(self) -> int:
        return self.machine.balloon.queues[self.raw.index].dropped


def start(
    make_machine: MakeMachine,
    way: Way,
    policy: Policy,
    mistake: Mistake | PackedMistake | None = None,
    *,
    event_idx: bool = True,
    in_order: bool = False,
) -> Requests:
    """A started machine over `way` whose balloon has the policy, and its inflateq."""
    features = DEFAULT_FEATURES | in_order << spec.VIRTIO_F_IN_ORDER

    def build(memory: GuestMemory) -> Balloon:
        return Balloon(memory, features=features, policy=policy)

    machine = make_machine(way, build=build)
    without = (0 if mistake is None else mistake.without) | (0 if event_idx else EVENT_IDX)
    machine.driver.start(machine.driver.transport.read_device_features() & ~without)
    machine.driver.take_interrupts()
    machine.events.clear()
    kind = RawPackedQueue if way in ("packed", "packed-pci") else RawQueue
    return Requests(machine, kind(machine.driver, INFLATEQ))
