#include "virtqueue.h"
#include "guest.h"
#include "io.h"
#include "pages.h"
#include "string.h"

struct queue_page {
    struct virtq_desc desc[VIRTQUEUE_MAX_SIZE];                   /* aligned to 16 */
    struct virtq_avail avail;                                     /* aligned to 2 */
    struct virtq_used used __attribute__((aligned(4)));
};
_Static_assert(sizeof(struct queue_page) <= PAGE_SIZE, "the parts of a queue must fit into one page");

void virtqueue_create(struct virtqueue *queue, u16 index, u16 size)
{
    u64 gpa = page_allocate();
    if (gpa == NO_PAGE)
        panic("no memory for a virtqueue");
    memset((void *)gpa, 0, PAGE_SIZE);
    struct queue_page *page = (struct queue_page *)gpa;
    *queue = (struct virtqueue){
        .index = index,
        .size = size,
        .desc = page->desc,
        .avail = &page->avail,
        .used = &page->used,
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
    queue->desc[head] = (struct virtq_desc){.addr = (u64)buffer, .len = length, .flags = flags};

    /* Step 2: put its number into the next entry of the available ring. */
    queue->avail->ring[queue->avail->idx % queue->size] = head;

    /* Steps 4 and 5: the device may look as soon as it sees the new index, so all the rest is written before it. */
    compiler_barrier();
    *(volatile u16 *)&queue->avail->idx = queue->avail->idx + 1;
    return head;
}

void virtqueue_kick(struct virtqueue *queue)
{
    /* Steps 6 and 7: the index must be visible before we read whether the device wants to be notified; else both sides
     * could wait for each other. */
    full_fence();
    if (!(queue->used->flags & VIRTQ_USED_F_NO_NOTIFY))
        *queue->doorbell = queue->index;
}

int virtqueue_take_used(struct virtqueue *queue)
{
    if (queue->seen_used == queue->used->idx)
        return -1;
    compiler_barrier(); /* the element is read after the index that announces it */
    u32 id = queue->used->ring[queue->seen_used % queue->size].id;
    queue->seen_used++;
    if (id >= queue->size)
        panic("the device returned descriptor %u, but queue %u has only %u", id, (u32)queue->index, (u32)queue->size);
    queue->desc[id].next = queue->first_free;
    queue->first_free = (u16)id;
    queue->free_count++;
    return (int)id;
}
