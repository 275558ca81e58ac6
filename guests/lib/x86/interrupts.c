#include "interrupts.h"
#include "../guest.h"
#include "io.h"

enum { VECTORS = 256, STUB_BYTES = 16, GATE_INTERRUPT_PRESENT = 0x8e00, GATE_RING_SHIFT = 13, FAULT_STACK = 4096 };

struct gate {
    u16 offset_low;
    u16 selector;
    u16 flags; /* bits 2:0 interrupt stack, 11:8 type, 14:13 ring, 15 present */
    u16 offset_middle;
    u32 offset_high;
    u32 zero;
};

struct table_pointer {
    u16 limit;
    u64 base;
} __attribute__((packed));

extern const u8 interrupt_stubs[]; /* 256 pieces of 16 bytes, interrupt_entry.S */

struct tss tss;
static u64 gdt[7] = {
    0,
    0x00af9b000000ffff, /* 08h: kernel code, 64 bits */
    0x00cf93000000ffff, /* 10h: kernel data */
    0x00cff3000000ffff, /* 18h: user data */
    0x00affb000000ffff, /* 20h: user code, 64 bits */
    0, 0,               /* 28h: the TSS, made in interrupts_start() */
};
static struct gate idt[VECTORS];
static interrupt_handler handlers[VECTORS];
static u8 fault_stack[FAULT_STACK] __attribute__((aligned(16)));

static const char *const exception_names[] = {
    "divide error", "debug", "NMI", "breakpoint", "overflow", "bound range", "invalid opcode", "no FPU", "double fault",
    "exception 9", "invalid TSS", "segment not present", "stack fault", "general protection", "page fault",
};

static void load_gdt(void)
{
    u64 base = (u64)&tss, limit = sizeof(tss) - 1;
    tss.ist[0] = (u64)(fault_stack + FAULT_STACK);
    tss.io_map_base = sizeof(tss);
    gdt[5] = limit | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
    gdt[6] = base >> 32;

    struct table_pointer pointer = {sizeof(gdt) - 1, (u64)gdt};
    u64 scratch;
    __asm__ volatile("lgdt %1\n\t"
                     "mov %2, %%ss\n\t"
                     "mov %2, %%ds\n\t"
                     "mov %2, %%es\n\t"
                     "pushq %3\n\t" /* a far return is how 64-bit code loads CS */
                     "leaq 1f(%%rip), %0\n\t"
                     "pushq %0\n\t"
                     "lretq\n"
                     "1:\n\t"
                     "ltr %w4"
                     : "=&r"(scratch)
                     : "m"(pointer), "r"(KERNEL_DATA), "i"(KERNEL_CODE), "r"(TSS_SELECTOR)
                     : "memory");
}

void interrupts_start(void)
{
    load_gdt();
    for (u32 vector = 0; vector < VECTORS; vector++)
        interrupts_gate((u8)vector, 0, vector == VECTOR_DOUBLE_FAULT);
    struct table_pointer pointer = {sizeof(idt) - 1, (u64)idt};
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

void interrupts_gate(u8 vector, u8 ring, u8 stack)
{
    u64 stub = (u64)interrupt_stubs + (u64)vector * STUB_BYTES;
    idt[vector] = (struct gate){
        .offset_low = (u16)stub,
        .selector = KERNEL_CODE,
        .flags = (u16)(GATE_INTERRUPT_PRESENT | ring << GATE_RING_SHIFT | stack),
        .offset_middle = (u16)(stub >> 16),
        .offset_high = (u32)(stub >> 32),
    };
}

void interrupts_handle(u8 vector, interrupt_handler handler)
{
    handlers[vector] = handler;
}

/* Called by interrupt_entry.S. */
void interrupt_dispatch(struct interrupt_frame *frame)
{
    interrupt_handler handler = handlers[frame->vector];
    if (handler) {
        handler(frame);
        return;
    }
    const char *name = frame->vector < ARRAY_LENGTH(exception_names) ? exception_names[frame->vector] : "unexpected";
    panic("%s (vector %lu, error code %lxh) at %lxh, stack %lxh, CR2 %lxh", name, frame->vector, frame->error_code,
          frame->rip, frame->rsp, read_cr2());
}
