/* What a guest is handed on entry, in its processor's order of bytes: RDI or r3 points at this block.  docs/architecture.md, "The board". */
#pragma once

#include "types.h"

#define BOOT_INFO_MAGIC 0x544f4f424d4d5642ull /* "BVMMBOOT", read as little-endian bytes */
#define BOOT_INFO_VERSION 1

enum memory_type {
    MEMORY_USABLE = 1,
    MEMORY_RESERVED = 2,
    MEMORY_IMAGE = 3,
    MEMORY_PAGE_TABLES = 4,
    MEMORY_ACPI_TABLES = 5, /* free when nobody reads ACPI's tables any more */
    MEMORY_ACPI_NVS = 6,    /* belongs to the firmware for ever */
};

struct memory_range {
    u64 base;
    u64 length;
    u32 type;
    u32 zero;
};

struct boot_info {
    u64 magic;
    u32 version;
    u32 size;
    u64 memory_map; /* address of memory_map_entries x struct memory_range, ascending, not overlapping */
    u32 memory_map_entries;
    u32 pci_functions;
    u64 cmdline;   /* address of the NUL-terminated parameter */
    u64 ram_bytes; /* all usable RAM, before the image and the page tables were taken out of it */
    u64 image_start, image_end;
};
