"""Which interface a driver uses, and what the two sides have agreed on (virtio 1.3 §2.2, §3.1, §2.7.3).

Owns the device status, both sets of features and the byte order of what the driver writes.  Refuses to know queues, and
when a device becomes live.

A driver uses one interface, the modern or the legacy one.  The first through which it changes anything after a reset is
its own until the next, and the transports ignore what comes through the other, resets excepted (`claim`).  A modern
driver ends negotiation with FEATURES_OK; a legacy one never says so (§3.1.2): whoever uses this class ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from devices.state import FLAG, Maybe, Stateful, Table, uint
from devices.virtio import spec, status
from devices.virtio.spec import Status

_FEATURES_OK = int(Status.FEATURES_OK)


class Negotiation(Stateful):
    """A device that offers the feature bits of the mask `features`, before any driver; without VERSION_1 it has only a
    legacy interface.

    `legacy` tells by which interface the driver uses it: None as long as it does not, and over a transport that has
    only the modern one.  `driver_order` is the byte order of the driver's processor, which the board sets; it counts on
    a legacy interface, and for what is in it over any."""

    feature_requires: ClassVar[Mapping[int, int]] = {}
    """Feature bit -> the bit it cannot be without (§2.2.1)."""

    STATE: ClassVar[Table] = {
        "driver_features": uint(64),
        "status": uint(8),
        "legacy": Maybe(FLAG),
        "_legacy_fixed": FLAG,
    }

    def __init__(self, features: int) -> None:
        self.device_features = features
        self.driver_order: spec.ByteOrder = "<"
        self.forget_negotiation()

    def forget_negotiation(self) -> None:
        """A reset."""
        self.status = 0
        self.driver_features = 0
        self.legacy: bool | None = None
        self._legacy_fixed = False

    def saved_negotiation(self, saved: Any) -> tuple[int, spec.ByteOrder]:
        """The negotiated features and the byte order of a saved state."""
        fixed = saved["legacy_fixed"] or saved["status"] & _FEATURES_OK
        return saved["driver_features"] if fixed else 0, self.driver_order if saved["legacy"] else "<"

    @property
    def legacy_features(self) -> int:
        """What a legacy driver is offered: 32 bits."""
        return status.legacy_offer(self.device_features)

    @property
    def modern_features(self) -> int:
        """What a driver is offered by the modern interface."""
        return status.modern_offer(self.device_features)

    @property
    def offered_features(self) -> int:
        """What the driver is offered by the interface that it uses; as long as it uses none, by the modern one if there
        is one."""
        is_modern = self.device_features >> spec.VIRTIO_F_VERSION_1 & 1 and not self.legacy
        return self.modern_features if is_modern else self.legacy_features

    @property
    def features_fixed(self) -> bool:
        """Whether negotiation is over."""
        return self._legacy_fixed or bool(self.status & _FEATURES_OK)

    @property
    def negotiated_features(self) -> int:
        """The features that both sides agreed on: none before negotiation is over (§2.2)."""
        return self.driver_features if self.features_fixed else 0

    @property
    def order(self) -> spec.ByteOrder:
        """The byte order of rings and payloads (§2.7.3); the balloon's configuration is little-endian always."""
        return self.driver_order if self.legacy else "<"

    def claim(self, legacy: bool) -> bool:
        """The driver changes something through this interface; False where the other one is its own."""
        if self.legacy is None:
            self.legacy = legacy
        return self.legacy is legacy

    def write_driver_features(self, value: int) -> None:
        """The features the driver accepts.  Ignored once negotiation is over: only a reset reopens it."""
        if not self.features_fixed:
            self.driver_features = value & (1 << 64) - 1

    def has_feature(self, bit: int) -> bool:
        """Whether feature `bit` was negotiated."""
        return bool(self.negotiated_features >> bit & 1)

    def fix_legacy_features(self) -> None:
        """A legacy driver's first use ends negotiation: what cannot be is left out without a word (§3.1.2)."""
        self._legacy_fixed = True
        offered, accepted = self.device_features, self.driver_features
        self.driver_features = status.legacy_features(offered, accepted, self.feature_requires)
