#include "balloon.h"
#include "console.h"
#include "guest.h"
#include "io.h"
#include "string.h"

enum {
    BALLOON_ID = 5,

    FEATURE_MUST_TELL_HOST = 1 << 0,
    FEATURE_STATS_VQ = 1 << 1,
    FEATURE_FREE_PAGE_HINT = 1 << 3,
    FEATURE_PAGE_POISON = 1 << 4,
    FEATURE_PAGE_REPORTING = 1 << 5,

    CONFIG_NUM_PAGES = 0,
    CONFIG_ACTUAL = 4,
    CONFIG_HINT_ID = 8,
    CONFIG_POISON = 12,

    QUEUE_INFLATE = 0,
    QUEUE_DEFLATE = 1,
    QUEUE_STATS = 2,

    MSIX_CONFIG = 0,
    MSIX_PAGES = 1, /* inflateq, deflateq, free_page_vq and reporting_vq */
    MSIX_STATS = 2,

    HINT_STOP = 0, /* no hints are wanted, or no more can be given; ids begin at 2 */
    FIRST_HINT_ID = 2,

    REPORT_BYTES = 4 << 20, /* the longest range of a report or a hint, as Linux makes them */
};

/* Buffers the device reads.  At most one batch of requests for pages and one statistics buffer are under way at any
 * time. */
static u32 pfns[BALLOON_BATCH_PAGES];
static struct balloon_stat stats[BALLOON_MAX_STATS];
static struct balloon_stat_v2 stats_v2[STATS_V2];
static u32 hint_id; /* the id, or STOP, that is being sent */

static void offer_stats(struct balloon *balloon)
{
    if (balloon->guest.collect_v2) {
        /* The first buffer is offered as it is, with nothing of ours in it: so the patch did it, and so the host has to
         * ignore it. */
        if (balloon->reports)
            balloon->guest.collect_v2(stats_v2);
        else
            memset(stats_v2, 0xa5, sizeof(stats_v2));
        virtqueue_add(&balloon->statsq, stats_v2, sizeof(stats_v2), 0);
    } else {
        u32 count = balloon->guest.collect(stats);
        virtqueue_add(&balloon->statsq, stats, count * sizeof(stats[0]), 0);
    }
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

/* Queues are numbered over what the device offers, also if this driver does without some of it: the number of the queue
 * that belongs to `feature`. */
static u16 queue_of(const struct balloon *balloon, u32 feature)
{
    u64 earlier = balloon->device.offered & (FEATURE_STATS_VQ | FEATURE_FREE_PAGE_HINT) & (feature - 1);
    u16 index = QUEUE_STATS;
    for (; earlier; earlier &= earlier - 1)
        index++;
    return index;
}

/* An optional queue, if its feature was accepted. */
static void set_up_optional(struct balloon *balloon, struct virtqueue *queue, u32 feature, u16 msix_entry,
                            const char *name)
{
    if (!(balloon->device.features & feature))
        return;
    virtio_set_up_queue(&balloon->device, queue, queue_of(balloon, feature), msix_entry);
    print(", %s %u", name, (u32)queue->size);
}

int balloon_start(struct balloon *balloon, const struct balloon_guest *guest)
{
    *balloon = (struct balloon){.guest = *guest};
    if (!virtio_find(&balloon->device, BALLOON_ID, guest->intx))
        return 0;
    pages_new_set(&balloon->pages);

    /* §3.1.1 steps 1 to 6: reset to FEATURES_OK. */
    u64 understood = FEATURE_MUST_TELL_HOST | (guest->collect || guest->collect_v2 ? FEATURE_STATS_VQ : 0);
    if (guest->reports_free_pages)
        understood |= FEATURE_PAGE_REPORTING;
    if (guest->hints_free_pages)
        understood |= FEATURE_FREE_PAGE_HINT;
    if (guest->poisons)
        understood |= FEATURE_PAGE_POISON;
    virtio_start(&balloon->device, understood);

    /* Step 7: the queues (§5.5.5). */
    virtio_set_config_vector(&balloon->device, MSIX_CONFIG);
    virtio_set_up_queue(&balloon->device, &balloon->inflateq, QUEUE_INFLATE, MSIX_PAGES);
    virtio_set_up_queue(&balloon->device, &balloon->deflateq, QUEUE_DEFLATE, MSIX_PAGES);
    print("balloon: inflateq %u, deflateq %u", (u32)balloon->inflateq.size, (u32)balloon->deflateq.size);
    set_up_optional(balloon, &balloon->statsq, FEATURE_STATS_VQ, MSIX_STATS, "statsq");
    set_up_optional(balloon, &balloon->free_page_vq, FEATURE_FREE_PAGE_HINT, MSIX_PAGES, "free_page_vq");
    set_up_optional(balloon, &balloon->reporting_vq, FEATURE_PAGE_REPORTING, MSIX_PAGES, "reporting_vq");
    print(" entries; %s\n", balloon->device.msix  ? "MSI-X"
                           : balloon->device.isr ? "INTx"
                                                 : "no MSI-X, a timer must wake this guest");

    /* §5.5.6.6.1: before the device is live, and never again. */
    if (balloon->device.features & FEATURE_PAGE_POISON)
        virtio_write_config32(&balloon->device, CONFIG_POISON, guest->poison);

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

/* Sends the first `count` PFNs, in requests of BALLOON_REQUEST_PAGES, and sleeps until the device has acknowledged them.
 *
 * All requests that the queue has room for share one notification and one interrupt. */
static void request(struct balloon *balloon, struct virtqueue *queue, u32 count)
{
    for (u32 sent = 0; sent < count; finish(balloon, queue)) {
        while (sent < count && queue->free_count) {
            u32 part = (u32)min_u64(count - sent, BALLOON_REQUEST_PAGES);
            virtqueue_add(queue, pfns + sent, part * sizeof(pfns[0]), 0);
            sent += part;
            balloon->requests++;
        }
    }
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

/* Names every page that nobody uses to the device, in as few ranges as there are, and sleeps until it has acknowledged
 * them all.  `visit` is called for each page before the device is notified; it may be NULL. */
static u64 name_free_pages(struct balloon *balloon, struct virtqueue *queue, void (*visit)(u64 gpa))
{
    const struct page_set *free = pages_free_set();
    u64 count = 0;
    for (u64 gpa = page_set_next(free, 0), end; gpa != NO_PAGE; gpa = page_set_next(free, end)) {
        end = gpa + PAGE_SIZE;
        while (end - gpa < REPORT_BYTES && page_set_next(free, end) == end)
            end += PAGE_SIZE;
        if (!queue->free_count)
            finish(balloon, queue);
        virtqueue_add(queue, (const void *)gpa, (u32)(end - gpa), VIRTQ_DESC_F_WRITE);
        for (u64 page = gpa; visit && page < end; page += PAGE_SIZE)
            visit(page);
        count += (end - gpa) / PAGE_SIZE;
    }
    finish(balloon, queue);
    return count;
}

u64 balloon_report_free_pages(struct balloon *balloon)
{
    return balloon->reporting_vq.size ? name_free_pages(balloon, &balloon->reporting_vq, NULL) : 0;
}

static void send_hint_id(struct balloon *balloon, u32 id)
{
    hint_id = id;
    virtqueue_add(&balloon->free_page_vq, &hint_id, sizeof(hint_id), 0);
    finish(balloon, &balloon->free_page_vq);
}

u64 balloon_hint_free_pages(struct balloon *balloon)
{
    if (!balloon->free_page_vq.size)
        return 0;
    u32 id = virtio_read_config32(&balloon->device, CONFIG_HINT_ID);
    if (id < FIRST_HINT_ID || id == balloon->hint_id)
        return 0;
    balloon->hint_id = id;
    send_hint_id(balloon, id);
    u64 count = name_free_pages(balloon, &balloon->free_page_vq, balloon->guest.after_hint);
    send_hint_id(balloon, HINT_STOP);
    return count;
}

int balloon_has_interrupts(const struct balloon *balloon)
{
    return virtio_has_interrupts(&balloon->device);
}
