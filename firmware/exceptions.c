/* Exceptions in the firmware, or in a guest that has not brought its own handlers: one line, then a panic. */
#include "firmware.h"
#include "../guests/lib/console.h"
#include "../guests/lib/x86/io.h"
#include "../guests/lib/x86/ports.h"

enum { CODE64 = 0x10, INTERRUPT_GATE_PRESENT = 0x8e00, PANICKED = 1, STUB_BYTES = 16 };

extern const u8 exception_stubs[];

void exceptions_start(void)
{
    for (u32 vector = 0; vector < ARRAY_LENGTH(LOW->idt); vector++) {
        u64 stub = (u64)exception_stubs + vector * STUB_BYTES;
        LOW->idt[vector] = (struct idt_gate){
            .offset_low = (u16)stub,
            .selector = CODE64,
            .flags = INTERRUPT_GATE_PRESENT,
            .offset_middle = (u16)(stub >> 16),
            .offset_high = (u32)(stub >> 32),
        };
    }
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) idtr = {sizeof(LOW->idt) - 1, (u64)LOW->idt};
    __asm__ volatile("lidt %0" : : "m"(idtr));
}

/* Called by the stubs in reset.S. */
__attribute__((noreturn)) void exception(u64 vector, u64 error_code, u64 rip, u64 cr2)
{
    print("firmware: exception %lu, error code %lxh, at %lxh, CR2 %lxh\n", vector, error_code, rip, cr2);
    out8(PORT_PVPANIC, PANICKED);
    halt_for_ever();
}
