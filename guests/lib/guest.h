/* A guest's beginning and end. */
#pragma once

#include "boot_info.h"
#include "types.h"

/* The guest's own program.  Returning ends the machine with that exit code. */
int guest_main(const struct boot_info *boot_info);

/* Ends the machine: the low byte of the code is what the host reports. */
__attribute__((noreturn)) void exit(int code);

/* Something that must not be was found: says so, tells the host (pvpanic) and stops. */
__attribute__((noreturn, format(printf, 1, 2))) void panic(const char *format, ...);
