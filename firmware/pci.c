/* PCI: finds the functions of bus 0, measures their base address registers and gives each an address.
 *
 * A base address register (BAR) tells its size like this: write all ones, and the bits that stay zero are the size's.
 * The driver switches on bus mastering itself, once it is ready for what the device may then do.
 */
#include "firmware.h"
#include "../guests/lib/console.h"
#include "../guests/lib/x86/io.h"
#include "../guests/lib/x86/pci_config.h"
#include "../guests/lib/x86/ports.h"

#define MEMORY_BASE 0xe0000000ul
#define MEMORY_END 0xfec00000ul
#define IO_BASE 0xc000ul
#define IO_END 0x10000ul
#define MEMORY_FLAGS 0xful
#define IO_FLAGS 0x3ul

/* The PIIX3 says where the four PCI interrupts go: inputs of the 8259 pair, which must then be levels. */
#define ISA_BRIDGE 0x70008086u
#define ISA_BRIDGE_PIRQ 0x60
static const u8 pirq_inputs[4] = {10, 10, 11, 11};
enum { SCI_INPUT = 9 }; /* ACPI's interrupt is a level too */

struct window { /* the next free address, and the first one behind the window */
    u64 next, end;
};

struct bar {
    u64 size;
    u32 flags; /* the register's low bits: what kind it is */
};

static struct bar measure(pci_function function, u8 offset)
{
    pci_write32(function, offset, ~0u);
    u32 low = pci_read32(function, offset);
    struct bar bar = {.flags = low & 0xf};
    if (low & PCI_BAR_IO) {
        /* The upper 16 bits of an I/O BAR may be hard-wired to zero. */
        bar.size = (u32)(low & ~IO_FLAGS) ? ~((low & ~IO_FLAGS) | 0xffff0000u) + 1u & 0xffff : 0;
        return bar;
    }
    u64 mask = low & ~MEMORY_FLAGS;
    if ((low & PCI_BAR_TYPE) == PCI_BAR_64BIT) {
        pci_write32(function, offset + 4, ~0u);
        mask |= (u64)pci_read32(function, offset + 4) << 32;
    } else if (mask) {
        mask |= 0xffffffff00000000ul;
    }
    bar.size = ~mask + 1;
    return bar;
}

static void assign(pci_function function, u8 offset, struct bar bar, u64 address)
{
    pci_write32(function, offset, (u32)address);
    if (!(bar.flags & PCI_BAR_IO) && (bar.flags & PCI_BAR_TYPE) == PCI_BAR_64BIT)
        pci_write32(function, offset + 4, (u32)(address >> 32));
}

/* Gives one BAR its address; returns the command bit it needs. */
static u16 place(pci_function function, u8 offset, struct bar bar, struct window *memory, struct window *io)
{
    int is_io = bar.flags & PCI_BAR_IO;
    struct window *window = is_io ? io : memory;
    u64 address = align_up(window->next, bar.size);
    u32 number = (offset - PCI_BAR0) / 4u;
    if (bar.size > window->end || address > window->end - bar.size) {
        assign(function, offset, bar, 0);
        print(" bar%u %lxh does not fit", number, bar.size);
        return 0;
    }
    window->next = address + bar.size;
    assign(function, offset, bar, address);
    print(" bar%u %s %lxh+%lxh", number, is_io ? "io" : "mem", address, bar.size);
    return is_io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
}

static void route_interrupts(pci_function isa_bridge)
{
    u32 levels = 1u << SCI_INPUT;
    for (u8 i = 0; i < 4; i++) {
        pci_write8(isa_bridge, ISA_BRIDGE_PIRQ + i, pirq_inputs[i]);
        levels |= 1u << pirq_inputs[i];
    }
    out8(PORT_PIC_TRIGGER, (u8)levels);
    out8(PORT_PIC_TRIGGER + 1, (u8)(levels >> 8));
}

/* Tells the driver which input of the 8259 pair the function's pin reaches: pins are rotated from slot to slot. */
static void name_interrupt(pci_function function)
{
    u8 pin = pci_read8(function, PCI_INTERRUPT_PIN);
    if (pin)
        pci_write8(function, PCI_INTERRUPT_LINE, pirq_inputs[(function / 8u - 1 + pin - 1) % 4]);
}

static void set_up(pci_function function, struct window *memory, struct window *io)
{
    u32 id = pci_read32(function, PCI_VENDOR_ID);
    print("pci 00:%02x.%u %04x:%04x", function >> 3, function & 7u, id & 0xffff, id >> 16);

    /* Step 1: the device must not answer while its registers hold a pattern instead of an address. */
    u16 command = pci_read16(function, PCI_COMMAND) & ~(PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
    pci_write16(function, PCI_COMMAND, command);

    /* Step 2: measure and place each BAR.  Only ordinary functions (header type 0) have all six. */
    u8 header_type = pci_read8(function, PCI_HEADER_TYPE) & 0x7f;
    u8 end = header_type == 0 ? PCI_BAR0 + 6 * 4 : PCI_BAR0;
    for (u8 offset = PCI_BAR0; offset < end; offset += 4) {
        struct bar bar = measure(function, offset);
        if (bar.size)
            command |= place(function, offset, bar, memory, io);
        if (!(bar.flags & PCI_BAR_IO) && (bar.flags & PCI_BAR_TYPE) == PCI_BAR_64BIT)
            offset += 4;
    }

    /* Step 3: its interrupt. */
    if (id == ISA_BRIDGE)
        route_interrupts(function);
    name_interrupt(function);

    /* Step 4: let it decode what it was given. */
    pci_write16(function, PCI_COMMAND, command);
    print("\n");
}

u32 pci_scan(void)
{
    struct window memory = {MEMORY_BASE, MEMORY_END}, io = {IO_BASE, IO_END};
    u32 found = 0;
    for (u32 device = 0; device < 32; device++) {
        for (u32 number = 0; number < 8; number++) {
            pci_function function = (pci_function)(device << 3 | number);
            if (pci_read16(function, PCI_VENDOR_ID) == 0xffff) {
                if (number == 0)
                    break;
                continue;
            }
            set_up(function, &memory, &io);
            found++;
            if (number == 0 && !(pci_read8(function, PCI_HEADER_TYPE) & PCI_HEADER_MULTIFUNCTION))
                break;
        }
    }
    return found;
}
