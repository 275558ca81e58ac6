#include "guest.h"
#include "board.h"
#include "console.h"
#include "io.h"

/* Called by crt0.S. */
__attribute__((noreturn)) void guest_start(const struct boot_info *boot_info)
{
    console_start();
    if (boot_info->magic != BOOT_INFO_MAGIC || boot_info->version != BOOT_INFO_VERSION)
        panic("the boot information block at %lxh is not one", address_of(boot_info));
    exit(guest_main(boot_info));
}

void exit(int code)
{
    board_exit((u32)code);
    halt_for_ever();
}

void panic(const char *format, ...)
{
    __builtin_va_list arguments;
    interrupts_off();
    print("panic: ");
    __builtin_va_start(arguments, format);
    print_list(format, arguments);
    __builtin_va_end(arguments);
    print("\n");
    board_panicked();
    halt_for_ever();
}
