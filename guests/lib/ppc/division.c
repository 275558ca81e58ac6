/* What the compiler calls to divide numbers of 64 bits, which the processor cannot. */
#include "../types.h"

static u64 divide(u64 value, u64 by, u64 *rest)
{
    u64 quotient = 0, left = 0;
    for (int bit = 63; bit >= 0; bit--) {
        left = left << 1 | (value >> bit & 1);
        if (left >= by) {
            left -= by;
            quotient |= 1ull << bit;
        }
    }
    *rest = left;
    return quotient;
}

u64 __udivdi3(u64 value, u64 by);
u64 __umoddi3(u64 value, u64 by);

u64 __udivdi3(u64 value, u64 by)
{
    u64 rest;
    if (!(value >> 32) && !(by >> 32))
        return (u32)value / (u32)by;
    return divide(value, by, &rest);
}

u64 __umoddi3(u64 value, u64 by)
{
    u64 rest;
    if (!(value >> 32) && !(by >> 32))
        return (u32)value % (u32)by;
    divide(value, by, &rest);
    return rest;
}
