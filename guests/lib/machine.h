/* What a guest needs of the machine it runs on, whichever its processor is: interrupts, a timer, virtual memory.
 *
 * Each processor's folder has the functions, and in io.h its single instructions.
 */
#pragma once

#include "boot_info.h"
#include "types.h"

/* Exceptions and interrupts can be handled from here on.  One that nobody handles is a panic with the place.  Before
 * pages_start(): the processor's tables may have to be taken out of the memory map. */
void machine_start(const struct boot_info *boot_info);

/* A tick every so many microseconds, which also wakes whoever sleeps; 0 stops it. */
void machine_tick_every(u64 microseconds);
u64 machine_ticks(void);

/* What a page of virtual memory is: 0 where nothing is mapped. */
enum { PAGE_MAPPED = 1, PAGE_USED = 2, PAGE_WRITTEN = 4 };
u32 page_state(u64 virtual_address);

/* Maps one page for reading and writing, from `page_free_base()` on.  Panics if that cannot be. */
void page_map_data(u64 virtual_address, u64 gpa);
u64 page_free_base(void);

/* The page that is mapped there; and it is as if it had not been used since. */
u64 page_behind(u64 virtual_address);
void page_forget_use(u64 virtual_address);

/* Takes the mapping away and returns the page that was there. */
u64 page_unmap(u64 virtual_address);

/* Called where a page is touched that is not mapped; returns 0 if that is a mistake, and a panic follows. */
typedef int (*page_fault_handler)(u64 address);
void page_faults_handle(page_fault_handler handler);
