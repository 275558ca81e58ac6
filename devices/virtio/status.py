"""The device status field and feature negotiation, as tables (virtio 1.3 §2.1, §2.2, §3.1).

Owns which status a write leads to and whether a set of features is acceptable; refuses to know what a device does when
it becomes live.  Both functions are pure.

A driver may set several bits in one write: they are looked at in the order of the initialisation sequence, and each is
accepted if everything it needs has been set by then.  Only a reset clears bits.

A legacy driver (§3.1.2) knows no FEATURES_OK: it goes from DRIVER to DRIVER_OK, and whatever it accepted that cannot be
is left out without a word (`legacy_features`), since there is no way to refuse it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from devices.virtio import spec
from devices.virtio.spec import Status


class Step(NamedTuple):
    """The driver may set `bit` once every bit of `needs` is set (§3.1.1)."""

    bit: int
    needs: int


STEPS = (
    Step(int(Status.ACKNOWLEDGE), 0),
    Step(int(Status.DRIVER), int(Status.ACKNOWLEDGE)),
    Step(int(Status.FEATURES_OK), int(Status.ACKNOWLEDGE | Status.DRIVER)),
    Step(int(Status.DRIVER_OK), int(Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK)),
    Step(int(Status.FAILED), 0),
)

LEGACY_STEPS = (
    Step(int(Status.ACKNOWLEDGE), 0),
    Step(int(Status.DRIVER), int(Status.ACKNOWLEDGE)),
    Step(int(Status.DRIVER_OK), int(Status.ACKNOWLEDGE | Status.DRIVER)),
    Step(int(Status.FAILED), 0),
)
"""§3.1.2: without the steps that a legacy driver leaves out."""

_LEGACY_BITS = 0xFFFFFFFF
_VERSION_1 = 1 << spec.VIRTIO_F_VERSION_1


def next_status(status: int, written: int, features_ok: bool, *, legacy: bool = False) -> int:
    """The status after the driver wrote `written` (not 0, which is a reset) over `status`.

    `features_ok` tells whether FEATURES_OK may be set, `legacy` that there is no such bit.  A bit out of order, a bit
    that is not the driver's (DEVICE_NEEDS_RESET) and an unknown one are ignored, and so is everything after FAILED
    (§2.1.1: the driver must reset the device first)."""
    if status & Status.FAILED:
        return status
    for step in LEGACY_STEPS if legacy else STEPS:
        allowed = status & step.needs == step.needs and (features_ok or step.bit != Status.FEATURES_OK)
        if written & step.bit and allowed:
            status |= step.bit
    return status


def feature_objections(offered: int, accepted: int, requires: Mapping[int, int], device_id: int) -> Iterator[str]:
    """Why the device cannot work with the features the driver accepted (§2.2.1, §6.1): one clause each, none if it can.

    `requires` maps a feature bit to the bit it cannot be without."""
    for name in spec.feature_names(accepted & ~offered, device_id):
        yield f"{name} was not offered"
    if offered & _VERSION_1 and not accepted & _VERSION_1:
        yield "VIRTIO_F_VERSION_1 was not accepted"
    for bit, needed in requires.items():
        if accepted >> bit & 1 and not accepted >> needed & 1:
            first, second = spec.feature_names(1 << bit, device_id)[0], spec.feature_names(1 << needed, device_id)[0]
            yield f"{first} needs {second}"


def legacy_features(offered: int, accepted: int, requires: Mapping[int, int]) -> int:
    """What is negotiated with a legacy driver that accepted `accepted` of the modern set `offered` (§2.2.3, §6.3):
    only bits 0 to 31, none that was not offered, and none without the one that it `requires`."""
    features = accepted & legacy_offer(offered)
    for bit, needed in requires.items():
        if not features >> needed & 1:
            features &= ~(1 << bit)
    return features


def legacy_offer(offered: int) -> int:
    """What a legacy driver is offered by a device with the features `offered`: bits 0 to 31 of them, and of a
    transitional device, which has VERSION_1 too, ANY_LAYOUT in any case (§6.3)."""
    must = 1 << spec.VIRTIO_F_ANY_LAYOUT if offered & _VERSION_1 else 0
    return offered & _LEGACY_BITS | must


def modern_offer(offered: int) -> int:
    """What any other driver is offered by it: all but the bits that are a legacy interface's own (§6.3)."""
    return offered & ~(1 << spec.VIRTIO_F_NOTIFY_ON_EMPTY | 1 << spec.VIRTIO_F_ANY_LAYOUT)
