/* hello: the smallest guest.  It greets, tells what it was given, and ends. */
#include "../lib/console.h"
#include "../lib/guest.h"

static const char *type_name(u32 type)
{
    switch (type) {
    case MEMORY_USABLE:
        return "usable";
    case MEMORY_IMAGE:
        return "this guest";
    case MEMORY_PAGE_TABLES:
        return "page tables";
    default:
        return "reserved";
    }
}

int guest_main(const struct boot_info *boot_info)
{
    const struct memory_range *map = (const struct memory_range *)boot_info->memory_map;
    print("hello: hello from a guest in long mode\n");
    print("hello: %lu KiB of RAM, %u PCI functions\n", boot_info->ram_bytes / 1024, boot_info->pci_functions);
    for (u32 i = 0; i < boot_info->memory_map_entries; i++)
        print("hello: %09lxh - %09lxh %s\n", map[i].base, map[i].base + map[i].length - 1, type_name(map[i].type));
    print("hello: my parameter is \"%s\"\n", (const char *)boot_info->cmdline);
    return 0;
}
