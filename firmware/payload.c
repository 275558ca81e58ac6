/* The guest: the host has loaded its segments into RAM and describes them in a fw_cfg file.  Nothing of the description
 * is believed before it is checked against the memory map. */
#include "firmware.h"
#include "../guests/lib/string.h"

struct header {
    char magic[8];
    u64 entry;
    u32 segment_count;
    u32 flags;
};

/* Exactly one way to enter it. */
static int is_known(u32 flags)
{
    return flags == 0 || flags == PAYLOAD_MULTIBOOT || flags == PAYLOAD_LINUX || flags == PAYLOAD_PVH;
}

static int is_ram(u64 base, u64 length)
{
    u64 found = 0;
    for (u32 i = 0; i < LOW->memory_map_entries; i++) {
        const struct memory_range *range = &LOW->memory_map[i];
        u64 from = max_u64(base, range->base), to = min_u64(base + length, range->base + range->length);
        /* A page shared by two segments is taken by the first of them already. */
        if (from < to && (range->type == MEMORY_USABLE || range->type == MEMORY_IMAGE))
            found += to - from;
    }
    return base + length >= base && found == length;
}

/* Whether [base, base + length) lies in one segment that has all of `flags`. */
static int is_in_segment(u64 base, u64 length, u32 flags)
{
    for (u32 i = 0; i < LOW->payload.segment_count; i++) {
        const struct segment *segment = &LOW->payload.segments[i];
        u64 offset = base - segment->base;
        if (offset < segment->length && length <= segment->length - offset && (segment->flags & flags) == flags)
            return 1;
    }
    return 0;
}

/* The firmware completes what a kernel is told: it must be the kernel's to write, in whole and with its longest map. */
static void check_information(const struct payload *payload)
{
    u64 map = payload->information, map_length = PAGE_SIZE;
    if (payload->flags == PAYLOAD_PVH && is_in_segment(payload->information, PAGE_SIZE, SEGMENT_WRITABLE)) {
        map = ((const struct start_info *)payload->information)->memory_map;
        map_length = sizeof(LOW->memory_map);
    }
    if (!is_in_segment(map, map_length, SEGMENT_WRITABLE))
        fail(EXIT_BAD_PAYLOAD, "what the firmware tells a kernel must lie in its segments");
}

void payload_read(void)
{
    struct payload *payload = &LOW->payload;
    struct header header;
    s64 size = fw_cfg_open("opt/balloon-vmm/payload");
    if (size < 0)
        fail(EXIT_BAD_PAYLOAD, "there is no guest, since the fw_cfg file opt/balloon-vmm/payload is missing");
    if (size < (s64)sizeof(header))
        fail(EXIT_BAD_PAYLOAD, "the description of the guest is too short");
    fw_cfg_read(&header, sizeof(header));
    if (memcmp(header.magic, "BVMMPAY1", sizeof(header.magic)) != 0 || !is_known(header.flags))
        fail(EXIT_BAD_PAYLOAD, "the description of the guest has an unknown format");
    if (header.segment_count == 0 || header.segment_count > MAX_SEGMENTS)
        fail(EXIT_BAD_PAYLOAD, "the guest must have 1 to 16 segments");
    u64 needed = sizeof(header) + header.segment_count * sizeof(struct segment);
    if ((u64)size < needed + (header.flags ? sizeof(payload->information) : 0))
        fail(EXIT_BAD_PAYLOAD, "the description of the guest is cut off");

    payload->entry = header.entry;
    payload->flags = header.flags;
    payload->segment_count = header.segment_count;
    fw_cfg_read(payload->segments, header.segment_count * sizeof(struct segment));
    if (header.flags)
        fw_cfg_read(&payload->information, sizeof(payload->information));
    for (u32 i = 0; i < payload->segment_count; i++) {
        const struct segment *segment = &payload->segments[i];
        if (!is_ram(segment->base, segment->length))
            fail(EXIT_BAD_PAYLOAD, "the guest's segments must lie in RAM above the first 64 KiB");
        memory_map_carve(segment->base, segment->base + segment->length, MEMORY_IMAGE);
    }
    if (payload->flags == PAYLOAD_LINUX || payload->flags == PAYLOAD_PVH)
        check_information(payload);
    if (!is_in_segment(payload->entry, 1, SEGMENT_EXECUTABLE))
        fail(EXIT_BAD_PAYLOAD, "the guest's entry point must lie in an executable segment");
}
