"""Serving the queues of a device that is live: taking chains, completing them, and what becomes of those at fault.

Owns whether the device may use its queues, the bound of the work of one call, and the one place where every
`DriverError` ends.  Refuses to know the registers, who notifies, and what a queue is for (`process`).

By default a broken rule costs the driver its device (`_broken`).  Another policy goes on behind the chain at fault
(`_work_around`): the chains before it are dealt with first, in their order; then it is put with nothing written, or
dropped, and what comes behind it is taken a few at a time.  The ordinary path knows nothing of this.  A fault costs at
least as much of the bound as a descriptor, and what is told of one look at a queue is one event a treatment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from devices.effects import Event
from devices.errors import DriverError
from devices.virtio.chains import Chains
from devices.virtio.negotiation import Negotiation
from devices.virtio.notifications import NO_NOTIFICATIONS, Notifications
from devices.virtio.policy import RESET, Policy, Treatment
from devices.virtio.queue import Queue, Ring
from devices.virtio.spec import Status

# Plain integers: the arithmetic of enum flags is slow, and these are asked for on every kick.
_DRIVER_OK, _NEEDS_RESET, _FAILED = int(Status.DRIVER_OK), int(Status.DEVICE_NEEDS_RESET), int(Status.FAILED)
_LIVE_MASK = _DRIVER_OK | _NEEDS_RESET | _FAILED

_DONE_WITH = {
    Treatment.SKIP: "completed unread",
    Treatment.IGNORE: "dropped",
    Treatment.STALL: "where the queue waits now",
}


class Service(Negotiation, ABC):
    """The attributes are set by the subclass that has the queues."""

    name: str
    policy: Policy
    dma_enabled: bool
    _used: list[Notifications]
    _carry_on_ns: int | None
    _budget: int

    @property
    def is_live(self) -> bool:
        """Whether the device may use its queues now: from DRIVER_OK on, or from a legacy driver's first kick on."""
        if self.status & _LIVE_MASK == _DRIVER_OK:
            return self.dma_enabled
        return self._legacy_fixed and self.dma_enabled and not self.status & _LIVE_MASK

    @property
    def is_ready(self) -> bool:
        """Whether the driver has set DRIVER_OK."""
        return bool(self.status & _DRIVER_OK)

    @property
    def needs_reset(self) -> bool:
        """Whether the driver broke the device: DEVICE_NEEDS_RESET is set."""
        return bool(self.status & _NEEDS_RESET)

    def complete(self, queue: Queue, chains: Chains, written: int | Sequence[int] = 0) -> Notifications:
        """Return chains to the driver.  Only while the device is live."""
        if queue.ring is None or not self.is_live:
            raise RuntimeError(f"{self.name}: {queue.name} cannot be used now")
        queue.ring.put_used(chains, written)
        return self._used[queue.index] if queue.ring.needs_notification() else NO_NOTIFICATIONS

    def spend(self, work: int) -> None:
        """Count work that a payload brought towards `WORK_LIMIT`; the unit is what following a descriptor costs."""
        self._budget -= work

    def work_is_left(self) -> None:
        """Nothing more of this queue fits into this call: `carry_on` shall be called at a deadline that has come."""
        self._budget = 0

    def event(self, kind: str, text: str) -> Notifications:
        """One event for the watchers."""
        return Notifications(events=(Event(self.name, kind, text),))

    @abstractmethod
    def process(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        """Chains that the driver made available: complete them, or hold them and complete them later."""

    # -- faults ----------------------------------------------------------------------------------------------------

    def _broken(self, error: DriverError, queue: Queue | None) -> Notifications:
        """The one place where a broken rule ends: the device needs reset, and the driver and the watchers are told."""
        self.status |= _NEEDS_RESET
        if queue is not None:
            error.queue = queue.index
        head = f", head {error.head}" if error.head >= 0 else ""
        told = Event(self.name, "needs-reset", f"the device needs reset: queue {error.queue}{head}: {error}")
        return Notifications(config=bool(self.status & _DRIVER_OK), deadline=True, events=(told,))

    def _work_around(self, error: DriverError, queue: Queue, now_ns: int) -> Notifications:
        """What the policy makes of a broken rule in `queue`: the end of the device, or a way on behind it."""
        ring, total = queue.ring, NO_NOTIFICATIONS
        passed: dict[Treatment, list[DriverError]] = {}
        next_error: DriverError | None = error
        while next_error is not None and ring is not None:
            error, next_error = next_error, None
            error.queue = queue.index
            treatment = self.policy.of(error.fault)
            if self.policy is not RESET and (sound := ring.take_sound(error)) is not None:
                total |= self._serve(queue, sound, now_ns)
                if self._budget <= 0:
                    break  # it is found again when the work goes on
            if treatment is Treatment.RESET:
                total |= self._broken(error, queue)
                break
            self._budget -= error.work
            passed.setdefault(treatment, []).append(error)
            if treatment is Treatment.STALL:
                break
            total |= self.give_up(queue, ring.pass_over(error), treatment)
            told, next_error = self._take_carefully(queue, ring, now_ns)
            total |= told
        if self._budget <= 0 and not self.needs_reset:
            self._carry_on_ns = now_ns
            total |= Notifications(deadline=True)
        for treatment, errors in passed.items():
            total |= self._tell(queue, treatment, len(errors), str(errors[0]))
        return total

    def _take_carefully(self, queue: Queue, ring: Ring, now_ns: int) -> tuple[Notifications, DriverError | None]:
        """Serve what comes next in a queue that had a fault, up to the next one."""
        total = NO_NOTIFICATIONS
        try:
            while self._budget > 0 and (chains := ring.take_carefully()) is not None:
                total |= self._serve(queue, chains, now_ns)
        except DriverError as error:
            return total, error
        return total, None

    def _serve(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        queue.requests += chains.count
        self._budget -= chains.descriptors
        return self.process(queue, chains, now_ns)

    def give_up(self, queue: Queue, chains: Chains | None, treatment: Treatment) -> Notifications:
        """Return `chains` unread (`SKIP`), or drop them; None stands for one that cannot be returned."""
        if chains is not None and treatment is Treatment.SKIP:
            queue.skipped += chains.count
            return self.complete(queue, chains)
        queue.dropped += 1 if chains is None else chains.count
        return NO_NOTIFICATIONS

    def _tell(self, queue: Queue, treatment: Treatment, count: int, why: str) -> Notifications:
        chains = "a chain is" if count == 1 else f"{count} chains are"
        text = f"queue {queue.index} ({queue.name}): {chains} {_DONE_WITH[treatment]}: {why}"
        return self.event("guest-error", text)
