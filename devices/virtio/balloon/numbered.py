"""The part of the balloon that numbers its queues, and tells of drivers that count otherwise (virtio 1.3 §5.5.2).

Owns the three numberings' effect on a device; what they are is `numbering`'s.

A driver that looks for a queue and does not find it may only be counting what there is.  So that is noted, and told
when the driver stops without the queue that it may have meant: it sets FAILED, or DRIVER_OK, or resets the device, or
the run is over.
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
from devices.virtio.spec import Status

_DRIVER, _STOPS = int(Status.DRIVER), int(Status.FAILED | Status.DRIVER_OK)


class NumberedDevice(VirtioDevice):
    """A device with the balloon's queues, of `queue_size` entries where they may be so small, counted as `numbering`
    says."""

    STATE: ClassVar[Table] = {
        **VirtioDevice.STATE,
        **dict.fromkeys(("_diagnosed", "_looked_for"), Many(uint(16), longest=len(numbers.ROWS))),
    }

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
        self._looked_for: list[int] = []

    def has_queue(self, queue: Queue) -> bool:
        offered = queue.feature is None or bool(self.device_features >> queue.feature & 1)
        return offered and super().has_queue(queue)

    def queues_with(self, features: int | None) -> list[Queue]:
        return numbers.ordered(self.queues, self.numbering, features)

    def missing_queue(self, index: int) -> Notifications:
        """Say once for each number what another numbering would make of it."""
        return self._diagnose(index, "uses")

    def queue_looked_for(self, index: int) -> None:
        if index < len(numbers.ROWS) and index not in self._looked_for and self._agreed is not None:
            self._looked_for.append(index)

    def write_status(self, value: int, now_ns: int) -> Notifications:
        told = NO_NOTIFICATIONS if value & 0xFF else self.run_over()
        before = self.status
        told |= super().write_status(value, now_ns)
        return told | self.run_over() if self.status & ~before & _STOPS else told

    def run_over(self) -> Notifications:
        told = super().run_over()
        if self._looked_for and not self._has_all_queues():
            for index in self._looked_for:
                told |= self._diagnose(index, "looks for")
        self._looked_for.clear()
        return told

    def _diagnose(self, index: int, verb: str) -> Notifications:
        agreed = self._agreed
        if index in self._diagnosed or agreed is None:
            return NO_NOTIFICATIONS
        text = numbers.diagnosis(index, self.numbering, self.device_features, agreed, verb=verb)
        if not text:
            return NO_NOTIFICATIONS
        self._diagnosed.append(index)
        return self.event("queue-numbering", text)

    @property
    def _agreed(self) -> int | None:
        """The features by which the driver counts its queues; None as long as they are open.  A legacy driver says them
        last before it sets up a queue."""
        if self.features_fixed:
            return self.driver_features
        return self.driver_features & self.legacy_features if self.legacy and self.status & _DRIVER else None

    def _has_all_queues(self) -> bool:
        """Whether the driver has set up every queue that was negotiated."""
        agreed = self.device_features & (self._agreed or 0)
        mine = [queue for queue in self.queues if queue.feature is None or agreed >> queue.feature & 1]
        return all(queue.enabled or (self.legacy and queue.desc_gpa) for queue in mine)

    def lost(self) -> None:
        self._diagnosed.clear()
        self._looked_for.clear()

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
