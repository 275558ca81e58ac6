/* Exceptions and interrupts: a stub at each vector, and one C function behind all of them. */
#pragma once

#include "../types.h"

enum {
    VECTOR_DATA_STORAGE = 0x300,
    VECTOR_EXTERNAL = 0x500,

    DSISR_NOT_FOUND = 1 << 30, /* no translation for the address in DAR */
};

/* What is on the stack while a handler runs; changing it changes what the interrupted program finds. */
struct exception_frame {
    u32 back_chain, return_of_c;
    u32 r0, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11, r12;
    u32 lr, ctr, xer, cr, srr0, srr1;
};

/* Puts the stubs to their vectors. */
void exceptions_start(void);

/* The function for a line of the interrupt controller (LINE_…); lines nobody handles stay off. */
void interrupts_handle(u32 line, void (*handler)(void));
