/* Physical memory in pages of 4096 bytes.
 *
 * A set of pages is a bitmap, one bit for each page of the address space up to the end of RAM.  Nothing is ever stored
 * in a free page, so what a guest left there stays there, and pages come out in ascending order.
 */
#pragma once

#include "boot_info.h"
#include "types.h"

#define NO_PAGE 0ull /* no guest gets page 0 */

struct page_set {
    u64 *words;
    u64 word_count;
    u64 count; /* pages in the set */
    u64 first; /* no word before this one has a bit set */
};

void page_set_put(struct page_set *set, u64 gpa);
u64 page_set_take(struct page_set *set); /* the lowest page, or NO_PAGE */
int page_set_has(const struct page_set *set, u64 gpa);
u64 page_set_next(const struct page_set *set, u64 gpa); /* the first page at or above gpa, or NO_PAGE */

/* Takes over all usable memory of the map. */
void pages_start(const struct boot_info *boot_info);

/* An empty set that can hold every page of RAM. */
void pages_new_set(struct page_set *set);

/* One page, or `count` neighbours; NO_PAGE if there are none.  What is in it is anything. */
u64 page_allocate(void);
u64 pages_allocate(u64 count);
void page_free(u64 gpa);

/* The lowest free pages, `count` of them or all there are, leave this guest's memory for `set`.  Writes their page frame
 * numbers in ascending order, and returns how many. */
u32 pages_leave(struct page_set *set, u32 *pfns, u32 count);

/* A page that had left comes back, allocated. */
void page_return(void);

/* Pages that nobody uses, and all pages this guest has: the usable memory it began with less those that have left. */
u64 pages_free(void);
u64 pages_total(void);
const struct page_set *pages_free_set(void);
