/* The callbacks that Unicorn calls too often for Python.
 *
 * Compiled once per host architecture by `python -m vmm.cpu.build_native`; the machine code is kept in native_code.py,
 * so that no compiler is needed to install or run.  It must not call anything but the two function pointers it is
 * given, and must need no relocation.
 */
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

enum { INTERRUPT_FLAG_BYTE = 0x02, INHIBIT_INTERRUPTS = 0x08, LONGEST_INSTRUCTION = 15, PROT_EXECUTE = 4 };

/* STOS or MOVS behind a repeat prefix. */
struct string_instruction {
    u8 is_move, width_shift, address_bytes;
    signed char override; /* the segment that a prefix names, or -1 */
};

/* Shared with Python: vmm/cpu/native.py declares the same structure. */
struct clock {
    u64 executed;       /* blocks that were executed, and exceptions that were delivered */
    u64 limit;          /* stop before the block that would make `executed` larger */
    u64 previous_pc;    /* the last block that was executed */
    u32 previous_size;
    u32 irq;            /* an interrupt waits: stop as soon as the guest can take it */
    u32 eflags_offset;  /* where Unicorn's CPU state keeps them */
    u32 hflags_offset;
    u32 stopped;        /* 1: set by the stop before a block, 2: before another instruction; cleared by Python */
    u32 stopped_size;   /* with 1: how long that block is */
    int (*stop)(void *uc);
    int (*translate)(void *uc, u64 gva, int prot, u64 *gpa);
    u8 *code_pages;     /* one byte per page of guest-physical memory: 1 = code of this page was translated */
    u64 code_pages_length;
    u64 tlb_distance;   /* how far before its CPU state Unicorn keeps its tables of translations; 0: not to be used */
    u8 *state;          /* Unicorn's CPU state, as the last block saw it */
    u64 plain_pc;       /* the last block that repeats itself and holds no string instruction; only saves time */
    u64 string_time;    /* `executed` as the last block left it, if it was a string instruction */
    struct string_instruction string;
    u64 iterations;     /* of string instructions that were done here so far */
    u64 tsc_per_block;  /* the time-stamp counter is `executed` times this plus `tsc_offset`; 0: only Python knows it */
    u64 tsc_offset;
    int (*rdtsc)(void *uc, void *data); /* the callbacks in Python, for that case */
    int (*rdtscp)(void *uc, void *data);
    u64 stopped_pc;     /* with `stopped` 2: before which instruction */
    u64 wants_stop;     /* a debugger watches, and has seen something: stop before the next instruction */
};

struct translation {
    u64 pc;
    u16 instructions, size;
};

/* Unicorn keeps the address of its CPU state in this register while translated code runs. */
static inline u8 *cpu_state(void)
{
    u8 *state;
#if defined(__x86_64__)
    __asm__ volatile("mov %%rbp, %0" : "=r"(state));
#elif defined(__aarch64__)
    __asm__ volatile("mov %0, x19" : "=r"(state));
#else
#error "no native callbacks for this architecture"
#endif
    return state;
}

static inline int can_take_interrupt(const struct clock *clock)
{
    const u8 *state = cpu_state();
    return (state[clock->eflags_offset + 1] & INTERRUPT_FLAG_BYTE) &&
           !(state[clock->hflags_offset] & INHIBIT_INTERRUPTS);
}

/* A store that changes the block it is in makes Unicorn leave the block and execute the store once more, in a block of
 * its own.  Stopping before that block would forget that it is special, and the block count would depend on the stop.
 * Such a block begins inside the one before it and is one instruction long; few others do, and none for long. */
static inline int must_not_stop(const struct clock *clock, u64 pc, u32 size)
{
    u64 distance = pc - clock->previous_pc;
    return size <= LONGEST_INSTRUCTION && distance < clock->previous_size &&
           (distance != 0 || size != clock->previous_size);
}

#include "strings.h"

static void repeat_block(void *uc, u64 pc, u32 size, struct clock *clock, u8 *state);

/* UC_HOOK_BLOCK: before each block. */
__attribute__((section(".text.block"))) void block_callback(void *uc, u64 pc, u32 size, struct clock *clock)
{
    int stop = clock->executed >= clock->limit || (clock->irq && can_take_interrupt(clock));
    if (__builtin_expect(stop && !must_not_stop(clock, pc, size), 0)) {
        clock->stopped = 1;
        clock->stopped_size = size;
        clock->stop(uc);
        return;
    }
    clock->state = cpu_state();
    if (pc == clock->previous_pc && size <= LONGEST_INSTRUCTION && pc != clock->plain_pc) {
        repeat_block(uc, pc, size, clock, clock->state);
        return;
    }
    clock->executed++;
    clock->previous_pc = pc;
    clock->previous_size = size;
}

/* The same short block once more: perhaps a string instruction, whose next iterations can be done here. */
__attribute__((noinline, section(".text.block"))) static void repeat_block(void *uc, u64 pc, u32 size,
                                                                           struct clock *clock, u8 *state)
{
    if (clock->tlb_distance && size == clock->previous_size && knows_string(clock, uc, state, pc, size)) {
        u64 iterations = run_string(clock, state, clock->limit - clock->executed);
        clock->iterations += iterations;
        clock->executed += iterations;
        if (clock->executed == clock->limit) {
            clock->stopped = 1;
            clock->stop(uc);
            return;
        }
        clock->string_time = clock->executed + 1;
    }
    clock->executed++;
    clock->previous_size = size;
}

/* UC_HOOK_CODE: before each instruction, and only while a debugger watches memory. */
__attribute__((section(".text.instruction"))) void instruction_callback(void *uc, u64 pc, u32 size,
                                                                        struct clock *clock)
{
    (void)size;
    if (clock->wants_stop) {
        clock->stopped = 2;
        clock->stopped_pc = pc;
        clock->stop(uc);
    }
}

static inline void note_page(void *uc, u64 gva, struct clock *clock)
{
    u64 gpa;
    if (clock->translate(uc, gva, PROT_EXECUTE, &gpa) == 0 && (gpa >> 12) < clock->code_pages_length)
        clock->code_pages[gpa >> 12] = 1;
}

/* UC_HOOK_EDGE_GENERATED: after each translation, which lies in one page or in two that follow each other. */
__attribute__((section(".text.translated"))) void translated_callback(void *uc, const struct translation *now,
                                                                      const struct translation *before,
                                                                      struct clock *clock)
{
    u64 last = now->pc + (now->size ? now->size - 1 : 0);
    (void)before;
    note_page(uc, now->pc, clock);
    if ((last ^ now->pc) >> 12)
        note_page(uc, last, clock);
}

/* Where the counter stands: EDX and EAX, each with a cleared upper half. */
static inline void put_tsc(const struct clock *clock)
{
    u64 *registers = (u64 *)clock->state, tsc = clock->executed * clock->tsc_per_block + clock->tsc_offset;
    registers[RAX] = tsc & 0xffffffff;
    registers[RDX] = tsc >> 32;
}

/* RDTSC, after Unicorn has looked at CR4.TSD; 1 = done. */
__attribute__((section(".text.rdtsc"))) int rdtsc_callback(void *uc, struct clock *clock)
{
    if (!clock->tsc_per_block)
        return clock->rdtsc(uc, clock);
    put_tsc(clock);
    return 1;
}

/* RDTSCP: the same, and the processor's number in ECX. */
__attribute__((section(".text.rdtscp"))) int rdtscp_callback(void *uc, struct clock *clock)
{
    if (!clock->tsc_per_block)
        return clock->rdtscp(uc, clock);
    put_tsc(clock);
    ((u64 *)clock->state)[RCX] = read_u32(clock->state, TSC_AUX_OFFSET);
    return 1;
}
