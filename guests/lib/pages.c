#include "pages.h"
#include "guest.h"
#include "string.h"

enum { BITS = 64 };

static struct page_set free_pages;
static u64 total;

static u64 *word_of(const struct page_set *set, u64 gpa)
{
    u64 word = gpa / PAGE_SIZE / BITS;
    if (word >= set->word_count || gpa % PAGE_SIZE)
        panic("%lxh is no page of RAM", gpa);
    return &set->words[word];
}

static u64 bit_of(u64 gpa)
{
    return 1ull << gpa / PAGE_SIZE % BITS;
}

int page_set_has(const struct page_set *set, u64 gpa)
{
    return (*word_of(set, gpa) & bit_of(gpa)) != 0;
}

void page_set_put(struct page_set *set, u64 gpa)
{
    u64 *word = word_of(set, gpa);
    if (*word & bit_of(gpa))
        panic("page %lxh is put into a set that has it", gpa);
    *word |= bit_of(gpa);
    set->first = min_u64(set->first, (u64)(word - set->words));
    set->count++;
}

static void remove(struct page_set *set, u64 gpa)
{
    *word_of(set, gpa) &= ~bit_of(gpa);
    set->count--;
}

u64 page_set_take(struct page_set *set)
{
    if (!set->count)
        return NO_PAGE;
    u64 gpa = page_set_next(set, set->first * BITS * PAGE_SIZE);
    set->first = gpa / PAGE_SIZE / BITS;
    remove(set, gpa);
    return gpa;
}

u64 page_set_next(const struct page_set *set, u64 gpa)
{
    u64 index = gpa / PAGE_SIZE;
    u64 mask = ~0ull << index % BITS;
    for (u64 word = index / BITS; word < set->word_count; word++) {
        u64 bits = set->words[word] & mask;
        if (bits)
            return (word * BITS + (u64)__builtin_ctzll(bits)) * PAGE_SIZE;
        mask = ~0ull;
    }
    return NO_PAGE;
}

static void new_set(struct page_set *set, u64 *words, u64 word_count)
{
    memset(words, 0, (usize)(word_count * sizeof(*words)));
    *set = (struct page_set){.words = words, .word_count = word_count};
}

void pages_new_set(struct page_set *set)
{
    u64 bytes = free_pages.word_count * sizeof(*free_pages.words);
    u64 gpa = pages_allocate(align_up(bytes, PAGE_SIZE) / PAGE_SIZE);
    if (gpa == NO_PAGE)
        panic("no memory for a set of pages");
    new_set(set, pointer_to(gpa), free_pages.word_count);
}

void pages_start(const struct boot_info *boot_info)
{
    const struct memory_range *map = pointer_to(boot_info->memory_map);
    u64 end = 0;
    for (u32 i = 0; i < boot_info->memory_map_entries; i++)
        if (map[i].type == MEMORY_USABLE)
            end = max_u64(end, map[i].base + map[i].length);

    /* The bitmap itself lies at the start of the first range that has room for it. */
    u64 word_count = align_up(end / PAGE_SIZE, BITS) / BITS;
    u64 bitmap_bytes = align_up(word_count * sizeof(u64), PAGE_SIZE);
    u64 bitmap = 0;
    for (u32 i = 0; i < boot_info->memory_map_entries && !bitmap; i++)
        if (map[i].type == MEMORY_USABLE && map[i].length >= bitmap_bytes)
            bitmap = map[i].base;
    if (!bitmap)
        panic("no usable memory for the page allocator");
    new_set(&free_pages, pointer_to(bitmap), word_count);

    for (u32 i = 0; i < boot_info->memory_map_entries; i++) {
        if (map[i].type != MEMORY_USABLE)
            continue;
        for (u64 gpa = map[i].base; gpa < map[i].base + map[i].length; gpa += PAGE_SIZE) {
            total++;
            if (gpa < bitmap || gpa >= bitmap + bitmap_bytes)
                page_set_put(&free_pages, gpa);
        }
    }
}

u64 page_allocate(void)
{
    return page_set_take(&free_pages);
}

u64 pages_allocate(u64 count)
{
    u64 start = page_set_next(&free_pages, 0), length = 0;
    while (start != NO_PAGE && length < count) {
        u64 gpa = start + length * PAGE_SIZE;
        if (page_set_next(&free_pages, gpa) == gpa) {
            length++;
        } else {
            start = page_set_next(&free_pages, gpa);
            length = 0;
        }
    }
    for (u64 i = 0; start != NO_PAGE && i < count; i++)
        remove(&free_pages, start + i * PAGE_SIZE);
    return start;
}

void page_free(u64 gpa)
{
    page_set_put(&free_pages, gpa);
}

/* The page frame numbers of the lowest bits of a word, at most `count`; takes the bits out of the word. */
static u32 name_bits(u64 *bits, u32 first, u32 *pfns, u32 count)
{
    u32 named = 0;
    if (*bits == ~0ull && count >= BITS) {
        *bits = 0;
        UNROLL
        for (; named < BITS; named++)
            pfns[named] = first + named;
    }
    for (; *bits && named < count; *bits &= *bits - 1)
        pfns[named++] = first + (u32)__builtin_ctzll(*bits);
    return named;
}

u32 pages_leave(struct page_set *set, u32 *pfns, u32 count)
{
    u32 left = 0;
    for (u64 word = free_pages.first; left < count && word < free_pages.word_count; word++) {
        u64 before = free_pages.words[word], bits = before;
        u32 named = name_bits(&bits, (u32)(word * BITS), pfns + left, count - left);
        if (!named)
            continue;
        free_pages.words[word] = bits;
        free_pages.first = word;
        set->words[word] |= before ^ bits; /* both bitmaps are of all RAM */
        set->first = min_u64(set->first, word);
        left += named;
    }
    free_pages.count -= left;
    set->count += left;
    total -= left;
    return left;
}

void page_return(void)
{
    total++;
}

u64 pages_free(void)
{
    return free_pages.count;
}

u64 pages_total(void)
{
    return total;
}

const struct page_set *pages_free_set(void)
{
    return &free_pages;
}
