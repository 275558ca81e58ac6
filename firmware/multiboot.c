/* A Multiboot kernel's memory map: the host has written it, before the firmware took pages for ACPI tables.
 *
 * All memory in its map is the kernel's from its first instruction on, so what it must keep may not be there: every range,
 * and the two totals, end where the tables begin (Multiboot 0.6.96 §3.3).  The tables lie at the end of a range unless
 * the kernel itself does, and then what is lost lies behind the kernel.
 */
#include "firmware.h"

enum { FLAG_MEMORY = 1 << 0, FLAG_MEMORY_MAP = 1 << 6, USABLE = 1 };
#define EXTENDED_BASE 0x100000ul

struct information {
    u32 flags, mem_lower, mem_upper; /* KiB from 0 and from 1 MiB on */
    u32 others[8];
    u32 mmap_length, mmap_addr;
};

struct map_entry {
    u32 size; /* of what follows */
    u64 base, length;
    u32 type;
} __attribute__((packed));

/* Whether [base, base + length) is in the segment of the payload that also holds the boot information. */
static int is_beside(u64 information, u64 base, u64 length)
{
    for (u32 i = 0; i < LOW->payload.segment_count; i++) {
        const struct segment *segment = &LOW->payload.segments[i];
        if (information - segment->base < segment->length)
            return base - segment->base < segment->length && length <= segment->length - (base - segment->base);
    }
    return 0;
}

static void hide(struct information *information, u64 base, u64 end)
{
    if (information->flags & FLAG_MEMORY && base < EXTENDED_BASE)
        information->mem_lower = (u32)min_u64(information->mem_lower, base / 1024);
    else if (information->flags & FLAG_MEMORY)
        information->mem_upper = (u32)min_u64(information->mem_upper, (base - EXTENDED_BASE) / 1024);

    u64 map = information->mmap_addr, length = information->mmap_length;
    if (!(information->flags & FLAG_MEMORY_MAP) || !is_beside((u64)information, map, length))
        return;
    struct map_entry *entries = (struct map_entry *)map;
    for (u32 i = 0; i < length / sizeof(*entries); i++) {
        struct map_entry *entry = &entries[i];
        if (entry->type == USABLE && entry->base < end && base < entry->base + entry->length)
            entry->length = base > entry->base ? base - entry->base : 0;
    }
}

void multiboot_hide_tables(u64 information)
{
    if (!is_beside(information, information, sizeof(struct information)))
        return;
    for (u32 i = 0; i < LOW->memory_map_entries; i++) {
        const struct memory_range *range = &LOW->memory_map[i];
        if (range->type == MEMORY_ACPI_TABLES || range->type == MEMORY_ACPI_NVS)
            hide((struct information *)information, range->base, range->base + range->length);
    }
}
