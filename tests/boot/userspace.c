/* What userspace does to a processor, one check after the other: a program for Linux without a C library.
 *
 * Each check prints its name and "ok" or what went wrong; the exit status is the number of checks that failed.
 */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned char u8;

enum { WRITE = 1, MMAP = 9, MPROTECT = 10, SIGACTION = 13, YIELD = 24, GETPID = 39, FORK = 57,
       EXECVE = 59, EXIT = 60, WAIT4 = 61, KILL = 62, PTRACE = 101, SETITIMER = 38 };
enum { SIGILL = 4, SIGTRAP = 5, SIGFPE = 8, SIGUSR1 = 10, SIGSEGV = 11, SIGALRM = 14 };
enum { PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4, MAP_PRIVATE_ANONYMOUS = 0x22 };
enum { SA_SIGINFO = 4, SA_RESTORER = 0x04000000 };
enum { TRACEME = 0, SINGLESTEP = 9, GETREGS = 12 };
enum { SEGV_MAPERR = 1, SEGV_ACCERR = 2 };
enum { REG_RSP = 15, REG_RIP = 16 }; /* in a signal's context; RIP in what ptrace gives, too */

static long call(long number, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
    long result;
    register u64 r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define CALL1(n, a) call(n, (u64)(a), 0, 0, 0, 0, 0)
#define CALL2(n, a, b) call(n, (u64)(a), (u64)(b), 0, 0, 0, 0)
#define CALL4(n, a, b, c, d) call(n, (u64)(a), (u64)(b), (u64)(c), (u64)(d), 0, 0)

void *memset(void *to, int value, u64 length)
{
    for (u8 *byte = to; length--; byte++)
        *(volatile u8 *)byte = (u8)value;
    return to;
}

void *memcpy(void *to, const void *from, u64 length)
{
    for (u64 i = 0; i < length; i++)
        ((volatile u8 *)to)[i] = ((const u8 *)from)[i];
    return to;
}

static void print(const char *text)
{
    u64 length = 0;
    while (text[length])
        length++;
    CALL4(WRITE, 1, text, length, 0);
}

/* -- signals ---------------------------------------------------------------------------------------------------- */

struct action {
    void (*handler)(int, u32 *, u64 *);
    u64 flags;
    void (*restorer)(void);
    u64 mask;
};

__attribute__((naked)) static void restore(void)
{
    __asm__("movl $15, %eax; syscall"); /* rt_sigreturn */
}

enum { LIKE_RET = -1 };
static volatile int caught, caught_code, skip;
static volatile u64 caught_address;

/* Goes on `skip` bytes behind where the signal came, or where a RET there would; the context's general registers begin
 * 40 bytes into it. */
static void on_signal(int number, u32 *info, u64 *context)
{
    caught = number;
    caught_code = (int)info[2];
    caught_address = *(u64 *)(info + 4);
    if (skip == LIKE_RET) {
        context[5 + REG_RIP] = *(u64 *)context[5 + REG_RSP];
        context[5 + REG_RSP] += 8;
    } else {
        context[5 + REG_RIP] += (u64)skip;
    }
}

static void expect_signal(int number, int skipped)
{
    struct action action = {on_signal, SA_SIGINFO | SA_RESTORER, restore, 0};
    CALL4(SIGACTION, number, &action, 0, 8);
    caught = 0;
    skip = skipped;
}

static int page_faults(void)
{
    expect_signal(SIGSEGV, 3); /* movb $1, (%rax) */
    __asm__ volatile("movb $1, (%0)" : : "a"(0x123456ul) : "memory");
    if (caught != SIGSEGV || caught_code != SEGV_MAPERR || caught_address != 0x123456)
        return 0;
    expect_signal(SIGSEGV, 3);
    __asm__ volatile("movb $1, (%0)" : : "a"(&page_faults) : "memory"); /* its own code is not writable */
    return caught == SIGSEGV && caught_code == SEGV_ACCERR && caught_address == (u64)&page_faults;
}

static int division_by_zero(void)
{
    u64 quotient = 1, remainder = 0;
    expect_signal(SIGFPE, 2);
    __asm__ volatile("divl %2" : "+a"(quotient), "+d"(remainder) : "c"(0));
    return caught == SIGFPE && caught_code == 1 && quotient == 1; /* FPE_INTDIV */
}

static int invalid_opcode(void)
{
    expect_signal(SIGILL, 2);
    __asm__ volatile("ud2");
    return caught == SIGILL;
}

static int breakpoint(void)
{
    expect_signal(SIGTRAP, 0); /* a trap: RIP is behind it */
    __asm__ volatile("int3");
    return caught == SIGTRAP;
}

static int privileged_instruction(void)
{
    expect_signal(SIGSEGV, 1);
    __asm__ volatile("hlt");
    if (caught != SIGSEGV)
        return 0;
    expect_signal(SIGSEGV, 1);
    __asm__ volatile("cli");
    return caught == SIGSEGV;
}

static int a_signal_to_itself(void)
{
    expect_signal(SIGUSR1, 0);
    CALL2(KILL, CALL1(GETPID, 0), SIGUSR1);
    return caught == SIGUSR1;
}

/* -- pages and code --------------------------------------------------------------------------------------------- */

static u8 *page(u64 rights)
{
    return (u8 *)call(MMAP, 0, 4096, rights, MAP_PRIVATE_ANONYMOUS, ~0ul, 0);
}

static void put_code(u8 *at, u8 value) /* movl $value, %eax; ret */
{
    const u8 code[] = {0xb8, value, 0, 0, 0, 0xc3};
    memcpy(at, code, sizeof(code));
}

static int no_execute(void)
{
    u8 *code = page(PROT_READ | PROT_WRITE);
    put_code(code, 7);
    expect_signal(SIGSEGV, LIKE_RET);
    ((int (*)(void))code)();
    return caught == SIGSEGV && caught_code == SEGV_ACCERR && caught_address == (u64)code;
}

static int code_that_changes(void)
{
    u8 *code = page(PROT_READ | PROT_WRITE | PROT_EXEC);
    int (*run)(void) = (int (*)(void))code;
    for (int value = 1; value < 200; value++) {
        put_code(code, (u8)value);
        if (run() != value)
            return 0;
    }
    return 1;
}

static int rights_that_change(void)
{
    u8 *code = page(PROT_READ | PROT_WRITE);
    for (int value = 1; value < 20; value++) {
        put_code(code, (u8)value);
        call(MPROTECT, (u64)code, 4096, PROT_READ | PROT_EXEC, 0, 0, 0);
        if (((int (*)(void))code)() != value)
            return 0;
        expect_signal(SIGSEGV, 3);
        __asm__ volatile("movb $1, (%0)" : : "a"(code) : "memory");
        if (caught != SIGSEGV)
            return 0;
        call(MPROTECT, (u64)code, 4096, PROT_READ | PROT_WRITE, 0, 0, 0);
    }
    return 1;
}

/* -- processes -------------------------------------------------------------------------------------------------- */

static int wait_for(long child)
{
    int status = -1;
    CALL4(WAIT4, child, &status, 0, 0);
    return status;
}

static int copy_on_write(void)
{
    static volatile int shared = 1;
    long child = CALL1(FORK, 0);
    if (!child) {
        shared = 2;
        CALL1(EXIT, shared == 2 ? 42 : 1);
    }
    return wait_for(child) == 42 << 8 && shared == 1;
}

static int a_child_that_crashes(void)
{
    struct action none = {0, SA_RESTORER, restore, 0};
    long child = CALL1(FORK, 0);
    if (!child) {
        CALL4(SIGACTION, SIGSEGV, &none, 0, 8);
        *(volatile int *)8 = 1;
    }
    return (wait_for(child) & 0x7f) == SIGSEGV;
}

static int exec(void)
{
    const char *arguments[] = {"/bin/busybox", "false", 0};
    long child = CALL1(FORK, 0);
    if (!child) {
        CALL4(EXECVE, arguments[0], arguments, 0, 0);
        CALL1(EXIT, 99);
    }
    return wait_for(child) == 1 << 8;
}

/* Two processes keep different values in the x87 stack and in SSE registers while the scheduler goes back and forth. */
static int keep_registers(double seed)
{
    double in = seed, x87 = 0, sse = 0;
    __asm__ volatile("fldl %0" : : "m"(in));
    __asm__ volatile("movsd %0, %%xmm9" : : "m"(in) : "xmm9");
    for (int turn = 0; turn < 200; turn++) {
        CALL1(YIELD, 0);
        for (volatile int spin = 0; spin < 2000; spin++)
            ;
    }
    __asm__ volatile("fstpl %0" : "=m"(x87));
    __asm__ volatile("movsd %%xmm9, %0" : "=m"(sse));
    return x87 == seed && sse == seed;
}

static int floating_point_across_switches(void)
{
    long child = CALL1(FORK, 0);
    if (!child)
        CALL1(EXIT, keep_registers(2.5) ? 0 : 1);
    int kept = keep_registers(-1.25);
    return wait_for(child) == 0 && kept;
}

/* A handler that computes with the same registers leaves those of what it interrupted alone. */
static void on_signal_computing(int number, u32 *info, u64 *context)
{
    double other = 7;
    (void)info, (void)context;
    __asm__ volatile("fninit; fldl %0; movsd %0, %%xmm9" : : "m"(other) : "xmm9");
    caught = number;
}

static int floating_point_across_signals(void)
{
    struct action action = {on_signal_computing, SA_SIGINFO | SA_RESTORER, restore, 0};
    double in = 0.625, x87 = 0, sse = 0;
    long self = CALL1(GETPID, 0), result = KILL;
    CALL4(SIGACTION, SIGUSR1, &action, 0, 8);
    caught = 0;
    __asm__ volatile("fldl %3; movsd %3, %%xmm9; syscall; fstpl %1; movsd %%xmm9, %2"
                     : "+a"(result), "=m"(x87), "=m"(sse)
                     : "m"(in), "D"(self), "S"(SIGUSR1)
                     : "rcx", "r11", "xmm9", "memory");
    return caught == SIGUSR1 && x87 == in && sse == in;
}

static int interrupted_by_a_timer(void)
{
    u64 timer[4] = {0, 20000, 0, 20000}; /* every 20 ms */
    u64 off[4] = {0};
    expect_signal(SIGALRM, 0);
    CALL4(SETITIMER, 0, timer, 0, 0);
    u64 sum = 0;
    for (int fired = 0; fired < 3;) {
        sum++;
        if (caught == SIGALRM) {
            caught = 0;
            fired++;
        }
    }
    CALL4(SETITIMER, 0, off, 0, 0);
    return sum > 0;
}

/* A child steps through ten NOPs: each step moves RIP on by one. */
static int single_step(void)
{
    u64 registers[27], previous = 0;
    int in_a_row = 0, longest = 0;
    long child = CALL1(FORK, 0);
    if (!child) {
        CALL4(PTRACE, TRACEME, 0, 0, 0);
        CALL2(KILL, CALL1(GETPID, 0), SIGTRAP);
        __asm__ volatile("nop; nop; nop; nop; nop; nop; nop; nop; nop; nop");
        CALL1(EXIT, 5);
    }
    int status = wait_for(child);
    for (int steps = 0; (status & 0xff) == 0x7f && steps < 1000; steps++) {
        CALL4(PTRACE, GETREGS, child, 0, registers);
        in_a_row = registers[REG_RIP] == previous + 1 ? in_a_row + 1 : 0;
        longest = in_a_row > longest ? in_a_row : longest;
        previous = registers[REG_RIP];
        CALL4(PTRACE, SINGLESTEP, child, 0, 0);
        status = wait_for(child);
    }
    return status == 5 << 8 && longest >= 10;
}

static const struct {
    const char *name;
    int (*check)(void);
} checks[] = {
    {"page-faults", page_faults},
    {"division-by-zero", division_by_zero},
    {"invalid-opcode", invalid_opcode},
    {"breakpoint", breakpoint},
    {"privileged-instruction", privileged_instruction},
    {"a-signal-to-itself", a_signal_to_itself},
    {"no-execute", no_execute},
    {"code-that-changes", code_that_changes},
    {"rights-that-change", rights_that_change},
    {"copy-on-write", copy_on_write},
    {"a-child-that-crashes", a_child_that_crashes},
    {"exec", exec},
    {"floating-point-across-switches", floating_point_across_switches},
    {"floating-point-across-signals", floating_point_across_signals},
    {"interrupted-by-a-timer", interrupted_by_a_timer},
    {"single-step", single_step},
};

__attribute__((used)) static void run_checks(void)
{
    int failed = 0;
    for (u64 i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        int passed = checks[i].check();
        print(checks[i].name);
        print(passed ? " ok\n" : " failed\n");
        failed += !passed;
    }
    CALL1(EXIT, failed);
}

__attribute__((naked)) void _start(void)
{
    __asm__("xorl %ebp, %ebp; andq $-16, %rsp; call run_checks");
}
