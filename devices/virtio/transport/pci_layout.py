"""The layout of the virtio transports over PCI as tables (virtio 1.3 §4.1.2, §4.1.4).

Owns who a function says it is, where each structure stands, the registers in it and the capabilities that tell the
driver.  Refuses to know what an access does; `pci_modern.py` and `pci_legacy.py` do it.

BAR 4, 64 bits wide, holds one structure to a page: common configuration at 0, ISR status at 1000h, device-specific
configuration at 2000h, notifications at 3000h, where queue n has the two bytes at 4n.  BAR 1 holds the MSI-X
structures, BAR 0, in I/O space, the legacy registers.  This is QEMU's arrangement, so a guest finds everything where it
is used to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from devices.pci.config import Bar, BarKind, Capability, Field, Identity
from devices.registers import Access, Register, RegisterMap
from devices.virtio import spec
from devices.virtio.device import VirtioDevice

LEGACY_BAR: Final = 0
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


_LEGACY_ACCESS: dict[str, Access] = {
    "device_features": "ro",
    "driver_features": "rw",
    "queue_address": "rw",
    "queue_size": "ro",
    "queue_select": "rw",
    "queue_notify": "wo",
    "device_status": "rw",
    "isr_status": "ro",
    "config_msix_vector": "rw",
    "queue_msix_vector": "rw",
}
_LEGACY_WHOLE = ("queue_address", "queue_notify", "config_msix_vector", "queue_msix_vector")
LEGACY_HEADER_BYTES: Final = 20


def _legacy_registers(end: int) -> Iterable[Register]:
    fields: Mapping[str, Any] = spec.virtio_pci_legacy.fields or {}
    for name, access in _LEGACY_ACCESS.items():
        dtype, offset = fields[name][:2]
        if offset < end:
            yield Register(offset, dtype.itemsize, name, access, name in _LEGACY_WHOLE)


LEGACY: Final = RegisterMap("legacy registers", LEGACY_HEADER_BYTES, _legacy_registers(LEGACY_HEADER_BYTES))
LEGACY_WITH_MSIX: Final = RegisterMap(
    "legacy registers with MSI-X", spec.virtio_pci_legacy.itemsize, _legacy_registers(spec.virtio_pci_legacy.itemsize)
)


def legacy_bar(device: VirtioDevice) -> Bar:
    """BAR 0: the registers and the device's configuration behind them, wherever it stands (§4.1.4.10)."""
    size = LEGACY_WITH_MSIX.size + device.config_size
    return Bar(LEGACY_BAR, 1 << (size - 1).bit_length(), BarKind.IO)


def modern_identity(device: VirtioDevice, class_code: int = CLASS_OTHER) -> Identity:
    """§4.1.2.1: whom no legacy driver takes for its own."""
    vendor, number = spec.VIRTIO_PCI_VENDOR_ID, device.device_id
    return Identity(
        vendor, spec.VIRTIO_PCI_MODERN_DEVICE_BASE + number, 1, class_code, vendor, SUBSYSTEM_ID_BASE + number
    )


def transitional_identity(device: VirtioDevice, class_code: int = CLASS_OTHER) -> Identity:
    """§4.1.2.3: revision 0, the transitional device id, and the virtio device id as that of the subsystem.

    ValueError where the device's kind has no transitional id."""
    vendor, number = spec.VIRTIO_PCI_VENDOR_ID, device.device_id
    if number not in spec.VIRTIO_PCI_TRANSITIONAL:
        raise ValueError(f"{device.name} cannot be a legacy device: its kind came later")
    return Identity(vendor, spec.VIRTIO_PCI_TRANSITIONAL[spec.DeviceId(number)], 0, class_code, vendor, number)


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
