"""The device status field and feature negotiation, as tables (virtio 1.3 §2.1, §2.2, §3.1).

Owns which status a write leads to and whether a set of features is acceptable; refuses to know what a device does when
it becomes live.  Both functions are pure.

A driver may set several bits in one write: they are looked at in the order of the initialisation sequence, and each is
accepted if everything it needs has been set by then.  Only a reset clears bits.
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

_FEATURES_OK = int(Status.FEATURES_OK)
_VERSION_1 = 1 << spec.VIRTIO_F_VERSION_1


def next_status(status: int, written: int, features_ok: bool) -> int:
    """The status after the driver wrote `written` (not 0, which is a reset) over `status`.

    `features_ok` tells whether FEATURES_OK may be set.  A bit out of order, a bit that is not the driver's
    (DEVICE_NEEDS_RESET) and an unknown one are ignored, and so is everything after FAILED (§2.1.1: the driver must
    reset the device first)."""
    if status & Status.FAILED:
        return status
    for step in STEPS:
        allowed = status & step.needs == step.needs and (features_ok or step.bit != Status.FEATURES_OK)
        if written & step.bit and allowed:
            status |= step.bit
    return status


def negotiated(device_status: int, driver_features: int) -> int:
    """The features that both sides agreed on: none before FEATURES_OK (§2.2)."""
    return driver_features if device_status & _FEATURES_OK else 0


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
