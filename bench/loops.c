/* The discard loops of two other monitors' balloons, written for this benchmark from a description of what they do.
 *
 * Both get one batch of requests: `count` arrays of page frame numbers in guest RAM.  `ram` is where the host mapped
 * guest-physical address 0 of the region that holds pages `first` to `last`; pages outside are skipped.  `advice` is
 * MADV_REMOVE for a memory file and MADV_DONTNEED for anonymous memory, as the device under test uses.  The result is
 * how many discard calls were made, or -1 if one failed.
 */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

enum { SHIFT = 12, INSERTION_SORT_UP_TO = 16 };

struct batch {
    uint8_t *ram;
    uint64_t first, last;
    int32_t advice;
    uint32_t count;
    const uint32_t *const *arrays;
    const uint32_t *lengths; /* entries of each array */
    uint32_t *scratch;       /* room for all entries */
};

static int discard(const struct batch *batch, uint64_t pfn, uint64_t pages)
{
    return madvise(batch->ram + (pfn << SHIFT), pages << SHIFT, batch->advice);
}

/* QEMU's way: one call for every page, in the order given. */
int64_t page_by_page(const struct batch *batch)
{
    int64_t calls = 0;
    for (uint32_t i = 0; i < batch->count; i++)
        for (uint32_t j = 0; j < batch->lengths[i]; j++) {
            uint32_t pfn = batch->arrays[i][j];
            if (pfn < batch->first || pfn > batch->last)
                continue;
            if (discard(batch, pfn, 1))
                return -1;
            calls++;
        }
    return calls;
}

static void insertion_sort(uint32_t *pfns, int64_t count)
{
    for (int64_t i = 1; i < count; i++) {
        uint32_t pfn = pfns[i];
        int64_t j = i;
        for (; j > 0 && pfns[j - 1] > pfn; j--)
            pfns[j] = pfns[j - 1];
        pfns[j] = pfn;
    }
}

static uint32_t middle_of(uint32_t a, uint32_t b, uint32_t c)
{
    if (a > b) {
        uint32_t swap = a;
        a = b;
        b = swap;
    }
    return c < a ? a : c > b ? b : c;
}

static void quick_sort(uint32_t *pfns, int64_t count)
{
    while (count > INSERTION_SORT_UP_TO) {
        uint32_t pivot = middle_of(pfns[0], pfns[count / 2], pfns[count - 1]);
        int64_t low = 0, high = count - 1;
        while (low <= high) {
            while (pfns[low] < pivot)
                low++;
            while (pfns[high] > pivot)
                high--;
            if (low <= high) {
                uint32_t swap = pfns[low];
                pfns[low++] = pfns[high];
                pfns[high--] = swap;
            }
        }
        quick_sort(pfns, high + 1);
        pfns += low;
        count -= low;
    }
    insertion_sort(pfns, count);
}

static int is_ascending(const uint32_t *pfns, int64_t count)
{
    for (int64_t i = 1; i < count; i++)
        if (pfns[i - 1] > pfns[i])
            return 0;
    return 1;
}

/* Firecracker's way: all page frame numbers sorted, neighbours merged, one call for every run. */
int64_t sort_and_merge(const struct batch *batch)
{
    int64_t count = 0, calls = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        memcpy(batch->scratch + count, batch->arrays[i], batch->lengths[i] * sizeof(uint32_t));
        count += batch->lengths[i];
    }
    if (!is_ascending(batch->scratch, count))
        quick_sort(batch->scratch, count);
    for (int64_t i = 0, next; i < count; i = next) {
        uint64_t start = batch->scratch[i], end = start + 1;
        for (next = i + 1; next < count && batch->scratch[next] <= end; next++)
            end = batch->scratch[next] + 1ul;
        if (start < batch->first || end - 1 > batch->last)
            continue;
        if (discard(batch, start, end - start))
            return -1;
        calls++;
    }
    return calls;
}
