"""The driver's side of virtio as a library: find a device, negotiate, set up rings, offer, kick, collect.

Written from the specification and independent of the device code: of `devices` it knows only the numbers in
`devices.virtio.spec`.  Tests of this project stand on it, and so can tests of any other device that speaks the
protocols of `vmm.testing.protocols`.
"""

from vmm.testing.balloon import BalloonDriver
from vmm.testing.bench import BenchBus, BusBench, DirectBench
from vmm.testing.direct import DirectTransport
from vmm.testing.driver import Driver, FeaturesRefused
from vmm.testing.layout import Descriptor
from vmm.testing.legacy_pci import LegacyPciTransport
from vmm.testing.mmio import LegacyMmioTransport, MmioTransport
from vmm.testing.packed_ring import PackedQueue
from vmm.testing.pages import OutOfPages, PageAllocator
from vmm.testing.pci import Msix, PciBus
from vmm.testing.protocols import ANY_QUEUE, Bus, Interrupts, Memory, Transport
from vmm.testing.raw import RawPackedQueue, RawQueue
from vmm.testing.ring import DeviceViolation, RingFull, SplitQueue, Used
from vmm.testing.virtio_pci import PciTransport

__all__ = [
    "ANY_QUEUE",
    "BalloonDriver",
    "BenchBus",
    "Bus",
    "BusBench",
    "Descriptor",
    "DeviceViolation",
    "DirectBench",
    "DirectTransport",
    "Driver",
    "FeaturesRefused",
    "Interrupts",
    "LegacyMmioTransport",
    "LegacyPciTransport",
    "Memory",
    "MmioTransport",
    "Msix",
    "OutOfPages",
    "PackedQueue",
    "PageAllocator",
    "PciBus",
    "PciTransport",
    "RawPackedQueue",
    "RawQueue",
    "RingFull",
    "SplitQueue",
    "Transport",
    "Used",
]
