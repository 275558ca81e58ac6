/* A device's numbers: little-endian, but those of a legacy device are in its driver's own order (virtio 1.3 §2.7.3).
 *
 * `swapped` tells that they are not in ours.  Where we are little-endian ourselves that cannot be.
 */
#pragma once

#include "types.h"

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define IN_ORDER(swapped, bits, value) ((swapped) ? __builtin_bswap##bits(value) : (value))
#else
#define IN_ORDER(swapped, bits, value) ((void)(swapped), (value))
#endif

static inline u16 order16(int swapped, u16 value)
{
    return IN_ORDER(swapped, 16, value);
}

static inline u32 order32(int swapped, u32 value)
{
    return IN_ORDER(swapped, 32, value);
}

static inline u64 order64(int swapped, u64 value)
{
    return IN_ORDER(swapped, 64, value);
}
