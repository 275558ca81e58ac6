/* QEMU's fw_cfg: a 16-bit selector, a data port that gives one byte after the other, and a directory of named files. */
#include "firmware.h"
#include "../guests/lib/io.h"
#include "../guests/lib/ports.h"
#include "../guests/lib/string.h"

enum { ITEM_SIGNATURE = 0x00, ITEM_DIRECTORY = 0x19, MAX_FILES = 1024 };

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

void fw_cfg_read(void *to, u64 length)
{
    u8 *bytes = to;
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
