/* Virtual memory: one segment whose pages a guest maps for itself.
 *
 * Everything else is mapped one to one by block address translation.  The hashed page table is only a cache of the
 * tables here: a page that fell out of it is put in again when it is touched.
 */
#pragma once

#include "../types.h"

enum { ARENA_SEGMENT = 0xa };

/* Block address translation, the segment registers and the hash table; translation is on when it returns. */
void paging_start(void);

/* A translation is missing in the hash table; returns 0 if nobody has a page for the address. */
int paging_fault(u32 address);
