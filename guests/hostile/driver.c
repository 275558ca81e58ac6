#include "driver.h"
#include "../lib/x86/apic.h"
#include "../lib/guest.h"
#include "../lib/x86/io.h"
#include "../lib/pages.h"
#include "../lib/pattern.h"

enum {
    BALLOON_ID = 5,
    MSIX_CONFIG = 0,
    MSIX_QUEUES = 1,
    TICK_MICROSECONDS = 100,
    PATIENCE_TICKS = 10,
};

static u64 need_page(void)
{
    u64 gpa = page_allocate();
    if (gpa == NO_PAGE)
        panic("there is not enough memory");
    return gpa;
}

static u64 end_of_ram(const struct boot_info *boot_info)
{
    const struct memory_range *map = (const struct memory_range *)boot_info->memory_map;
    u64 end = 0;
    for (u32 i = 0; i < boot_info->memory_map_entries; i++)
        if (map[i].type != MEMORY_RESERVED)
            end = max_u64(end, map[i].base + map[i].length);
    return end;
}

int driver_find(struct driver *driver, const struct boot_info *boot_info, int intx)
{
    *driver = (struct driver){.ram_end = end_of_ram(boot_info)};
    if (!virtio_find(&driver->device, BALLOON_ID, intx))
        return 0;
    driver->pfns = (u32 *)need_page();
    driver->table = (struct virtq_desc *)need_page();
    for (u32 i = 0; i < HONEST_PAGES; i++)
        pattern_fill(driver->pages[i] = need_page());
    for (u32 i = 0; i < BYSTANDERS; i++)
        pattern_fill(driver->bystanders[i] = need_page());
    apic_tick_every(TICK_MICROSECONDS);
    return 1;
}

static void name_honest_pages(struct driver *driver)
{
    for (u32 i = 0; i < HONEST_PAGES; i++)
        driver->pfns[i] = (u32)(driver->pages[i] / PAGE_SIZE);
}

int driver_negotiate(struct driver *driver, u64 features)
{
    virtio_start(&driver->device, features);
    for (u32 i = 0; i < QUEUES; i++) {
        if (driver->queues[i].size)
            page_free((u64)driver->queues[i].desc); /* the device was reset, so it is ours again */
        driver->queues[i].size = 0;
    }
    driver->device.config_interrupts = 0;
    name_honest_pages(driver);
    virtio_set_config_vector(&driver->device, MSIX_CONFIG);
    return (driver->device.features & features) == features;
}

void driver_set_up_queues(struct driver *driver)
{
    virtio_set_up_queue(&driver->device, &driver->queues[QUEUE_INFLATE], QUEUE_INFLATE, MSIX_QUEUES);
    virtio_set_up_queue(&driver->device, &driver->queues[QUEUE_DEFLATE], QUEUE_DEFLATE, MSIX_QUEUES);
    if (driver->device.features & FEATURE_STATS_VQ)
        virtio_set_up_queue(&driver->device, &driver->queues[QUEUE_STATS], QUEUE_STATS, MSIX_QUEUES);
}

void driver_go(struct driver *driver)
{
    virtio_driver_ok(&driver->device);
}

void driver_wait(void)
{
    for (u64 start = apic_ticks(); apic_ticks() - start < PATIENCE_TICKS;)
        sleep_until_interrupt();
}

u32 driver_returned(struct driver *driver, u16 queue)
{
    u32 count = 0;
    while (driver->queues[queue].size && virtqueue_take_used(&driver->queues[queue]) >= 0)
        count++;
    return count;
}

int driver_needs_reset(const struct driver *driver)
{
    return (driver->device.common->device_status & VIRTIO_DEVICE_NEEDS_RESET) != 0;
}

static int send_pages(struct driver *driver, u16 queue)
{
    name_honest_pages(driver);
    virtqueue_add(&driver->queues[queue], driver->pfns, HONEST_PAGES * sizeof(u32), 0);
    virtqueue_kick(&driver->queues[queue]);
    driver_wait();
    return driver_returned(driver, queue) == 1 && !driver_needs_reset(driver);
}

const char *driver_round_trip(struct driver *driver)
{
    if (!send_pages(driver, QUEUE_INFLATE))
        return "an honest inflate request does not come back";
    if (!send_pages(driver, QUEUE_DEFLATE))
        return "an honest deflate request does not come back";
    for (u32 i = 0; i < HONEST_PAGES; i++) {
        if (!page_is_zero(driver->pages[i]) && !pattern_is_kept(driver->pages[i]))
            return "a page comes back from the balloon with strange contents";
        pattern_fill(driver->pages[i]);
    }
    return driver_memory_is_kept(driver, 1) ? NULL : "an honest request changes a page that it does not name";
}

int driver_memory_is_kept(const struct driver *driver, int pages)
{
    int kept = 1;
    for (u32 i = 0; i < BYSTANDERS; i++)
        kept &= pattern_is_kept(driver->bystanders[i]);
    for (u32 i = 0; pages && i < HONEST_PAGES; i++)
        kept &= pattern_is_kept(driver->pages[i]);
    return kept;
}
