"""The layout of the modern virtio transport over PCI as tables (virtio 1.3 §4.1.4).

Owns where each structure stands, the common configuration's registers and the capabilities that tell the driver.
Refuses to know what an access does; `pci_modern.py` does it.

BAR 4, 64 bits wide, holds one structure to a page: common configuration at 0, ISR status at 1000h, device-specific
configuration at 2000h, notifications at 3000h, where queue n has the two bytes at 4n.  BAR 1 holds the MSI-X
structures.  This is QEMU's arrangement, so a guest finds everything where it is used to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from devices.pci.config import Capability, Field
from devices.registers import Access, Register, RegisterMap
from devices.virtio import spec
from devices.virtio.device import VirtioDevice

MSIX_BAR: Final = 1
MODERN_BAR: Final = 4
MODERN_BAR_BYTES: Final = 0x4000
COMMON, ISR, DEVICE, NOTIFY = range(0, MODERN_BAR_BYTES, 0x1000)
NOTIFY_OFF_MULTIPLIER: Final = 4
CLASS_OTHER: Final = 0x00FF00
SUBSYSTEM_ID_BASE: Final = 0x40  # §4.1.2.1: at least 40h, so that no legacy driver takes the device for its own

_ACCESS: dict[str, Access] = {
    "device_feature_select": "rw",
    "device_feature": "ro",
    "driver_feature_select": "rw",
    "driver_feature": "rw",
    "config_msix_vector": "rw",
    "num_queues": "ro",
    "device_status": "rw",
    "config_generation": "ro",
    "queue_select": "rw",
    "queue_size": "rw",
    "queue_msix_vector": "rw",
    "queue_enable": "rw",
    "queue_notify_off": "ro",
    "queue_desc": "rw",
    "queue_driver": "rw",
    "queue_device": "rw",
    "queue_reset": "rw",
    # The other fields behind these exist only with features that are not offered: they are gaps, which read as zero.
}


def _common_registers() -> Iterable[Register]:
    fields: Mapping[str, Any] = spec.virtio_pci_common_cfg.fields or {}
    for name, access in _ACCESS.items():
        dtype, offset = fields[name][:2]
        yield Register(offset, dtype.itemsize, name, access)


COMMON_CFG: Final = RegisterMap("common configuration", spec.virtio_pci_common_cfg.itemsize, _common_registers())
ISR_CFG: Final = RegisterMap("ISR status", 1, [Register(0, 1, "isr_status", "ro")])


def virtio_cap(name: str, cfg_type: int, offset: int, length: int, *extra: Field, writable: bool = False) -> Capability:
    """§4.1.4: a virtio structure capability; `extra` fields begin at 16, `writable` opens bar, offset and length."""
    size = 16 + sum(field.size for field in extra)
    fields = (
        Field(2, 1, "cap_len", size),
        Field(3, 1, "cfg_type", cfg_type),
        Field(4, 1, "bar", 0 if writable else MODERN_BAR, 0xFF if writable else 0),
        Field(8, 4, "offset", offset, 0xFFFFFFFF if writable else 0),
        Field(12, 4, "length", length, 0xFFFFFFFF if writable else 0),
    )
    return Capability(name, spec.PCI_CAP_ID_VNDR, size, (*fields, *extra))


def virtio_capabilities(device: VirtioDevice) -> list[Capability]:
    """§4.1.4: the capabilities for `device`; one without configuration of its own has no DEVICE_CFG (§4.1.4.6)."""
    notify_length = NOTIFY_OFF_MULTIPLIER * max(len(device.queues), 1)
    multiplier = Field(16, 4, "notify_off_multiplier", NOTIFY_OFF_MULTIPLIER)
    data = Field(16, 4, "pci_cfg_data", 0, 0xFFFFFFFF)
    capabilities = [
        virtio_cap("common", spec.VIRTIO_PCI_CAP_COMMON_CFG, COMMON, COMMON_CFG.size),
        virtio_cap("notify", spec.VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY, notify_length, multiplier),
        virtio_cap("isr", spec.VIRTIO_PCI_CAP_ISR_CFG, ISR, ISR_CFG.size),
        virtio_cap("window", spec.VIRTIO_PCI_CAP_PCI_CFG, 0, 0, data, writable=True),
    ]
    if device.config_size:
        capabilities.insert(3, virtio_cap("device", spec.VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE, device.config_size))
    return capabilities
