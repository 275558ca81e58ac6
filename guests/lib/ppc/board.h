/* The board around the PowerPC.  docs/architecture.md, "The PowerPC board".  Registers of 32 bits are little-endian. */
#pragma once

#include "io.h"

#define UART_BASE 0xf0000000ul
#define EXIT_BASE 0xf0001000ul
#define PVPANIC_BASE 0xf0001010ul
#define INTERRUPTS_BASE 0xf0002000ul
#define TIMER_BASE 0xf0003000ul
#define VIRTIO_BASE 0xf0010000ul /* the first of them, each in a block of its own */

enum {
    VIRTIO_STEP = 0x1000,
    VIRTIO_PLACES = 4,

    INTERRUPTS_PENDING = INTERRUPTS_BASE + 0, /* a bit for each line that is high */
    INTERRUPTS_ENABLED = INTERRUPTS_BASE + 4, /* which of them reach the processor */
    LINE_TIMER = 1 << 0,
    LINE_UART = 1 << 1,
    LINE_VIRTIO = 1 << 2, /* the first place; the others follow */

    TIMER_INTERVAL = TIMER_BASE + 8, /* microseconds, 0: off */
    TIMER_EXPIRED = TIMER_BASE + 12, /* 1: it has, and the line is high; writing 1 takes that back */
};

static inline u8 uart_read(u16 number)
{
    return read8(UART_BASE + number);
}

static inline void uart_write(u16 number, u8 value)
{
    write8(UART_BASE + number, value);
}

static inline void board_exit(u32 code)
{
    write_le32(EXIT_BASE, code);
}

static inline void board_panicked(void)
{
    write8(PVPANIC_BASE, 1);
}
