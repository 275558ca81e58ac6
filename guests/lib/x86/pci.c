#include "pci.h"
#include "../types.h"

enum { MAX_CAPABILITIES = 48, NEXT = 1, CAPABILITY_POINTER_MASK = 0xfc };

int pci_find(u16 vendor, u16 device, pci_function *function)
{
    u32 wanted = (u32)device << 16 | vendor;
    for (u32 candidate = 0; candidate < PCI_FUNCTIONS; candidate++) {
        if (pci_read32((pci_function)candidate, PCI_VENDOR_ID) == wanted) {
            *function = (pci_function)candidate;
            return 1;
        }
        /* Functions 1 to 7 exist only where function 0 says so; else they may be shadows of it. */
        if (candidate % 8 == 0 &&
            (pci_read16((pci_function)candidate, PCI_VENDOR_ID) == 0xffff ||
             !(pci_read8((pci_function)candidate, PCI_HEADER_TYPE) & PCI_HEADER_MULTIFUNCTION)))
            candidate += 7;
    }
    return 0;
}

u8 pci_capability(pci_function function, u8 kind, u8 after)
{
    if (!(pci_read16(function, PCI_STATUS) & PCI_STATUS_CAPABILITIES))
        return 0;
    u8 offset = pci_read8(function, after ? after + NEXT : PCI_CAPABILITIES) & CAPABILITY_POINTER_MASK;
    /* Bounded: a list may be a ring. */
    for (int i = 0; offset && i < MAX_CAPABILITIES; i++) {
        if (pci_read8(function, offset) == kind)
            return offset;
        offset = pci_read8(function, offset + NEXT) & CAPABILITY_POINTER_MASK;
    }
    return 0;
}

u64 pci_bar_address(pci_function function, u8 bar)
{
    u32 low = pci_read32(function, (u8)(PCI_BAR0 + bar * 4));
    u64 address = low & ~0xfu;
    if (low & PCI_BAR_IO)
        return 0;
    if ((low & PCI_BAR_TYPE) == PCI_BAR_64BIT)
        address |= (u64)pci_read32(function, (u8)(PCI_BAR0 + bar * 4 + 4)) << 32;
    return address;
}

void pci_enable_bus_master(pci_function function)
{
    u16 command = pci_read16(function, PCI_COMMAND);
    pci_write16(function, PCI_COMMAND, command | PCI_COMMAND_MEMORY | PCI_COMMAND_BUS_MASTER);
}
