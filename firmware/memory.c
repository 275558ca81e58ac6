/* The memory map: ascending ranges that do not overlap, each of one type.  Whole pages only. */
#include "firmware.h"
#include "../guests/lib/string.h"

#define HOLE_BASE 0xa0000ul /* the PC's hole: video memory and ROMs, never RAM */
#define EBDA_BASE 0x9fc00ul
#define BDA_EBDA_SEGMENT 0x40eul
#define BDA_CONVENTIONAL_KIB 0x413ul
#define HOLE_END 0x100000ul

struct e820_entry {
    u64 base;
    u64 length;
    u32 type;
} __attribute__((packed));

static void insert(u32 at, u64 base, u64 end, u32 type)
{
    struct memory_range *map = LOW->memory_map;
    if (base >= end)
        return;
    if (LOW->memory_map_entries == MAX_MEMORY_RANGES)
        fail(EXIT_BAD_BOARD, "the memory map must not have more than 64 ranges");
    memmove(&map[at + 1], &map[at], (LOW->memory_map_entries - at) * sizeof(map[0]));
    map[at] = (struct memory_range){.base = base, .length = end - base, .type = type};
    LOW->memory_map_entries++;
}

/* Gives the usable pages of [base, end) another type; what is not usable stays what it is. */
void memory_map_carve(u64 base, u64 end, u32 type)
{
    base = align_down(base, PAGE_SIZE);
    end = align_up(end, PAGE_SIZE);
    for (u32 i = 0; i < LOW->memory_map_entries; i++) {
        struct memory_range *range = &LOW->memory_map[i];
        u64 range_base = range->base, range_end = range->base + range->length;
        u64 from = max_u64(base, range_base), to = min_u64(end, range_end);
        if (range->type != MEMORY_USABLE || from >= to)
            continue;
        range->base = from;
        range->length = to - from;
        range->type = type;
        insert(i + 1, to, range_end, MEMORY_USABLE);
        insert(i, range_base, from, MEMORY_USABLE);
        if (range_base < from)
            i++;
    }
}

u64 memory_take(u64 size, u32 type)
{
    u64 found = 0;
    size = align_up(size, PAGE_SIZE);
    for (u32 i = 0; i < LOW->memory_map_entries; i++) {
        const struct memory_range *range = &LOW->memory_map[i];
        u64 end = min_u64(range->base + range->length, FOUR_GIB);
        if (range->type == MEMORY_USABLE && range->base < end && end - range->base >= size)
            found = end - size; /* the ranges ascend */
    }
    if (found)
        memory_map_carve(found, found + size, type);
    return found;
}

/* Neighbours of the same type become one range. */
void memory_map_merge(void)
{
    struct memory_range *map = LOW->memory_map;
    u32 last = 0;
    for (u32 i = 1; i < LOW->memory_map_entries; i++) {
        if (map[last].type == map[i].type && map[last].base + map[last].length == map[i].base)
            map[last].length += map[i].length;
        else
            map[++last] = map[i];
    }
    LOW->memory_map_entries = last + 1;
}

u64 memory_map_total(u32 type)
{
    u64 total = 0;
    for (u32 i = 0; i < LOW->memory_map_entries; i++)
        if (LOW->memory_map[i].type == type)
            total += LOW->memory_map[i].length;
    return total;
}

static void add_e820(const struct e820_entry *entry)
{
    u64 base = entry->base, end = entry->base + entry->length;
    if (entry->type == MEMORY_USABLE) {
        base = align_up(base, PAGE_SIZE);
        end = align_down(end, PAGE_SIZE);
    }
    u32 at = 0;
    while (at < LOW->memory_map_entries && LOW->memory_map[at].base < base)
        at++;
    insert(at, base, end, entry->type == MEMORY_USABLE ? MEMORY_USABLE : MEMORY_RESERVED);
}

void memory_map_read(void)
{
    s64 size = fw_cfg_open("etc/e820");
    if (size < (s64)sizeof(struct e820_entry))
        fail(EXIT_BAD_BOARD, "the host must describe RAM in the fw_cfg file etc/e820");
    for (u64 i = 0; i < (u64)size / sizeof(struct e820_entry); i++) {
        struct e820_entry entry;
        fw_cfg_read(&entry, sizeof(entry));
        add_e820(&entry);
    }
    memory_map_carve(HOLE_BASE, HOLE_END, MEMORY_RESERVED);
    if (memory_map_total(MEMORY_USABLE) == 0)
        fail(EXIT_BAD_BOARD, "the fw_cfg file etc/e820 must name usable RAM");
}

/* What is left of a PC's BIOS data area: how much conventional memory there is, and where the extended data area begins
 * at its end.  Kernels that start from real firmware look there. */
void memory_publish(void)
{
    *(volatile u16 *)BDA_EBDA_SEGMENT = EBDA_BASE >> 4;
    *(volatile u16 *)BDA_CONVENTIONAL_KIB = EBDA_BASE / 1024;
}
