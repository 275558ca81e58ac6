"""The errors that are somebody's fault, and whose.

`DriverError` is the guest driver's: it is contained where the device was notified and never ends the machine.
`ConfigError` is the user's: one sentence, exit status 2.  Every other exception is a bug of this project.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices.virtio.chains import Chains


class Fault(Enum):
    """The kinds of mistakes that a driver can make in a ring, and what a device that tolerates one makes of it."""

    PLACEMENT = "a queue that is misaligned or not in RAM"
    AVAILABLE_INDEX = "the available index jumps further than the queue has entries"
    OVERRUN = "a descriptor is made available where the packed ring is full"
    HEAD = "a head that the descriptor table does not have"
    IN_FLIGHT = "a head or buffer id that is in flight"
    NEXT = "a chain that goes on outside its table, or where nothing is available"
    """Tolerated: it ends there."""
    LOOP = "a loop, or more descriptors than the queue has"
    """Tolerated: it ends there."""
    ORDER = "a readable buffer behind a writable one"
    """Tolerated: taken as it stands."""
    EMPTY = "a buffer of no bytes"
    """Tolerated: left out."""
    NO_BUFFER = "a chain of nothing but empty buffers, where those are tolerated"
    OUTSIDE_RAM = "a buffer that is not in RAM"
    TOO_LONG = "a chain of more than 2^32 bytes"
    """Tolerated: taken as it stands."""
    NOT_NEGOTIATED = "an indirect table without VIRTIO_F_INDIRECT_DESC"
    """Tolerated: followed."""
    TABLE_PLACE = "an indirect descriptor in an indirect table, or in the list of a packed ring"
    TABLE_AND_NEXT = "an indirect descriptor with a next one"
    """Tolerated: the table is followed, and nothing behind it."""
    TABLE_OUTSIDE_RAM = "an indirect table that is not in RAM"
    TABLE_LENGTH = "an indirect table of no, or of no whole number of descriptors, or too long for a packed ring"


class ConfigError(ValueError):
    """The user asked for something that cannot be: the message is one complete sentence for them."""


class DriverError(Exception):
    """The driver broke a rule of the virtio specification.

    `section` is the section that states the rule (e.g. "2.7.13"), `detail` says what the driver did instead.
    `queue` and `head` name the place once it is known; -1 means "not known".  `fault` is its kind.

    Where chains were being taken, `sound` are those before the fault, `sound_slots` what they occupy in a packed ring,
    and `work` is how many descriptors were followed for nothing.
    """

    def __init__(
        self, section: str, detail: str, *, queue: int = -1, head: int = -1, fault: Fault = Fault.PLACEMENT
    ) -> None:
        super().__init__(section, detail)
        self.fault = fault
        self.sound: Chains | None = None
        self.sound_slots = 0
        self.work = 1
        self.section = section
        self.detail = detail
        self.queue = queue
        self.head = head

    def __str__(self) -> str:
        return f"{self.detail} (virtio §{self.section})"


class OutsideRam(DriverError):
    """An address range that is not wholly inside guest RAM."""

    def __init__(self, gpa: int, length: int, section: str = "2.6") -> None:
        super().__init__(section, f"the {length} bytes at {gpa:#x} are not all in guest RAM")
        self.gpa = gpa
        self.length = length
