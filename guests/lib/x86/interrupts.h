/* Exceptions and interrupts: descriptor tables of our own, and one C function for each vector.
 *
 * Segment selectors are in the order that SYSCALL and SYSRET want.  Exceptions nobody handles are a panic with the
 * place; so are interrupts nobody handles.
 */
#pragma once

#include "../types.h"

enum {
    KERNEL_CODE = 0x08,
    KERNEL_DATA = 0x10,
    USER_DATA = 0x18 | 3,
    USER_CODE = 0x20 | 3,
    TSS_SELECTOR = 0x28,

    VECTOR_DOUBLE_FAULT = 8,
    VECTOR_PAGE_FAULT = 14,
    VECTOR_TIMER = 0x40,
    VECTOR_DEVICE = 0x50, /* a device's MSI-X entry n comes as VECTOR_DEVICE + n */
    VECTOR_LINE = 0x60,   /* input n of the 8259 pair comes as VECTOR_LINE + n */
    VECTOR_SPURIOUS = 0xff,
};

/* What is on the stack when a handler runs; changing it changes what the interrupted program finds. */
struct interrupt_frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector;
    u64 error_code; /* 0 for vectors that have none */
    u64 rip, cs, rflags, rsp, ss;
};

struct tss {
    u32 reserved0;
    u64 rsp[3]; /* the stack for an interrupt that comes from an outer ring */
    u64 reserved1;
    u64 ist[7];
    u64 reserved2;
    u16 reserved3;
    u16 io_map_base;
} __attribute__((packed));

extern struct tss tss;

typedef void (*interrupt_handler)(struct interrupt_frame *frame);

/* Loads the tables.  Double faults get a stack of their own (IST 1), so that even a broken stack can be reported. */
void interrupts_start(void);

/* The function for a vector; NULL takes it back. */
void interrupts_handle(u8 vector, interrupt_handler handler);

/* The outermost ring that may call the vector with INT, and the interrupt stack (1 to 7, 0: none) it runs on. */
void interrupts_gate(u8 vector, u8 ring, u8 stack);
