/* A virtio device behind the modern PCI transport (virtio 1.3 §4.1). */
#pragma once

#include "../types.h"
#include "pci.h"

enum {
    VIRTIO_VENDOR = 0x1af4,
    VIRTIO_TRANSITIONAL_DEVICE = 0x1000, /* and from here on */
    VIRTIO_MODERN_DEVICE = 0x1040, /* plus the virtio device id */
    VIRTIO_NO_VECTOR = 0xffff,
};

/* §4.1.4.3, the common configuration structure. */
struct virtio_pci_common {
    u32 device_feature_select;
    u32 device_feature;
    u32 driver_feature_select;
    u32 driver_feature;
    u16 config_msix_vector;
    u16 num_queues;
    u8 device_status;
    u8 config_generation;
    u16 queue_select;
    u16 queue_size;
    u16 queue_msix_vector;
    u16 queue_enable;
    u16 queue_notify_off;
    u32 queue_desc[2]; /* 64-bit fields are written as two halves, which every device must take */
    u32 queue_driver[2];
    u32 queue_device[2];
};

struct msix_entry {
    u32 address_low, address_high, data, control;
};

struct virtio_device {
    pci_function function;
    volatile struct virtio_pci_common *common;
    volatile u8 *config; /* what is specific to this kind of device */
    u64 notify_base;
    u32 notify_multiplier;
    volatile struct msix_entry *msix; /* NULL: the device has no MSI-X, or its line is used */
    u16 msix_entries;
    volatile u8 *isr; /* NULL: its line is not used */
    volatile u32 config_interrupts; /* that came so far */
    u64 offered, features; /* features: what the device offers, and what was accepted of it */
};
