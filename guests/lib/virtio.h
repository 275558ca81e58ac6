/* A virtio device, whichever way it is reached: finding it, and bringing it to life (virtio 1.3 §3.1.1).
 *
 * `virtio_transport.h` is the processor's: what a `struct virtio_device` is on its board.
 */
#pragma once

#include "virtqueue.h"

enum {
    /* Device status, §2.1 */
    VIRTIO_ACKNOWLEDGE = 1,
    VIRTIO_DRIVER = 2,
    VIRTIO_DRIVER_OK = 4,
    VIRTIO_FEATURES_OK = 8,
    VIRTIO_DEVICE_NEEDS_RESET = 64,
    VIRTIO_FAILED = 128,
};

#define VIRTIO_F_VERSION_1 (1ull << 32)

#include "virtio_transport.h"

/* Where its registers are, and how it interrupts: by MSI-X if it can, with `intx` by its line (§4.1.5.3.2).  Returns 0
 * if there is no such device. */
int virtio_find(struct virtio_device *device, u16 virtio_id, int intx);

/* Steps 1 to 6.  `understood` are the feature bits this driver implements; VERSION_1 is required of a modern device. */
void virtio_start(struct virtio_device *device, u64 understood);

/* Step 7: one queue, and the MSI-X entry, where there are any, for its used-buffer notifications. */
void virtio_set_up_queue(struct virtio_device *device, struct virtqueue *queue, u16 index, u16 msix_entry);

/* Step 7 too: the MSI-X entry for configuration changes. */
void virtio_set_config_vector(struct virtio_device *device, u16 msix_entry);

/* Step 8. */
void virtio_driver_ok(struct virtio_device *device);

/* Panics if the device says that it has lost its way (§2.1.2). */
void virtio_check(const struct virtio_device *device);

/* How it can wake a sleeping guest, in words, and whether it can; if not, somebody must look by themselves. */
const char *virtio_interrupts(const struct virtio_device *device);
int virtio_has_interrupts(const struct virtio_device *device);

/* Whether its rings and requests are in the other order of bytes than ours. */
int virtio_is_swapped(const struct virtio_device *device);

/* One field of the device's configuration, little-endian over every transport here.  32 bits in one access cannot be
 * torn; only a driver that reads several fields, or a wider one, must watch config_generation (§2.5.1). */
u32 virtio_read_config32(const struct virtio_device *device, u32 offset);
void virtio_write_config32(const struct virtio_device *device, u32 offset, u32 value);
