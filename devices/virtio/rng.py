"""The entropy device (virtio 1.3 §5.4): the driver offers buffers, the device fills them with random bytes.

Owns nothing but that.  Where randomness comes from is the machine's business: `entropy(n)` gives n bytes, so that a
run with a seeded source is repeatable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from devices.memory import GuestMemory
from devices.registers import RegisterMap
from devices.state import COUNTER, Table
from devices.virtio import spec
from devices.virtio.chains import Chains
from devices.virtio.device import Notifications, Queue, QueueSpec, VirtioDevice
from devices.virtio.queue import DEFAULT_RING_FEATURES

MAX_BATCH_BYTES = 65536
"""No batch gets more, and each of its buffers gets an equal part: the driver chooses the lengths, up to 4 GiB."""

DEFAULT_FEATURES = DEFAULT_RING_FEATURES | 1 << spec.VIRTIO_F_VERSION_1


class Rng(VirtioDevice):
    """`entropy(n)` returns n random bytes.  `served_bytes` counts what drivers got, across resets too."""

    device_id = spec.DeviceId.ENTROPY
    config = RegisterMap("entropy", 0, ())
    STATE: ClassVar[Table] = {**VirtioDevice.STATE, "served_bytes": COUNTER}

    def __init__(
        self,
        memory: GuestMemory,
        entropy: Callable[[int], bytes],
        *,
        name: str = "rng0",
        features: int = DEFAULT_FEATURES,
        queue_size: int = 64,
    ) -> None:
        super().__init__(memory, name, features, [QueueSpec("requestq", queue_size)])
        self._entropy = entropy
        self.served_bytes = 0

    def process(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        """Fill each chain's device-writable buffers, wholly or up to its part of the bound (§5.4.6.2 allows less).

        Device-readable ones, which the driver must not send (§5.4.6.1), get nothing."""
        share = MAX_BATCH_BYTES // len(chains)
        written = []
        for index, room in enumerate(chains.writable_bytes()):
            written.append(chains.scatter_writable(self.memory, index, self._entropy(min(room, share))))
        self.served_bytes += sum(written)
        return self.complete(queue, chains, written)
