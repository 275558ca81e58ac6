"""What the checks of virtio over PCI have in common: the structures of §4.1.4, and a queue's fields."""

from __future__ import annotations

from devices.virtio import spec
from vmm.conformance.rig import Rig, Rigs, equal, holds
from vmm.testing.virtio_pci import Capability

COMMON, NOTIFY, ISR = spec.VIRTIO_PCI_CAP_COMMON_CFG, spec.VIRTIO_PCI_CAP_NOTIFY_CFG, spec.VIRTIO_PCI_CAP_ISR_CFG
DEVICE, WINDOW = spec.VIRTIO_PCI_CAP_DEVICE_CFG, spec.VIRTIO_PCI_CAP_PCI_CFG
SHARED_MEMORY, VENDOR = spec.VIRTIO_PCI_CAP_SHARED_MEMORY_CFG, spec.VIRTIO_PCI_CAP_VENDOR_CFG
NO_VECTOR = spec.VIRTIO_MSI_NO_VECTOR


def structures(rig: Rig, cfg_type: int) -> list[Capability]:
    """Every capability of a type."""
    return [capability for capability in rig.pci.capabilities if capability.cfg_type == cfg_type]


def check_alignment(cfg_type: int, alignment: int, rigs: Rigs, properties: str = "") -> None:
    for capability in structures(rigs(properties), cfg_type):
        equal(f"the offset {capability.offset:#x} modulo {alignment}", capability.offset % alignment, 0)


def check_presence(cfg_type: int, rigs: Rigs) -> None:
    rig = rigs()
    found = structures(rig, cfg_type)
    holds(f"there is a capability of type {cfg_type}", found)
    sizes = {bar.number: bar.size for bar in rig.pci.function.bars()}
    for capability in found if cfg_type != WINDOW else ():
        inside = capability.bar in sizes and capability.offset + capability.length <= sizes[capability.bar]
        holds("the structure lies in its BAR", inside)


def field_of_queue(rig: Rig, queue: int, field: str) -> int:
    rig.pci.write_common("queue_select", queue)
    return rig.pci.read_common(field)
