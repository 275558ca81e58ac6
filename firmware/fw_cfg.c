/* QEMU's fw_cfg: a 16-bit selector, a data port that gives one byte after the other, and a directory of named files.
 * Where there is the DMA interface, everything but the first few bytes comes by it: one request instead of many ports. */
#include "firmware.h"
#include "../guests/lib/x86/io.h"
#include "../guests/lib/x86/ports.h"
#include "../guests/lib/string.h"

enum { ITEM_SIGNATURE = 0x00, ITEM_ID = 0x01, ITEM_DIRECTORY = 0x19, MAX_FILES = 1024 };
enum { ID_DMA = 1 << 1, DMA_READ = 1 << 1 };
#define SHADOW_BASE 0xa0000ul /* up to 1 MiB memory is the processor's alone */
#define SHADOW_END 0x100000ul

struct dma_request { /* big-endian */
    u32 control;
    u32 length;
    u64 address;
};

struct directory_entry { /* big-endian */
    u32 size;
    u16 select;
    u16 reserved;
    char name[56];
};

static void select_item(u16 item)
{
    out16(PORT_FW_CFG_SELECT, item);
}

static void read_by_dma(void *to, u64 length)
{
    volatile struct dma_request request = {
        .control = __builtin_bswap32(DMA_READ),
        .length = __builtin_bswap32((u32)length),
        .address = __builtin_bswap64((u64)to),
    };
    out32(PORT_FW_CFG_DMA, 0); /* the stack is below 4 GiB */
    out32(PORT_FW_CFG_DMA + 4, __builtin_bswap32((u32)(u64)&request));
    if (request.control)
        fail(EXIT_BAD_BOARD, "the fw_cfg device refuses a DMA request");
}

void fw_cfg_read(void *to, u64 length)
{
    u8 *bytes = to;
    if (LOW->fw_cfg_dma && ((u64)to + length <= SHADOW_BASE || (u64)to >= SHADOW_END)) {
        read_by_dma(to, length);
        return;
    }
    while (length--)
        *bytes++ = in8(PORT_FW_CFG_DATA);
}

void fw_cfg_check(void)
{
    char signature[4];
    select_item(ITEM_SIGNATURE);
    fw_cfg_read(signature, sizeof(signature));
    if (memcmp(signature, "QEMU", 4) != 0)
        fail(EXIT_BAD_BOARD, "there is no fw_cfg device at port 510h");
    u32 interfaces;
    select_item(ITEM_ID);
    fw_cfg_read(&interfaces, sizeof(interfaces));
    LOW->fw_cfg_dma = interfaces & ID_DMA;
}

s64 fw_cfg_open(const char *name)
{
    u32 count;
    select_item(ITEM_DIRECTORY);
    fw_cfg_read(&count, sizeof(count));
    count = __builtin_bswap32(count);
    for (u32 i = 0; i < count && i < MAX_FILES; i++) {
        struct directory_entry entry;
        fw_cfg_read(&entry, sizeof(entry));
        entry.name[sizeof(entry.name) - 1] = 0;
        if (string_equal(entry.name, name)) {
            select_item(__builtin_bswap16(entry.select));
            return (s64)__builtin_bswap32(entry.size);
        }
    }
    return -1;
}
