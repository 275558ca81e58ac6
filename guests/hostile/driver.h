/* The balloon's driver, honest or not: it exposes the queues so that a request can break any rule, and it knows how to
 * make an honest request and how to wait without trusting that anything comes back.
 *
 * No wait is endless: a timer ticks, and whoever waits does so for a number of ticks.
 */
#pragma once

#include "../lib/boot_info.h"
#include "../lib/virtio.h"

enum { QUEUE_INFLATE, QUEUE_DEFLATE, QUEUE_STATS, QUEUES };

#define FEATURE_MUST_TELL_HOST (1ul << 0)
#define FEATURE_STATS_VQ (1ul << 1)
#define FEATURE_INDIRECT_DESC (1ul << 28)

enum { HONEST_PAGES = 4, BYSTANDERS = 64 };

struct driver {
    struct virtio_device device;
    struct virtqueue queues[QUEUES];
    u64 ram_end;                 /* the first address behind all RAM */
    u64 pages[HONEST_PAGES];     /* go into the balloon and come back */
    u64 bystanders[BYSTANDERS];  /* are never named in an honest request */
    u32 *pfns;                   /* a page: starts with the numbers of `pages` */
    struct virtq_desc *table;    /* a page for indirect tables */
};

/* Finds the balloon and memory to work with; returns 0 if there is no balloon.  With `intx` its line is used. */
int driver_find(struct driver *driver, const struct boot_info *boot_info, int intx);

/* Resets the device and negotiates `features`, which it must offer: returns 0 if it does not. */
int driver_negotiate(struct driver *driver, u64 features);

/* Sets all queues up that were negotiated, as they should be. */
void driver_set_up_queues(struct driver *driver);

/* DRIVER_OK. */
void driver_go(struct driver *driver);

/* Sleeps long enough for any answer to come, if one comes. */
void driver_wait(void);

/* How many requests came back since it was last asked. */
u32 driver_returned(struct driver *driver, u16 queue);

int driver_needs_reset(const struct driver *driver);

/* An honest inflate request and an honest deflate request of the same pages; what went wrong, or NULL. */
const char *driver_round_trip(struct driver *driver);

/* Whether all pages that no request took hold what was written there; with `pages`, the honest ones too. */
int driver_memory_is_kept(const struct driver *driver, int pages);
