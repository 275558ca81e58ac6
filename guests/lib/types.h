/* The fixed-width types everything here is written in.  No compiler header is included, so the images cannot depend on
 * where the compiler is installed. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef __UINT64_TYPE__ u64;
typedef __INT64_TYPE__ s64;
typedef __SIZE_TYPE__ usize;

#define NULL ((void *)0)
#define PAGE_SIZE 4096ull
#define ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))

/* Before a loop over the words of a page: eight rounds without a jump.  On an emulated processor a jump costs more than
 * a store. */
#define UNROLL _Pragma("clang loop unroll_count(8)")

/* RAM is mapped one to one on every board: a guest-physical address is an address, also where that has 32 bits. */
static inline void *pointer_to(u64 gpa)
{
    return (void *)(__UINTPTR_TYPE__)gpa;
}

static inline u64 address_of(const volatile void *pointer)
{
    return (__UINTPTR_TYPE__)pointer;
}

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
