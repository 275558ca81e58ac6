/* A virtio device behind the modern PCI transport (virtio 1.3 §4.1): finding it, and bringing it to life. */
#pragma once

#include "pci.h"
#include "virtqueue.h"

enum {
    VIRTIO_VENDOR = 0x1af4,
    VIRTIO_MODERN_DEVICE = 0x1040, /* plus the virtio device id */

    /* Device status, §2.1 */
    VIRTIO_ACKNOWLEDGE = 1,
    VIRTIO_DRIVER = 2,
    VIRTIO_DRIVER_OK = 4,
    VIRTIO_FEATURES_OK = 8,
    VIRTIO_DEVICE_NEEDS_RESET = 64,
    VIRTIO_FAILED = 128,

    VIRTIO_NO_VECTOR = 0xffff,
};

#define VIRTIO_F_VERSION_1 (1ul << 32)

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

/* §4.1.4: where its structures are, and how it interrupts: by MSI-X if it can, with `intx` by its line (§4.1.5.3.2).
 * Returns 0 if there is no such device. */
int virtio_find(struct virtio_device *device, u16 virtio_id, int intx);

/* Whether it can wake a sleeping guest; if not, somebody must look by themselves. */
int virtio_has_interrupts(const struct virtio_device *device);

/* §3.1.1, steps 1 to 6.  `understood` are the feature bits this driver implements; VERSION_1 is required. */
void virtio_start(struct virtio_device *device, u64 understood);

/* Step 7: one queue, and the MSI-X entry for its used-buffer notifications. */
void virtio_set_up_queue(struct virtio_device *device, struct virtqueue *queue, u16 index, u16 msix_entry);

/* Step 7 too: the MSI-X entry for configuration changes. */
void virtio_set_config_vector(struct virtio_device *device, u16 msix_entry);

/* Step 8. */
void virtio_driver_ok(struct virtio_device *device);

/* Panics if the device says that it has lost its way (§2.1.2). */
void virtio_check(const struct virtio_device *device);

/* One field of the device's configuration.  32 bits in one access cannot be torn; only a driver that reads several
 * fields, or a wider one, must watch config_generation (§2.5.1). */
u32 virtio_read_config32(const struct virtio_device *device, u32 offset);
void virtio_write_config32(const struct virtio_device *device, u32 offset, u32 value);
