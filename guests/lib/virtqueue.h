/* A split virtqueue (virtio 1.3 §2.7), driver's side.
 *
 * Three parts in one page, laid out as a legacy device wants it too (§2.7.2).  The descriptor table says where buffers are.  The available ring carries buffers to the
 * device: the driver alone writes it.  The used ring carries them back: the device alone writes it.  Both rings have an
 * index that only grows (modulo 65536) and is taken modulo the queue size.
 */
#pragma once

#include "types.h"

enum {
    VIRTQUEUE_MAX_SIZE = 128, /* so that the three parts fit into one page */
    VIRTQUEUE_ALIGN = 4,      /* of the used ring */
};

enum {
    VIRTQ_DESC_F_WRITE = 2,     /* the device may write the buffer, not read it */
    VIRTQ_USED_F_NO_NOTIFY = 1, /* the device does not want to hear of new buffers */
};

struct virtq_desc {
    u64 addr;
    u32 len;
    u16 flags;
    u16 next;
};

struct virtq_avail {
    u16 flags;
    u16 idx;
    u16 ring[];
};

struct virtq_used_elem {
    u32 id;
    u32 len;
};

struct virtq_used {
    u16 flags;
    u16 idx;
    struct virtq_used_elem ring[];
};

struct virtqueue {
    u16 index, size;
    struct virtq_desc *desc;
    struct virtq_avail *avail;
    volatile struct virtq_used *used;
    volatile void *doorbell; /* a write here notifies the device */
    void (*notify)(const struct virtqueue *queue);
    int swapped; /* the device's order of bytes is not ours: byte_order.h */
    u16 first_free, free_count;
    u16 seen_used; /* how far we have read the used ring */
};

/* An empty queue of `size` entries, its memory from the page allocator. */
void virtqueue_create(struct virtqueue *queue, u16 index, u16 size);

/* Makes one buffer available.  Returns its descriptor's number, or -1 if the queue is full. */
int virtqueue_add(struct virtqueue *queue, const void *buffer, u32 length, u16 flags);

/* Notifies the device of all that was added, unless it does not want to know. */
void virtqueue_kick(struct virtqueue *queue);

/* The number of the next buffer the device has used, or -1 if there is none. */
int virtqueue_take_used(struct virtqueue *queue);
