/* Interrupt controllers as PC firmware leaves them: the 8259 pair with its traditional vectors and every input masked, and
 * the local APIC as a "virtual wire" (Intel MultiProcessor Specification 1.4, 3.6.2.1), through which the 8259 pair reaches
 * the processor.  A guest that wants it otherwise sets it up again.
 */
#include "firmware.h"
#include "../guests/lib/x86/io.h"
#include "../guests/lib/x86/ports.h"

#define APIC_BASE 0xfee00000ul

enum {
    MASTER_VECTORS = 0x08,
    SLAVE_VECTORS = 0x70,
    ICW1_CASCADE_ICW4 = 0x11,
    ICW3_SLAVE_ON_2 = 1 << 2,
    ICW3_SLAVE_IS_2 = 2,
    ICW4_8086 = 0x01,
    ALL_MASKED = 0xff,

    APIC_SPURIOUS = 0xf0,
    APIC_LVT_LINT0 = 0x350,
    APIC_LVT_LINT1 = 0x360,
    SPURIOUS_ENABLE = 1 << 8,
    SPURIOUS_VECTOR = 0xff,
    LVT_NMI = 4 << 8,
    LVT_EXTINT = 7 << 8,
};

static void initialise(u16 port, u8 vectors, u8 cascade)
{
    out8(port, ICW1_CASCADE_ICW4);
    out8(port + 1, vectors);
    out8(port + 1, cascade);
    out8(port + 1, ICW4_8086);
    out8(port + 1, ALL_MASKED);
}

static void apic_write(u32 offset, u32 value)
{
    *(volatile u32 *)(APIC_BASE + offset) = value;
}

void interrupts_start(void)
{
    initialise(PORT_PIC_MASTER, MASTER_VECTORS, ICW3_SLAVE_ON_2);
    initialise(PORT_PIC_SLAVE, SLAVE_VECTORS, ICW3_SLAVE_IS_2);
    apic_write(APIC_SPURIOUS, SPURIOUS_ENABLE | SPURIOUS_VECTOR);
    apic_write(APIC_LVT_LINT0, LVT_EXTINT);
    apic_write(APIC_LVT_LINT1, LVT_NMI);
}
