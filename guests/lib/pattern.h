/* A pattern made from a page's own address: it tells whether a page still holds what was left in it, or zeros, or what
 * belongs to another page. */
#pragma once

#include "types.h"

void pattern_fill(u64 gpa);
int pattern_is_kept(u64 gpa);
int page_is_zero(u64 gpa);

/* The same 32 bits over and over. */
void value_fill(u64 gpa, u32 value);
int value_is_kept(u64 gpa, u32 value);
