/* hostile: makes one request that no driver may make, and judges what the device does about it.
 *
 * The parameter names the request; without one the guest lists them all.  "intx=1" after the name uses the device's
 * interrupt line instead of MSI-X.  An honest request comes first, then the
 * hostile one, then whatever the device answers is waited for: a broken ring must end in DEVICE_NEEDS_RESET and a
 * configuration interrupt, with nothing carried out; a wrong payload must be completed, and the device must go on.
 * Pages that nobody offered must keep their contents all the time.  Then the device is reset, brought to life again and
 * must do an honest request like the first one.  The exit code is 0 if all of this was so.
 */
#include "../lib/x86/apic.h"
#include "../lib/console.h"
#include "../lib/guest.h"
#include "../lib/x86/interrupts.h"
#include "../lib/pages.h"
#include "../lib/string.h"
#include "requests.h"

#define FEATURES (FEATURE_MUST_TELL_HOST | FEATURE_STATS_VQ | FEATURE_INDIRECT_DESC)

static struct driver driver;

static void list_requests(void)
{
    print("hostile: give me the name of a request as my parameter:\n");
    for (u32 i = 0; i < request_count; i++)
        print("hostile: %16s  %s\n", requests[i].name, requests[i].what);
}

/* The request whose name is the parameter's first word. */
static const struct request *find_request(const char *words)
{
    for (u32 i = 0; i < request_count; i++) {
        u64 length = string_length(requests[i].name);
        if (string_length(words) >= length && !memcmp(requests[i].name, words, length) &&
            (!words[length] || words[length] == ' '))
            return &requests[i];
    }
    return NULL;
}

/* A reset, a new life, and a request that any device must carry out. */
static const char *live_honestly(const char *when)
{
    driver_negotiate(&driver, FEATURES);
    driver_set_up_queues(&driver);
    driver_go(&driver);
    const char *wrong = driver_round_trip(&driver);
    print("hostile: %s: %s\n", when, wrong ? wrong : "an honest inflate and deflate came back");
    return wrong;
}

static const char *judge_answer(const struct request *request, u32 returned, int needs_reset, u32 interrupts)
{
    if (!driver_memory_is_kept(&driver, request->answer == RESET_NEEDED))
        return "pages have changed that were none of the device's business";
    if (needs_reset != (request->answer == RESET_NEEDED))
        return needs_reset ? "the device needs a reset for nothing" : "the device does not say that it needs a reset";
    if (needs_reset && virtio_has_interrupts(&driver.device) && !interrupts)
        return "the device needs a reset, and there is no configuration interrupt";
    if (returned != request->returned)
        return "another number of requests should have come back";
    if (request->answer == GOES_ON)
        return driver_round_trip(&driver);
    return NULL;
}

static const char *provoke(const struct request *request)
{
    if (!driver_negotiate(&driver, FEATURES & ~request->without))
        return "this device does not offer the features that it takes";
    if (!request->at_set_up) {
        driver_set_up_queues(&driver);
        driver_go(&driver);
    }
    const char *wrong = request->send(&driver);
    driver_wait();
    u32 returned = driver_returned(&driver, request->queue), interrupts = driver.device.config_interrupts;
    int needs_reset = driver_needs_reset(&driver);
    print("hostile: the device %s; configuration interrupts: %u; requests returned: %u\n",
          needs_reset ? "needs a reset" : "is well", interrupts, returned);
    return wrong ? wrong : judge_answer(request, returned, needs_reset, interrupts);
}

int guest_main(const struct boot_info *boot_info)
{
    const char *name = (const char *)boot_info->cmdline;
    const struct request *request = find_request(name);

    if (!request) {
        if (*name)
            print("hostile: there is no request \"%s\"\n", name);
        list_requests();
        return *name ? 1 : 0;
    }
    interrupts_start();
    apic_start();
    pages_start(boot_info);
    if (!driver_find(&driver, boot_info, parameter_u64(name, "intx", 0) != 0))
        panic("there is no balloon");
    print("hostile: %s: %s\n", request->name, request->what);

    /* Each step is taken even if the one before went wrong: what the device still can do is worth knowing. */
    const char *before = live_honestly("before");
    const char *during = provoke(request);
    const char *after = live_honestly("after a reset");
    const char *wrong = before ? before : during ? during : after;
    if (wrong)
        print("hostile: %s: WRONG: %s\n", request->name, wrong);
    else
        print("hostile: %s: as it should be\n", request->name);
    return wrong ? 1 : 0;
}
