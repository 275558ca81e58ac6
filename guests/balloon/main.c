/* balloon: follows the host's target up and down, and checks what happens to the contents of its memory.
 *
 * Every free page holds a pattern made from its own address.  A page outside the balloon must keep it.  A page that
 * comes back from the balloon must hold the pattern still (the host took nothing) or zeros (it did): anything else
 * would be somebody else's data.  The guest sleeps between two changes; "targets=N" ends it after the N-th target
 * reached, "check=0" gives pages away without looking at them first, so that inflating can be timed, and "intx=1" uses the
 * device's interrupt line instead of MSI-X.  With "report=1" it reports its free pages at the start and after each target;
 * then a free page may also hold zeros.  It hints them when the host asks; with "hint=2" it uses every other one again,
 * before the host has seen the hint: that one must keep what was written; "hint=0" declines.  "poison=N" fills free pages with
 * the number N instead of the pattern and says so: a page that was reported must then hold N.
 */
#include "../lib/apic.h"
#include "../lib/balloon.h"
#include "../lib/console.h"
#include "../lib/guest.h"
#include "../lib/interrupts.h"
#include "../lib/io.h"
#include "../lib/pattern.h"
#include "../lib/string.h"

enum { POLL_MICROSECONDS = 10000 };

static u64 returned_old, returned_zero;
static u64 reporting, hinting, hinted, free_zero;
static u64 poison;
static int poisoning;

enum { HINT_AND_USE = 2 };

static void fill(u64 gpa)
{
    if (poisoning)
        value_fill(gpa, (u32)poison);
    else
        pattern_fill(gpa);
}

static int is_kept(u64 gpa)
{
    return poisoning ? value_is_kept(gpa, (u32)poison) : pattern_is_kept(gpa);
}

static int may_be_zero(void)
{
    return hinted || (reporting && !poisoning);
}

static void check_kept(u64 gpa)
{
    if (is_kept(gpa))
        return;
    if (!may_be_zero() || !page_is_zero(gpa))
        panic("page %lxh outside the balloon has lost its contents", gpa);
    free_zero++;
}

static void check_returned(u64 gpa)
{
    if (page_is_zero(gpa))
        returned_zero++;
    else if (is_kept(gpa))
        returned_old++;
    else
        panic("page %lxh came back with strange contents", gpa);
    fill(gpa);
}

static int is_used_again(u64 gpa)
{
    return hinting == HINT_AND_USE && gpa / PAGE_SIZE % 2;
}

/* The page's own contents once more: what counts is that they were written. */
static void use_again(u64 gpa)
{
    if (is_used_again(gpa))
        fill(gpa);
}

static void check_used_again(u64 gpa)
{
    if (is_used_again(gpa) && !is_kept(gpa))
        panic("page %lxh was written after it was hinted, and is lost", gpa);
}

static u64 for_each_free_page(void (*visit)(u64 gpa))
{
    u64 count = 0;
    for (u64 gpa = page_set_next(pages_free_set(), 0); gpa != NO_PAGE;
         gpa = page_set_next(pages_free_set(), gpa + PAGE_SIZE)) {
        visit(gpa);
        count++;
    }
    return count;
}

static void report_free_pages(struct balloon *balloon)
{
    u64 count = balloon_report_free_pages(balloon);
    if (count)
        print("balloon: reported %lu free pages\n", count);
}

/* Answers the host if it asked for hints, and looks at what became of the pages.  They get their contents back: the driver
 * must initialise what it hinted (§5.5.6.5.1). */
static void hint_free_pages(struct balloon *balloon)
{
    u64 count = balloon_hint_free_pages(balloon);
    if (!count)
        return;
    hinted = count;
    free_zero = 0;
    for_each_free_page(check_used_again);
    for_each_free_page(check_kept);
    print("balloon: hinted %lu free pages under the id %u, %lu of them hold zeros now\n", count, balloon->hint_id,
          free_zero);
    for_each_free_page(fill);
    hinted = 0;
}

static void report(const struct balloon *balloon)
{
    free_zero = 0;
    u64 kept = for_each_free_page(check_kept) - free_zero;
    print("balloon: target %u pages reached in %u requests, %lu pages kept their contents", balloon->target,
          balloon->requests, kept);
    print(", returned: %lu zeroed, %lu unchanged\n", returned_zero, returned_old);
    if (reporting && !poisoning)
        print("balloon: %lu free pages hold zeros since they were reported\n", free_zero);
}

int guest_main(const struct boot_info *boot_info)
{
    static struct balloon balloon;
    static struct balloon_guest hooks = {.before_inflate = check_kept, .after_deflate = check_returned};
    u64 targets = parameter_u64((const char *)boot_info->cmdline, "targets", ~0ul);

    if (!parameter_u64((const char *)boot_info->cmdline, "check", 1))
        hooks.before_inflate = NULL;
    hooks.intx = parameter_u64((const char *)boot_info->cmdline, "intx", 0) != 0;
    reporting = parameter_u64((const char *)boot_info->cmdline, "report", 0);
    hooks.reports_free_pages = reporting != 0;
    hinting = parameter_u64((const char *)boot_info->cmdline, "hint", 1);
    hooks.hints_free_pages = hinting != 0;
    hooks.after_hint = use_again;
    poison = parameter_u64((const char *)boot_info->cmdline, "poison", ~0ul);
    hooks.poisons = poisoning = poison != ~0ul;
    hooks.poison = (u32)poison;
    interrupts_start();
    apic_start();
    pages_start(boot_info);
    if (!balloon_start(&balloon, &hooks))
        panic("there is no balloon");
    u64 filled = for_each_free_page(fill);
    print("balloon: %lu of %lu pages are free and hold a pattern\n", filled, pages_total());
    if (!balloon_has_interrupts(&balloon))
        apic_tick_every(POLL_MICROSECONDS);
    report_free_pages(&balloon);

    /* A target of 0 is what every balloon begins with; it counts as reached once another one was. */
    u32 reported = 0;
    int said_short = 0;
    while (targets) {
        hint_free_pages(&balloon);
        enum balloon_state state = balloon_step(&balloon);
        if (state == BALLOON_REACHED && balloon.target != reported) {
            report(&balloon);
            report_free_pages(&balloon);
            reported = balloon.target;
            said_short = 0;
            targets--;
        } else if (state == BALLOON_SHORT && !said_short) {
            print("balloon: target %u pages is out of reach, all %lu I have are in the balloon\n", balloon.target,
                  balloon.pages.count);
            said_short = 1;
        } else if (state != BALLOON_MOVING) {
            sleep_until_interrupt();
        }
    }
    return 0;
}
