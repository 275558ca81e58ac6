#include "apic.h"
#include "interrupts.h"
#include "io.h"
#include "ports.h"

#define APIC_BASE 0xfee00000ul

enum {
    APIC_ID = 0x20,
    APIC_TASK_PRIORITY = 0x80,
    APIC_EOI = 0xb0,
    APIC_SPURIOUS = 0xf0,
    APIC_LVT_TIMER = 0x320,
    APIC_TIMER_INITIAL = 0x380,
    APIC_TIMER_CURRENT = 0x390,
    APIC_TIMER_DIVIDE = 0x3e0,

    SPURIOUS_ENABLE = 1 << 8,
    LVT_MASKED = 1 << 16,
    LVT_PERIODIC = 1 << 17,
    DIVIDE_BY_1 = 0x0b,

    CPUID_CRYSTAL = 0x15,
    PIT_HZ = 1193182,
    CALIBRATION_COUNTS = 298, /* a quarter of a millisecond */
    PIT_CHANNEL2_ONE_SHOT = 0xb0, /* channel 2, low byte then high byte, mode 0 */
    PORT_B_GATE2 = 0x01,
    PORT_B_SPEAKER = 0x02,
    PORT_B_OUTPUT2 = 0x20,
};

static u64 ticks;

static u32 apic_read(u32 offset)
{
    return *(volatile u32 *)(APIC_BASE + offset);
}

static void apic_write(u32 offset, u32 value)
{
    *(volatile u32 *)(APIC_BASE + offset) = value;
}

static void count_tick(struct interrupt_frame *frame)
{
    (void)frame;
    ticks++;
    apic_end_of_interrupt();
}

/* A spurious interrupt is in service nowhere, so it gets no end-of-interrupt. */
static void ignore_spurious(struct interrupt_frame *frame)
{
    (void)frame;
}

void apic_start(void)
{
    interrupts_handle(VECTOR_SPURIOUS, ignore_spurious);
    interrupts_handle(VECTOR_TIMER, count_tick);
    apic_write(APIC_TASK_PRIORITY, 0);
    apic_write(APIC_SPURIOUS, SPURIOUS_ENABLE | VECTOR_SPURIOUS);
}

void apic_end_of_interrupt(void)
{
    apic_write(APIC_EOI, 0);
}

u64 apic_message_address(void)
{
    return APIC_BASE | (u64)(apic_read(APIC_ID) >> 24) << 12;
}

u32 apic_message_data(u8 vector)
{
    return vector; /* fixed delivery, edge triggered */
}

/* How far the timer counts while the 8254, whose frequency is the same on every PC, counts down. */
static u64 measure_hz(void)
{
    u8 port_b = in8(PORT_B) & ~(PORT_B_SPEAKER | PORT_B_GATE2);
    out8(PORT_B, port_b);
    out8(PORT_PIT_MODE, PIT_CHANNEL2_ONE_SHOT);
    out8(PORT_PIT_CHANNEL2, CALIBRATION_COUNTS & 0xff);
    out8(PORT_PIT_CHANNEL2, CALIBRATION_COUNTS >> 8);
    apic_write(APIC_LVT_TIMER, LVT_MASKED | VECTOR_TIMER);
    out8(PORT_B, port_b | PORT_B_GATE2);
    apic_write(APIC_TIMER_INITIAL, ~0u);
    while (!(in8(PORT_B) & PORT_B_OUTPUT2))
        ;
    u64 counted = ~0u - apic_read(APIC_TIMER_CURRENT);
    apic_write(APIC_TIMER_INITIAL, 0);
    out8(PORT_B, port_b);
    return counted * PIT_HZ / CALIBRATION_COUNTS;
}

/* The processor may tell its crystal's frequency, which the timer then counts; otherwise it must be measured. */
static u64 timer_hz(void)
{
    u32 eax, ebx, ecx, edx;
    cpuid(0, &eax, &ebx, &ecx, &edx);
    if (eax >= CPUID_CRYSTAL) {
        cpuid(CPUID_CRYSTAL, &eax, &ebx, &ecx, &edx);
        if (ecx)
            return ecx;
    }
    return measure_hz();
}

void apic_tick_every(u64 microseconds)
{
    static u64 hz;
    apic_write(APIC_TIMER_DIVIDE, DIVIDE_BY_1);
    if (!hz)
        hz = timer_hz();
    apic_write(APIC_LVT_TIMER, LVT_PERIODIC | VECTOR_TIMER);
    apic_write(APIC_TIMER_INITIAL, (u32)min_u64(hz * microseconds / 1000000, ~0u));
}

u64 apic_ticks(void)
{
    return ticks;
}
