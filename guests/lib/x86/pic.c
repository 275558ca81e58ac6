#include "pic.h"
#include "io.h"
#include "ports.h"

enum {
    INPUTS = 8,
    CASCADE = 2,
    ICW1_BEGIN = 0x11,
    ICW4_8086 = 0x01,
    OCW2_END = 0x20,
};

static u16 masked = 0xffff & ~(1 << CASCADE);

static void write_masks(void)
{
    out8(PORT_PIC_MASTER + 1, (u8)masked);
    out8(PORT_PIC_SLAVE + 1, (u8)(masked >> INPUTS));
}

static void initialise(u16 port, u8 vector, u8 cascade)
{
    out8(port, ICW1_BEGIN);
    out8(port + 1, vector);
    out8(port + 1, cascade);
    out8(port + 1, ICW4_8086);
}

/* A line that is let go before it is acknowledged comes as input 7, which is in service nowhere; the slave's leaves the
 * cascade in service. */
static void ignore_spurious(struct interrupt_frame *frame)
{
    if (frame->vector == VECTOR_LINE + INPUTS + 7)
        out8(PORT_PIC_MASTER, OCW2_END);
}

void pic_start(void)
{
    initialise(PORT_PIC_MASTER, VECTOR_LINE, 1 << CASCADE);
    initialise(PORT_PIC_SLAVE, VECTOR_LINE + INPUTS, CASCADE);
    write_masks();
    interrupts_handle(VECTOR_LINE + 7, ignore_spurious);
    interrupts_handle(VECTOR_LINE + INPUTS + 7, ignore_spurious);
}

void pic_handle(u8 input, interrupt_handler handler)
{
    interrupts_handle(VECTOR_LINE + input, handler);
    masked &= (u16)~(1u << input);
    write_masks();
}

void pic_end_of_interrupt(u8 input)
{
    if (input >= INPUTS)
        out8(PORT_PIC_SLAVE, OCW2_END);
    out8(PORT_PIC_MASTER, OCW2_END);
}
