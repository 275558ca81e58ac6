/* stats: works a little, follows the host's target, and tells the host how its memory is doing.
 *
 * First it writes to all its free memory, so that the host really has to back it.  Then, ten times a second, a small
 * workload runs: it touches pages of the arena at random, now and then lets an old program go and starts a new one in
 * its place, and writes over some free memory as a busy machine does.  An eighth of the memory may be in use by the
 * arena, so when the balloon takes memory away, the arena swaps.  In between the guest sleeps.
 *
 * "ticks=N" ends it after N tenths of a second; "intx=1" uses the device's interrupt line instead of MSI-X; "v2=1" lays
 * the statistics out as the patch of November 2009 did.
 */
#include "../lib/apic.h"
#include "../lib/balloon.h"
#include "../lib/console.h"
#include "../lib/guest.h"
#include "../lib/interrupts.h"
#include "../lib/io.h"
#include "../lib/string.h"
#include "arena.h"

enum {
    TICK_MICROSECONDS = 100000,
    ARENA_FRACTION = 8,     /* of all memory */
    MIN_ARENA = 16,         /* pages */
    TOUCHES = 32,           /* a tick */
    TICKS_PER_PROGRAM = 8,  /* a program lives until its turn comes round again */
    PROGRAMS = 16,          /* that share the arena */
    OVERWRITTEN = 512,      /* free pages a tick */
    RESERVED = 16,          /* free pages the balloon does not get */
    WORDS = PAGE_SIZE / sizeof(u64),
};

static u32 *times_written; /* of each arena page, kept outside the arena to check that no content is lost */

static void write_page(u64 gpa)
{
    u64 *words = (u64 *)gpa;
    UNROLL
    for (u64 i = 0; i < WORDS; i++)
        words[i] = gpa;
}

/* Writes to the next free pages, round and round. */
static void overwrite_free(u64 count)
{
    static u64 next;
    for (; count; count--, next += PAGE_SIZE) {
        u64 gpa = page_set_next(pages_free_set(), next);
        if (gpa == NO_PAGE)
            gpa = page_set_next(pages_free_set(), 0);
        if (gpa == NO_PAGE)
            return;
        write_page(gpa);
        next = gpa;
    }
}

static u64 random(void)
{
    static u64 state = 88172645463325252ul;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Looks at an arena page, and every fourth time changes it. */
static void touch(u64 page, int change)
{
    u64 *words = (u64 *)arena_address(page);
    if (words[0] != times_written[page] || words[WORDS - 1] != times_written[page])
        panic("arena page %lu holds %lu instead of %u", page, words[0], times_written[page]);
    if (change)
        words[0] = words[WORDS - 1] = ++times_written[page];
}

/* The program whose turn it is ends, and the next one begins in its place. */
static void change_program(void)
{
    static u64 turn;
    u64 length = arena_pages() / PROGRAMS, first = turn++ % PROGRAMS * length;
    arena_forget(first, length);
    for (u64 page = first; page < first + length; page++) {
        times_written[page] = 0;
        touch(page, 1);
    }
}

static void work(u64 tick)
{
    arena_set_limit(pages_total() / ARENA_FRACTION);
    for (int i = 0; i < TOUCHES; i++) {
        u64 number = random();
        touch(number % arena_pages(), (number >> 32) % 4 == 0);
    }
    if (tick % TICKS_PER_PROGRAM == 0)
        change_program();
    overwrite_free(OVERWRITTEN);
}

static u32 collect(struct balloon_stat stats[BALLOON_MAX_STATS])
{
    u64 free = pages_free(), cached = arena_cached();
    const struct balloon_stat now[] = {
        {STAT_SWAP_IN, arena_counters.swapped_in_pages * PAGE_SIZE},
        {STAT_SWAP_OUT, arena_counters.swapped_out_pages * PAGE_SIZE},
        {STAT_MAJOR_FAULTS, arena_counters.major_faults},
        {STAT_MINOR_FAULTS, arena_counters.minor_faults},
        {STAT_FREE, free * PAGE_SIZE},
        {STAT_TOTAL, pages_total() * PAGE_SIZE},
        {STAT_AVAILABLE, (free + cached) * PAGE_SIZE},
        {STAT_CACHES, cached * PAGE_SIZE},
    };
    memcpy(stats, now, sizeof(now));
    return ARRAY_LENGTH(now);
}

enum { KIB_PER_PAGE = PAGE_SIZE / 1024 };

static void collect_v2(struct balloon_stat_v2 stats[STATS_V2])
{
    const struct balloon_stat_v2 now[STATS_V2] = {
        {STAT_V2_SWAP_IN, (u32)arena_counters.swapped_in_pages},
        {STAT_V2_SWAP_OUT, (u32)arena_counters.swapped_out_pages},
        {STAT_V2_ANON, (u32)(arena_resident() * KIB_PER_PAGE)},
        {STAT_V2_MAJOR_FAULTS, (u32)arena_counters.major_faults},
        {STAT_V2_MINOR_FAULTS, (u32)arena_counters.minor_faults},
        {STAT_V2_FREE, (u32)(pages_free() * KIB_PER_PAGE)},
        {STAT_V2_TOTAL, (u32)(pages_total() * KIB_PER_PAGE)},
    };
    memcpy(stats, now, sizeof(now));
}

static void start_arena(void)
{
    u64 pages = max_u64(pages_total() / ARENA_FRACTION, MIN_ARENA);
    overwrite_free(pages_free());
    arena_start(pages);
    times_written = (u32 *)pages_allocate(align_up(pages * sizeof(u32), PAGE_SIZE) / PAGE_SIZE);
    if (!times_written)
        panic("no memory for the workload");
    memset(times_written, 0, pages * sizeof(u32));
    for (u64 page = 0; page < pages; page++)
        touch(page, 1);
    print("stats: %lu pages, all of them written to; %lu for the workload, %lu for a RAM disk to swap to, %lu free\n",
          pages_total(), pages, pages, pages_free());
}

/* Goes towards the target until it is reached or out of reach, and says so once. */
static void follow(struct balloon *balloon)
{
    /* Nothing is ever expected in a free page, so it does not matter which of them hold zeros afterwards. */
    u64 hinted = balloon_hint_free_pages(balloon);
    if (hinted)
        print("stats: hinted %lu free pages\n", hinted);

    static u32 said_target; /* a balloon begins with 0, and has reached it */
    static enum balloon_state said_state = BALLOON_REACHED;
    enum balloon_state state;
    while ((state = balloon_step(balloon)) == BALLOON_MOVING)
        ;
    if (balloon->target == said_target && state == said_state)
        return;
    said_target = balloon->target;
    said_state = state;
    print("stats: target %u pages %s, %lu in the balloon; %lu of my %lu pages are free\n", balloon->target,
          state == BALLOON_REACHED ? "reached" : "out of reach", balloon->pages.count, pages_free(), pages_total());
}

int guest_main(const struct boot_info *boot_info)
{
    static struct balloon balloon;
    static struct balloon_guest hooks = {.reserved_pages = RESERVED, .reclaim = arena_reclaim, .collect = collect,
                                         .hints_free_pages = 1};
    u64 ticks = parameter_u64((const char *)boot_info->cmdline, "ticks", ~0ul);
    hooks.intx = parameter_u64((const char *)boot_info->cmdline, "intx", 0) != 0;
    if (parameter_u64((const char *)boot_info->cmdline, "v2", 0))
        hooks.collect_v2 = collect_v2;

    interrupts_start();
    apic_start();
    pages_start(boot_info);
    start_arena();
    if (!balloon_start(&balloon, &hooks))
        panic("there is no balloon");

    apic_tick_every(TICK_MICROSECONDS);
    for (u64 done = 0; done < ticks;) {
        follow(&balloon);
        if (done < apic_ticks())
            work(done++);
        else
            sleep_until_interrupt();
    }
    print("stats: %lu minor and %lu major faults, %lu pages swapped in, %lu out\n", arena_counters.minor_faults,
          arena_counters.major_faults, arena_counters.swapped_in_pages, arena_counters.swapped_out_pages);
    return 0;
}
