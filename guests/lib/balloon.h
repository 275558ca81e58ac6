/* The balloon's driver (virtio 1.3 §5.5): gives pages to the host and takes them back, as the host asks.
 *
 * It never looks at why it was woken.  balloon_step() compares what the host wants (num_pages) with what the balloon
 * holds (actual) and goes one batch of requests in that direction; it also refills the statistics buffer if the host
 * has returned it.  So an interrupt only has to end a sleep, and none can be missed.
 */
#pragma once

#include "pages.h"
#include "virtio_pci.h"

enum {
    BALLOON_MAX_STATS = 16,
    BALLOON_REQUEST_PAGES = 256,
    BALLOON_BATCH_PAGES = 16 * BALLOON_REQUEST_PAGES, /* in requests that are under way together */
};

/* §5.5.6.4, the tags of statistics. */
enum balloon_tag {
    STAT_SWAP_IN = 0,   /* bytes */
    STAT_SWAP_OUT = 1,  /* bytes */
    STAT_MAJOR_FAULTS = 2,
    STAT_MINOR_FAULTS = 3,
    STAT_FREE = 4,      /* bytes */
    STAT_TOTAL = 5,     /* bytes */
    STAT_AVAILABLE = 6, /* bytes */
    STAT_CACHES = 7,    /* bytes */
};

struct balloon_stat {
    u16 tag;
    u64 value;
} __attribute__((packed));

/* The same in the patch that proposed statistics, in November 2009: other tags, 32 bits, sizes in KiB, and two bytes of
 * padding after the tag. */
enum balloon_tag_v2 {
    STAT_V2_SWAP_IN = 0,  /* pages */
    STAT_V2_SWAP_OUT = 1, /* pages */
    STAT_V2_ANON = 2,     /* KiB */
    STAT_V2_MAJOR_FAULTS = 3,
    STAT_V2_MINOR_FAULTS = 4,
    STAT_V2_FREE = 5,     /* KiB */
    STAT_V2_TOTAL = 6,    /* KiB */
    STATS_V2 = 7,
};

struct balloon_stat_v2 {
    u16 tag;
    u32 value;
};

/* What the guest decides.  Each function may be NULL. */
struct balloon_guest {
    /* So many free pages are not for the balloon: the guest needs them to go on working. */
    u64 reserved_pages;
    /* The device is to use its interrupt line, MSI-X or not. */
    int intx;
    /* The page allocator has nothing to spare: gives some memory back to it; returns 0 if it cannot. */
    int (*reclaim)(void);
    /* A page is about to be offered to the host, or was taken back and is not yet free again. */
    void (*before_inflate)(u64 gpa);
    void (*after_deflate)(u64 gpa);
    /* Writes the same tags in every call; returns how many.  NULL: no statistics. */
    u32 (*collect)(struct balloon_stat stats[BALLOON_MAX_STATS]);
    /* The same as in the patch of 2009, instead of `collect`; the host must have been told (stats-format=v2). */
    void (*collect_v2)(struct balloon_stat_v2 stats[STATS_V2]);
    /* Not 0: accept free page reporting, or hinting, if it is offered. */
    int reports_free_pages, hints_free_pages;
    /* Not 0: accept PAGE_POISON.  Every page that is hinted or reported is filled with `poison`. */
    int poisons;
    u32 poison;
    /* A page was hinted, and the device does not know of it yet. */
    void (*after_hint)(u64 gpa);
};

struct balloon {
    struct virtio_device device;
    struct balloon_guest guest;
    struct virtqueue inflateq, deflateq, statsq, free_page_vq, reporting_vq;
    struct page_set pages; /* what is in the balloon */
    u32 target;            /* num_pages, as last read */
    u32 requests;          /* inflate and deflate requests that were acknowledged */
    u32 reports;           /* statistics buffers that were made available */
    u32 hint_id;           /* of the last round of hints */
};

enum balloon_state {
    BALLOON_MOVING,  /* one batch was done, more to do */
    BALLOON_SHORT,   /* the host wants pages, but there are none to give */
    BALLOON_REACHED, /* the balloon holds what the host wants */
};

/* Finds the device and brings it to life; returns 0 if there is none. */
int balloon_start(struct balloon *balloon, const struct balloon_guest *guest);

/* Call it after every wake-up, and again at once while it says BALLOON_MOVING. */
enum balloon_state balloon_step(struct balloon *balloon);

/* §5.5.6.7: tells the host of every page that nobody uses, and sleeps until it has acknowledged them all.  From then on
 * they may be used again without a word, and hold what they held or zeros.  Returns how many there were; 0 without the
 * feature. */
u64 balloon_report_free_pages(struct balloon *balloon);

/* §5.5.6.5: if the host asks for hints under a new id, names every page that nobody uses, and sleeps until the host has
 * seen them all.  The pages are not kept out of use: from then on they hold what they held or zeros, but those that
 * were written since the host asked hold what was written.  Returns how many there were; 0 if nobody asked. */
u64 balloon_hint_free_pages(struct balloon *balloon);

/* Whether the device can wake a sleeping guest; if not, a timer must. */
int balloon_has_interrupts(const struct balloon *balloon);
