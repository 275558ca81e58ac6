"""What the balloon can offer, and the configuration space that goes with it (virtio 1.3 §5.5.3, §5.5.4).

The space is as long as QEMU's: it ends with the last field whose feature is offered.  A driver may write `actual`, and
`poison_val` if it negotiated PAGE_POISON; the rest is the device's.
"""

from __future__ import annotations

from typing import Final

from devices.registers import Register, RegisterMap
from devices.virtio import spec
from devices.virtio.queue import DEFAULT_RING_FEATURES, LEGACY_RING_FEATURES, RING_FEATURES

SUPPORTED_FEATURES: Final = (
    1 << spec.VIRTIO_BALLOON_F_MUST_TELL_HOST
    | 1 << spec.VIRTIO_BALLOON_F_STATS_VQ
    | 1 << spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
    | 1 << spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT
    | 1 << spec.VIRTIO_BALLOON_F_PAGE_POISON
    | 1 << spec.VIRTIO_BALLOON_F_PAGE_REPORTING
    | RING_FEATURES
    | LEGACY_RING_FEATURES
    | 1 << spec.VIRTIO_F_VERSION_1
)
DEFAULT_FEATURES: Final = (
    1 << spec.VIRTIO_BALLOON_F_MUST_TELL_HOST
    | 1 << spec.VIRTIO_BALLOON_F_STATS_VQ
    | 1 << spec.VIRTIO_BALLOON_F_PAGE_POISON
    | DEFAULT_RING_FEATURES
    | 1 << spec.VIRTIO_F_VERSION_1
)
"""QEMU's.  Whether the guest may take back what the host asked for, and whether free memory leaves it unasked, are
decisions of who runs it."""

_FIELDS = (
    Register(0, 4, "num_pages", "ro"),
    Register(4, 4, "actual", "rw"),
    Register(8, 4, "free_page_hint_cmd_id", "ro"),
    Register(12, 4, "poison_val", "rw"),
)


def config_space(features: int) -> RegisterMap:
    """The registers of a balloon that offers `features`."""
    poison, hint = (
        features >> bit & 1 for bit in (spec.VIRTIO_BALLOON_F_PAGE_POISON, spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT)
    )
    count = 4 if poison else 3 if hint else 2
    return RegisterMap("balloon", 4 * count, _FIELDS[:count])
