#include "requests.h"
#include "../lib/guest.h"
#include "../lib/x86/io.h"

enum { VIRTQ_DESC_F_NEXT = 1, VIRTQ_DESC_F_INDIRECT = 4 };
enum { PFN_BYTES = sizeof(u32), HONEST_BYTES = HONEST_PAGES * PFN_BYTES, HUGE_STATS_BYTES = 65536 };

#define LARGEST_LENGTH 0xffffffffu

/* -- rings that are broken ------------------------------------------------------------------------------------------- */

static struct virtqueue *inflateq(struct driver *driver)
{
    return &driver->queues[QUEUE_INFLATE];
}

/* Descriptor `index`, on the array that names the honest pages: a device that goes on would take them. */
static struct virtq_desc *describe(struct driver *driver, u16 index, u16 flags, u16 next)
{
    struct virtq_desc *desc = &inflateq(driver)->desc[index];
    *desc = (struct virtq_desc){.addr = (u64)driver->pfns, .len = HONEST_BYTES, .flags = flags, .next = next};
    return desc;
}

static void offer(struct virtqueue *queue, u16 head)
{
    queue->avail->ring[queue->avail->idx % queue->size] = head;
    compiler_barrier();
    *(volatile u16 *)&queue->avail->idx = queue->avail->idx + 1;
}

static const char *offer_and_kick(struct driver *driver, u16 head)
{
    offer(inflateq(driver), head);
    virtqueue_kick(inflateq(driver));
    return NULL;
}

static const char *avail_jump(struct driver *driver)
{
    struct virtqueue *queue = inflateq(driver);
    describe(driver, 0, 0, 0);
    *(volatile u16 *)&queue->avail->idx = queue->avail->idx + queue->size + 1;
    virtqueue_kick(queue);
    return NULL;
}

static const char *avail_back(struct driver *driver)
{
    struct virtqueue *queue = inflateq(driver);
    *(volatile u16 *)&queue->avail->idx = queue->avail->idx - 1;
    virtqueue_kick(queue);
    return NULL;
}

static const char *head_range(struct driver *driver)
{
    return offer_and_kick(driver, inflateq(driver)->size);
}

static const char *head_twice(struct driver *driver)
{
    describe(driver, 3, 0, 0);
    offer(inflateq(driver), 3);
    return offer_and_kick(driver, 3);
}

static const char *next_range(struct driver *driver)
{
    describe(driver, 3, VIRTQ_DESC_F_NEXT, inflateq(driver)->size);
    return offer_and_kick(driver, 3);
}

static const char *loop(struct driver *driver)
{
    describe(driver, 3, VIRTQ_DESC_F_NEXT, 4);
    describe(driver, 4, VIRTQ_DESC_F_NEXT, 3);
    return offer_and_kick(driver, 3);
}

static const char *zero_length(struct driver *driver)
{
    describe(driver, 3, 0, 0)->len = 0;
    return offer_and_kick(driver, 3);
}

static const char *read_after_write(struct driver *driver)
{
    describe(driver, 3, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT, 4)->addr = driver->bystanders[0];
    describe(driver, 4, 0, 0);
    return offer_and_kick(driver, 3);
}

static const char *outside_ram(struct driver *driver)
{
    describe(driver, 3, 0, 0)->addr = driver->ram_end;
    return offer_and_kick(driver, 3);
}

static const char *past_ram(struct driver *driver)
{
    struct virtq_desc *desc = describe(driver, 3, 0, 0);
    desc->addr = driver->ram_end - PFN_BYTES;
    desc->len = 2 * PFN_BYTES;
    return offer_and_kick(driver, 3);
}

static const char *wrap(struct driver *driver)
{
    struct virtq_desc *desc = describe(driver, 3, 0, 0);
    desc->addr = ~0ul - PAGE_SIZE + 1;
    desc->len = 2 * PAGE_SIZE;
    return offer_and_kick(driver, 3);
}

static const char *huge(struct driver *driver)
{
    describe(driver, 3, 0, 0)->len = LARGEST_LENGTH;
    return offer_and_kick(driver, 3);
}

/* -- indirect tables ------------------------------------------------------------------------------------------------- */

/* A table of two entries, the first linked to the second, and descriptor 3 that refers to it. */
static struct virtq_desc *refer(struct driver *driver)
{
    struct virtq_desc entry = {.addr = (u64)driver->pfns, .len = PFN_BYTES, .flags = VIRTQ_DESC_F_NEXT, .next = 1};
    driver->table[0] = entry;
    entry.flags = 0;
    driver->table[1] = entry;
    struct virtq_desc *desc = describe(driver, 3, VIRTQ_DESC_F_INDIRECT, 0);
    desc->addr = (u64)driver->table;
    desc->len = 2 * sizeof(*desc);
    return desc;
}

static const char *indirect_plain(struct driver *driver)
{
    refer(driver);
    return offer_and_kick(driver, 3);
}

static const char *indirect_nested(struct driver *driver)
{
    refer(driver);
    driver->table[1] = driver->table[0];
    driver->table[1].flags = VIRTQ_DESC_F_INDIRECT;
    driver->table[1].addr = (u64)driver->table;
    driver->table[1].len = 2 * sizeof(struct virtq_desc);
    return offer_and_kick(driver, 3);
}

static const char *indirect_next(struct driver *driver)
{
    refer(driver)->flags |= VIRTQ_DESC_F_NEXT;
    inflateq(driver)->desc[3].next = 4;
    describe(driver, 4, 0, 0);
    return offer_and_kick(driver, 3);
}

static const char *indirect_empty(struct driver *driver)
{
    refer(driver)->len = 0;
    return offer_and_kick(driver, 3);
}

static const char *indirect_odd(struct driver *driver)
{
    refer(driver)->len = 2 * sizeof(struct virtq_desc) - 8;
    return offer_and_kick(driver, 3);
}

static const char *indirect_range(struct driver *driver)
{
    refer(driver);
    driver->table[0].next = 2;
    return offer_and_kick(driver, 3);
}

static const char *indirect_outside(struct driver *driver)
{
    refer(driver)->addr = driver->ram_end;
    return offer_and_kick(driver, 3);
}

/* -- rings in the wrong place ---------------------------------------------------------------------------------------- */

static void write_address(volatile u32 *field, u64 gpa)
{
    field[0] = (u32)gpa;
    field[1] = (u32)(gpa >> 32);
}

/* The inflate queue where the three addresses say; the other queues as they should be. */
static const char *enable_at(struct driver *driver, u64 desc, u64 avail, u64 used)
{
    volatile struct virtio_pci_common *common = driver->device.common;
    common->queue_select = QUEUE_INFLATE;
    common->queue_size = inflateq(driver)->size;
    write_address(common->queue_desc, desc);
    write_address(common->queue_driver, avail);
    write_address(common->queue_device, used);
    common->queue_enable = 1;
    driver_go(driver);
    return NULL;
}

static struct virtqueue *new_queue(struct driver *driver)
{
    driver->device.common->queue_select = QUEUE_INFLATE;
    u16 size = (u16)min_u64(driver->device.common->queue_size, VIRTQUEUE_MAX_SIZE);
    virtqueue_create(inflateq(driver), QUEUE_INFLATE, size);
    return inflateq(driver);
}

static const char *table_misaligned(struct driver *driver)
{
    struct virtqueue *queue = new_queue(driver);
    return enable_at(driver, (u64)queue->desc + 8, (u64)queue->avail, (u64)queue->used);
}

static const char *used_misaligned(struct driver *driver)
{
    struct virtqueue *queue = new_queue(driver);
    return enable_at(driver, (u64)queue->desc, (u64)queue->avail, (u64)queue->used + 2);
}

static const char *ring_outside(struct driver *driver)
{
    struct virtqueue *queue = new_queue(driver);
    return enable_at(driver, (u64)queue->desc, (u64)queue->avail, driver->ram_end);
}

static const char *ring_wrap(struct driver *driver)
{
    struct virtqueue *queue = new_queue(driver);
    return enable_at(driver, ~0ul - 15, (u64)queue->avail, (u64)queue->used);
}

/* -- wrong payloads -------------------------------------------------------------------------------------------------- */

static const char *send(struct driver *driver, u16 queue, const void *buffer, u32 bytes, u16 flags)
{
    virtqueue_add(&driver->queues[queue], buffer, bytes, flags);
    virtqueue_kick(&driver->queues[queue]);
    return NULL;
}

static const char *pfn_outside(struct driver *driver)
{
    driver->pfns[1] = (u32)(driver->ram_end / PAGE_SIZE);
    driver->pfns[2] = 0xa0; /* video memory: below the end of RAM, and none of it */
    driver->pfns[3] = 0xffffffff;
    return send(driver, QUEUE_INFLATE, driver->pfns, HONEST_BYTES, 0);
}

static const char *pfn_odd(struct driver *driver)
{
    return send(driver, QUEUE_INFLATE, driver->pfns, HONEST_BYTES - 1, 0);
}

static const char *pfn_short(struct driver *driver)
{
    return send(driver, QUEUE_INFLATE, driver->pfns, PFN_BYTES - 1, 0);
}

static const char *pfn_twice(struct driver *driver)
{
    driver->pfns[1] = driver->pfns[3] = driver->pfns[0];
    return send(driver, QUEUE_INFLATE, driver->pfns, HONEST_BYTES, 0);
}

static const char *write_only(struct driver *driver)
{
    return send(driver, QUEUE_INFLATE, (void *)driver->bystanders[0], HONEST_BYTES, VIRTQ_DESC_F_WRITE);
}

static const char *deflate_stranger(struct driver *driver)
{
    driver->pfns[0] = (u32)(driver->bystanders[0] / PAGE_SIZE);
    return send(driver, QUEUE_DEFLATE, driver->pfns, PFN_BYTES, 0);
}

/* What the buffer holds does not matter: it is read, never written. */
static const char *stats_two(struct driver *driver)
{
    send(driver, QUEUE_STATS, driver->table, 10, 0);
    return send(driver, QUEUE_STATS, driver->table, 10, 0);
}

static const char *stats_odd(struct driver *driver)
{
    return send(driver, QUEUE_STATS, driver->table, 13, 0);
}

static const char *stats_huge(struct driver *driver)
{
    return send(driver, QUEUE_STATS, driver->table, HUGE_STATS_BYTES, 0);
}

/* -- things done at the wrong time ----------------------------------------------------------------------------------- */

static const char *kick_early(struct driver *driver)
{
    driver_set_up_queues(driver);
    send(driver, QUEUE_INFLATE, driver->pfns, HONEST_BYTES, 0);
    driver_wait();
    if (driver_returned(driver, QUEUE_INFLATE))
        return "a request is carried out before DRIVER_OK";
    driver_go(driver);
    return NULL;
}

static const char *kick_after_reset(struct driver *driver)
{
    offer(inflateq(driver), (u16)inflateq(driver)->first_free);
    driver->device.common->device_status = 0;
    virtqueue_kick(inflateq(driver));
    return NULL;
}

static const char *kick_nowhere(struct driver *driver)
{
    *(volatile u16 *)inflateq(driver)->doorbell = 0xffff;
    return NULL;
}

static const char *size_change(struct driver *driver)
{
    volatile struct virtio_pci_common *common = driver->device.common;
    common->queue_select = QUEUE_INFLATE;
    u16 size = common->queue_size;
    common->queue_size = 2;
    write_address(common->queue_desc, driver->ram_end);
    if (common->queue_size != size || common->queue_desc[0] != (u32)(u64)inflateq(driver)->desc)
        return "an enabled queue takes another size or address";
    return send(driver, QUEUE_INFLATE, driver->pfns, HONEST_BYTES, 0);
}

static const char *features_refused(struct driver *driver)
{
    volatile struct virtio_pci_common *common = driver->device.common;
    common->device_status = 0;
    common->device_status = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER;
    for (u32 half = 0; half < 2; half++) {
        common->driver_feature_select = half;
        common->driver_feature = 0xffffffff;
    }
    common->device_status = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK;
    return common->device_status & VIRTIO_FEATURES_OK ? "features that were never offered are accepted" : NULL;
}

/* -- the table ------------------------------------------------------------------------------------------------------- */

#define BREAKS(id, why) {.name = id, .what = why, .answer = RESET_NEEDED, .queue = QUEUE_INFLATE
#define WRONG(id, q, n, why) {.name = id, .what = why, .answer = GOES_ON, .queue = q, .returned = n

const struct request requests[] = {
    BREAKS("avail-jump", "the available index runs ahead by more than the queue has (2.7.13.3)"), .send = avail_jump},
    BREAKS("avail-back", "the available index goes back by one (2.7.13.3)"), .send = avail_back},
    BREAKS("head-range", "a head that the descriptor table does not have (2.7.6)"), .send = head_range},
    BREAKS("head-twice", "the same head twice before it comes back (2.7.13.1)"), .send = head_twice},
    BREAKS("next-range", "a next that the descriptor table does not have (2.7.5)"), .send = next_range},
    BREAKS("loop", "a chain that leads back to its beginning (2.7.5.2)"), .send = loop},
    BREAKS("zero-length", "a buffer of no bytes (2.7.5)"), .send = zero_length},
    BREAKS("read-after-write", "a readable buffer after a writable one (2.7.4.2)"), .send = read_after_write},
    BREAKS("outside-ram", "a buffer behind the end of RAM (2.7.5)"), .send = outside_ram},
    BREAKS("past-ram", "a buffer that begins in RAM and ends behind it (2.7.5)"), .send = past_ram},
    BREAKS("wrap", "a buffer that wraps around the end of 64 bits (2.7.5)"), .send = wrap},
    BREAKS("huge", "a buffer of 4 GiB (2.7.5)"), .send = huge},
    BREAKS("indirect-refused", "an indirect table that was not negotiated (2.7.5.3.1)"), .send = indirect_plain,
     .without = FEATURE_INDIRECT_DESC},
    BREAKS("indirect-nested", "an indirect table within one (2.7.5.3.1)"), .send = indirect_nested},
    BREAKS("indirect-next", "an indirect descriptor with a next one (2.7.5.3.1)"), .send = indirect_next},
    BREAKS("indirect-empty", "an indirect table of no bytes (2.7.5.3)"), .send = indirect_empty},
    BREAKS("indirect-odd", "an indirect table of one and a half entries (2.7.5.3)"), .send = indirect_odd},
    BREAKS("indirect-range", "a next that the indirect table does not have (2.7.5)"), .send = indirect_range},
    BREAKS("indirect-outside", "an indirect table behind the end of RAM (2.7.5)"), .send = indirect_outside},
    BREAKS("table-misaligned", "a descriptor table at no multiple of 16 (2.7.1)"), .send = table_misaligned,
     .at_set_up = 1},
    BREAKS("used-misaligned", "a used ring at no multiple of 4 (2.7.1)"), .send = used_misaligned, .at_set_up = 1},
    BREAKS("ring-outside", "a used ring behind the end of RAM (2.6)"), .send = ring_outside, .at_set_up = 1},
    BREAKS("ring-wrap", "a descriptor table that wraps around (2.6)"), .send = ring_wrap, .at_set_up = 1},
    WRONG("pfn-outside", QUEUE_INFLATE, 1, "page numbers of no RAM among good ones (5.5.6)"), .send = pfn_outside},
    WRONG("pfn-odd", QUEUE_INFLATE, 1, "an array that ends within an entry (5.5.6)"), .send = pfn_odd},
    WRONG("pfn-short", QUEUE_INFLATE, 1, "an array shorter than one entry (5.5.6)"), .send = pfn_short},
    WRONG("pfn-twice", QUEUE_INFLATE, 1, "one page three times in an array (5.5.6)"), .send = pfn_twice},
    WRONG("write-only", QUEUE_INFLATE, 1, "an inflate request to be written to (5.5.6)"), .send = write_only},
    WRONG("deflate-stranger", QUEUE_DEFLATE, 1, "deflates a page that is in no balloon (5.5.6)"),
     .send = deflate_stranger},
    WRONG("stats-two", QUEUE_STATS, 1, "two statistics buffers at once (5.5.6.3.1)"), .send = stats_two},
    WRONG("stats-odd", QUEUE_STATS, 0, "statistics that end within an entry (5.5.6.3)"), .send = stats_odd},
    WRONG("stats-huge", QUEUE_STATS, 0, "a statistics buffer of 64 KiB (5.5.6.3)"), .send = stats_huge},
    WRONG("kick-early", QUEUE_INFLATE, 1, "a request before DRIVER_OK (3.1.1)"), .send = kick_early, .at_set_up = 1},
    WRONG("kick-nowhere", QUEUE_INFLATE, 0, "notifies a queue that does not exist (4.1.5.2)"), .send = kick_nowhere},
    WRONG("size-change", QUEUE_INFLATE, 1, "another size and place for an enabled queue (4.1.4.3.2)"),
     .send = size_change},
    {.name = "kick-after-reset", .what = "a request after a reset (2.4.1)", .answer = NOT_STARTED,
     .queue = QUEUE_INFLATE, .send = kick_after_reset},
    {.name = "features-refused", .what = "accepts features that were never offered (2.2.1)", .answer = NOT_STARTED,
     .queue = QUEUE_INFLATE, .send = features_refused},
};
const u32 request_count = ARRAY_LENGTH(requests);
