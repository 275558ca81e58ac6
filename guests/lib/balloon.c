#include "balloon.h"
#include "byte_order.h"
#include "console.h"
#include "guest.h"
#include "io.h"

enum {
    BALLOON_ID = 5,

    FEATURE_MUST_TELL_HOST = 1 << 0,
    FEATURE_STATS_VQ = 1 << 1,
    FEATURE_PAGE_REPORTING = 1 << 5,

    CONFIG_NUM_PAGES = 0,
    CONFIG_ACTUAL = 4,

    QUEUE_INFLATE = 0,
    QUEUE_DEFLATE = 1,
    QUEUE_STATS = 2,

    MSIX_CONFIG = 0,
    MSIX_PAGES = 1, /* inflateq, deflateq and reporting_vq */
    MSIX_STATS = 2,

    REPORT_BYTES = 4 << 20, /* the longest range of a report, as Linux makes them */
};

/* Buffers the device reads.  At most one batch of requests for pages and one statistics buffer are under way at any
 * time. */
static u32 pfns[BALLOON_BATCH_PAGES];
static struct balloon_stat stats[BALLOON_MAX_STATS];

static void offer_stats(struct balloon *balloon)
{
    u32 count = balloon->guest.collect(stats);
    int swapped = virtio_is_swapped(&balloon->device);
    for (u32 i = 0; i < count; i++) {
        stats[i].tag = order16(swapped, stats[i].tag);
        stats[i].value = order64(swapped, stats[i].value);
    }
    virtqueue_add(&balloon->statsq, stats, count * sizeof(stats[0]), 0);
    virtqueue_kick(&balloon->statsq);
    balloon->reports++;
}

/* The statistics queue runs in reverse: the host keeps our buffer until it wants new numbers, and asks for them by
 * returning it. */
static void refill_stats(struct balloon *balloon)
{
    if (balloon->statsq.size && virtqueue_take_used(&balloon->statsq) >= 0)
        offer_stats(balloon);
}

int balloon_start(struct balloon *balloon, const struct balloon_guest *guest)
{
    *balloon = (struct balloon){.guest = *guest};
    if (!virtio_find(&balloon->device, BALLOON_ID, guest->intx))
        return 0;
    pages_new_set(&balloon->pages);

    /* §3.1.1 steps 1 to 6: reset to FEATURES_OK. */
    u64 understood = FEATURE_MUST_TELL_HOST | (guest->collect ? FEATURE_STATS_VQ : 0);
    if (guest->reports_free_pages)
        understood |= FEATURE_PAGE_REPORTING;
    virtio_start(&balloon->device, understood);

    /* Step 7: the queues (§5.5.5). */
    virtio_set_config_vector(&balloon->device, MSIX_CONFIG);
    virtio_set_up_queue(&balloon->device, &balloon->inflateq, QUEUE_INFLATE, MSIX_PAGES);
    virtio_set_up_queue(&balloon->device, &balloon->deflateq, QUEUE_DEFLATE, MSIX_PAGES);
    print("balloon: inflateq %u, deflateq %u", (u32)balloon->inflateq.size, (u32)balloon->deflateq.size);
    if (balloon->device.features & FEATURE_STATS_VQ) {
        virtio_set_up_queue(&balloon->device, &balloon->statsq, QUEUE_STATS, MSIX_STATS);
        print(", statsq %u", (u32)balloon->statsq.size);
    }
    if (balloon->device.features & FEATURE_PAGE_REPORTING) {
        /* Queues are numbered over what the device offers, also if this driver does without some of it. */
        u16 index = balloon->device.offered & FEATURE_STATS_VQ ? QUEUE_STATS + 1 : QUEUE_STATS;
        virtio_set_up_queue(&balloon->device, &balloon->reporting_vq, index, MSIX_PAGES);
        print(", reporting_vq %u", (u32)balloon->reporting_vq.size);
    }
    print(" entries; %s\n", virtio_interrupts(&balloon->device));

    /* Step 8: live.  Only now may the device be notified of the first statistics buffer (§5.5.5 step 7). */
    virtio_driver_ok(&balloon->device);
    if (balloon->statsq.size)
        offer_stats(balloon);
    return 1;
}

/* Notifies the device of what was added to the queue and sleeps until all of it is acknowledged. */
static void finish(struct balloon *balloon, struct virtqueue *queue)
{
    virtqueue_kick(queue);
    while (queue->free_count < queue->size) {
        if (virtqueue_take_used(queue) >= 0)
            continue;
        virtio_check(&balloon->device);
        sleep_until_interrupt();
        refill_stats(balloon);
    }
}

/* The first `count` PFNs in the device's order, or back in ours. */
static void change_order(const struct balloon *balloon, u32 count)
{
    int swapped = virtio_is_swapped(&balloon->device);
    for (u32 i = 0; swapped && i < count; i++)
        pfns[i] = order32(swapped, pfns[i]);
}

/* Sends the first `count` PFNs, in requests of BALLOON_REQUEST_PAGES, and sleeps until the device has acknowledged them.
 *
 * All requests that the queue has room for share one notification and one interrupt. */
static void request(struct balloon *balloon, struct virtqueue *queue, u32 count)
{
    change_order(balloon, count);
    for (u32 sent = 0; sent < count; finish(balloon, queue)) {
        while (sent < count && queue->free_count) {
            u32 part = (u32)min_u64(count - sent, BALLOON_REQUEST_PAGES);
            virtqueue_add(queue, pfns + sent, part * sizeof(pfns[0]), 0);
            sent += part;
            balloon->requests++;
        }
    }
    change_order(balloon, count);
}

static void update_actual(struct balloon *balloon)
{
    virtio_write_config32(&balloon->device, CONFIG_ACTUAL, (u32)balloon->pages.count);
}

/* §5.5.6: the pages stay ours until the device has acknowledged them, but we must not use them any more. */
static u32 inflate(struct balloon *balloon, u32 wanted)
{
    u32 count = 0;
    for (;;) {
        u64 free = pages_free(), reserved = balloon->guest.reserved_pages;
        u64 spare = free > reserved ? free - reserved : 0;
        count += pages_leave(&balloon->pages, pfns + count, (u32)min_u64(wanted - count, spare));
        if (count == wanted || !balloon->guest.reclaim || !balloon->guest.reclaim())
            break;
    }
    for (u32 i = 0; balloon->guest.before_inflate && i < count; i++)
        balloon->guest.before_inflate((u64)pfns[i] * PAGE_SIZE);
    if (count) {
        request(balloon, &balloon->inflateq, count);
        update_actual(balloon);
    }
    return count;
}

/* Tells the host first and uses the pages after its answer.  MUST_TELL_HOST demands that; without it, it is polite. */
static void deflate(struct balloon *balloon, u32 count)
{
    for (u32 i = 0; i < count; i++)
        pfns[i] = (u32)(page_set_take(&balloon->pages) / PAGE_SIZE);
    request(balloon, &balloon->deflateq, count);
    for (u32 i = 0; i < count; i++) {
        u64 gpa = (u64)pfns[i] * PAGE_SIZE;
        if (balloon->guest.after_deflate)
            balloon->guest.after_deflate(gpa);
        page_return();
        page_free(gpa);
    }
    update_actual(balloon);
}

enum balloon_state balloon_step(struct balloon *balloon)
{
    refill_stats(balloon);
    balloon->target = virtio_read_config32(&balloon->device, CONFIG_NUM_PAGES);
    u64 held = balloon->pages.count;
    if (held > balloon->target) {
        deflate(balloon, (u32)min_u64(held - balloon->target, BALLOON_BATCH_PAGES));
        return BALLOON_MOVING;
    }
    u32 wanted = (u32)min_u64(balloon->target - held, BALLOON_BATCH_PAGES);
    if (wanted && inflate(balloon, wanted))
        return BALLOON_MOVING;

    /* Nothing to do: the time to see whether that is because the device is broken.  A request finds out by itself. */
    virtio_check(&balloon->device);
    return wanted ? BALLOON_SHORT : BALLOON_REACHED;
}

u64 balloon_report_free_pages(struct balloon *balloon)
{
    const struct page_set *free = pages_free_set();
    struct virtqueue *queue = &balloon->reporting_vq;
    u64 count = 0;
    if (!queue->size)
        return 0;
    for (u64 gpa = page_set_next(free, 0), end; gpa != NO_PAGE; gpa = page_set_next(free, end)) {
        end = gpa + PAGE_SIZE;
        while (end - gpa < REPORT_BYTES && page_set_next(free, end) == end)
            end += PAGE_SIZE;
        if (!queue->free_count)
            finish(balloon, queue);
        virtqueue_add(queue, pointer_to(gpa), (u32)(end - gpa), VIRTQ_DESC_F_WRITE);
        count += (end - gpa) / PAGE_SIZE;
    }
    finish(balloon, queue);
    return count;
}

int balloon_has_interrupts(const struct balloon *balloon)
{
    return virtio_has_interrupts(&balloon->device);
}
