/* A virtio device behind registers in memory (virtio 1.3 §4.2): version 2, whose rings and requests are little-endian, or
 * the legacy version 1, where they are in the processor's own order. */
#pragma once

#include "../types.h"

struct virtio_device {
    u32 base;      /* of its registers; 0: none */
    u32 place;     /* which of the board's places that is */
    int is_legacy; /* version 1 */
    u64 offered, features; /* features: what the device offers, and what was accepted of it */
};
