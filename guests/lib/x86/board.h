/* What a program asks of the PC by hand: the serial console's registers, and the ways to end. */
#pragma once

#include "io.h"
#include "ports.h"

static inline u8 uart_read(u16 number)
{
    return in8(PORT_COM1 + number);
}

static inline void uart_write(u16 number, u8 value)
{
    out8(PORT_COM1 + number, value);
}

static inline void board_exit(u32 code)
{
    out32(PORT_EXIT, code);
}

static inline void board_panicked(void)
{
    out8(PORT_PVPANIC, 1);
}
