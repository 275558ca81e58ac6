/* The 8259 pair, for devices whose interrupt is a line: it reaches the processor through the local APIC's LINT0, which the
 * firmware has set to ExtINT. */
#pragma once

#include "interrupts.h"

/* Gives the pair vectors of its own, VECTOR_LINE and the 15 behind it, and masks every input. */
void pic_start(void);

/* Lets input 0 to 15 through, but not 2, which is the slave itself; edge or level is as the firmware has set it. */
void pic_handle(u8 input, interrupt_handler handler);

/* The handler calls it once, when the device has let go of the line. */
void pic_end_of_interrupt(u8 input);
