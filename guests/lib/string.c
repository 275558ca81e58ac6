#include "string.h"

void *memset(void *to, int byte, usize length)
{
    u8 *bytes = to;
    u64 word = (u8)byte * 0x0101010101010101ull;
    UNROLL
    for (; length >= 8; length -= 8, bytes += 8)
        *(u64 *)bytes = word;
    while (length--)
        *bytes++ = (u8)byte;
    return to;
}

void *memcpy(void *to, const void *from, usize length)
{
    return memmove(to, from, length);
}

void *memmove(void *to, const void *from, usize length)
{
    u8 *target = to;
    const u8 *source = from;
    if (target <= source) {
        for (usize i = 0; i < length; i++)
            target[i] = source[i];
    } else {
        for (usize i = length; i > 0; i--)
            target[i - 1] = source[i - 1];
    }
    return to;
}

int memcmp(const void *a, const void *b, usize length)
{
    const u8 *left = a, *right = b;
    for (usize i = 0; i < length; i++)
        if (left[i] != right[i])
            return left[i] - right[i];
    return 0;
}

u64 string_length(const char *s)
{
    u64 length = 0;
    while (s[length])
        length++;
    return length;
}

int string_equal(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

u64 parameter_u64(const char *cmdline, const char *key, u64 otherwise)
{
    usize length = (usize)string_length(key);
    for (const char *word = cmdline; *word;) {
        if (memcmp(word, key, length) == 0 && word[length] == '=') {
            u64 value = 0;
            for (word += length + 1; *word >= '0' && *word <= '9'; word++)
                value = value * 10 + (u64)(*word - '0');
            return value;
        }
        while (*word && *word != ' ')
            word++;
        while (*word == ' ')
            word++;
    }
    return otherwise;
}
