/* Virtual memory: 4 KiB pages added to the page tables that the firmware has made.
 *
 * Those map all RAM one to one and use the first 512 GiB of the address space; what a guest maps for itself goes above
 * PAGING_FREE_BASE.  A page is no-execute unless asked otherwise.
 */
#pragma once

#include "../types.h"

#define PAGING_FREE_BASE 0x8000000000ul

enum {
    PAGING_PRESENT = 1 << 0,
    PAGING_WRITABLE = 1 << 1,
    PAGING_USER = 1 << 2,
    PAGING_ACCESSED = 1 << 5,
    PAGING_DIRTY = 1 << 6,
    PAGING_EXECUTABLE = 1 << 9, /* ours: page_map turns it into the absence of the no-execute bit */
};

/* The error code of a page fault. */
enum { FAULT_PRESENT = 1 << 0, FAULT_WRITE = 1 << 1, FAULT_USER = 1 << 2, FAULT_FETCH = 1 << 4 };

/* Maps one page; tables come from the page allocator.  Panics if the place is taken or no page is left for a table. */
void page_map(u64 virtual_address, u64 gpa, u64 flags);

/* Takes the mapping away and returns the page that was there. */
u64 page_unmap(u64 virtual_address);

/* The entry for a 4 KiB page, or NULL where there is no table for it.  After a change: invalidate_page(). */
u64 *page_entry(u64 virtual_address);
u64 page_entry_address(u64 entry);
