/* A Linux program without a library that does nothing but arithmetic with every kind of register: the x87's in double
 * extended precision with a rounding of its own, MMX, SSE in both precisions with another rounding.  Everything goes
 * into one number, which it prints in the end; a wrong bit anywhere on the way shows. */

typedef unsigned long u64;

/* Time passes here by blocks, so each step waits a little with its registers in use. */
#define WAIT "mov $40, %%ecx; 1: dec %%ecx; jnz 1b; "

static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static u64 mix(u64 sum, const void *from)
{
    u64 bits;
    __builtin_memcpy(&bits, from, 8);
    return (sum ^ bits) * 0x9E3779B97F4A7C15ul + (sum >> 29);
}

static u64 work(u64 seed, long rounds)
{
    unsigned short control = 0x0B7F; /* x87: double extended, towards plus infinity */
    unsigned mxcsr = 0x3F80;         /* SSE: towards minus infinity */
    u64 sum = seed, packed = seed;
    double slow = 1.0 + (double)seed;
    float quick[4] = {1, 2, 3, 4};
    __asm__ volatile("fldcw %0; ldmxcsr %1" ::"m"(control), "m"(mxcsr));
    for (long i = 1; i <= rounds; i++) {
        long double wide;
        double step = (double)i / 3.0;
        __asm__ volatile("fldl %1; fsin; fldl %1; fsqrt; fld1; " WAIT "fldl2e; fmulp; fmulp; faddp; fstpt %0"
                         : "=m"(wide)
                         : "m"(step)
                         : "ecx");
        sum = mix(sum, &wide);
        __asm__ volatile("sqrtsd %1, %%xmm15; " WAIT "divsd %1, %%xmm15; addsd %%xmm15, %0"
                         : "+x"(slow)
                         : "x"(step)
                         : "xmm15", "ecx");
        sum = mix(sum, &slow);
        __asm__ volatile("movups %0, %%xmm9; rsqrtps %%xmm9, %%xmm10; " WAIT "divps %%xmm10, %%xmm9; movups %%xmm9, %0"
                         : "+m"(quick)::"xmm9", "xmm10", "ecx");
        quick[i & 3] = (float)i;
        sum = mix(sum, quick + 2);
        __asm__ volatile("movq %0, %%mm3; movq %1, %%mm5; pmullw %%mm5, %%mm3; " WAIT "paddusb %%mm5, %%mm3; movq %%mm3, %0; emms"
                         : "+m"(packed)
                         : "m"(sum)
                         : "ecx");
        sum = mix(sum, &packed);
    }
    return sum;
}

__attribute__((used)) static void begin(long *stack)
{
    const char *word = ((char **)(stack + 1))[1];
    u64 sum = work((u64)word[0], (word[1] - '0') * 3000L);
    char text[17];
    for (int i = 0; i < 16; i++)
        text[i] = "0123456789abcdef"[sum >> (60 - 4 * i) & 15];
    text[16] = '\n';
    call(1, 1, (long)text, 17);
    call(60, 0, 0, 0);
}

__attribute__((naked)) void _start(void) { __asm__("mov %rsp, %rdi; and $-16, %rsp; call begin"); }
