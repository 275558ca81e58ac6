/* The page tables a guest is entered with: all RAM, and everything from C0000000h to 4 GiB, one to one.
 *
 * Pages of 2 MiB wherever all of one may be treated alike, tables of 4 KiB pages where a segment's edge runs through.
 * A page that belongs to a segment has the segment's rights; every other page is writable and no-execute.
 */
#include "firmware.h"
#include "../guests/lib/x86/io.h"
#include "../guests/lib/string.h"

#define LARGE_PAGE 0x200000ul
#define WINDOW_BASE 0xc0000000ul /* PCI memory, the local APIC, the ROM */

#define PRESENT (1ul << 0)
#define WRITABLE (1ul << 1)
#define USER (1ul << 2)
#define UNCACHED (3ul << 3)
#define LARGE (1ul << 7)
#define NO_EXECUTE (1ul << 63)
#define ADDRESS 0x000ffffffffff000ul

/* The highest free page below the tables made so far, wherever the guest lies; the ranges ascend. */
static u64 allocate_table(void)
{
    u64 end = 0;
    for (u32 i = 0; i < LOW->memory_map_entries; i++) {
        const struct memory_range *range = &LOW->memory_map[i];
        if (range->type == MEMORY_USABLE && range->base < LOW->tables_base)
            end = min_u64(range->base + range->length, LOW->tables_base);
    }
    if (!end)
        fail(EXIT_BAD_PAYLOAD, "the guest leaves no room for page tables below 4 GiB");
    LOW->tables_base = end - PAGE_SIZE;
    memset((void *)LOW->tables_base, 0, PAGE_SIZE);
    return LOW->tables_base;
}

/* The table behind an entry, made if there is none.  Rights are decided by the last level alone. */
static u64 *table_of(u64 *entry)
{
    if (!(*entry & PRESENT))
        *entry = allocate_table() | PRESENT | WRITABLE | USER;
    return (u64 *)(*entry & ADDRESS);
}

/* Rights for [gpa, gpa + length): those of all segments in it together.  `uniform` tells if one entry can say it. */
static u64 rights(u64 gpa, u64 length, int *uniform)
{
    u32 flags = 0;
    int touched = 0;
    *uniform = 1;
    for (u32 i = 0; i <= LOW->payload.segment_count; i++) {
        const struct segment *segment = &LOW->payload.segments[i];
        u64 from = max_u64(gpa, segment->base), to = min_u64(gpa + length, segment->base + segment->length);
        if (from >= to)
            continue;
        flags |= segment->flags;
        touched++;
        *uniform &= touched == 1 && to - from == length;
    }
    if (!touched)
        flags = SEGMENT_WRITABLE;
    return gpa | PRESENT | (flags & SEGMENT_WRITABLE ? WRITABLE : 0) | (flags & SEGMENT_EXECUTABLE ? 0 : NO_EXECUTE);
}

/* Maps 2 MiB, unless that is done already. */
static void map_large_page(u64 *pml4, u64 gpa, u64 cache)
{
    u64 *pdpt = table_of(&pml4[gpa >> 39 & 511]);
    u64 *directory = table_of(&pdpt[gpa >> 30 & 511]);
    u64 *entry = &directory[gpa >> 21 & 511];
    if (*entry & PRESENT)
        return;
    int uniform;
    u64 bits = rights(gpa, LARGE_PAGE, &uniform);
    if (uniform) {
        *entry = bits | cache | LARGE;
        return;
    }
    u64 *table = table_of(entry);
    for (u32 i = 0; i < 512; i++)
        table[i] = rights(gpa + i * PAGE_SIZE, PAGE_SIZE, &uniform) | cache;
}

static void map_range(u64 *pml4, u64 base, u64 end, u64 cache)
{
    for (u64 gpa = align_down(base, LARGE_PAGE); gpa < end; gpa += LARGE_PAGE)
        map_large_page(pml4, gpa, cache);
}

void paging_start(void)
{
    struct payload *payload = &LOW->payload;
    payload->segments[payload->segment_count] =
        (struct segment){.base = ROM_BASE, .length = FOUR_GIB - ROM_BASE, .flags = SEGMENT_EXECUTABLE};

    LOW->tables_base = FOUR_GIB;
    u64 *pml4 = (u64 *)allocate_table();
    for (u32 i = 0; i < LOW->memory_map_entries; i++) {
        const struct memory_range *range = &LOW->memory_map[i];
        if (range->type != MEMORY_RESERVED)
            map_range(pml4, range->base, range->base + range->length, 0);
    }
    map_range(pml4, WINDOW_BASE, FOUR_GIB, UNCACHED);
    memory_map_carve(LOW->tables_base, FOUR_GIB, MEMORY_PAGE_TABLES); /* no free page was left out */
    write_cr3((u64)pml4);
}
