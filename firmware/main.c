/* The firmware's course, from long mode to the guest.  reset.S has come here from the reset vector. */
#include "firmware.h"
#include "../guests/lib/console.h"
#include "../guests/lib/x86/io.h"
#include "../guests/lib/x86/ports.h"
#include "../guests/lib/string.h"

#define VERSION "0.1"

__attribute__((noreturn)) static void stop(u8 exit_code)
{
    out32(PORT_EXIT, exit_code);
    halt_for_ever();
}

__attribute__((noreturn)) void fail(u8 exit_code, const char *sentence)
{
    print("firmware: %s\n", sentence);
    stop(exit_code);
}

static void read_cmdline(void)
{
    s64 size = fw_cfg_open("opt/balloon-vmm/cmdline");
    if (size > MAX_CMDLINE - 1)
        fail(EXIT_BAD_PAYLOAD, "the guest's parameter must be shorter than 2048 bytes");
    if (size > 0)
        fw_cfg_read(LOW->cmdline, (u64)size);
    LOW->cmdline[size > 0 ? size : 0] = 0;
}

static void fill_boot_info(u64 ram_bytes, u32 pci_functions)
{
    struct boot_info *info = &LOW->boot_info;
    const struct payload *payload = &LOW->payload;
    info->magic = BOOT_INFO_MAGIC;
    info->version = BOOT_INFO_VERSION;
    info->size = sizeof(*info);
    info->memory_map = (u64)LOW->memory_map;
    info->memory_map_entries = LOW->memory_map_entries;
    info->pci_functions = pci_functions;
    info->cmdline = (u64)LOW->cmdline;
    info->ram_bytes = ram_bytes;
    info->image_start = ~0ul;
    info->image_end = 0;
    for (u32 i = 0; i < payload->segment_count; i++) {
        const struct segment *segment = &payload->segments[i];
        info->image_start = min_u64(info->image_start, segment->base);
        info->image_end = max_u64(info->image_end, segment->base + segment->length);
    }
}

/* As its boot protocol has it; none of them comes back. */
__attribute__((noreturn)) static void enter_payload(const struct payload *payload)
{
    if (payload->flags == PAYLOAD_LINUX) {
        linux_complete_zero_page(payload->information, LOW->acpi_rsdp);
        enter_linux(payload->entry, payload->information);
    }
    if (payload->flags == PAYLOAD_PVH)
        pvh_complete_start_info(payload->information, LOW->acpi_rsdp);
    if (payload->flags)
        enter_protected_mode(payload->entry, payload->information);
    u32 exit_code = enter_guest(payload->entry, &LOW->boot_info);
    print("the guest returned %u\n", exit_code & 0xff);
    stop((u8)exit_code);
}

void firmware_main(void)
{
    /* Step 9: a console, so that everything from here on can be told. */
    memset(LOW, 0, sizeof(*LOW));
    console_start();
    print("balloon-vmm firmware " VERSION ": from the reset vector to long mode\n");

    /* Step 10: exceptions, so that a mistake is one line and not a triple fault. */
    exceptions_start();

    /* Step 11: what memory is there?  The firmware keeps the first 64 KiB. */
    fw_cfg_check();
    memory_map_read();
    u64 ram_bytes = memory_map_total(MEMORY_USABLE);
    print("ram: %lu KiB usable\n", ram_bytes / 1024);
    memory_map_carve(0, FIRMWARE_RAM_END, MEMORY_RESERVED);

    /* Step 12: the guest.  The host has put its bytes into RAM and tells what they are. */
    payload_read();
    read_cmdline();

    /* Step 13: the final page tables, which respect the guest's segments. */
    paging_start();

    /* Step 14: addresses for everything on the PCI bus. */
    u32 pci_functions = pci_scan();

    /* Step 15: the tables by which an operating system gets to know the board. */
    acpi_start();
    memory_map_merge();
    if (LOW->payload.flags == PAYLOAD_MULTIBOOT)
        multiboot_hide_tables(LOW->payload.information);

    /* Step 16: interrupts and low memory as PC firmware leaves them. */
    interrupts_start();
    memory_publish();

    /* Step 17: tell the guest, and go. */
    fill_boot_info(ram_bytes, pci_functions);
    print("entering the guest at %lxh\n", LOW->payload.entry);
    enter_payload(&LOW->payload);
}
