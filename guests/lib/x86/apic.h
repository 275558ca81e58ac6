/* The local APIC: accepts interrupt messages, and has a timer. */
#pragma once

#include "../types.h"

/* Enables it.  interrupts_start() comes first. */
void apic_start(void);

/* Every handler of an interrupt (not of an exception) calls this once, when it is done. */
void apic_end_of_interrupt(void);

/* Where a device must write, and what, to raise a vector here (MSI-X table entries). */
u64 apic_message_address(void);
u32 apic_message_data(u8 vector);

/* Calls of the timer's vector every so many microseconds; 0 stops it.  Each one counts a tick. */
void apic_tick_every(u64 microseconds);
u64 apic_ticks(void);
