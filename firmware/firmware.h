/* What the parts of the firmware share.
 *
 * The code runs in place from the ROM.  Everything it writes is in `struct low_ram`, in the 64 KiB of RAM that the
 * board's memory map gives to the firmware:
 *
 *    400h -  4FFh   what kernels look for in a PC's BIOS data area (memory_publish)
 *   1000h - 6FFFh   bootstrap page tables (reset.S), unused once paging_start() has run
 *   7000h - BFFFh   struct low_ram
 *   C000h - FFFFh   stack
 */
#pragma once

#include "../guests/lib/boot_info.h"
#include "../guests/lib/types.h"

#define LOW_RAM_BASE 0x7000ul
#define LOW_RAM_LIMIT 0xc000ul
#define FIRMWARE_RAM_END 0x10000ul
#define ROM_BASE 0xffff0000ul
#define FOUR_GIB 0x100000000ul

enum { MAX_MEMORY_RANGES = 64, MAX_SEGMENTS = 16, MAX_CMDLINE = 2048 };

/* Exit codes of the firmware itself, written to the exit port (firmware/__init__.py names them for the host). */
enum { EXIT_BAD_BOARD = 120, EXIT_BAD_PAYLOAD = 121 };

enum segment_flags { SEGMENT_EXECUTABLE = 1, SEGMENT_WRITABLE = 2, SEGMENT_READABLE = 4 };

struct segment {
    u64 base;
    u64 length;
    u32 flags;
    u32 zero;
};

/* How a payload is to be entered; 0 is the bundled guests' own way. */
enum payload_flags { PAYLOAD_MULTIBOOT = 1, PAYLOAD_LINUX = 2, PAYLOAD_PVH = 4 };

struct payload {
    u64 entry;
    u64 information; /* where what its boot protocol tells it lies, if it has one */
    u32 flags;
    u32 segment_count;
    struct segment segments[MAX_SEGMENTS + 1]; /* the last one used is the ROM itself, see paging.c */
};

struct start_info { /* struct hvm_start_info, version 1: what a PVH kernel is told */
    u32 magic, version, flags, modules;
    u64 module_list, cmdline, rsdp, memory_map;
    u32 memory_map_entries, reserved;
};

struct idt_gate {
    u16 offset_low;
    u16 selector;
    u16 flags;
    u16 offset_middle;
    u32 offset_high;
    u32 zero;
};

enum { ACPI_NAME_BYTES = 56, MAX_ACPI_FILES = 8, MAX_LOADER_COMMANDS = 64 };

/* One entry of QEMU's table-loader; all of them begin with the file that they change. */
struct loader_command {
    u32 command;
    char file[ACPI_NAME_BYTES];
    union {
        struct {
            u32 alignment;
            u8 zone;
        } __attribute__((packed)) allocate;
        struct {
            char target[ACPI_NAME_BYTES];
            u32 offset;
            u8 size;
        } __attribute__((packed)) pointer;
        struct {
            u32 offset, start, length;
        } __attribute__((packed)) checksum;
        u8 entry[68];
    };
} __attribute__((packed));
_Static_assert(sizeof(struct loader_command) == 128, "an entry of the table-loader has 128 bytes");

struct acpi_file {
    char name[ACPI_NAME_BYTES];
    u64 address, size;
};

struct low_ram {
    struct boot_info boot_info;
    struct memory_range memory_map[MAX_MEMORY_RANGES];
    u32 memory_map_entries;
    struct payload payload;
    u64 tables_base; /* page tables are allocated downwards from 4 GiB, in free RAM */
    struct idt_gate idt[32];
    u32 fw_cfg_dma; /* whether the host offers it */
    char cmdline[MAX_CMDLINE];
    struct loader_command loader_commands[MAX_LOADER_COMMANDS];
    struct acpi_file acpi_files[MAX_ACPI_FILES];
    u32 acpi_file_count;
    u64 acpi_searched_end; /* how much of the area that is searched for the RSDP is taken */
    u64 acpi_rsdp;         /* address of the RSDP, 0 if there are no tables */
};
_Static_assert(sizeof(struct low_ram) <= LOW_RAM_LIMIT - LOW_RAM_BASE, "struct low_ram does not fit");

#define LOW ((struct low_ram *)LOW_RAM_BASE)

/* main.c */
__attribute__((noreturn)) void fail(u8 exit_code, const char *sentence);

/* fw_cfg.c: the host's named files.  `fw_cfg_open` gives the file's size and selects it, or -1 if there is none. */
void fw_cfg_check(void);
s64 fw_cfg_open(const char *name);
void fw_cfg_read(void *to, u64 length);

/* memory.c */
void memory_map_read(void);
void memory_map_carve(u64 base, u64 end, u32 type);
void memory_map_merge(void);
u64 memory_take(u64 size, u32 type); /* the highest free pages below 4 GiB, 0 if there are not so many */
u64 memory_map_total(u32 type);
void memory_publish(void);

/* payload.c */
void payload_read(void);

/* linux.c: the zero page of Linux, or the start info of PVH, with what only the firmware knows. */
void linux_complete_zero_page(u64 zero_page, u64 rsdp);
void pvh_complete_start_info(u64 start_info, u64 rsdp);

/* paging.c */
void paging_start(void);

/* pci.c: returns how many functions there are. */
u32 pci_scan(void);

/* acpi.c */
void acpi_start(void);

/* multiboot.c */
void multiboot_hide_tables(u64 information);

/* interrupts.c */
void interrupts_start(void);

/* exceptions.c */
void exceptions_start(void);

/* reset.S */
u32 enter_guest(u64 entry, const struct boot_info *boot_info);
__attribute__((noreturn)) void enter_linux(u64 entry, u64 zero_page);
__attribute__((noreturn)) void enter_protected_mode(u64 entry, u64 information);
