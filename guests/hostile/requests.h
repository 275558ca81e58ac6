/* The requests that no driver may make, each with a name. */
#pragma once

#include "driver.h"

/* What a device owes the driver for it. */
enum answer {
    RESET_NEEDED,  /* a broken ring: DEVICE_NEEDS_RESET and a configuration interrupt; nothing comes back or is done */
    GOES_ON,       /* a wrong payload or a useless write: `returned` requests come back, and the device works on */
    NOT_STARTED,   /* the device refuses to start, or has been reset: nothing comes back, and nothing is broken */
};

struct request {
    const char *name;
    const char *what;      /* one sentence, with the section of virtio 1.3 */
    enum answer answer;
    u16 queue;             /* where requests may come back */
    u32 returned;          /* how many do */
    int at_set_up;         /* sent in place of setting the queues up: it does that itself, up to DRIVER_OK */
    u64 without;           /* features that must not be negotiated */
    /* Returns what was wrong at once, or NULL.  The rest is seen by waiting. */
    const char *(*send)(struct driver *driver);
};

extern const struct request requests[];
extern const u32 request_count;
