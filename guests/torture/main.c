/* torture: provokes every kind of exception and interrupt from rings 0 and 3, while a timer ticks, and compares what
 * the processor does with what its manual says.
 *
 * Each group prints one line.  The numbers it prints depend on the guest alone, so two runs on the virtual clock print
 * the same; the exit code is 0 if every comparison held.
 */
#include "../lib/x86/apic.h"
#include "../lib/console.h"
#include "../lib/guest.h"
#include "../lib/x86/interrupts.h"
#include "../lib/x86/io.h"
#include "../lib/pages.h"
#include "../lib/x86/paging.h"
#include "../lib/string.h"
#include "provoke.h"

enum {
    DIVIDE_ERROR = 0, SINGLE_STEP = 1, BREAKPOINT = 3, INVALID_OPCODE = 6, NOT_PRESENT = 11, GENERAL_PROTECTION = 13,
    ABSENT_VECTOR = 0x70, KERNEL_VECTOR = 0x71, USER_VECTOR = 0x72,
    SELECTOR_OF_IDT = 2,
    GATE_BYTES = 16, GATE_PRESENT_BYTE = 5,
    TICK_MICROSECONDS = 20,
    STACK_BYTES = 4096,
    COPY_BYTES = 8192,
    TICKS_TO_WAIT_FOR = 10,
    SPINS = 100,
    MSR_EFER = 0xc0000080, MSR_STAR = 0xc0000081, MSR_LSTAR = 0xc0000082, MSR_FMASK = 0xc0000084,
    EFER_SYSCALL = 1,
    FLAGS_CLEARED_BY_SYSCALL = 0x700, /* IF, DF, TF */
    FLAG_RESUME = 0x10000,
};

#define ABSENT_PAGE (PAGING_FREE_BASE + 0x10000)
#define DEMAND_PAGES (PAGING_FREE_BASE + 0x100000)
#define USER_CODE_PAGE (PAGING_FREE_BASE + 0x200000)
#define USER_STACK_PAGE (PAGING_FREE_BASE + 0x201000)
#define CHANGING_PAGE (PAGING_FREE_BASE + 0x300000)

/* What the last exception looked like. */
static struct {
    u64 count, vector, error_code, rip, cs, rflags, cr2, frame;
} seen;

static u64 checks, failures, exceptions;
static volatile u64 timer_ticks;
static u64 timer_rip, timer_ticks_in_ring3;
static u64 demand_faults;
static u8 kernel_stack[STACK_BYTES] __attribute__((aligned(16)));
static u8 alternate_stack[STACK_BYTES] __attribute__((aligned(16)));
static u8 source[COPY_BYTES], target[COPY_BYTES];

static void check(int holds, const char *what)
{
    checks++;
    if (holds)
        return;
    failures++;
    print("torture: WRONG: %s; vector %lu, error code %lxh, rip %lxh, cs %lxh, cr2 %lxh\n", what, seen.vector,
          seen.error_code, seen.rip, seen.cs, seen.cr2);
}

static u64 read_tsc(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static void write_msr(u32 number, u64 value)
{
    __asm__ volatile("wrmsr" : : "c"(number), "a"((u32)value), "d"((u32)(value >> 32)));
}

static u64 read_msr(u32 number)
{
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
    return (u64)high << 32 | low;
}

/* -- handlers ---------------------------------------------------------------------------------------------------- */

static void remember(const struct interrupt_frame *frame)
{
    exceptions++;
    seen.count++;
    seen.vector = frame->vector;
    seen.error_code = frame->error_code;
    seen.rip = frame->rip;
    seen.cs = frame->cs;
    seen.rflags = frame->rflags;
    seen.cr2 = read_cr2();
    seen.frame = (u64)frame;
}

/* Ring 0 goes on behind the instruction; a program in ring 3 ends. */
static void on_exception(struct interrupt_frame *frame)
{
    remember(frame);
    if (frame->cs == USER_CODE) {
        frame->rip = (u64)ring3_leave;
        frame->cs = KERNEL_CODE;
        frame->ss = KERNEL_DATA;
        frame->rflags = 2;
        return;
    }
    frame->rip = resume_place;
}

static void on_double_fault(struct interrupt_frame *frame)
{
    remember(frame);
    frame->rip = resume_place;
    frame->rsp = resume_stack;
}

static void on_single_step(struct interrupt_frame *frame)
{
    remember(frame);
}

static void on_user_interrupt(struct interrupt_frame *frame)
{
    frame->rbx++;
}

/* Memory that appears when it is touched; anything else is an expected fault. */
static void on_page_fault(struct interrupt_frame *frame)
{
    u64 address = read_cr2();
    if (address < DEMAND_PAGES || address >= DEMAND_PAGES + COPY_BYTES) {
        on_exception(frame);
        return;
    }
    demand_faults++;
    u64 gpa = page_allocate();
    memset((void *)gpa, 0, PAGE_SIZE);
    page_map(align_down(address, PAGE_SIZE), gpa, PAGING_WRITABLE);
}

static void on_timer(struct interrupt_frame *frame)
{
    timer_ticks++;
    timer_rip = frame->rip;
    if (frame->cs == USER_CODE)
        timer_ticks_in_ring3++;
    apic_end_of_interrupt();
}

/* -- groups ------------------------------------------------------------------------------------------------------- */

/* One exception of ring 0: once, with its vector and error code, at its place, and RF set as after every fault. */
static void expect(const char *name, u64 vector, u64 error_code)
{
    check(seen.count == 1, name);
    check(seen.vector == vector && seen.error_code == error_code, name);
    check(seen.rip == fault_place && seen.cs == KERNEL_CODE, name);
    seen.count = 0;
}

static void kernel_exceptions(void)
{
    provoke_divide_error();
    expect("divide error", DIVIDE_ERROR, 0);
    check(seen.rflags & FLAG_RESUME, "RF after a fault");
    provoke_invalid_opcode();
    expect("invalid opcode", INVALID_OPCODE, 0);
    provoke_breakpoint();
    expect("breakpoint", BREAKPOINT, 0);
    check(!(seen.rflags & FLAG_RESUME), "RF after a trap");
    provoke_bad_selector(0, 0x1238);
    expect("bad selector", GENERAL_PROTECTION, 0x1238);
    provoke_invalid_interrupt();
    expect("absent gate", NOT_PRESENT, ABSENT_VECTOR * 8 | SELECTOR_OF_IDT);
    print("torture: exceptions in ring 0: %lu\n", exceptions);
}

static void kernel_page_faults(void)
{
    u64 before = exceptions;
    provoke_read(ABSENT_PAGE);
    expect("read of an absent page", VECTOR_PAGE_FAULT, 0);
    check(seen.cr2 == ABSENT_PAGE, "CR2 of a read");
    provoke_write(ABSENT_PAGE + 7);
    expect("write to an absent page", VECTOR_PAGE_FAULT, FAULT_WRITE);
    check(seen.cr2 == ABSENT_PAGE + 7, "CR2 of a write");
    provoke_write((u64)kernel_page_faults);
    expect("write to the guest's own code", VECTOR_PAGE_FAULT, FAULT_WRITE | FAULT_PRESENT);
    provoke_fetch((u64)source);
    fault_place = (u64)source;
    expect("execution of data", VECTOR_PAGE_FAULT, FAULT_FETCH | FAULT_PRESENT);
    print("torture: page faults in ring 0: %lu\n", exceptions - before);
}

static void stacks(void)
{
    interrupts_gate(INVALID_OPCODE, 0, 2);
    provoke_invalid_opcode();
    interrupts_gate(INVALID_OPCODE, 0, 0);
    expect("exception on a stack of its own", INVALID_OPCODE, 0);
    check(seen.frame >= (u64)alternate_stack && seen.frame < (u64)alternate_stack + STACK_BYTES, "interrupt stack 2");
    provoke_double_fault(ABSENT_PAGE + 64);
    expect("double fault", VECTOR_DOUBLE_FAULT, 0);
    print("torture: interrupt stacks and a double fault survived\n");
}

static void steps(void)
{
    u64 before = exceptions;
    single_steps();
    seen.count = 0;
    check(exceptions - before == 5, "single steps");
    print("torture: single steps: %lu\n", exceptions - before);
}

/* Runs a program of ring3.S in ring 3 and returns what it returned. */
static u64 run_in_ring3(const u8 *program)
{
    seen.count = 0;
    return ring3_run(USER_CODE_PAGE + (u64)(program - ring3_programs), USER_STACK_PAGE + PAGE_SIZE);
}

static void expect_in_ring3(const u8 *program, u64 vector, u64 error_code, const char *name)
{
    run_in_ring3(program);
    interrupts_on();
    check(seen.count == 1 && seen.vector == vector && seen.error_code == error_code, name);
    check(seen.cs == USER_CODE, name);
    check(align_down(seen.rip, PAGE_SIZE) == USER_CODE_PAGE, name);
    u64 top = (u64)kernel_stack + STACK_BYTES;
    check(seen.frame == top - sizeof(struct interrupt_frame), name);
}

static void user_exceptions(void)
{
    u64 before = exceptions;
    expect_in_ring3(ring3_divide_error, DIVIDE_ERROR, 0, "divide error in ring 3");
    expect_in_ring3(ring3_invalid_opcode, INVALID_OPCODE, 0, "invalid opcode in ring 3");
    expect_in_ring3(ring3_privileged, GENERAL_PROTECTION, 0, "HLT in ring 3");
    expect_in_ring3(ring3_port, GENERAL_PROTECTION, 0, "OUT in ring 3");
    expect_in_ring3(ring3_read_kernel, VECTOR_PAGE_FAULT, FAULT_USER | FAULT_PRESENT, "ring 3 reads the kernel");
    check(seen.cr2 == 0x10000, "CR2 of ring 3");
    expect_in_ring3(ring3_write_read_only, VECTOR_PAGE_FAULT, FAULT_USER | FAULT_PRESENT | FAULT_WRITE,
                    "ring 3 writes its code");
    expect_in_ring3(ring3_forbidden_interrupt, GENERAL_PROTECTION, KERNEL_VECTOR * 8 | SELECTOR_OF_IDT,
                    "INT n of a gate for ring 0");
    print("torture: exceptions in ring 3: %lu\n", exceptions - before);
}

static void user_programs(void)
{
    u64 interrupts = run_in_ring3(ring3_interrupts);
    interrupts_on();
    check(interrupts == 10, "INT n of a gate for ring 3");
    u64 calls = run_in_ring3(ring3_system_calls);
    interrupts_on();
    check(calls == 100 && system_calls == 100, "system calls");
    u64 sum = run_in_ring3(ring3_compute);
    interrupts_on();
    check(sum == 4000 * 4001 / 2, "a sum computed while interrupts come");
    check(timer_ticks_in_ring3 > 0, "the timer interrupts ring 3");
    print("torture: from ring 3: %lu interrupts, %lu system calls, and back each time\n", interrupts, calls);
}

/* Counts to `rounds`, slowly. */
static u64 spin(u64 rounds)
{
    volatile u64 count = 0;
    while (count < rounds)
        count = count + 1;
    return count;
}

static void timer(void)
{
    u64 sum = 0, rounds = 0, before = timer_ticks, last = read_tsc();
    while (timer_ticks < before + TICKS_TO_WAIT_FOR) {
        u64 now = read_tsc();
        check(now >= last, "time goes forward");
        last = now;
        sum += spin(SPINS);
        rounds++;
    }
    check(sum == rounds * SPINS, "a sum computed while interrupts come");
    interrupts_off();
    before = timer_ticks;
    u64 start = read_tsc();
    while (read_tsc() - start < 3 * TICK_MICROSECONDS * 1000)
        spin(SPINS);
    check(timer_ticks == before, "no interrupt with IF clear");
    sti_window();
    check(timer_ticks == before + 1, "one interrupt waited");
    check(timer_rip == (u64)after_shadow, "the shadow of STI");
    before = timer_ticks;
    for (u32 i = 0; i < 5; i++)
        sleep_until_interrupt();
    check(timer_ticks == before + 5, "HLT wakes for each interrupt");
    interrupts_on();
    print("torture: the timer interrupts, waits for IF, respects the shadow of STI and ends HLT\n");
}

static void copies(void)
{
    u64 before = timer_ticks;
    for (u32 i = 0; i < COPY_BYTES; i++)
        source[i] = (u8)(i * 7 + (i >> 8));
    copy_bytes(target, source, COPY_BYTES);
    check(timer_ticks > before, "the timer interrupts a copy");
    check(memcmp(source, target, COPY_BYTES) == 0, "an interrupted copy is complete");
    copy_bytes((void *)DEMAND_PAGES, source, COPY_BYTES);
    check(memcmp(source, (void *)DEMAND_PAGES, COPY_BYTES) == 0, "a copy into absent pages is complete");
    check(demand_faults == COPY_BYTES / PAGE_SIZE, "one fault for each absent page");
    print("torture: %lu page faults on demand, copies complete\n", demand_faults);
}

static void changing_code(void)
{
    u64 gpa = page_allocate();
    memcpy((void *)gpa, changing, (u64)(changing_end - changing));
    page_map(CHANGING_PAGE, gpa, PAGING_WRITABLE | PAGING_EXECUTABLE);
    u32 (*function)(u32) = (u32(*)(u32))CHANGING_PAGE;
    u32 right = 0;
    for (u32 i = 1; i <= 50; i++)
        right += function(i * 3) == i * 3;
    check(right == 50, "code that changes itself");
    print("torture: code that changes itself: %u of 50\n", right);
}

/* -- setting up ------------------------------------------------------------------------------------------------------ */

/* Takes the present bit from a gate. */
static void remove_gate(u8 vector)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) table;
    __asm__ volatile("sidt %0" : "=m"(table));
    ((u8 *)table.base)[vector * GATE_BYTES + GATE_PRESENT_BYTE] &= 0x7f;
}

static void start_handlers(void)
{
    static const u8 vectors[] = {DIVIDE_ERROR, BREAKPOINT, INVALID_OPCODE, NOT_PRESENT, GENERAL_PROTECTION};
    interrupts_start();
    tss.rsp[0] = (u64)kernel_stack + STACK_BYTES;
    tss.ist[1] = (u64)alternate_stack + STACK_BYTES;
    for (u32 i = 0; i < ARRAY_LENGTH(vectors); i++)
        interrupts_handle(vectors[i], on_exception);
    interrupts_handle(VECTOR_PAGE_FAULT, on_page_fault);
    interrupts_handle(VECTOR_DOUBLE_FAULT, on_double_fault);
    interrupts_handle(SINGLE_STEP, on_single_step);
    interrupts_handle(USER_VECTOR, on_user_interrupt);
    interrupts_gate(USER_VECTOR, 3, 0);
    remove_gate(ABSENT_VECTOR);
}

static void start_ring3(void)
{
    u64 code = page_allocate();
    memcpy((void *)code, ring3_programs, (u64)(ring3_programs_end - ring3_programs));
    page_map(USER_CODE_PAGE, code, PAGING_USER | PAGING_EXECUTABLE);
    page_map(USER_STACK_PAGE, page_allocate(), PAGING_USER | PAGING_WRITABLE);
    write_msr(MSR_STAR, (u64)KERNEL_CODE << 32 | (u64)(KERNEL_DATA | 3) << 48);
    write_msr(MSR_LSTAR, (u64)syscall_entry);
    write_msr(MSR_FMASK, FLAGS_CLEARED_BY_SYSCALL);
    write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SYSCALL);
}

int guest_main(const struct boot_info *boot_info)
{
    pages_start(boot_info);
    start_handlers();
    start_ring3();
    apic_start();
    interrupts_handle(VECTOR_TIMER, on_timer);
    apic_tick_every(TICK_MICROSECONDS);
    interrupts_on();
    kernel_exceptions();
    kernel_page_faults();
    stacks();
    steps();
    user_exceptions();
    user_programs();
    timer();
    copies();
    changing_code();
    interrupts_off();
    print("torture: %lu checks, %lu exceptions, %lu timer interrupts, %lu wrong\n", checks, exceptions, timer_ticks,
          failures);
    return failures ? 1 : 0;
}
