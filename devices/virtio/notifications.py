"""What a virtio device wants others to hear, as a value that its calls return.

Owns how two of them are joined.  Refuses to know how a transport carries them to the driver."""

from __future__ import annotations

from typing import NamedTuple

from devices.effects import Event


class Notifications(NamedTuple):
    """What a device wants its driver, its timer and its watchers to hear.

    `queues` are the indices of queues with a used-buffer notification, ascending, without duplicates; `config` is a
    configuration-change notification; `deadline` says that `next_deadline_ns()` may have changed."""

    queues: tuple[int, ...] = ()
    config: bool = False
    deadline: bool = False
    events: tuple[Event, ...] = ()

    def __or__(self, later: Notifications) -> Notifications:
        """Both, this one first."""
        if self is NO_NOTIFICATIONS:
            return later
        if later is NO_NOTIFICATIONS:
            return self
        return Notifications(
            tuple(sorted({*self.queues, *later.queues})),
            self.config or later.config,
            self.deadline or later.deadline,
            self.events + later.events,
        )

    def __bool__(self) -> bool:
        return self != NO_NOTIFICATIONS


NO_NOTIFICATIONS = Notifications()
