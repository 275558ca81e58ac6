/* Finding PCI functions, their capabilities and their memory. */
#pragma once

#include "pci_config.h"

enum {
    PCI_CAPABILITY_VENDOR = 0x09,
    PCI_CAPABILITY_MSIX = 0x11,
};

/* The first function of bus 0 with these ids; returns 0 if there is none. */
int pci_find(u16 vendor, u16 device, pci_function *function);

/* The first capability of this kind after `after` (0: from the start), as an offset in configuration space; 0: none. */
u8 pci_capability(pci_function function, u8 kind, u8 after);

/* The address of a memory BAR, 0 if the firmware gave it none. */
u64 pci_bar_address(pci_function function, u8 bar);

/* Lets the function read and write memory by itself. */
void pci_enable_bus_master(pci_function function);
