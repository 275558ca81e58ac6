#include "arena.h"
#include "../lib/guest.h"
#include "../lib/machine.h"
#include "../lib/pages.h"
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
    return page_free_base() + page * PAGE_SIZE;
}

u64 arena_resident(void)
{
    return resident;
}

static void copy_page(u64 to, u64 from)
{
    u64 *target = pointer_to(to);
    const u64 *source = pointer_to(from);
    UNROLL
    for (u64 i = 0; i < WORDS; i++)
        target[i] = source[i];
}

static void put_out(u64 page, u32 state)
{
    if (!has_copy[page] || state & PAGE_WRITTEN) {
        copy_page(disk + page * PAGE_SIZE, page_behind(arena_address(page)));
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
        u32 state = page_state(arena_address(hand));
        if (!state)
            continue;
        if (!(state & PAGE_USED)) {
            put_out(hand, state);
            return 1;
        }
        page_forget_use(arena_address(hand));
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

static int handle_page_fault(u64 address)
{
    u64 page = (address - arena_address(0)) / PAGE_SIZE;
    if (address < arena_address(0) || page >= size)
        return 0;

    while (resident >= limit && arena_reclaim())
        ;
    u64 gpa = allocate_or_reclaim();
    if (has_copy[page]) {
        copy_page(gpa, disk + page * PAGE_SIZE);
        arena_counters.major_faults++;
        arena_counters.swapped_in_pages++;
    } else {
        memset(pointer_to(gpa), 0, PAGE_SIZE);
        arena_counters.minor_faults++;
    }
    page_map_data(arena_address(page), gpa);
    resident++;
    return 1;
}

void arena_start(u64 pages)
{
    size = limit = pages;
    disk = pages_allocate(pages);
    has_copy = pointer_to(pages_allocate(align_up(pages, PAGE_SIZE) / PAGE_SIZE));
    if (disk == NO_PAGE || !has_copy)
        panic("no memory for a RAM disk of %lu pages", pages);
    memset(has_copy, 0, (usize)pages);
    page_faults_handle(handle_page_fault);
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
        u32 state = has_copy[page] ? page_state(arena_address(page)) : 0;
        count += state && !(state & PAGE_WRITTEN);
    }
    return count;
}

void arena_forget(u64 first, u64 count)
{
    for (u64 page = first; page < first + count; page++) {
        if (page_state(arena_address(page))) {
            page_free(page_unmap(arena_address(page)));
            resident--;
        }
        has_copy[page] = 0;
    }
}
