"""One virtqueue as its registers show it, enabled or not (virtio 1.3 §2.6, §4.1.4.3).

Owns what the driver wrote about a queue and which writes are refused.  The rings themselves are `split`'s."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from devices.virtio import spec
from devices.virtio.split import SplitQueue

_ADDRESSES = ("desc_gpa", "driver_gpa", "device_gpa")


class QueueSpec(NamedTuple):
    """A queue as a device offers it.  It exists only if `feature` (a bit number) is negotiated; None means always."""

    name: str
    max_size: int
    feature: int | None = None


@dataclass(slots=True)
class Queue:
    """`size` starts as `max_size`; addresses are guest-physical; `ring` is there while the queue is enabled.

    `requests` counts the chains ever taken, across resets too.  ValueError unless `max_size` is a power of two up to
    32768."""

    index: int
    name: str
    max_size: int
    feature: int | None = None
    size: int = 0
    enabled: bool = False
    desc_gpa: int = 0
    driver_gpa: int = 0
    device_gpa: int = 0
    ring: SplitQueue | None = None
    requests: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if not _is_size(self.max_size, spec.VIRTQ_MAX_SIZE):
            raise ValueError(f"the size of {self.name} must be a power of two up to 32768, not {self.max_size}")
        self.size = self.max_size

    def write(self, name: str, value: int) -> None:
        """Set "size" or an address of a queue that is not enabled.  A size that is no power of two or above the maximum
        leaves the old one (§4.1.4.3.2).  ValueError for any other name."""
        if name == "size":
            if _is_size(value, self.max_size):
                self.size = value
        elif name in _ADDRESSES:
            setattr(self, name, value & (1 << 64) - 1)
        else:
            raise ValueError(f"a queue has no field {name!r}")

    def reset(self) -> None:
        """Back to how it was built."""
        self.size = self.max_size
        self.enabled = False
        self.desc_gpa = self.driver_gpa = self.device_gpa = 0
        self.ring = None


def _is_size(value: int, maximum: int) -> bool:
    return 0 < value <= maximum and not value & value - 1
