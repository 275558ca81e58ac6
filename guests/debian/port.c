/* port: what a script in a Linux guest can say through the machine's ports, since Debian's kernel has no /dev/port.
 *
 *   port exit STATUS   ends the machine: STATUS, 0 to 255, becomes the exit status of the run (port 5F4h)
 *   port send          the standard input, byte by byte, to the debug port (port 402h)
 *
 * A static program without a library: a few system calls, and iopl(2) for the right to use ports.  It needs root, and
 * a machine without these devices does not notice it: then it returns 1.
 */

enum { PORT_DEBUG = 0x402, PORT_EXIT = 0x5F4, DEBUG_PRESENT = 0xE9 };
enum { SYS_READ = 0, SYS_WRITE = 1, SYS_EXIT = 60, SYS_IOPL = 172 };
enum { FAILED = 1, MISUSED = 2 };

static long system_call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static void __attribute__((noreturn)) leave(int status)
{
    for (;;)
        system_call(SYS_EXIT, status, 0, 0);
}

static void out32(unsigned short port, unsigned value)
{
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}

static void out_bytes(unsigned short port, const unsigned char *bytes, long count)
{
    __asm__ volatile("rep outsb" : "+S"(bytes), "+c"(count) : "d"(port) : "memory");
}

static unsigned char in8(unsigned short port)
{
    unsigned char value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static void __attribute__((noreturn)) fail(const char *sentence, int status)
{
    long length = 0;
    while (sentence[length])
        length++;
    system_call(SYS_WRITE, 2, (long)sentence, length);
    leave(status);
}

/* 0 to 255, or -1 for anything else. */
static int parse_status(const char *text)
{
    int value = 0;
    if (!*text)
        return -1;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return -1;
        value = value * 10 + (*text - '0');
        if (value > 255)
            return -1;
    }
    return value;
}

static void send(void)
{
    static unsigned char buffer[4096];
    long count;
    if (in8(PORT_DEBUG) != DEBUG_PRESENT)
        fail("port: this machine has no debug port\n", FAILED);
    while ((count = system_call(SYS_READ, 0, (long)buffer, sizeof buffer)) > 0)
        out_bytes(PORT_DEBUG, buffer, count);
    if (count < 0)
        fail("port: the input cannot be read\n", FAILED);
    leave(0);
}

/* `stack` is what the kernel hands over: the number of arguments, and then the arguments. */
__attribute__((used)) static void begin(const long *stack)
{
    const char *const *arguments = (const char *const *)(stack + 1);
    int is_exit = stack[0] == 3 && same(arguments[1], "exit") && parse_status(arguments[2]) >= 0;
    int is_send = stack[0] == 2 && same(arguments[1], "send");
    if (!is_exit && !is_send)
        fail("usage: port exit STATUS | port send\n", MISUSED);
    if (system_call(SYS_IOPL, 3, 0, 0) < 0)
        fail("port: the kernel does not give the right to use ports\n", FAILED);
    if (is_send)
        send();
    out32(PORT_EXIT, (unsigned)parse_status(arguments[2]));
    fail("port: this machine has no exit device\n", FAILED);
}

__attribute__((naked, noreturn, used)) void _start(void)
{
    __asm__("mov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin");
}
