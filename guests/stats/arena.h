/* Demand-paged memory with a swap of its own: where the guest's page faults and swap traffic come from.
 *
 * The arena is a range of virtual addresses.  A page of it is made when it is first touched (a minor fault).  Only a
 * limited number of pages is in RAM at a time; when one too many is touched, another is written to its place on a RAM
 * disk, unless the copy there is still good, and comes back when it is touched again (a major fault).  Nothing is
 * counted but what the fault handler and the swap did.
 */
#pragma once

#include "../lib/types.h"

struct arena_counters {
    u64 minor_faults, major_faults;
    u64 swapped_in_pages, swapped_out_pages;
};

extern struct arena_counters arena_counters;

/* A range of `pages` pages and a RAM disk of the same size. */
void arena_start(u64 pages);

u64 arena_pages(void);
u64 arena_address(u64 page);

/* How many pages may be in RAM; more are put out to the disk at once. */
void arena_set_limit(u64 pages);
u64 arena_resident(void);

/* Pages in RAM with a good copy on the disk: they can be dropped without writing. */
u64 arena_cached(void);

/* Puts one page out; returns 0 if hardly any is left. */
int arena_reclaim(void);

/* Pages [first, first + count) are not needed any more, in RAM or on the disk. */
void arena_forget(u64 first, u64 count);
