"""How the balloons of other monitors take a driver's mistakes: policies with a reason for each row.

For people who port drivers.  Owns the rows.  Refuses to know how a treatment is carried out.

A row says what the other monitor does, as read in its public source, and how that is imitated.  Where `exact` is not
set, the imitation is of what the driver sees, and not always of all of it: following a loop without end, touching
memory outside RAM and ending the monitor are not imitated, whoever does them.  Only QEMU's rows can be compared with
the real thing.  Faults without a row are dealt with as is usual there.

Everything else about the device stays ours: features, queues, numbers, and what a sound request brings about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from devices.errors import Fault
from devices.virtio.policy import OUR_PAYLOAD, PayloadRules, Policy, Treatment

_RESET, _SKIP, _IGNORE, _STALL = Treatment.RESET, Treatment.SKIP, Treatment.IGNORE, Treatment.STALL
_TOLERATE, _PLAIN = Treatment.TOLERATE, Treatment.PLAIN


@dataclass(frozen=True, slots=True)
class Row:
    """What the other monitor (`original`) makes of `fault`, and our `treatment`."""

    fault: Fault
    treatment: Treatment
    original: str
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Profile:
    """`usual` is the treatment of faults without a row, `usually` what the other monitor does then.  `requests` says
    what `payload` is about, in words."""

    name: str
    usual: Treatment
    usually: str
    rows: tuple[Row, ...]
    requests: tuple[str, ...] = ()
    payload: PayloadRules = OUR_PAYLOAD

    @property
    def policy(self) -> Policy:
        """What a device is built with."""
        treatments = MappingProxyType({row.fault: row.treatment for row in self.rows})
        return Policy(self.name, self.usual, treatments, self.payload)


_TWICE = "heads in flight are not known: the buffer is read and returned twice"
_ANY_ORDER = "the order is not looked at"
_FOLLOWED = "followed, whatever was negotiated"
_IN_TABLE = "only the flag of a chain's first descriptor is looked at"
_TABLE_ONLY = "the table is followed, its NEXT not looked at"

_QEMU = Profile(
    "qemu",
    _RESET,
    "`virtio_error`: DEVICE_NEEDS_RESET and a configuration interrupt; chains before it are done",
    (
        Row(
            Fault.OUTSIDE_RAM,
            _SKIP,
            "up to a page is read as the bus answers, and the chain returned; more than that is an error",
            exact=False,
        ),
        Row(
            Fault.NEXT,
            _RESET,
            "an error; in a packed ring a list is followed whether its descriptors are available or not",
            exact=False,
        ),
        Row(
            Fault.LOOP,
            _RESET,
            "an error; but an indirect table may have up to 1024 descriptors, whatever the queue has",
            exact=False,
        ),
        Row(Fault.NOT_NEGOTIATED, _TOLERATE, _FOLLOWED),
        Row(Fault.TABLE_PLACE, _PLAIN, _IN_TABLE),
        Row(Fault.TABLE_AND_NEXT, _TOLERATE, _TABLE_ONLY),
        Row(
            Fault.TABLE_LENGTH,
            _RESET,
            "an error; of a packed ring an empty table ends the monitor (7.2), and a long one is taken",
            exact=False,
        ),
        Row(Fault.IN_FLIGHT, _SKIP, _TWICE, exact=False),
    ),
    ("an array that ends within an entry: the bytes behind the last whole one are ignored",),
)

_FIRECRACKER = Profile(
    "firecracker",
    _STALL,
    "the chain is not taken, and found again with each notification",
    (
        Row(Fault.AVAILABLE_INDEX, _STALL, "the monitor ends", exact=False),
        Row(Fault.NEXT, _STALL, "not taken if it is the first descriptor's; others are never read", exact=False),
        Row(Fault.LOOP, _TOLERATE, "never noticed: only the first descriptor is read"),
        Row(Fault.ORDER, _TOLERATE, _ANY_ORDER),
        Row(Fault.EMPTY, _TOLERATE, "read as a request of nothing"),
        Row(Fault.TOO_LONG, _TOLERATE, "never noticed"),
        Row(Fault.OUTSIDE_RAM, _IGNORE, "taken, logged, and not returned", exact=False),
        Row(Fault.TABLE_OUTSIDE_RAM, _IGNORE, "taken, logged, and not returned", exact=False),
        Row(Fault.IN_FLIGHT, _SKIP, _TWICE, exact=False),
        *(
            Row(fault, _PLAIN, "the flag is not looked at: the table is read as the buffer")
            for fault in (*(Fault.NOT_NEGOTIATED, Fault.TABLE_PLACE, Fault.TABLE_AND_NEXT, Fault.TABLE_LENGTH),)
        ),
    ),
    (
        "a request of several descriptors: only the first is read",
        "an array that is no multiple of 4 bytes: returned unread",
        "an inflate request of more than 256 entries: taken and never returned",
    ),
    PayloadRules(head_only=True, odd_array=_SKIP, longest_array_bytes=1024, long_array=_IGNORE),
)

_CROSVM = Profile(
    "crosvm",
    _STALL,
    "the chain is not taken, and found again with each notification",
    (
        Row(Fault.AVAILABLE_INDEX, _IGNORE, "entries are taken until the indices meet, stale ones too", exact=False),
        Row(Fault.EMPTY, _TOLERATE, "read as a buffer of nothing"),
        Row(Fault.IN_FLIGHT, _SKIP, _TWICE, exact=False),
    ),
    ("an array that ends within an entry: the bytes behind the last whole one are ignored",),
)

_CLOUD_HYPERVISOR = Profile(
    "cloud-hypervisor",
    _STALL,
    "the device's thread ends; here only the queue waits",
    (
        Row(Fault.AVAILABLE_INDEX, _STALL, "nothing is taken any more"),
        Row(Fault.NEXT, _TOLERATE, "the chain ends there"),
        Row(Fault.LOOP, _TOLERATE, "the chain ends after as many descriptors as the queue has"),
        Row(Fault.ORDER, _TOLERATE, _ANY_ORDER),
        Row(Fault.EMPTY, _TOLERATE, "read as a request of nothing"),
        Row(Fault.NOT_NEGOTIATED, _TOLERATE, _FOLLOWED),
        Row(Fault.TABLE_AND_NEXT, _TOLERATE, _TABLE_ONLY),
        Row(Fault.IN_FLIGHT, _SKIP, _TWICE, exact=False),
    ),
    (
        "a request of several descriptors: only the first is read",
        "an array that is no multiple of 4 bytes: never returned (the device's thread ends)",
    ),
    PayloadRules(head_only=True, odd_array=_IGNORE),
)

_KVMTOOL = Profile(
    "kvmtool",
    _IGNORE,
    "not looked at: memory outside the table or outside RAM is read",
    (
        Row(Fault.AVAILABLE_INDEX, _IGNORE, "entries are taken until the indices meet, stale ones too", exact=False),
        Row(Fault.HEAD, _IGNORE, "memory behind the table is read", exact=False),
        Row(Fault.NEXT, _IGNORE, "memory behind the table is read", exact=False),
        Row(Fault.LOOP, _STALL, "followed without end", exact=False),
        Row(Fault.ORDER, _TOLERATE, _ANY_ORDER),
        Row(Fault.EMPTY, _TOLERATE, "read as a request of nothing"),
        Row(Fault.TOO_LONG, _TOLERATE, "never noticed"),
        Row(Fault.OUTSIDE_RAM, _STALL, "NULL is read, and the monitor ends", exact=False),
        Row(Fault.TABLE_OUTSIDE_RAM, _STALL, "NULL is read, and the monitor ends", exact=False),
        Row(Fault.NOT_NEGOTIATED, _TOLERATE, _FOLLOWED),
        Row(Fault.TABLE_PLACE, _PLAIN, _IN_TABLE),
        Row(Fault.TABLE_AND_NEXT, _TOLERATE, _TABLE_ONLY),
        Row(Fault.IN_FLIGHT, _SKIP, _TWICE, exact=False),
    ),
    (
        "a request of several descriptors: only the first is read",
        "a statistics buffer of more than ten entries: copied over whatever is behind; here the first ten are read",
    ),
    PayloadRules(head_only=True, longest_stats_bytes=100),
)

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {profile.name: profile for profile in (_QEMU, _FIRECRACKER, _CROSVM, _CLOUD_HYPERVISOR, _KVMTOOL)}
)
"""By their names."""
