#include "virtqueue.h"
#include "byte_order.h"
#include "guest.h"
#include "io.h"
#include "pages.h"
#include "string.h"

enum { DESC_BYTES = sizeof(struct virtq_desc), AVAIL_BYTES = 3 * 2, USED_BYTES = 3 * 2 }; /* with the event fields */

_Static_assert(VIRTQUEUE_MAX_SIZE * (DESC_BYTES + 2 + sizeof(struct virtq_used_elem)) + AVAIL_BYTES + USED_BYTES +
                       VIRTQUEUE_ALIGN <= PAGE_SIZE,
               "the parts of a queue must fit into one page");

void virtqueue_create(struct virtqueue *queue, u16 index, u16 size)
{
    u64 gpa = page_allocate();
    if (gpa == NO_PAGE)
        panic("no memory for a virtqueue");
    memset(pointer_to(gpa), 0, PAGE_SIZE);
    u64 avail = gpa + (u64)size * DESC_BYTES;
    u64 used = align_up(avail + AVAIL_BYTES + (u64)size * 2, VIRTQUEUE_ALIGN);
    *queue = (struct virtqueue){
        .index = index,
        .size = size,
        .desc = pointer_to(gpa),
        .avail = pointer_to(avail),
        .used = pointer_to(used),
        .free_count = size,
    };
    for (u16 i = 0; i < size; i++)
        queue->desc[i].next = i + 1;
}

int virtqueue_add(struct virtqueue *queue, const void *buffer, u32 length, u16 flags)
{
    if (!queue->free_count)
        return -1;

    /* §2.7.13 step 1: put the buffer into a free descriptor.  Free ones are linked by `next`. */
    u16 head = queue->first_free;
    queue->first_free = queue->desc[head].next;
    queue->free_count--;
    queue->desc[head] = (struct virtq_desc){
        .addr = order64(queue->swapped, address_of(buffer)),
        .len = order32(queue->swapped, length),
        .flags = order16(queue->swapped, flags),
    };

    /* Step 2: put its number into the next entry of the available ring. */
    u16 index = order16(queue->swapped, queue->avail->idx);
    queue->avail->ring[index % queue->size] = order16(queue->swapped, head);

    /* Steps 4 and 5: the device may look as soon as it sees the new index, so all the rest is written before it. */
    compiler_barrier();
    *(volatile u16 *)&queue->avail->idx = order16(queue->swapped, (u16)(index + 1));
    return head;
}

void virtqueue_kick(struct virtqueue *queue)
{
    /* Steps 6 and 7: the index must be visible before we read whether the device wants to be notified; else both sides
     * could wait for each other. */
    full_fence();
    if (!(order16(queue->swapped, queue->used->flags) & VIRTQ_USED_F_NO_NOTIFY))
        queue->notify(queue);
}

int virtqueue_take_used(struct virtqueue *queue)
{
    if (queue->seen_used == order16(queue->swapped, queue->used->idx))
        return -1;
    compiler_barrier(); /* the element is read after the index that announces it */
    u32 id = order32(queue->swapped, queue->used->ring[queue->seen_used % queue->size].id);
    queue->seen_used++;
    if (id >= queue->size)
        panic("the device returned descriptor %u, but queue %u has only %u", id, (u32)queue->index, (u32)queue->size);
    queue->desc[id].next = queue->first_free;
    queue->first_free = (u16)id;
    queue->free_count++;
    return (int)id;
}
