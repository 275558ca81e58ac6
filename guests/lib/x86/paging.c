#include "paging.h"
#include "../guest.h"
#include "io.h"
#include "../pages.h"
#include "../string.h"

#define ADDRESS 0x000ffffffffff000ul
#define NO_EXECUTE (1ul << 63)
#define LARGE (1ul << 7)

enum { LEVELS = 4, INDEX_BITS = 9, PAGE_BITS = 12, INDEX_MASK = 511 };

/* Walks down to the entry of the last level; `make` adds the tables that are missing. */
static u64 *walk(u64 virtual_address, int make)
{
    u64 *table = (u64 *)(read_cr3() & ADDRESS);
    for (int level = LEVELS - 1;; level--) {
        u64 *entry = &table[virtual_address >> (PAGE_BITS + level * INDEX_BITS) & INDEX_MASK];
        if (level == 0)
            return entry;
        if (*entry & PAGING_PRESENT && *entry & LARGE)
            return NULL;
        if (!(*entry & PAGING_PRESENT)) {
            u64 gpa = make ? page_allocate() : NO_PAGE;
            if (gpa == NO_PAGE)
                return NULL;
            memset((void *)gpa, 0, PAGE_SIZE);
            *entry = gpa | PAGING_PRESENT | PAGING_WRITABLE | PAGING_USER;
        }
        table = (u64 *)(*entry & ADDRESS);
    }
}

void page_map(u64 virtual_address, u64 gpa, u64 flags)
{
    u64 *entry = walk(virtual_address, 1);
    if (!entry)
        panic("cannot map %lxh: a large page is there, or no memory is left for a table", virtual_address);
    if (*entry & PAGING_PRESENT)
        panic("%lxh is mapped already", virtual_address);
    u64 no_execute = flags & PAGING_EXECUTABLE ? 0 : NO_EXECUTE;
    *entry = gpa | PAGING_PRESENT | (flags & (PAGING_WRITABLE | PAGING_USER)) | no_execute;
    invalidate_page(virtual_address);
}

u64 page_unmap(u64 virtual_address)
{
    u64 *entry = walk(virtual_address, 0);
    if (!entry || !(*entry & PAGING_PRESENT))
        panic("%lxh is not mapped", virtual_address);
    u64 gpa = *entry & ADDRESS;
    *entry = 0;
    invalidate_page(virtual_address);
    return gpa;
}

u64 *page_entry(u64 virtual_address)
{
    return walk(virtual_address, 0);
}

u64 page_entry_address(u64 entry)
{
    return entry & ADDRESS;
}
