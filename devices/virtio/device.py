"""What every virtio device has: status, features, configuration space and queues (virtio 1.3 chapters 2 and 3).

Owns the device's life from reset to DRIVER_OK and what may happen when.  Refuses to know how the driver reaches it (the
transports call what is public here) and what its queues are for (a subclass answers `process`).

A subclass gives its `device_id`, its `config` registers (attributes of its own) and its queues, and overrides
`process`; the other hooks are `carry_on`, `live`, `lost`, `queue_lost`, `deadline_ns`, `deadline_reached`,
`config_written` and `settings`.

Invariants
- Nothing is consumed before DRIVER_OK, with bus mastering off, after FAILED, DEVICE_NEEDS_RESET or a reset; a kick that
  came too early is not forgotten: whenever a queue becomes usable it is looked at as if it had been notified.
- A chain is completed when the device says so, not when `notify` returns: a device may hold chains and complete them
  from a deadline or a host command.
- Every `DriverError` ends in one place, `_broken`, or where the policy says so for a chain that is at fault, in
  `_work_around`.  By default it costs the driver its device, and nobody anything else.
- The work of one call is bounded (`WORK_LIMIT`); what is left is carried on with at a deadline that has come already.
  A device that begins more than that at once says `work_is_left`, pauses the queue and goes on in `carry_on`.
- A driver uses one interface.  The first through which it changes anything after a reset is its own until the next, and
  what comes through the other is ignored, resets excepted (`claim`).

A legacy driver (§3.1.2) may use the device before DRIVER_OK: its first kick ends negotiation, and from then on the
device is live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from devices.effects import Event
from devices.errors import DriverError
from devices.memory import GuestMemory
from devices.registers import RegisterMap
from devices.state import FLAG, TIME_NS, Maybe, State, Table, require_list, uint
from devices.virtio import spec, status
from devices.virtio.negotiation import Negotiation
from devices.virtio.notifications import NO_NOTIFICATIONS, Notifications
from devices.virtio.policy import RESET, Policy
from devices.virtio.queue import Queue, QueueSpec
from devices.virtio.service import Service
from devices.virtio.spec import Status

__all__ = ["NO_NOTIFICATIONS", "Notifications", "Queue", "QueueSpec", "VirtioDevice"]

WORK_LIMIT = 65536
"""After so many descriptors in one call the rest has to wait: a queue of 256 entries is always emptied in one."""

# Plain integers: the arithmetic of enum flags is slow, and these are asked for on every kick.
_DRIVER, _DRIVER_OK, _FEATURES_OK = int(Status.DRIVER), int(Status.DRIVER_OK), int(Status.FEATURES_OK)
_NEEDS_RESET, _FAILED = int(Status.DEVICE_NEEDS_RESET), int(Status.FAILED)
_NOTIFICATION_DATA = 1 << spec.VIRTIO_F_NOTIFICATION_DATA

Argument = TypeVar("Argument")


class VirtioDevice(Service):
    """A device with the given queues, offering the feature bits of the mask `features`; `policy` says what becomes of
    its driver's mistakes.

    `dma_enabled` follows the bus (PCI bus mastering) and starts off.  Two devices are equal (`==`) when a driver could
    not tell them apart and they would go on alike: counters for people are left out, what the host set is not."""

    device_id: ClassVar[int]
    config: RegisterMap
    STATE: ClassVar[Table] = {
        **Negotiation.STATE,
        "config_generation": uint(8),
        "dma_enabled": FLAG,
        "_carry_on_ns": Maybe(TIME_NS),
        "_config_was_read": FLAG,
    }
    BESIDE: ClassVar = ("queues",)

    def __init__(
        self, memory: GuestMemory, name: str, features: int, queues: Sequence[QueueSpec], policy: Policy = RESET
    ) -> None:
        super().__init__(features)
        self.memory = memory
        self.name = name
        self.config_generation = 0
        self.dma_enabled = False
        self.policy = policy
        self.queues = [Queue(index, *offered, policy=policy) for index, offered in enumerate(queues)]
        self._used = [Notifications(queues=(index,)) for index in range(len(queues))]
        self._carry_on_ns: int | None = None
        self._config_was_read = True
        self._budget = 0

    # -- what a transport uses -------------------------------------------------------------------------------------

    @property
    def config_size(self) -> int:
        """Bytes of device-specific configuration."""
        return self.config.size

    def write_driver_features(self, value: int) -> None:
        super().write_driver_features(value)
        self._number_queues()

    def write_status(self, value: int, now_ns: int) -> Notifications:
        """§2.1: 0 resets; otherwise bits are set, in order, and none is cleared."""
        if not value & 0xFF:
            return self._reset_by_driver()
        objections: list[str] = []
        legacy = bool(self.legacy)
        if value & ~self.status & _FEATURES_OK and not legacy:
            mine, theirs = self.modern_features, self.driver_features
            objections += status.feature_objections(mine, theirs, self.feature_requires, self.device_id)
        before = self.status
        self.status = status.next_status(before, value, not objections, legacy=legacy)
        new = self.status & ~before
        if new & _FEATURES_OK:
            self._number_queues()
        notifications = self._status_events(new, objections)
        if new & _DRIVER_OK:
            if legacy:
                notifications |= self._fix_legacy_features(now_ns)
            # The driver may not have seen what went wrong while it set the device up.
            notifications |= Notifications(config=self.needs_reset)
            notifications |= self._become_live(now_ns)
        return notifications

    def write_queue(self, index: int, field: str, value: int, now_ns: int) -> Notifications:
        """`field` is "size", "desc_gpa", "driver_gpa", "device_gpa", "enabled" or "reset".

        Refused silently, as a register would: a queue that does not exist, any change of an enabled queue but its reset
        (§2.6.1, with RING_RESET), a size that is too large or, unless the ring is packed, no power of two (§4.1.4.3.2),
        enabling before FEATURES_OK or without the queue's feature."""
        queue = self.queues[index] if 0 <= index < len(self.queues) else None
        if field == "enabled" and value == 1 and (queue is None or not self.has_queue(queue)):
            return self.missing_queue(index)
        if queue is None or queue.enabled != (field == "reset"):
            return NO_NOTIFICATIONS
        if field == "reset":
            return self._reset_queue(queue) if value == 1 else NO_NOTIFICATIONS
        if field == "enabled":
            return self._enable(queue, now_ns) if value == 1 else NO_NOTIFICATIONS
        queue.write(field, value, self.negotiated_features)
        return NO_NOTIFICATIONS

    def place_queue(self, index: int, gpa: int, align: int, now_ns: int) -> Notifications:
        """Legacy: the queue lies from `gpa` on, its used ring aligned to `align` bytes (§2.7.2); 0 takes it away.

        It is used once negotiation is over.  An index that does not exist is ignored."""
        if not 0 <= index < len(self.queues) or not self.has_queue(self.queues[index]):
            return self.missing_queue(index) if gpa else NO_NOTIFICATIONS
        queue = self.queues[index]
        notifications = self.stop_queue(index)
        queue.place(gpa, align)
        if not gpa:
            queue.desc_gpa = queue.driver_gpa = queue.device_gpa = 0
        elif self._legacy_fixed:
            notifications |= self._enable(queue, now_ns)
        return notifications

    def stop_queue(self, index: int) -> Notifications:
        """The driver takes queue `index` out of use: its rings and every chain held from it are forgotten, its size and
        addresses stay."""
        queue = self.queues[index] if 0 <= index < len(self.queues) else None
        if queue is None or not queue.enabled:
            return NO_NOTIFICATIONS
        queue.disable()
        self.queue_lost(queue)
        told = self.event("queue-stopped", f"the driver took queue {index} ({queue.name}) out of use")
        return told | Notifications(deadline=True)

    def has_queue(self, queue: Queue) -> bool:
        """Whether `queue` is there for the driver: as long as features can change every queue that the device has, then
        only those whose feature was negotiated (§5.5.2: statsq "only exists if" its feature is set)."""
        if queue.feature is None or not self.features_fixed:
            return True
        return bool(self.driver_features >> queue.feature & 1)

    def notify(self, index: int, now_ns: int, data: int | None = None) -> Notifications:
        """The driver kicked queue `index` (§2.9); a queue that does not exist is ignored.

        `data` are the 32 bits of the notification where the transport has them.  They count with NOTIFICATION_DATA
        only, and no more than as a hint: what is available is what the ring says, and where they disagree the watchers
        are told."""
        queue = self.queues[index] if 0 <= index < len(self.queues) else None
        if queue is None or (queue.ring is None and not self.has_queue(queue)):
            return self.missing_queue(index)
        if self.legacy and not self._legacy_fixed and queue.desc_gpa and self.status & _DRIVER:
            return self._fix_legacy_features(now_ns) | self._become_live(now_ns)
        notifications = self._look_at((queue,), now_ns)
        if self.driver_features & _NOTIFICATION_DATA and queue.ring is not None and self.is_live:
            notifications |= self._check_data(queue, data)
        return notifications

    def read_config(self, offset: int, size: int) -> int:
        """The little-endian value of `size` bytes of device configuration; behind its end they are zero."""
        self._config_was_read = True
        return self.config.read(self, offset, size)[0]

    def write_config(self, offset: int, size: int, value: int, now_ns: int) -> Notifications:
        """The driver writes device configuration; fields that are not its to write keep their value."""
        self.config.write(self, offset, size, value)
        return self.config_written(now_ns)

    def set_dma_enabled(self, enabled: bool, now_ns: int) -> Notifications:
        """Bus mastering goes on or off; off, the device touches no memory and keeps what it holds."""
        was, self.dma_enabled = self.dma_enabled, enabled
        return self._become_live(now_ns) if enabled and not was else Notifications(deadline=was != enabled)

    def next_deadline_ns(self) -> int | None:
        """When `advance` has something to do, in absolute guest time."""
        if not self.is_live:
            return None
        own = self.deadline_ns()
        if self._carry_on_ns is None or own is None:
            return own if self._carry_on_ns is None else self._carry_on_ns
        return min(own, self._carry_on_ns)

    def advance(self, now_ns: int) -> Notifications:
        """Do what has come due."""
        notifications = NO_NOTIFICATIONS
        if self._carry_on_ns is not None and self._carry_on_ns <= now_ns and self.is_live:
            self._carry_on_ns = None
            self._budget = WORK_LIMIT
            notifications |= self._contained(self.carry_on, now_ns)
            if self._budget <= 0:
                self._carry_on_ns = now_ns + 1  # so that a run stopped and resumed at this moment does no slice more
                notifications |= Notifications(deadline=True)
            notifications |= self._look_at(self.queues, now_ns)
        if self.is_live and (own := self.deadline_ns()) is not None and own <= now_ns:
            notifications |= self._contained(self.deadline_reached, now_ns)
        return notifications

    def reset(self) -> None:
        """Power-on: as freshly built.  What the host set (see `settings`) stays, and so do counters."""
        self.dma_enabled = False
        self._forget_driver()

    # -- the state: also the queues, whose rings depend on what was negotiated ---------------------------------------

    def save_state(self) -> State:
        return {**super().save_state(), "queues": [queue.save_state() for queue in self.queues]}

    def check_state(self, saved: Any, where: str) -> None:
        super().check_state(saved, where)
        features, order = self.saved_negotiation(saved)
        entries = require_list(f"{where}.queues", saved["queues"], len(self.queues))
        for queue, entry in zip(self.saved_queues(saved), entries, strict=True):
            queue.check_queue(entry, f"{where}.{queue.name}", self.memory, features, order)

    def saved_queues(self, saved: Any) -> list[Queue]:
        """The queues in the order of their numbers in a saved state."""
        return self.queues_with(_numbering(saved["legacy"], saved["status"], saved["driver_features"]))

    def restore_state(self, saved: Any) -> None:
        super().restore_state(saved)
        self._number_queues()
        for queue, entry in zip(self.queues, saved["queues"], strict=True):
            queue.restore_queue(entry, self.memory, self.negotiated_features, self.order)

    # -- for subclasses --------------------------------------------------------------------------------------------

    def config_changed(self) -> Notifications:
        """The device changed its configuration space (§2.5): the generation changes, and a live driver is told.

        Changes between two reads of the driver count once: 256 of them would look like none (§4.1.4.3.1)."""
        if self._config_was_read:
            self._config_was_read = False
            self.config_generation = self.config_generation + 1 & 0xFF
        return Notifications(config=bool(self.status & _DRIVER_OK))

    def given_away(self) -> NDArray[np.bool_] | None:
        """For each page up to the end of RAM whether the driver has given it to the device; only to look at.  None:
        this is no device to give pages to."""
        return None

    def queues_with(self, features: int | None) -> list[Queue]:
        """The queues in the order of their numbers when `features` are negotiated; None: as long as that is open."""
        return self.queues

    def missing_queue(self, index: int) -> Notifications:
        """The driver kicked or set up a queue that is not there for it: what there is to say about it."""
        return NO_NOTIFICATIONS

    def queue_looked_for(self, index: int) -> None:
        """The driver read the size of a queue that is not there for it."""

    def run_over(self) -> Notifications:
        """The driver gets no further: what there is to say of what it left undone."""
        return NO_NOTIFICATIONS

    def carry_on(self, now_ns: int) -> Notifications:
        """Go on with what was begun, for one slice.  Every queue is looked at afterwards."""
        return NO_NOTIFICATIONS

    def live(self, now_ns: int) -> Notifications:
        """The device has become live (DRIVER_OK, or bus mastering back on), and every queue was looked at."""
        return NO_NOTIFICATIONS

    def lost(self) -> None:
        """The driver is gone: forget what it brought, and every chain held."""

    def queue_lost(self, queue: Queue) -> None:
        """The driver took `queue` out of use: forget every chain held from it."""

    def deadline_ns(self) -> int | None:
        """When the device itself wants `deadline_reached` to be called.  Asked only while it is live."""
        return None

    def deadline_reached(self, now_ns: int) -> Notifications:
        """The deadline has come."""
        return NO_NOTIFICATIONS

    def config_written(self, now_ns: int) -> Notifications:
        """The driver wrote to the configuration space."""
        return NO_NOTIFICATIONS

    def settings(self) -> tuple[object, ...]:
        """Whatever else two equal devices must have in common: what the driver brought and what the host set."""
        return ()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _number_queues(self) -> None:
        """Give each queue the number that it has with the driver's features; no queue is enabled yet."""
        self.queues[:] = self.queues_with(_numbering(self.legacy, self.status, self.driver_features))
        for index, queue in enumerate(self.queues):
            queue.index = index

    def _reset_by_driver(self) -> Notifications:
        self._forget_driver()
        return Notifications(deadline=True, events=(Event(self.name, "reset", "the driver reset the device"),))

    def _forget_driver(self) -> None:
        self.forget_negotiation()
        self.config_generation = 0
        self._config_was_read = True
        self._carry_on_ns = None
        self._number_queues()
        for queue in self.queues:
            queue.reset()
        self.lost()

    def _status_events(self, new: int, objections: list[str]) -> Notifications:
        if objections:
            return self.event("features-refused", "FEATURES_OK is refused: " + "; ".join(objections))
        notifications = NO_NOTIFICATIONS
        if new & _FEATURES_OK:
            notifications |= self._tell_features()
        if new & _DRIVER_OK:
            notifications |= self.event("driver-ok", "the driver is ready")
        if new & _FAILED:
            notifications |= self.event("failed", "the driver has given up on the device")
        return notifications

    def _tell_features(self) -> Notifications:
        names = spec.feature_names(self.driver_features, self.device_id)
        return self.event("features", "negotiated " + (", ".join(names) or "nothing"))

    def _fix_legacy_features(self, now_ns: int) -> Notifications:
        """A legacy driver's first use ends negotiation (§3.1.2), and the queues that it has placed are set up."""
        if self._legacy_fixed:
            return NO_NOTIFICATIONS
        self.fix_legacy_features()
        notifications = self._tell_features()
        for queue in self.queues:
            if queue.desc_gpa:
                there = self.has_queue(queue)
                notifications |= self._enable(queue, now_ns) if there else self.missing_queue(queue.index)
        return notifications

    def _enable(self, queue: Queue, now_ns: int) -> Notifications:
        if not self.features_fixed or self.needs_reset or not self.has_queue(queue):
            return NO_NOTIFICATIONS
        return self._contained(self._set_up, queue, queue) | self._look_at((queue,), now_ns)

    def _set_up(self, queue: Queue) -> Notifications:
        queue.set_up(self.memory, self.negotiated_features, self.order)
        return self.event("queue-enabled", f"queue {queue.index} ({queue.name}) is enabled with {queue.size} entries")

    def _reset_queue(self, queue: Queue) -> Notifications:
        """§2.6.1: done at once; what is in flight is never returned, and the driver may set the queue up again."""
        if not self.has_feature(spec.VIRTIO_F_RING_RESET):
            return NO_NOTIFICATIONS
        queue.reset()
        self.queue_lost(queue)
        told = self.event("queue-reset", f"the driver reset queue {queue.index} ({queue.name})")
        return told | Notifications(deadline=True)

    def _check_data(self, queue: Queue, data: int | None) -> Notifications:
        """§2.9: whether a notification says what the ring said, once everything available was taken."""
        wrong = ""
        if data is None:
            wrong = "has no data, although VIRTIO_F_NOTIFICATION_DATA was negotiated"
        elif data & 0xFFFF != queue.index:
            wrong = f"names queue {data & 0xFFFF}"
        elif queue.ring is not None and self._carry_on_ns is None and (said := queue.ring.misannounced(data)):
            wrong = f"announces {said}"
        if not wrong:
            return NO_NOTIFICATIONS
        return self.event("notification-data", f"a notification of queue {queue.index} ({queue.name}) {wrong}")

    def _become_live(self, now_ns: int) -> Notifications:
        """Look at every queue, since kicks may have come too early, and let the subclass catch up."""
        notifications = self._look_at(self.queues, now_ns)
        if self.is_live:
            notifications |= self._contained(self.live, now_ns)
        return notifications | Notifications(deadline=True)

    def _look_at(self, queues: Iterable[Queue], now_ns: int) -> Notifications:
        """Process what is available in `queues`, batch after batch.

        An error in one batch takes nothing back of what an earlier one brought about."""
        self._budget = WORK_LIMIT
        total = NO_NOTIFICATIONS
        for queue in queues:
            ring = queue.ring
            if ring is None or queue.paused or not self.is_live:
                continue
            try:
                while (chains := ring.take_available()) is not None:
                    queue.requests += chains.count
                    told = self.process(queue, chains, now_ns)
                    total = told if total is NO_NOTIFICATIONS else total | told
                    self._budget -= chains.descriptors
                    if self._budget <= 0:
                        self._carry_on_ns = now_ns
                        total |= Notifications(deadline=True)
                        break
            except DriverError as error:
                total |= self._work_around(error, queue, now_ns)
        return total

    def _contained(
        self, work: Callable[[Argument], Notifications], argument: Argument, queue: Queue | None = None
    ) -> Notifications:
        """What `work` brings about, or what a rule that it found broken does."""
        try:
            return work(argument)
        except DriverError as error:
            return self._broken(error, queue)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, VirtioDevice) and self._state() == other._state()

    def _state(self) -> tuple[object, ...]:
        return (
            self.name,
            self.device_features,
            self.driver_features,
            self.status,
            self.dma_enabled,
            self.legacy,
            self._legacy_fixed,
            self._carry_on_ns,
            self.policy,
            self.queues,
            self.settings(),
        )


def _numbering(legacy: bool | None, device_status: int, driver_features: int) -> int | None:
    """The features that number the queues, None as long as they are open: a legacy driver says them last before it sets
    up a queue, any other one agrees on them before."""
    return driver_features if legacy or device_status & _FEATURES_OK else None
