"""The traditional memory balloon device (virtio 1.3 §5.5)."""

from devices.virtio.balloon.device import Balloon
from devices.virtio.balloon.numbering import Numbering
from devices.virtio.balloon.stats import Statistics

__all__ = ["Balloon", "Numbering", "Statistics"]
