/* The callbacks that Unicorn calls too often for Python, for a PowerPC processor.
 *
 * Compiled once per host architecture by `python -m vmm.cpu.ppc.build_native`; the machine code is kept in
 * native_code.py.  It must not call anything but the two function pointers it is given, and must need no relocation.
 *
 * Simpler than the x86 one: a store into a block's own code is executed once here, so that a stop is possible before
 * every block.
 */
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

enum { EXTERNAL_INTERRUPTS_ENABLED = 0x8000, PROT_EXECUTE = 4 };

/* Shared with Python: native.py beside this declares the same structure. */
struct clock {
    u64 executed;   /* blocks that were executed, and exceptions that were delivered */
    u64 limit;      /* stop before the block that would make `executed` larger */
    u32 irq;        /* an interrupt waits: stop as soon as the guest can take it */
    u32 msr_offset; /* where Unicorn's CPU state keeps the machine state register */
    u64 stopped;    /* set by the stop below, cleared by Python */
    int (*stop)(void *uc);
    int (*translate)(void *uc, u64 ea, int prot, u64 *gpa);
    u8 *code_pages; /* one byte per page of guest-physical memory: 1 = code of this page was translated */
    u64 code_pages_length;
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

/* UC_HOOK_BLOCK: before each block. */
__attribute__((section(".text.block"))) void block_callback(void *uc, u64 pc, u32 size, struct clock *clock)
{
    (void)pc;
    (void)size;
    if (clock->executed >= clock->limit ||
        (clock->irq && (*(u32 *)(cpu_state() + clock->msr_offset) & EXTERNAL_INTERRUPTS_ENABLED))) {
        clock->stopped = 1;
        clock->stop(uc);
        return;
    }
    clock->executed++;
}

/* UC_HOOK_EDGE_GENERATED: after each translation, which lies in one page. */
__attribute__((section(".text.translated"))) void translated_callback(void *uc, const struct translation *now,
                                                                      const struct translation *before,
                                                                      struct clock *clock)
{
    u64 gpa;
    (void)before;
    if (clock->translate(uc, now->pc, PROT_EXECUTE, &gpa) == 0 && (gpa >> 12) < clock->code_pages_length)
        clock->code_pages[gpa >> 12] = 1;
}
