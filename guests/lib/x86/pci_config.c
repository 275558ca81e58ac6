#include "pci_config.h"
#include "io.h"
#include "ports.h"

#define CONFIG_ENABLE 0x80000000u

static void select(pci_function function, u8 offset)
{
    out32(PORT_PCI_ADDRESS, CONFIG_ENABLE | (u32)function << 8 | (offset & 0xfc));
}

u32 pci_read32(pci_function function, u8 offset)
{
    select(function, offset);
    return in32(PORT_PCI_DATA);
}

u16 pci_read16(pci_function function, u8 offset)
{
    return (u16)(pci_read32(function, offset) >> (offset & 2) * 8);
}

u8 pci_read8(pci_function function, u8 offset)
{
    return (u8)(pci_read32(function, offset) >> (offset & 3) * 8);
}

void pci_write32(pci_function function, u8 offset, u32 value)
{
    select(function, offset);
    out32(PORT_PCI_DATA, value);
}

/* Written as 16 bits, not as read-modify-write of 32: the other half may hold write-one-to-clear bits. */
void pci_write16(pci_function function, u8 offset, u16 value)
{
    select(function, offset);
    out16(PORT_PCI_DATA + (offset & 2), value);
}

void pci_write8(pci_function function, u8 offset, u8 value)
{
    select(function, offset);
    out8(PORT_PCI_DATA + (offset & 3), value);
}
