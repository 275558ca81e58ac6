/* The fixed-width types everything here is written in.  No compiler header is included, so the images cannot depend on
 * where the compiler is installed. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef signed long s64;

#define NULL ((void *)0)
#define PAGE_SIZE 4096ul
#define ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))

/* Before a loop over the words of a page: eight rounds without a jump.  On an emulated processor a jump costs more than
 * a store. */
#define UNROLL _Pragma("clang loop unroll_count(8)")

static inline u64 align_up(u64 value, u64 alignment)
{
    return (value + alignment - 1) & ~(alignment - 1);
}

static inline u64 align_down(u64 value, u64 alignment)
{
    return value & ~(alignment - 1);
}

static inline u64 min_u64(u64 a, u64 b)
{
    return a < b ? a : b;
}

static inline u64 max_u64(u64 a, u64 b)
{
    return a > b ? a : b;
}
