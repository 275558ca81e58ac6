#include "paging.h"
#include "../guest.h"
#include "../machine.h"
#include "../pages.h"
#include "../string.h"
#include "io.h"

enum {
    FEWEST_GROUPS = 1024, /* the smallest table that there may be: 64 KiB */
    GROUP_ENTRIES = 8,
    RAM_PER_GROUP = 4, /* pages: half of a group, so that there is room for other segments */
    PAGE_SHIFT = 12,
    PAGES_PER_TABLE = PAGE_SIZE / sizeof(u32),
    TABLES = 0x10000000 / (PAGES_PER_TABLE * PAGE_SIZE), /* of a segment of 256 MiB */
    PAGE_INDEX = 0xffff,

    /* the first word of an entry */
    ENTRY_VALID = (int)0x80000000,
    ENTRY_SEGMENT = 7, /* the shift of the segment's identifier */
    ENTRY_SECONDARY = 1 << 6,
    ENTRY_API = 10, /* how many bits of the page's index the table's place stands for */

    /* the second word, and what our own tables note beside it */
    ENTRY_USED = 1 << 8,
    ENTRY_CHANGED = 1 << 7,
    ENTRY_COHERENT = 1 << 4,
    ENTRY_WRITABLE = 2,
    PAGE_PRESENT = 1, /* ours only */
    PAGE_ADDRESS = (int)0xfffff000,

    BLOCK_256_MIB = 0x1ffc,
    BLOCK_VALID = 2, /* for the supervisor */
    BLOCK_WRITABLE = 2,
    BLOCK_DEVICES = 0x28, /* not cached, guarded */
    DEVICES = (int)0xf0000000,

    SEGMENT_NO_EXECUTE = 1 << 28,
    SEGMENT_SHIFT = 28,
    SEGMENTS = 16,
};

struct entry {
    u32 high, low;
};

static struct entry (*hash_table)[GROUP_ENTRIES];
static u32 groups; /* a power of two */
static u32 *tables[TABLES];
static page_fault_handler fault_handler;

u64 page_free_base(void)
{
    return (u64)ARENA_SEGMENT << 28;
}

static u32 index_of(u64 address)
{
    return (u32)(address >> PAGE_SHIFT) & PAGE_INDEX;
}

/* Our own entry for a page, or NULL where there is no table for it. */
static u32 *own_entry(u64 address)
{
    u32 *table = address >> 28 == ARENA_SEGMENT ? tables[index_of(address) / PAGES_PER_TABLE] : NULL;
    return table ? &table[index_of(address) % PAGES_PER_TABLE] : NULL;
}

static struct entry *group_of(u32 segment, u32 index, int secondary)
{
    u32 hash = segment ^ index;
    return hash_table[(secondary ? ~hash : hash) & (groups - 1)];
}

static u32 high_word(u32 segment, u32 index, int secondary)
{
    return (u32)ENTRY_VALID | segment << ENTRY_SEGMENT | (secondary ? ENTRY_SECONDARY : 0) | index >> ENTRY_API;
}

static struct entry *find(u32 index)
{
    for (int secondary = 0; secondary < 2; secondary++) {
        struct entry *group = group_of(ARENA_SEGMENT, index, secondary);
        for (u32 i = 0; i < GROUP_ENTRIES; i++)
            if (group[i].high == high_word(ARENA_SEGMENT, index, secondary))
                return &group[i];
    }
    return NULL;
}

static void invalidate(u32 index)
{
    u32 address = (u32)ARENA_SEGMENT << 28 | index << PAGE_SHIFT;
    __asm__ volatile("sync\n\ttlbie %0\n\teieio\n\ttlbsync\n\tsync" : : "r"(address) : "memory");
}

/* Takes an entry out of the hash table; what the processor noted in it goes to our own. */
static void take_out(struct entry *entry, u32 index)
{
    u32 *own = own_entry((u64)ARENA_SEGMENT << 28 | index << PAGE_SHIFT);
    *(volatile u32 *)&entry->high = 0;
    invalidate(index);
    *own |= *(volatile u32 *)&entry->low & (ENTRY_USED | ENTRY_CHANGED);
}

/* The index of the page that an entry is for: its upper bits stand in it, the others follow from its group. */
static u32 index_behind(const struct entry *entry)
{
    u32 group = (u32)((address_of(entry) - address_of(hash_table)) / (GROUP_ENTRIES * sizeof(struct entry)));
    u32 hash = entry->high & ENTRY_SECONDARY ? ~group : group;
    u32 low_bits = (1 << ENTRY_API) - 1; /* there are at least as many groups */
    return (entry->high & 0x3f) << ENTRY_API | ((hash ^ ARENA_SEGMENT) & low_bits);
}

/* An entry that another page of the guest's own segment gives up; RAM keeps its own. */
static struct entry *give_up(u32 segment, u32 index, int *secondary)
{
    static u32 hand;
    for (u32 tried = 0; tried < 2 * GROUP_ENTRIES; tried++, hand++) {
        *secondary = hand / GROUP_ENTRIES % 2;
        struct entry *entry = &group_of(segment, index, *secondary)[hand % GROUP_ENTRIES];
        if ((entry->high >> ENTRY_SEGMENT & 0xffffff) != ARENA_SEGMENT)
            continue;
        take_out(entry, index_behind(entry));
        hand++;
        return entry;
    }
    panic("the hash table has no place for page %xh of segment %xh", index, segment);
}

static struct entry *free_place(u32 segment, u32 index, int *secondary)
{
    for (*secondary = 0; *secondary < 2; ++*secondary) {
        struct entry *group = group_of(segment, index, *secondary);
        for (u32 i = 0; i < GROUP_ENTRIES; i++)
            if (!(group[i].high & (u32)ENTRY_VALID))
                return &group[i];
    }
    return give_up(segment, index, secondary);
}

static void put_in(u32 segment, u32 index, u32 own)
{
    int secondary;
    struct entry *entry = free_place(segment, index, &secondary);
    *(volatile u32 *)&entry->low = (own & (u32)(PAGE_ADDRESS | ENTRY_USED | ENTRY_CHANGED)) | ENTRY_COHERENT |
                                   ENTRY_WRITABLE;
    full_fence();
    *(volatile u32 *)&entry->high = high_word(segment, index, secondary);
    full_fence();
}

/* The last usable range gives the table its place: the highest that is aligned to the table's size. */
static void place_table(const struct boot_info *boot_info)
{
    struct memory_range *map = pointer_to(boot_info->memory_map);
    struct memory_range *last = &map[boot_info->memory_map_entries - 1];
    u64 end = last->base + last->length;
    for (groups = FEWEST_GROUPS; (u64)groups * RAM_PER_GROUP * PAGE_SIZE < end; groups *= 2)
        ;
    u64 bytes = (u64)groups * GROUP_ENTRIES * sizeof(struct entry);
    u64 table = align_down(end - bytes, bytes);
    if (last->type != MEMORY_USABLE || table < last->base)
        panic("no memory for a hash table of %lu pages", bytes / PAGE_SIZE);
    last->length = table - last->base;
    hash_table = memset(pointer_to(table), 0, (usize)bytes);
}

static u32 segment_register(u32 segment)
{
    return segment | SEGMENT_NO_EXECUTE;
}

void paging_start(const struct boot_info *boot_info)
{
    const struct memory_range *map = pointer_to(boot_info->memory_map);
    const struct memory_range *last = &map[boot_info->memory_map_entries - 1];
    u64 end = last->base + last->length;
    place_table(boot_info);
    for (u64 gpa = 0; gpa < end; gpa += PAGE_SIZE)
        put_in((u32)(gpa >> SEGMENT_SHIFT), index_of(gpa), (u32)gpa | ENTRY_USED | ENTRY_CHANGED);
    __asm__ volatile("mtibatl 0, %1\n\tmtibatu 0, %0" : : "r"(BLOCK_256_MIB | BLOCK_VALID), "r"(BLOCK_WRITABLE));
    __asm__ volatile("mtdbatl 0, %1\n\tmtdbatu 0, %0"
                     :
                     : "r"((u32)DEVICES | BLOCK_256_MIB | BLOCK_VALID),
                       "r"((u32)DEVICES | BLOCK_DEVICES | BLOCK_WRITABLE));
    for (u32 segment = 0; segment < SEGMENTS; segment++)
        __asm__ volatile("mtsrin %0, %1" : : "r"(segment_register(segment)), "r"(segment << SEGMENT_SHIFT));
    __asm__ volatile("mtsdr1 %0" : : "r"((u32)address_of(hash_table) | (groups / FEWEST_GROUPS - 1)));
    write_msr(read_msr() | MSR_ME | MSR_IR | MSR_DR);
}

int paging_fault(u32 address)
{
    const u32 *own = own_entry(address);
    if (!own || !(*own & PAGE_PRESENT)) {
        if (!fault_handler || !fault_handler(address))
            return 0;
        own = own_entry(address);
    }
    if (!find(index_of(address)))
        put_in(ARENA_SEGMENT, index_of(address), *own);
    return 1;
}

void page_faults_handle(page_fault_handler handler)
{
    fault_handler = handler;
}

void page_map_data(u64 virtual_address, u64 gpa)
{
    u32 **table = &tables[index_of(virtual_address) / PAGES_PER_TABLE];
    if (virtual_address >> 28 != ARENA_SEGMENT)
        panic("%lxh is outside the segment for pages", virtual_address);
    if (!*table) {
        u64 page = page_allocate();
        if (page == NO_PAGE)
            panic("no memory is left for a table of pages");
        *table = memset(pointer_to(page), 0, PAGE_SIZE);
    }
    u32 *own = own_entry(virtual_address);
    if (*own & PAGE_PRESENT)
        panic("%lxh is mapped already", virtual_address);
    *own = (u32)gpa | PAGE_PRESENT;
}

u32 page_state(u64 virtual_address)
{
    const u32 *own = own_entry(virtual_address);
    if (!own || !(*own & PAGE_PRESENT))
        return 0;
    const struct entry *entry = find(index_of(virtual_address));
    u32 noted = *own | (entry ? *(volatile const u32 *)&entry->low : 0);
    return PAGE_MAPPED | (noted & ENTRY_USED ? PAGE_USED : 0) | (noted & ENTRY_CHANGED ? PAGE_WRITTEN : 0);
}

u64 page_behind(u64 virtual_address)
{
    const u32 *own = own_entry(virtual_address);
    return own && *own & PAGE_PRESENT ? *own & (u32)PAGE_ADDRESS : 0;
}

void page_forget_use(u64 virtual_address)
{
    u32 *own = own_entry(virtual_address);
    struct entry *entry = find(index_of(virtual_address));
    if (!own)
        return;
    *own &= ~(u32)ENTRY_USED;
    if (entry)
        *(volatile u32 *)&entry->low &= ~(u32)ENTRY_USED;
    invalidate(index_of(virtual_address));
}

u64 page_unmap(u64 virtual_address)
{
    u32 *own = own_entry(virtual_address);
    if (!own || !(*own & PAGE_PRESENT))
        panic("%lxh is not mapped", virtual_address);
    struct entry *entry = find(index_of(virtual_address));
    u64 gpa = *own & (u32)PAGE_ADDRESS;
    if (entry)
        take_out(entry, index_of(virtual_address));
    *own = 0;
    return gpa;
}
