"""The numbers and layouts of virtio 1.3, spelled as the specification spells them, with the section beside each block.

Owns constants, names and numpy dtypes and nothing else: no behaviour, so that the device side and the driver side can
both stand on it and stay independent of each other.  Feature bits are bit numbers: the mask is `1 << bit`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np

ByteOrder: TypeAlias = Literal["<", ">"]
"""Little-endian, or big-endian: `dtype.newbyteorder` and `struct` take it so.  Everything in this module is written for
little-endian drivers; to a legacy interface the driver's own order applies (§2.7.3)."""

# -- §2.1 Device status field ------------------------------------------------------------------------------------------


class Status(IntFlag):
    """Bits of the device status field, in the order in which a driver sets them."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    SUSPEND = 16  # 1.4
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


# -- §5 Device types ---------------------------------------------------------------------------------------------------


class DeviceId(IntEnum):
    """Virtio device ids of the devices that are spoken of here; PCI adds 1040h (§4.1.2)."""

    NETWORK = 1
    BLOCK = 2
    CONSOLE = 3
    ENTROPY = 4
    BALLOON = 5


# -- §6 Reserved feature bits ------------------------------------------------------------------------------------------

VIRTIO_F_NOTIFY_ON_EMPTY: Final = 24  # §6.3, legacy
VIRTIO_F_ANY_LAYOUT: Final = 27  # §6.3, legacy
VIRTIO_F_INDIRECT_DESC: Final = 28
VIRTIO_F_EVENT_IDX: Final = 29
VIRTIO_F_UNUSED: Final = 30  # §6.3: never negotiated
VIRTIO_F_VERSION_1: Final = 32
VIRTIO_F_ACCESS_PLATFORM: Final = 33
VIRTIO_F_RING_PACKED: Final = 34
VIRTIO_F_IN_ORDER: Final = 35
VIRTIO_F_ORDER_PLATFORM: Final = 36
VIRTIO_F_SR_IOV: Final = 37
VIRTIO_F_NOTIFICATION_DATA: Final = 38
VIRTIO_F_NOTIF_CONFIG_DATA: Final = 39
VIRTIO_F_RING_RESET: Final = 40
VIRTIO_F_ADMIN_VQ: Final = 41
VIRTIO_F_SUSPEND: Final = 43  # 1.4

FEATURE_NAMES: Final = {
    VIRTIO_F_NOTIFY_ON_EMPTY: "VIRTIO_F_NOTIFY_ON_EMPTY",
    VIRTIO_F_ANY_LAYOUT: "VIRTIO_F_ANY_LAYOUT",
    VIRTIO_F_INDIRECT_DESC: "VIRTIO_F_INDIRECT_DESC",
    VIRTIO_F_EVENT_IDX: "VIRTIO_F_EVENT_IDX",
    VIRTIO_F_VERSION_1: "VIRTIO_F_VERSION_1",
    VIRTIO_F_ACCESS_PLATFORM: "VIRTIO_F_ACCESS_PLATFORM",
    VIRTIO_F_RING_PACKED: "VIRTIO_F_RING_PACKED",
    VIRTIO_F_IN_ORDER: "VIRTIO_F_IN_ORDER",
    VIRTIO_F_ORDER_PLATFORM: "VIRTIO_F_ORDER_PLATFORM",
    VIRTIO_F_SR_IOV: "VIRTIO_F_SR_IOV",
    VIRTIO_F_NOTIFICATION_DATA: "VIRTIO_F_NOTIFICATION_DATA",
    VIRTIO_F_NOTIF_CONFIG_DATA: "VIRTIO_F_NOTIF_CONFIG_DATA",
    VIRTIO_F_RING_RESET: "VIRTIO_F_RING_RESET",
    VIRTIO_F_ADMIN_VQ: "VIRTIO_F_ADMIN_VQ",
    VIRTIO_F_SUSPEND: "VIRTIO_F_SUSPEND",
}

# -- §2.7 Split virtqueues ---------------------------------------------------------------------------------------------

VIRTQ_DESC_F_NEXT: Final = 1  # §2.7.5
VIRTQ_DESC_F_WRITE: Final = 2
VIRTQ_DESC_F_INDIRECT: Final = 4
VIRTQ_AVAIL_F_NO_INTERRUPT: Final = 1  # §2.7.6
VIRTQ_USED_F_NO_NOTIFY: Final = 1  # §2.7.8

VIRTQ_MAX_SIZE: Final = 32768  # §2.7; a power of two
VIRTQ_DESC_ALIGN: Final = 16  # §2.7.1
VIRTQ_AVAIL_ALIGN: Final = 2
VIRTQ_USED_ALIGN: Final = 4

virtq_desc: Final = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])  # §2.7.5
virtq_used_elem: Final = np.dtype([("id", "<u4"), ("len", "<u4")])  # §2.7.8


def virtq_avail(queue_size: int) -> np.dtype[np.void]:
    """§2.7.6: the available ring, 6 + 2 * queue_size bytes with `used_event`, which counts only with EVENT_IDX."""
    return np.dtype([("flags", "<u2"), ("idx", "<u2"), ("ring", "<u2", (queue_size,)), ("used_event", "<u2")])


def virtq_used(queue_size: int) -> np.dtype[np.void]:
    """§2.7.8: the used ring, 6 + 8 * queue_size bytes with `avail_event`, which counts only with EVENT_IDX."""
    return np.dtype(
        [("flags", "<u2"), ("idx", "<u2"), ("ring", virtq_used_elem, (queue_size,)), ("avail_event", "<u2")]
    )


# -- §2.8 Packed virtqueues --------------------------------------------------------------------------------------------

VIRTQ_DESC_F_AVAIL: Final = 1 << 7  # §2.8.1; NEXT, WRITE and INDIRECT are as above
VIRTQ_DESC_F_USED: Final = 1 << 15

PVIRTQ_DESC_ALIGN: Final = 16  # §2.8.10.1
PVIRTQ_EVENT_ALIGN: Final = 4

pvirtq_desc: Final = np.dtype([("addr", "<u8"), ("len", "<u4"), ("id", "<u2"), ("flags", "<u2")])  # §2.8.13
pvirtq_event_suppress: Final = np.dtype(
    [("desc", "<u2"), ("flags", "<u2")]
)  # §2.8.14; the wrap counter is desc's bit 15

RING_EVENT_FLAGS_ENABLE: Final = 0  # §2.8.10
RING_EVENT_FLAGS_DISABLE: Final = 1
RING_EVENT_FLAGS_DESC: Final = 2

# -- §5.5 Traditional memory balloon device ----------------------------------------------------------------------------

VIRTIO_BALLOON_F_MUST_TELL_HOST: Final = 0  # §5.5.3
VIRTIO_BALLOON_F_STATS_VQ: Final = 1
VIRTIO_BALLOON_F_DEFLATE_ON_OOM: Final = 2
VIRTIO_BALLOON_F_FREE_PAGE_HINT: Final = 3
VIRTIO_BALLOON_F_PAGE_POISON: Final = 4
VIRTIO_BALLOON_F_PAGE_REPORTING: Final = 5

BALLOON_FEATURE_NAMES: Final = {
    VIRTIO_BALLOON_F_MUST_TELL_HOST: "VIRTIO_BALLOON_F_MUST_TELL_HOST",
    VIRTIO_BALLOON_F_STATS_VQ: "VIRTIO_BALLOON_F_STATS_VQ",
    VIRTIO_BALLOON_F_DEFLATE_ON_OOM: "VIRTIO_BALLOON_F_DEFLATE_ON_OOM",
    VIRTIO_BALLOON_F_FREE_PAGE_HINT: "VIRTIO_BALLOON_F_FREE_PAGE_HINT",
    VIRTIO_BALLOON_F_PAGE_POISON: "VIRTIO_BALLOON_F_PAGE_POISON",
    VIRTIO_BALLOON_F_PAGE_REPORTING: "VIRTIO_BALLOON_F_PAGE_REPORTING",
}


def feature_names(features: int, device_id: int) -> list[str]:
    """The names of the bits set in the mask `features`, ascending; a bit without a name is "bit N"."""
    names = FEATURE_NAMES | (BALLOON_FEATURE_NAMES if device_id == DeviceId.BALLOON else {})
    return [names.get(bit, f"bit {bit}") for bit in range(features.bit_length()) if features >> bit & 1]


VIRTIO_BALLOON_PFN_SHIFT: Final = 12  # §5.5.6: always 4096-byte pages, whatever the guest's page size is

# §5.5.4; little-endian even for a legacy driver
virtio_balloon_config: Final = np.dtype(
    [("num_pages", "<u4"), ("actual", "<u4"), ("free_page_hint_cmd_id", "<u4"), ("poison_val", "<u4")]
)

VIRTIO_BALLOON_CMD_ID_STOP: Final = 0  # §5.5.6.5; from 2 on an id is a live one
VIRTIO_BALLOON_CMD_ID_DONE: Final = 1

virtio_balloon_stat: Final = np.dtype([("tag", "<u2"), ("val", "<u8")])  # §5.5.6.3, packed: 10 bytes

VIRTIO_BALLOON_S_SWAP_IN: Final = 0  # §5.5.6.4
VIRTIO_BALLOON_S_SWAP_OUT: Final = 1
VIRTIO_BALLOON_S_MAJFLT: Final = 2
VIRTIO_BALLOON_S_MINFLT: Final = 3
VIRTIO_BALLOON_S_MEMFREE: Final = 4
VIRTIO_BALLOON_S_MEMTOT: Final = 5
VIRTIO_BALLOON_S_AVAIL: Final = 6
VIRTIO_BALLOON_S_CACHES: Final = 7
VIRTIO_BALLOON_S_HTLB_PGALLOC: Final = 8
VIRTIO_BALLOON_S_HTLB_PGFAIL: Final = 9
# The specification ends here; 10 to 15 are sent by Linux from 6.12 on.
VIRTIO_BALLOON_S_OOM_KILL: Final = 10
VIRTIO_BALLOON_S_ALLOC_STALL: Final = 11
VIRTIO_BALLOON_S_ASYNC_SCAN: Final = 12
VIRTIO_BALLOON_S_DIRECT_SCAN: Final = 13
VIRTIO_BALLOON_S_ASYNC_RECLAIM: Final = 14
VIRTIO_BALLOON_S_DIRECT_RECLAIM: Final = 15


class StatTag(NamedTuple):
    """What a statistics tag means: QEMU's name for it, and its unit, "bytes" or "count"."""

    name: str
    unit: str


BALLOON_STATS: Final = {
    VIRTIO_BALLOON_S_SWAP_IN: StatTag("stat-swap-in", "bytes"),
    VIRTIO_BALLOON_S_SWAP_OUT: StatTag("stat-swap-out", "bytes"),
    VIRTIO_BALLOON_S_MAJFLT: StatTag("stat-major-faults", "count"),
    VIRTIO_BALLOON_S_MINFLT: StatTag("stat-minor-faults", "count"),
    VIRTIO_BALLOON_S_MEMFREE: StatTag("stat-free-memory", "bytes"),
    VIRTIO_BALLOON_S_MEMTOT: StatTag("stat-total-memory", "bytes"),
    VIRTIO_BALLOON_S_AVAIL: StatTag("stat-available-memory", "bytes"),
    VIRTIO_BALLOON_S_CACHES: StatTag("stat-disk-caches", "bytes"),
    VIRTIO_BALLOON_S_HTLB_PGALLOC: StatTag("stat-htlb-pgalloc", "count"),
    VIRTIO_BALLOON_S_HTLB_PGFAIL: StatTag("stat-htlb-pgfail", "count"),
    VIRTIO_BALLOON_S_OOM_KILL: StatTag("stat-oom-kills", "count"),
    VIRTIO_BALLOON_S_ALLOC_STALL: StatTag("stat-alloc-stalls", "count"),
    VIRTIO_BALLOON_S_ASYNC_SCAN: StatTag("stat-async-scans", "bytes"),
    VIRTIO_BALLOON_S_DIRECT_SCAN: StatTag("stat-direct-scans", "bytes"),
    VIRTIO_BALLOON_S_ASYNC_RECLAIM: StatTag("stat-async-reclaims", "bytes"),
    VIRTIO_BALLOON_S_DIRECT_RECLAIM: StatTag("stat-direct-reclaims", "bytes"),
}

# -- §4.1 Virtio over PCI ----------------------------------------------------------------------------------------------

VIRTIO_PCI_VENDOR_ID: Final = 0x1AF4  # §4.1.2
VIRTIO_PCI_MODERN_DEVICE_BASE: Final = 0x1040  # plus the virtio device id
VIRTIO_PCI_TRANSITIONAL: Final = {  # §4.1.2.1
    DeviceId.NETWORK: 0x1000,
    DeviceId.BLOCK: 0x1001,
    DeviceId.BALLOON: 0x1002,
    DeviceId.CONSOLE: 0x1003,
    DeviceId.ENTROPY: 0x1005,
}
VIRTIO_LEGACY_QUEUE_ALIGN: Final = 4096  # §2.7.2, §4.1.5.1.3.1

PCI_CAP_ID_VNDR: Final = 0x09  # §4.1.4
VIRTIO_PCI_CAP_COMMON_CFG: Final = 1
VIRTIO_PCI_CAP_NOTIFY_CFG: Final = 2
VIRTIO_PCI_CAP_ISR_CFG: Final = 3
VIRTIO_PCI_CAP_DEVICE_CFG: Final = 4
VIRTIO_PCI_CAP_PCI_CFG: Final = 5
VIRTIO_PCI_CAP_SHARED_MEMORY_CFG: Final = 8
VIRTIO_PCI_CAP_VENDOR_CFG: Final = 9

_virtio_pci_cap_fields = [
    ("cap_vndr", "u1"),
    ("cap_next", "u1"),
    ("cap_len", "u1"),
    ("cfg_type", "u1"),
    ("bar", "u1"),
    ("id", "u1"),
    ("padding", "u1", (2,)),
    ("offset", "<u4"),
    ("length", "<u4"),
]
virtio_pci_cap: Final = np.dtype(_virtio_pci_cap_fields)  # 16 bytes
virtio_pci_notify_cap: Final = np.dtype([*_virtio_pci_cap_fields, ("notify_off_multiplier", "<u4")])  # §4.1.4.4
virtio_pci_cfg_cap: Final = np.dtype([*_virtio_pci_cap_fields, ("pci_cfg_data", "u1", (4,))])  # §4.1.4.9

# §4.1.4.3, 64 bytes; the 64-bit fields are also written in halves
virtio_pci_common_cfg: Final = np.dtype(
    [
        ("device_feature_select", "<u4"),
        ("device_feature", "<u4"),
        ("driver_feature_select", "<u4"),
        ("driver_feature", "<u4"),
        ("config_msix_vector", "<u2"),
        ("num_queues", "<u2"),
        ("device_status", "u1"),
        ("config_generation", "u1"),
        ("queue_select", "<u2"),
        ("queue_size", "<u2"),
        ("queue_msix_vector", "<u2"),
        ("queue_enable", "<u2"),
        ("queue_notify_off", "<u2"),
        ("queue_desc", "<u8"),
        ("queue_driver", "<u8"),
        ("queue_device", "<u8"),
        ("queue_notif_config_data", "<u2"),
        ("queue_reset", "<u2"),
        ("admin_queue_index", "<u2"),
        ("admin_queue_num", "<u2"),
    ]
)

VIRTIO_PCI_ISR_QUEUE: Final = 1  # §4.1.4.5
VIRTIO_PCI_ISR_CONFIG: Final = 2
VIRTIO_MSI_NO_VECTOR: Final = 0xFFFF  # §4.1.5.1.2

# §4.1.4.10, the legacy structure in BAR 0; the two vectors are there only while MSI-X is enabled, and the device's own
# configuration follows
virtio_pci_legacy: Final = np.dtype(
    [
        ("device_features", "<u4"),
        ("driver_features", "<u4"),
        ("queue_address", "<u4"),
        ("queue_size", "<u2"),
        ("queue_select", "<u2"),
        ("queue_notify", "<u2"),
        ("device_status", "u1"),
        ("isr_status", "u1"),
        ("config_msix_vector", "<u2"),
        ("queue_msix_vector", "<u2"),
    ]
)

# -- §4.2 Virtio over MMIO ---------------------------------------------------------------------------------------------

VIRTIO_MMIO_MAGIC: Final = 0x74726976  # "virt"
VIRTIO_MMIO_VERSION: Final = 2
VIRTIO_MMIO_LEGACY_VERSION: Final = 1
VIRTIO_MMIO_INT_VRING: Final = 1  # InterruptStatus
VIRTIO_MMIO_INT_CONFIG: Final = 2

VIRTIO_MMIO_REGISTERS: Final = {  # §4.2.2; every one has 32 bits
    "MagicValue": 0x000,
    "Version": 0x004,
    "DeviceID": 0x008,
    "VendorID": 0x00C,
    "DeviceFeatures": 0x010,
    "DeviceFeaturesSel": 0x014,
    "DriverFeatures": 0x020,
    "DriverFeaturesSel": 0x024,
    "GuestPageSize": 0x028,  # legacy
    "QueueSel": 0x030,
    "QueueSizeMax": 0x034,
    "QueueSize": 0x038,
    "QueueAlign": 0x03C,  # legacy
    "QueuePFN": 0x040,  # legacy
    "QueueReady": 0x044,
    "QueueNotify": 0x050,
    "InterruptStatus": 0x060,
    "InterruptACK": 0x064,
    "Status": 0x070,
    "QueueDescLow": 0x080,
    "QueueDescHigh": 0x084,
    "QueueDriverLow": 0x090,
    "QueueDriverHigh": 0x094,
    "QueueDeviceLow": 0x0A0,
    "QueueDeviceHigh": 0x0A4,
    "SHMSel": 0x0AC,
    "SHMLenLow": 0x0B0,
    "SHMLenHigh": 0x0B4,
    "SHMBaseLow": 0x0B8,
    "SHMBaseHigh": 0x0BC,
    "QueueReset": 0x0C0,
    "ConfigGeneration": 0x0FC,
}
VIRTIO_MMIO_CONFIG: Final = 0x100
