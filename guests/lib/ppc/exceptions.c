#include "exceptions.h"
#include "../guest.h"
#include "board.h"
#include "paging.h"

enum {
    FIRST_VECTOR = 0x100,
    LAST_VECTOR = 0x1400,
    VECTOR_STEP = 0x100,
    FRAME_BYTES = 96, /* as in exception_entry.S */
    LINES = 32,

    /* the four instructions of a stub */
    STORE_STACK = 0x94210000 | (0x10000 - FRAME_BYTES), /* stwu r1, -FRAME_BYTES(r1) */
    STORE_R3 = 0x90610010,                              /* stw r3, 16(r1) */
    LOAD_R3 = 0x38600000,                               /* li r3, VECTOR */
    BRANCH = 0x48000002,                                /* ba ADDRESS, which is below 32 MiB */
};

_Static_assert(sizeof(struct exception_frame) <= FRAME_BYTES, "the frame must have room for it");

extern const u8 exception_entry[];

static void (*handlers[LINES])(void);

void exceptions_start(void)
{
    for (u32 vector = FIRST_VECTOR; vector <= LAST_VECTOR; vector += VECTOR_STEP) {
        volatile u32 *stub = pointer_to(vector);
        stub[0] = (u32)STORE_STACK;
        stub[1] = (u32)STORE_R3;
        stub[2] = LOAD_R3 | vector;
        stub[3] = BRANCH | (u32)address_of(exception_entry);
        __asm__ volatile("dcbst 0, %0\n\tsync\n\ticbi 0, %0\n\tsync\n\tisync" : : "r"(stub) : "memory");
    }
}

void interrupts_handle(u32 line, void (*handler)(void))
{
    handlers[__builtin_ctz(line)] = handler;
    write_le32(INTERRUPTS_ENABLED, read_le32(INTERRUPTS_ENABLED) | line);
}

static void handle_lines(void)
{
    u32 waiting = read_le32(INTERRUPTS_PENDING) & read_le32(INTERRUPTS_ENABLED);
    for (u32 number = 0; number < LINES; number++)
        if (waiting >> number & 1)
            handlers[number]();
}

/* Called by exception_entry.S. */
void exception_dispatch(u32 vector, struct exception_frame *frame)
{
    u32 address, reason;
    __asm__ volatile("mfdar %0\n\tmfdsisr %1" : "=r"(address), "=r"(reason));
    if (vector == VECTOR_EXTERNAL) {
        handle_lines();
        return;
    }
    if (vector == VECTOR_DATA_STORAGE && reason & DSISR_NOT_FOUND && paging_fault(address))
        return;
    panic("exception %xh at %08xh, stack %08xh, DAR %08xh, DSISR %08xh, SRR1 %08xh", vector, frame->srr0,
          (u32)address_of(frame), address, reason, frame->srr1);
}
