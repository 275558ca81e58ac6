/* Single instructions that C has no word for: device registers, barriers, the machine state register, sleep. */
#pragma once

#include "../types.h"

enum {
    MSR_EE = 1 << 15, /* external interrupts are taken */
    MSR_ME = 1 << 12,
    MSR_IR = 1 << 5, /* addresses of instructions and of data are translated */
    MSR_DR = 1 << 4,
};

static inline u8 read8(__UINTPTR_TYPE__ address)
{
    u8 value = *(volatile u8 *)address;
    __asm__ volatile("eieio" : : : "memory");
    return value;
}

static inline void write8(__UINTPTR_TYPE__ address, u8 value)
{
    *(volatile u8 *)address = value;
    __asm__ volatile("eieio" : : : "memory");
}

/* A little-endian register: the processor turns its bytes round. */
static inline u32 read_le32(__UINTPTR_TYPE__ address)
{
    u32 value;
    __asm__ volatile("lwbrx %0, 0, %1\n\teieio" : "=r"(value) : "r"(address) : "memory");
    return value;
}

static inline void write_le32(__UINTPTR_TYPE__ address, u32 value)
{
    __asm__ volatile("stwbrx %0, 0, %1\n\teieio" : : "r"(value), "r"(address) : "memory");
}

/* This processor may reorder loads as well as stores; there is one of it, but devices look at memory too. */
static inline void compiler_barrier(void)
{
    __asm__ volatile("lwsync" : : : "memory");
}

static inline void full_fence(void)
{
    __asm__ volatile("sync" : : : "memory");
}

static inline u32 read_msr(void)
{
    u32 value;
    __asm__ volatile("mfmsr %0" : "=r"(value));
    return value;
}

static inline void write_msr(u32 value)
{
    __asm__ volatile("mtmsr %0\n\tisync" : : "r"(value) : "memory");
}

static inline void interrupts_off(void)
{
    write_msr(read_msr() & ~(u32)MSR_EE);
}

static inline void interrupts_on(void)
{
    write_msr(read_msr() | MSR_EE);
}

/* ePAPR's hypercall EV_IDLE: comes back when an interrupt waits, also while they are off. */
static inline void idle(void)
{
    register u32 token __asm__("r11") = 1 << 16 | 16;
    __asm__ volatile("sc 1"
                     : "+r"(token)
                     :
                     : "r0", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r12", "ctr", "xer", "cr0", "memory");
}

/* Call it with interrupts off, right after finding that there is nothing to do: one that came since then is not slept
 * over, because the hypercall looks at the line and not at the machine state register. */
static inline void sleep_until_interrupt(void)
{
    idle();
    interrupts_on();
    interrupts_off();
}

__attribute__((noreturn)) static inline void halt_for_ever(void)
{
    interrupts_off();
    for (;;)
        idle();
}
