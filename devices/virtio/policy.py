"""What becomes of a driver's mistake: policies, which are data (virtio 1.3 §2.1.2 leaves the choice to the device).

Owns the words for it and the three policies of our own; `profiles` has those that imitate other monitors.  Refuses to
know rings and queues: the walkers ask what is tolerated, `VirtioDevice` deals with the rest.

A chain that breaks a rule is never followed further than a sound one could go, and no byte outside RAM is touched,
whatever the policy: a policy decides what the driver sees, not what is safe.

Every chain that is taken is put once, or it is dropped and counted (`Queue.dropped`).  A dropped chain stays in flight,
since its driver never hears of it: its head, or its id and its place in a packed ring, are not free before the queue is
set up again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from devices.errors import Fault


class Treatment(Enum):
    """What is done about one kind of mistake."""

    RESET = "reset"
    """The device needs a reset, and says so."""
    SKIP = "skip"
    """The chain is completed with the used length 0, unread.  One that cannot be named in the used ring, because its
    head is none or is in flight already, is dropped; an available index that jumps is as for `IGNORE`."""
    IGNORE = "ignore"
    """The chain is dropped.  Where the available index jumps, the queue goes on from the new index, and what is in
    between is no chain that the device ever took."""
    STALL = "stall"
    """The queue waits before the chain, and looks at it again with each notification."""
    TOLERATE = "tolerate"
    """The device makes the best of it, see `Fault`."""
    PLAIN = "plain"
    """Of a wrong indirect descriptor: the flag is not looked at, the descriptor is a buffer like any other."""


TOLERABLE = frozenset(
    (
        *(Fault.NEXT, Fault.LOOP, Fault.ORDER, Fault.EMPTY, Fault.TOO_LONG),
        *(Fault.NOT_NEGOTIATED, Fault.TABLE_AND_NEXT),
    )
)
"""What a device can make something of without following a loop, or touching what is not RAM."""
TABLES = frozenset((Fault.NOT_NEGOTIATED, Fault.TABLE_PLACE, Fault.TABLE_AND_NEXT, Fault.TABLE_LENGTH))
"""What is wrong with an indirect descriptor: here `PLAIN` means something."""


@dataclass(frozen=True, slots=True)
class PayloadRules:
    """How a balloon reads requests that are no ring errors, where that is not as we do it.

    `head_only`: of an inflate or deflate request only the first descriptor counts.  `odd_array`: what becomes of one
    that is no multiple of four bytes (None: its whole entries count).  An inflate request of more than
    `longest_array_bytes` is dealt with by `long_array`.  Of a statistics buffer only `longest_stats_bytes` are read
    (None: as many as we read)."""

    head_only: bool = False
    odd_array: Treatment | None = None
    longest_array_bytes: int | None = None
    long_array: Treatment = Treatment.SKIP
    longest_stats_bytes: int | None = None


OUR_PAYLOAD = PayloadRules()


@dataclass(frozen=True, slots=True)
class Policy:
    """`treatments` names the faults that are not dealt with by the `usual` treatment.  ValueError where one cannot be
    treated so."""

    name: str
    usual: Treatment
    treatments: Mapping[Fault, Treatment] = field(default_factory=lambda: MappingProxyType({}))
    payload: PayloadRules = OUR_PAYLOAD

    def __post_init__(self) -> None:
        if self.usual in (Treatment.TOLERATE, Treatment.PLAIN):
            raise ValueError(f"{self.name}: what is usual must not be {self.usual.value}")
        for treatment, possible in ((Treatment.TOLERATE, TOLERABLE), (Treatment.PLAIN, TABLES)):
            if wrong := self.faults(treatment) - possible:
                names = ", ".join(sorted(fault.name for fault in wrong))
                raise ValueError(f"{self.name}: {names} cannot be treated as {treatment.value}")

    def of(self, fault: Fault) -> Treatment:
        """What to do about `fault` where it cannot be tolerated."""
        if fault is Fault.PLACEMENT:
            return Treatment.RESET  # there is no queue to go on with
        if fault is Fault.NO_BUFFER:
            return self.treatments.get(fault, Treatment.SKIP)  # whoever tolerates empty buffers has nothing to read
        treatment = self.treatments.get(fault, self.usual)
        if fault is Fault.OVERRUN and treatment is not Treatment.RESET:
            return Treatment.STALL  # there is no place behind it to go on from
        return treatment

    def faults(self, treatment: Treatment) -> frozenset[Fault]:
        """Those that are treated so by name."""
        return frozenset(fault for fault, given in self.treatments.items() if given is treatment)


RESET = Policy("reset", Treatment.RESET)
SKIP = Policy("skip", Treatment.SKIP)
IGNORE = Policy("ignore", Treatment.IGNORE)

POLICIES: Mapping[str, Policy] = MappingProxyType({policy.name: policy for policy in (RESET, SKIP, IGNORE)})
"""By their names."""
