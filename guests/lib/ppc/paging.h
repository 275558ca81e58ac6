/* Virtual memory: RAM one to one, and one segment whose pages a guest maps for itself.
 *
 * Instructions come through a block of 256 MiB.  Data goes through the hashed page table, in segments that are not to be
 * executed: stores to executable pages are many times slower on the emulated processor.  For a guest's own segment the
 * hash table is only a cache of the tables here: a page that fell out of it is put in again when it is touched.
 */
#pragma once

#include "../boot_info.h"
#include "../types.h"

enum { ARENA_SEGMENT = 0xa };

/* Takes the hash table's place out of the memory map and fills it; translation is on when it returns. */
void paging_start(const struct boot_info *boot_info);

/* A translation is missing in the hash table; returns 0 if nobody has a page for the address. */
int paging_fault(u32 address);
