/* The serial console: a 16550 at 115200 baud, polled. */
#pragma once

#include "types.h"

void console_start(void);
void put_char(char c);

/* printf's %c %s %d %u %x %%, each with an optional width, a leading 0 to pad with zeros, and l for 64-bit numbers. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void print_list(const char *format, __builtin_va_list arguments) __attribute__((format(printf, 1, 0)));
