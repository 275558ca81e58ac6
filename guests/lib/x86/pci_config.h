/* PCI configuration space through ports CF8h and CFCh (PCI configuration mechanism #1), bus 0 only. */
#pragma once

#include "../types.h"

enum {
    PCI_FUNCTIONS = 256, /* of bus 0 */

    PCI_VENDOR_ID = 0x00,
    PCI_DEVICE_ID = 0x02,
    PCI_COMMAND = 0x04,
    PCI_STATUS = 0x06,
    PCI_REVISION = 0x08,
    PCI_CLASS = 0x08, /* 32 bits: class, subclass, interface, revision */
    PCI_HEADER_TYPE = 0x0e,
    PCI_BAR0 = 0x10,
    PCI_SUBSYSTEM_ID = 0x2e,
    PCI_CAPABILITIES = 0x34,
    PCI_INTERRUPT_LINE = 0x3c,
    PCI_INTERRUPT_PIN = 0x3d, /* 0 none, 1 to 4 INTA to INTD */

    PCI_COMMAND_IO = 1 << 0,
    PCI_COMMAND_MEMORY = 1 << 1,
    PCI_COMMAND_BUS_MASTER = 1 << 2,
    PCI_STATUS_CAPABILITIES = 1 << 4,
    PCI_HEADER_MULTIFUNCTION = 0x80,

    PCI_BAR_IO = 1,
    PCI_BAR_TYPE = 6,
    PCI_BAR_64BIT = 4,
};

/* A function of bus 0: device number in bits 7:3, function number in bits 2:0. */
typedef u8 pci_function;

u32 pci_read32(pci_function function, u8 offset);
u16 pci_read16(pci_function function, u8 offset);
u8 pci_read8(pci_function function, u8 offset);
void pci_write32(pci_function function, u8 offset, u32 value);
void pci_write16(pci_function function, u8 offset, u16 value);
void pci_write8(pci_function function, u8 offset, u8 value);
