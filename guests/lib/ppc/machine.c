#include "../machine.h"
#include "board.h"
#include "exceptions.h"
#include "paging.h"

static volatile u64 ticks;

static void count_tick(void)
{
    write_le32(TIMER_EXPIRED, 1);
    ticks++;
}

void machine_start(const struct boot_info *boot_info)
{
    exceptions_start();
    paging_start(boot_info);
    interrupts_handle(LINE_TIMER, count_tick);
}

void machine_tick_every(u64 microseconds)
{
    write_le32(TIMER_INTERVAL, (u32)microseconds);
}

u64 machine_ticks(void)
{
    return ticks;
}
