#include "arena.h"
#include "../lib/guest.h"
#include "../lib/interrupts.h"
#include "../lib/io.h"
#include "../lib/pages.h"
#include "../lib/paging.h"
#include "../lib/string.h"

enum { MIN_RESIDENT = 4, WORDS = PAGE_SIZE / sizeof(u64) };

struct arena_counters arena_counters;

static u64 size;     /* pages of the arena, and of the disk */
static u64 disk;     /* the RAM disk: page n of the arena has place n */
static u8 *has_copy; /* one byte a page: its place on the disk holds it (as it is, unless the page is dirty) */
static u64 limit, resident;
static u64 hand; /* of the clock that chooses whom to put out */

u64 arena_pages(void)
{
    return size;
}

u64 arena_address(u64 page)
{
    return PAGING_FREE_BASE + page * PAGE_SIZE;
}

u64 arena_resident(void)
{
    return resident;
}

static void copy_page(u64 to, u64 from)
{
    u64 *target = (u64 *)to;
    const u64 *source = (const u64 *)from;
    UNROLL
    for (u64 i = 0; i < WORDS; i++)
        target[i] = source[i];
}

static u64 *resident_entry(u64 page)
{
    u64 *entry = page_entry(arena_address(page));
    return entry && *entry & PAGING_PRESENT ? entry : NULL;
}

static void put_out(u64 page, u64 entry)
{
    if (!has_copy[page] || entry & PAGING_DIRTY) {
        copy_page(disk + page * PAGE_SIZE, page_entry_address(entry));
        has_copy[page] = 1;
        arena_counters.swapped_out_pages++;
    }
    page_free(page_unmap(arena_address(page)));
    resident--;
}

/* Second chance: a page that was used since the hand last passed is spared once.  Two rounds always find one. */
int arena_reclaim(void)
{
    if (resident <= MIN_RESIDENT)
        return 0;
    for (;; hand = (hand + 1) % size) {
        u64 *entry = resident_entry(hand);
        if (!entry)
            continue;
        if (!(*entry & PAGING_ACCESSED)) {
            put_out(hand, *entry);
            return 1;
        }
        *entry &= ~(u64)PAGING_ACCESSED;
        invalidate_page(arena_address(hand));
    }
}

static u64 allocate_or_reclaim(void)
{
    u64 gpa = page_allocate();
    if (gpa == NO_PAGE && arena_reclaim())
        gpa = page_allocate();
    if (gpa == NO_PAGE)
        panic("out of memory");
    return gpa;
}

static void handle_page_fault(struct interrupt_frame *frame)
{
    u64 address = read_cr2();
    u64 page = (address - arena_address(0)) / PAGE_SIZE;
    if (address < arena_address(0) || page >= size || frame->error_code & FAULT_PRESENT)
        panic("page fault at %lxh (error code %lxh) from %lxh", address, frame->error_code, frame->rip);

    while (resident >= limit && arena_reclaim())
        ;
    u64 gpa = allocate_or_reclaim();
    if (has_copy[page]) {
        copy_page(gpa, disk + page * PAGE_SIZE);
        arena_counters.major_faults++;
        arena_counters.swapped_in_pages++;
    } else {
        memset((void *)gpa, 0, PAGE_SIZE);
        arena_counters.minor_faults++;
    }
    page_map(arena_address(page), gpa, PAGING_WRITABLE);
    resident++;
}

void arena_start(u64 pages)
{
    size = limit = pages;
    disk = pages_allocate(pages);
    has_copy = (u8 *)pages_allocate(align_up(pages, PAGE_SIZE) / PAGE_SIZE);
    if (disk == NO_PAGE || !has_copy)
        panic("no memory for a RAM disk of %lu pages", pages);
    memset(has_copy, 0, pages);
    interrupts_handle(VECTOR_PAGE_FAULT, handle_page_fault);
}

void arena_set_limit(u64 pages)
{
    limit = max_u64(pages, MIN_RESIDENT);
    while (resident > limit && arena_reclaim())
        ;
}

u64 arena_cached(void)
{
    u64 count = 0;
    for (u64 page = 0; page < size; page++) {
        const u64 *entry = has_copy[page] ? resident_entry(page) : NULL;
        count += entry && !(*entry & PAGING_DIRTY);
    }
    return count;
}

void arena_forget(u64 first, u64 count)
{
    for (u64 page = first; page < first + count; page++) {
        if (resident_entry(page)) {
            page_free(page_unmap(arena_address(page)));
            resident--;
        }
        has_copy[page] = 0;
    }
}
