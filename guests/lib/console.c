#include "console.h"
#include "board.h"

enum {
    UART_DATA = 0,
    UART_INTERRUPTS = 1,
    UART_FIFO = 2,
    UART_LINE = 3,
    UART_MODEM = 4,
    UART_LINE_STATUS = 5,
    UART_DIVISOR_LOW = 0,  /* while LINE_DIVISOR is set */
    UART_DIVISOR_HIGH = 1,

    LINE_8N1 = 0x03,
    LINE_DIVISOR = 0x80,
    FIFO_ON_AND_CLEAR = 0x07,
    MODEM_READY = 0x03,
    STATUS_TRANSMITTER_EMPTY = 0x20,
};

void console_start(void)
{
    uart_write(UART_INTERRUPTS, 0);
    uart_write(UART_LINE, LINE_DIVISOR);
    uart_write(UART_DIVISOR_LOW, 1);
    uart_write(UART_DIVISOR_HIGH, 0);
    uart_write(UART_LINE, LINE_8N1);
    uart_write(UART_FIFO, FIFO_ON_AND_CLEAR);
    uart_write(UART_MODEM, MODEM_READY);
}

void put_char(char c)
{
    /* A transmitter that never gets ready (no such chip) must not hang the machine, hence the bound. */
    for (int tries = 0; tries < 100000 && !(uart_read(UART_LINE_STATUS) & STATUS_TRANSMITTER_EMPTY); tries++)
        ;
    uart_write(UART_DATA, (u8)c);
}

static void put_padding(int count, char pad)
{
    while (count-- > 0)
        put_char(pad);
}

static void put_string(const char *s, int width)
{
    int length = 0;
    for (; s[length]; length++)
        put_char(s[length]);
    put_padding(width - length, ' ');
}

static void put_number(u64 value, unsigned base, int negative, int width, char pad)
{
    char digits[20];
    int count = 0;
    do {
        unsigned digit = (unsigned)(value % base);
        digits[count++] = (char)(digit < 10 ? '0' + digit : 'a' + digit - 10);
        value /= base;
    } while (value);
    if (pad == ' ')
        put_padding(width - count - negative, pad);
    if (negative)
        put_char('-');
    if (pad == '0')
        put_padding(width - count - negative, pad);
    while (count)
        put_char(digits[--count]);
}

void print(const char *format, ...)
{
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    print_list(format, arguments);
    __builtin_va_end(arguments);
}

void print_list(const char *format, __builtin_va_list arguments)
{
    for (; *format; format++) {
        if (*format != '%') {
            if (*format == '\n')
                put_char('\r');
            put_char(*format);
            continue;
        }
        format++;
        char pad = ' ';
        if (*format == '0') {
            pad = '0';
            format++;
        }
        int width = 0;
        for (; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + (*format - '0');
        int is_long = *format == 'l';
        format += is_long;
        if (*format == 's') {
            put_string(__builtin_va_arg(arguments, const char *), width);
        } else if (*format == 'c') {
            put_char((char)__builtin_va_arg(arguments, int));
        } else if (*format == 'd') {
            s64 value = is_long ? __builtin_va_arg(arguments, s64) : __builtin_va_arg(arguments, int);
            put_number(value < 0 ? 0 - (u64)value : (u64)value, 10, value < 0, width, pad);
        } else if (*format == 'u' || *format == 'x') {
            u64 value = is_long ? __builtin_va_arg(arguments, u64) : __builtin_va_arg(arguments, u32);
            put_number(value, *format == 'x' ? 16 : 10, 0, width, pad);
        } else {
            put_char(*format);
        }
    }
}
