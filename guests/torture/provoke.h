/* What provoke.S and ring3.S give to main.c. */
#pragma once

#include "../lib/types.h"

/* Where the next fault must be, and where to go on after it. */
extern u64 fault_place, resume_place, resume_stack;

void provoke_divide_error(void);
void provoke_invalid_opcode(void);
void provoke_breakpoint(void);
void provoke_bad_selector(u64 unused, u64 selector);
void provoke_read(u64 address);
void provoke_write(u64 address);
void provoke_fetch(u64 address);
void provoke_invalid_interrupt(void);
void provoke_double_fault(u64 stack);
void single_steps(void);

void sti_window(void);
extern const u8 after_sti[], after_shadow[];

void copy_bytes(void *target, const void *source, u64 bytes);
extern const u8 changing[], changing_end[];

/* Ring 3: programs are positions in one page. */
u64 ring3_run(u64 rip, u64 rsp);
extern const u8 ring3_leave[], syscall_entry[];
extern u64 system_calls;
extern const u8 ring3_programs[], ring3_programs_end[];
extern const u8 ring3_divide_error[], ring3_invalid_opcode[], ring3_privileged[], ring3_port[];
extern const u8 ring3_read_kernel[], ring3_write_read_only[], ring3_forbidden_interrupt[];
extern const u8 ring3_interrupts[], ring3_system_calls[], ring3_compute[];
