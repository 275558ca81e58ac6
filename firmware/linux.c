/* What a Linux kernel learns from the firmware: the memory map as it is now, and where the ACPI tables are.
 *
 * The host has written everything else, the zero page of the 64-bit boot protocol or the start info of PVH with room for
 * the longest map; both lie in RAM that the payload's description names.
 */
#include "firmware.h"

/* struct boot_params, Documentation/arch/x86/zero-page.rst */
#define ZERO_PAGE_RSDP 0x070
#define ZERO_PAGE_E820_ENTRIES 0x1e8
#define ZERO_PAGE_E820 0x2d0

struct e820_entry {
    u64 base;
    u64 length;
    u32 type;
} __attribute__((packed));

enum { E820_RAM = 1, E820_RESERVED = 2, E820_ACPI = 3, E820_NVS = 4 };

/* The image is RAM like any other for a kernel that knows where it lies. */
static u32 e820_type(const struct memory_range *range)
{
    switch (range->type) {
    case MEMORY_USABLE:
    case MEMORY_IMAGE:
        return E820_RAM;
    case MEMORY_ACPI_TABLES:
        return E820_ACPI;
    case MEMORY_ACPI_NVS:
        return E820_NVS;
    default:
        return E820_RESERVED;
    }
}

/* Range number `i` of the map and everything behind it of the same type; returns the number of the next. */
static u32 next_range(u32 i, struct memory_range *joined)
{
    const struct memory_range *map = LOW->memory_map;
    *joined = (struct memory_range){.base = map[i].base, .length = map[i].length, .type = e820_type(&map[i])};
    for (i++; i < LOW->memory_map_entries; i++) {
        if (e820_type(&map[i]) != joined->type || map[i].base != joined->base + joined->length)
            break;
        joined->length += map[i].length;
    }
    return i;
}

void linux_complete_zero_page(u64 zero_page, u64 rsdp)
{
    struct e820_entry *table = (struct e820_entry *)(zero_page + ZERO_PAGE_E820);
    struct memory_range range;
    u8 entries = 0;
    for (u32 i = 0; i < LOW->memory_map_entries; entries++) {
        i = next_range(i, &range);
        table[entries] = (struct e820_entry){.base = range.base, .length = range.length, .type = range.type};
    }
    *(u8 *)(zero_page + ZERO_PAGE_E820_ENTRIES) = entries;
    *(u64 *)(zero_page + ZERO_PAGE_RSDP) = rsdp;
}

void pvh_complete_start_info(u64 start_info, u64 rsdp)
{
    struct start_info *info = (struct start_info *)start_info;
    struct memory_range *table = (struct memory_range *)info->memory_map; /* hvm_memmap_table_entry looks the same */
    info->memory_map_entries = 0;
    for (u32 i = 0; i < LOW->memory_map_entries; info->memory_map_entries++)
        i = next_range(i, &table[info->memory_map_entries]);
    info->rsdp = rsdp;
}
