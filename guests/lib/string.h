/* Memory and strings.  The compiler itself may call memset, memcpy and memmove. */
#pragma once

#include "types.h"

void *memset(void *to, int byte, usize length);
void *memcpy(void *to, const void *from, usize length);
void *memmove(void *to, const void *from, usize length);
int memcmp(const void *a, const void *b, usize length);
u64 string_length(const char *s);
int string_equal(const char *a, const char *b);

/* The number after "key=" in a parameter such as "ticks=80 seed=3", or `otherwise` if the key is not there. */
u64 parameter_u64(const char *cmdline, const char *key, u64 otherwise);
