"""The part of the balloon that numbers its queues, and tells of drivers that count otherwise (virtio 1.3 §5.5.2).

Owns the three numberings' effect on a device; what they are is `numbering`'s.
"""

from __future__ import annotations

from typing import Any, ClassVar

from devices.memory import GuestMemory
from devices.state import Many, Table, refuse, uint
from devices.virtio.balloon import numbering as numbers
from devices.virtio.balloon.numbering import Numbering
from devices.virtio.device import NO_NOTIFICATIONS, Notifications, Queue, VirtioDevice
from devices.virtio.policy import RESET, Policy
from devices.virtio.queue import is_in_flight


class NumberedDevice(VirtioDevice):
    """A device with the balloon's queues, of `queue_size` entries where they may be so small, counted as `numbering`
    says."""

    STATE: ClassVar[Table] = {**VirtioDevice.STATE, "_diagnosed": Many(uint(16), longest=len(numbers.ROWS))}

    def __init__(
        self,
        memory: GuestMemory,
        name: str,
        features: int,
        numbering: Numbering,
        queue_size: int,
        policy: Policy = RESET,
    ) -> None:
        super().__init__(memory, name, features, numbers.queue_specs(numbering, features, queue_size), policy)
        self.numbering: Numbering = numbering
        self._diagnosed: list[int] = []

    def has_queue(self, queue: Queue) -> bool:
        offered = queue.feature is None or bool(self.device_features >> queue.feature & 1)
        return offered and super().has_queue(queue)

    def queues_with(self, features: int | None) -> list[Queue]:
        return numbers.ordered(self.queues, self.numbering, features)

    def missing_queue(self, index: int) -> Notifications:
        """Say once for each number what another numbering would make of it."""
        if index in self._diagnosed or not self.features_fixed:
            return NO_NOTIFICATIONS
        text = numbers.diagnosis(index, self.numbering, self.device_features, self.driver_features)
        if not text:
            return NO_NOTIFICATIONS
        self._diagnosed.append(index)
        return self.event("queue-numbering", text)

    def lost(self) -> None:
        self._diagnosed.clear()

    def check_in_flight(self, queue: Queue | None, chains: Any, saved: Any, where: str) -> None:
        """Each of the saved `chains` must be in flight in `queue`, once."""
        seen: set[int] = set()
        entry = None if queue is None else saved["queues"][self.saved_queues(saved).index(queue)]
        for chain in chains:
            flying = entry is not None and is_in_flight(entry, chain)
            if not flying or chain["buffer_id"] in seen:
                name = "statsq" if queue is None else queue.name
                raise refuse(where, f"a chain in flight in {name}", f"the head {chain['head']}")
            seen.add(chain["buffer_id"])

    def settings(self) -> tuple[object, ...]:
        return (self.numbering,)
