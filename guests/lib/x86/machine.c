#include "../machine.h"
#include "../guest.h"
#include "apic.h"
#include "interrupts.h"
#include "io.h"
#include "paging.h"

static page_fault_handler fault_handler;

void machine_start(const struct boot_info *boot_info)
{
    (void)boot_info; /* the firmware has made the page tables */
    interrupts_start();
    apic_start();
}

void machine_tick_every(u64 microseconds)
{
    apic_tick_every(microseconds);
}

u64 machine_ticks(void)
{
    return apic_ticks();
}

static u64 *present_entry(u64 virtual_address)
{
    u64 *entry = page_entry(virtual_address);
    return entry && *entry & PAGING_PRESENT ? entry : NULL;
}

u32 page_state(u64 virtual_address)
{
    const u64 *entry = present_entry(virtual_address);
    if (!entry)
        return 0;
    return PAGE_MAPPED | (*entry & PAGING_ACCESSED ? PAGE_USED : 0) | (*entry & PAGING_DIRTY ? PAGE_WRITTEN : 0);
}

void page_map_data(u64 virtual_address, u64 gpa)
{
    page_map(virtual_address, gpa, PAGING_WRITABLE);
}

u64 page_free_base(void)
{
    return PAGING_FREE_BASE;
}

u64 page_behind(u64 virtual_address)
{
    const u64 *entry = present_entry(virtual_address);
    return entry ? page_entry_address(*entry) : 0;
}

void page_forget_use(u64 virtual_address)
{
    u64 *entry = present_entry(virtual_address);
    if (entry)
        *entry &= ~(u64)PAGING_ACCESSED;
    invalidate_page(virtual_address);
}

static void handle_page_fault(struct interrupt_frame *frame)
{
    u64 address = read_cr2();
    if (frame->error_code & FAULT_PRESENT || !fault_handler(address))
        panic("page fault at %lxh (error code %lxh) from %lxh", address, frame->error_code, frame->rip);
}

void page_faults_handle(page_fault_handler handler)
{
    fault_handler = handler;
    interrupts_handle(VECTOR_PAGE_FAULT, handle_page_fault);
}
