#include "pattern.h"

enum { WORDS = PAGE_SIZE / sizeof(u64) };

static u64 pattern(u64 gpa, u64 word)
{
    return ~(gpa | word); /* another one in every word of RAM, and never 0 */
}

void pattern_fill(u64 gpa)
{
    u64 *words = (u64 *)gpa;
    UNROLL
    for (u64 i = 0; i < WORDS; i++)
        words[i] = pattern(gpa, i);
}

int pattern_is_kept(u64 gpa)
{
    const u64 *words = (const u64 *)gpa;
    u64 difference = 0;
    UNROLL
    for (u64 i = 0; i < WORDS; i++)
        difference |= words[i] ^ pattern(gpa, i);
    return difference == 0;
}

void value_fill(u64 gpa, u32 value)
{
    u64 *words = (u64 *)gpa;
    UNROLL
    for (u64 i = 0; i < WORDS; i++)
        words[i] = (u64)value << 32 | value;
}

int value_is_kept(u64 gpa, u32 value)
{
    const u64 *words = (const u64 *)gpa;
    u64 difference = 0;
    UNROLL
    for (u64 i = 0; i < WORDS; i++)
        difference |= words[i] ^ ((u64)value << 32 | value);
    return difference == 0;
}

int page_is_zero(u64 gpa)
{
    return value_is_kept(gpa, 0);
}
