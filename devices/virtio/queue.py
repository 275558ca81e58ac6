"""One virtqueue as its registers show it, enabled or not (virtio 1.3 §2.6, §4.1.4.3).

Owns what the driver wrote about a queue, which writes are refused, and which features make which ring.  The rings
themselves are `split`'s and `packed`'s."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from devices.errors import DriverError
from devices.memory import GuestMemory
from devices.state import COUNTER, FLAG, Int, State, Stateful, Table, refuse, uint
from devices.virtio import spec
from devices.virtio.packed import PackedQueue
from devices.virtio.policy import RESET, Policy
from devices.virtio.split import SplitQueue

_ADDRESSES = ("desc_gpa", "driver_gpa", "device_gpa")

RING_FEATURES: Final = (
    1 << spec.VIRTIO_F_INDIRECT_DESC
    | 1 << spec.VIRTIO_F_EVENT_IDX
    | 1 << spec.VIRTIO_F_RING_PACKED
    | 1 << spec.VIRTIO_F_IN_ORDER
    | 1 << spec.VIRTIO_F_NOTIFICATION_DATA
    | 1 << spec.VIRTIO_F_RING_RESET
)
"""The features of rings that any device can offer."""
LEGACY_RING_FEATURES: Final = 1 << spec.VIRTIO_F_NOTIFY_ON_EMPTY | 1 << spec.VIRTIO_F_ANY_LAYOUT
"""Those that only a legacy or transitional device may offer, to legacy drivers (§6.3).  Any layout is understood."""
DEFAULT_RING_FEATURES: Final = (
    1 << spec.VIRTIO_F_INDIRECT_DESC | 1 << spec.VIRTIO_F_EVENT_IDX | 1 << spec.VIRTIO_F_RING_RESET
)
"""QEMU's."""

Ring: TypeAlias = SplitQueue | PackedQueue


class QueueSpec(NamedTuple):
    """A queue as a device offers it.  It exists only if `feature` (a bit number) is negotiated; None means always."""

    name: str
    max_size: int
    feature: int | None = None


@dataclass(slots=True)
class Queue(Stateful):
    """`size` starts as `max_size`; addresses are guest-physical; `ring` is there while the queue is enabled.

    While it is `paused` nothing more is taken from it: the device still works on what it took, and knows by its own
    state when that ends.  `requests` counts the chains ever taken, across resets too; `skipped` those at fault that
    went back unread, `dropped` those that never went back.  ValueError unless `max_size` is a power of two up to
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
    ring: Ring | None = None
    paused: bool = False
    requests: int = field(default=0, compare=False)
    skipped: int = field(default=0, compare=False)
    dropped: int = field(default=0, compare=False)
    policy: Policy = RESET

    STATE: ClassVar[Table] = {
        "size": Int(1, spec.VIRTQ_MAX_SIZE),
        "enabled": FLAG,
        **dict.fromkeys(_ADDRESSES, uint(64)),
        **dict.fromkeys(("requests", "skipped", "dropped"), COUNTER),
    }
    BESIDE: ClassVar = ("ring",)

    def __post_init__(self) -> None:
        if not _is_size(self.max_size, spec.VIRTQ_MAX_SIZE, 0):
            raise ValueError(f"the size of {self.name} must be a power of two up to 32768, not {self.max_size}")
        self.size = self.max_size

    def set_up(self, memory: GuestMemory, features: int, order: spec.ByteOrder) -> None:
        """Enable it with the parts that the driver named, in its byte `order`; `features` were negotiated.  DriverError
        as for a ring."""
        parts = self.desc_gpa, self.driver_gpa, self.device_gpa
        self.ring = _ring(memory, features, order, self.size, *parts, policy=self.policy)
        self.enabled = True

    def save_state(self) -> State:
        return {**Stateful.save_state(self), "ring": None if self.ring is None else self.ring.save_state()}

    def check_queue(self, saved: Any, where: str, memory: GuestMemory, features: int, order: spec.ByteOrder) -> None:
        """ConfigError unless `restore_queue` can take `saved`: its ring must be one in `memory`."""
        Stateful.check_state(self, saved, where)
        if not _is_size(saved["size"], self.max_size, features):
            kind = "a number" if _is_packed(features) else "a power of two"
            raise refuse(f"{where}.size", f"{kind} up to {self.max_size}", saved["size"])
        if saved["enabled"] != (saved["ring"] is not None):
            raise refuse(f"{where}.ring", "there exactly if the queue is enabled", saved["ring"])
        if saved["enabled"]:
            try:
                parts = (saved[name] for name in _ADDRESSES)
                ring = _ring(memory, features, order, saved["size"], *parts, policy=self.policy)
            except DriverError as error:
                raise refuse(f"{where}.ring", "in this machine's RAM", error.detail) from error
            ring.check_state(saved["ring"], f"{where}.ring")

    def restore_queue(self, saved: Any, memory: GuestMemory, features: int, order: spec.ByteOrder) -> None:
        """Take over what `check_queue` has accepted."""
        self.reset()
        Stateful.restore_state(self, saved)
        if saved["enabled"]:
            self.set_up(memory, features, order)
        if self.ring is not None:
            self.ring.restore_state(saved["ring"])

    def write(self, name: str, value: int, features: int) -> None:
        """Set "size" or an address of a queue that is not enabled; `features` were negotiated.  A size that is above
        the maximum or, unless the ring is packed, no power of two leaves the old one (§4.1.4.3.2).  ValueError for any
        other name."""
        if name == "size":
            if _is_size(value, self.max_size, features):
                self.size = value
        elif name in _ADDRESSES:
            setattr(self, name, value & (1 << 64) - 1)
        else:
            raise ValueError(f"a queue has no field {name!r}")

    def place(self, gpa: int, align: int) -> None:
        """§2.7.2, legacy: descriptor table and available ring from `gpa` on, the used ring at the next multiple of
        `align`, a power of two."""
        self.desc_gpa = gpa
        self.driver_gpa = gpa + spec.virtq_desc.itemsize * self.size
        self.device_gpa = self.driver_gpa + spec.virtq_avail(self.size).itemsize + align - 1 & -align

    def disable(self) -> None:
        """Forget the rings; what the driver wrote stays."""
        self.enabled = False
        self.ring = None
        self.paused = False

    def reset(self) -> None:
        """Back to how it was built."""
        self.disable()
        self.size = self.max_size
        self.desc_gpa = self.driver_gpa = self.device_gpa = 0


def is_in_flight(saved_queue: Any, saved_chain: Any) -> bool:
    """Whether a queue, as it was saved and found to be in order, has the chain in flight."""
    marks = () if saved_queue["ring"] is None else saved_queue["ring"]["in_flight"]
    head, buffer_id = saved_chain["head"], saved_chain["buffer_id"]
    if isinstance(marks, bytes):  # a split ring's: one byte a head
        return head == buffer_id and any(marks[head : head + 1])
    return head < saved_queue["size"] and buffer_id in marks


def _is_packed(features: int) -> bool:
    return bool(features >> spec.VIRTIO_F_RING_PACKED & 1)


def _ring(
    memory: GuestMemory,
    features: int,
    order: spec.ByteOrder,
    size: int,
    desc_gpa: int,
    driver_gpa: int,
    device_gpa: int,
    *,
    policy: Policy,
) -> Ring:
    indirect, event_idx, in_order, on_empty = (
        bool(features >> bit & 1)
        for bit in (
            spec.VIRTIO_F_INDIRECT_DESC,
            spec.VIRTIO_F_EVENT_IDX,
            spec.VIRTIO_F_IN_ORDER,
            spec.VIRTIO_F_NOTIFY_ON_EMPTY,
        )
    )
    parts = desc_gpa, driver_gpa, device_gpa
    if _is_packed(features):
        return PackedQueue(
            memory, size, *parts, indirect=indirect, event_idx=event_idx, in_order=in_order, policy=policy
        )
    on_empty = on_empty and not features >> spec.VIRTIO_F_VERSION_1 & 1
    return SplitQueue(
        memory,
        size,
        *parts,
        indirect=indirect,
        event_idx=event_idx,
        in_order=in_order,
        notify_on_empty=on_empty,
        order=order,
        policy=policy,
    )


def _is_size(value: int, maximum: int, features: int) -> bool:
    """§2.7: powers of two; §2.8.10.1: any number in a packed ring."""
    return 0 < value <= maximum and (_is_packed(features) or not value & value - 1)
