/* The board's fixed ports.  docs/architecture.md, "The board". */
#pragma once

#define PORT_PIC_MASTER 0x20 /* command, and data at the next port */
#define PORT_PIC_SLAVE 0xa0
#define PORT_PIC_TRIGGER 0x4d0 /* edge or level, one bit for each of the 16 inputs */
#define PORT_PIT_CHANNEL2 0x42
#define PORT_PIT_MODE 0x43
#define PORT_B 0x61 /* gate and output of the timer's channel 2 */
#define PORT_COM1 0x3f8
#define PORT_PVPANIC 0x505
#define PORT_FW_CFG_SELECT 0x510
#define PORT_FW_CFG_DATA 0x511
#define PORT_FW_CFG_DMA 0x514 /* the high half of a request's address, then the low one; big-endian */
#define PORT_EXIT 0x5f4
#define PORT_PCI_ADDRESS 0xcf8
#define PORT_PCI_DATA 0xcfc
