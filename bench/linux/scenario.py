"""What is measured: a kernel boots, its balloon driver binds, and it gives 768 MiB of RAM that it has used and takes it
back.  The same steps on every machine monitor; how each is done stands with it.

A `Peer` is a machine monitor with a running guest.  Times are `time.monotonic()` of the host, in seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

MIB = 1 << 20
MEMORY_MIB, FILL_MIB, BALLOON_MIB = 1024, 860, 768
APPEND = "console=ttyS0 earlyprintk=ttyS0"
KERNEL_STARTED, INIT, BOUND, FILLED = "Linux version", "bench: init", "bench: bound", "bench: filled"


class Peer(Protocol):
    """One running guest."""

    def wait_for(self, text: str) -> float:
        """Run until the guest's console has said `text` once more; returns when it was read."""

    def type(self, line: str) -> None:
        """Type a line on the guest's console."""

    def set_guest_ram(self, mib: int) -> float:
        """Give the balloon a target, and run until the driver has reached it; returns the seconds it took."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one boot: from the process's start to the driver, and the balloon's two ways."""

    kernel_to_init: float
    start_to_bound: float
    inflate: float
    deflate: float


def measure(peer: Peer, started: float) -> Timings:
    """All steps, once.  `started` is when the monitor's process was made."""
    kernel = peer.wait_for(KERNEL_STARTED)
    init = peer.wait_for(INIT)
    bound = peer.wait_for(BOUND)
    peer.type(str(FILL_MIB))
    peer.wait_for(FILLED)
    inflate = peer.set_guest_ram(MEMORY_MIB - BALLOON_MIB)
    deflate = peer.set_guest_ram(MEMORY_MIB)
    return Timings(init - kernel, bound - started, inflate, deflate)


def now() -> float:
    """The host's clock."""
    return time.monotonic()
