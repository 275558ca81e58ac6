#include "../virtio.h"
#include "../console.h"
#include "../guest.h"
#include "../pages.h"
#include "board.h"
#include "exceptions.h"

enum {
    MAGIC = 0x74726976, /* "virt", little-endian */
    MODERN_VERSION = 2,
    LEGACY_VERSION = 1,

    /* §4.2.2 and §4.2.4, registers, little-endian in both versions */
    MAGIC_VALUE = 0x000,
    VERSION = 0x004,
    DEVICE_ID = 0x008,
    DEVICE_FEATURES = 0x010,
    DEVICE_FEATURES_SEL = 0x014,
    DRIVER_FEATURES = 0x020,
    DRIVER_FEATURES_SEL = 0x024,
    GUEST_PAGE_SIZE = 0x028, /* legacy */
    QUEUE_SEL = 0x030,
    QUEUE_SIZE_MAX = 0x034,
    QUEUE_SIZE = 0x038,
    QUEUE_ALIGN = 0x03c, /* legacy */
    QUEUE_PFN = 0x040,   /* legacy */
    QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050,
    INTERRUPT_STATUS = 0x060,
    INTERRUPT_ACK = 0x064,
    STATUS = 0x070,
    QUEUE_DESC = 0x080, /* the low half, and the high one behind it; so the next two */
    QUEUE_DRIVER = 0x090,
    QUEUE_DEVICE = 0x0a0,
    CONFIG = 0x100,
};

static struct virtio_device *on_line;

static u32 read_register(const struct virtio_device *device, u32 offset)
{
    return read_le32(device->base + offset);
}

static void write_register(const struct virtio_device *device, u32 offset, u32 value)
{
    write_le32(device->base + offset, value);
}

/* Taking the interrupt back; used buffers and the configuration are seen by whoever was woken. */
static void acknowledge_line(void)
{
    write_register(on_line, INTERRUPT_ACK, read_register(on_line, INTERRUPT_STATUS));
}

static int is_there(struct virtio_device *device, u32 place)
{
    device->base = VIRTIO_BASE + place * VIRTIO_STEP;
    device->place = place;
    u32 version = read_register(device, VERSION);
    device->is_legacy = version == LEGACY_VERSION;
    return read_register(device, MAGIC_VALUE) == MAGIC && (device->is_legacy || version == MODERN_VERSION);
}

int virtio_find(struct virtio_device *device, u16 virtio_id, int intx)
{
    (void)intx; /* there is nothing but a line */
    *device = (struct virtio_device){0};
    for (u32 place = 0; place < VIRTIO_PLACES; place++) {
        if (!is_there(device, place) || read_register(device, DEVICE_ID) != virtio_id)
            continue;
        on_line = device;
        interrupts_handle(LINE_VIRTIO << place, acknowledge_line);
        return 1;
    }
    device->base = 0;
    return 0;
}

static void add_status(const struct virtio_device *device, u32 bit)
{
    write_register(device, STATUS, read_register(device, STATUS) | bit);
}

static u64 read_offered(const struct virtio_device *device)
{
    u64 offered = 0;
    for (u32 half = 0; half < (device->is_legacy ? 1 : 2); half++) {
        write_register(device, DEVICE_FEATURES_SEL, half);
        offered |= (u64)read_register(device, DEVICE_FEATURES) << 32 * half;
    }
    return offered;
}

static void write_accepted(const struct virtio_device *device)
{
    for (u32 half = 0; half < (device->is_legacy ? 1 : 2); half++) {
        write_register(device, DRIVER_FEATURES_SEL, half);
        write_register(device, DRIVER_FEATURES, (u32)(device->features >> 32 * half));
    }
}

void virtio_start(struct virtio_device *device, u64 understood)
{
    /* §3.1.1 step 1: reset. */
    write_register(device, STATUS, 0);
    while (read_register(device, STATUS) != 0)
        ;

    /* Steps 2 and 3: the guest has noticed the device, and knows how to drive it. */
    add_status(device, VIRTIO_ACKNOWLEDGE);
    add_status(device, VIRTIO_DRIVER);

    /* Step 4: accept what the device offers and this driver implements. */
    device->offered = read_offered(device);
    device->features = device->offered & (understood | VIRTIO_F_VERSION_1);
    if (!device->is_legacy && !(device->features & VIRTIO_F_VERSION_1)) {
        add_status(device, VIRTIO_FAILED);
        panic("the virtio device at place %u does not offer VIRTIO_F_VERSION_1", device->place);
    }
    write_accepted(device);
    print("virtio: device at place %u, version %u, offers features %lxh, accepted %lxh\n", device->place,
          read_register(device, VERSION), device->offered, device->features);

    /* Steps 5 and 6: no more changes to the features, and does the device agree?  A legacy one does not say. */
    if (device->is_legacy) {
        write_register(device, GUEST_PAGE_SIZE, PAGE_SIZE);
        return;
    }
    add_status(device, VIRTIO_FEATURES_OK);
    if (!(read_register(device, STATUS) & VIRTIO_FEATURES_OK)) {
        add_status(device, VIRTIO_FAILED);
        panic("the device refuses the features %lxh", device->features);
    }
}

static void ring_doorbell(const struct virtqueue *queue)
{
    write_register(on_line, QUEUE_NOTIFY, queue->index);
}

static void write_address(const struct virtio_device *device, u32 offset, const volatile void *structure)
{
    write_register(device, offset, (u32)address_of(structure));
    write_register(device, offset + 4, (u32)(address_of(structure) >> 32));
}

void virtio_set_up_queue(struct virtio_device *device, struct virtqueue *queue, u16 index, u16 msix_entry)
{
    (void)msix_entry;
    /* Step 7 (§4.2.3.2): select the queue; a size of 0 would mean that it does not exist. */
    write_register(device, QUEUE_SEL, index);
    u32 largest = read_register(device, QUEUE_SIZE_MAX);
    if (!largest) {
        add_status(device, VIRTIO_FAILED);
        panic("the device has no queue %u", (u32)index);
    }
    u16 size = (u16)(largest < VIRTQUEUE_MAX_SIZE ? largest : VIRTQUEUE_MAX_SIZE);
    write_register(device, QUEUE_SIZE, size);
    virtqueue_create(queue, index, size);
    queue->swapped = virtio_is_swapped(device);
    queue->notify = ring_doorbell;
    if (device->is_legacy) {
        /* §4.2.4: the three parts are one piece of memory, and the number of its page takes it into use. */
        write_register(device, QUEUE_ALIGN, VIRTQUEUE_ALIGN);
        write_register(device, QUEUE_PFN, (u32)(address_of(queue->desc) / PAGE_SIZE));
        return;
    }
    write_address(device, QUEUE_DESC, queue->desc);
    write_address(device, QUEUE_DRIVER, queue->avail);
    write_address(device, QUEUE_DEVICE, queue->used);
    write_register(device, QUEUE_READY, 1);
}

void virtio_set_config_vector(struct virtio_device *device, u16 msix_entry)
{
    (void)device;
    (void)msix_entry;
}

void virtio_driver_ok(struct virtio_device *device)
{
    /* Step 8: from here on the device is live. */
    add_status(device, VIRTIO_DRIVER_OK);
}

void virtio_check(const struct virtio_device *device)
{
    if (read_register(device, STATUS) & VIRTIO_DEVICE_NEEDS_RESET)
        panic("the virtio device at place %u needs a reset", device->place);
}

const char *virtio_interrupts(const struct virtio_device *device)
{
    return device->is_legacy ? "a line, big-endian" : "a line, little-endian";
}

int virtio_has_interrupts(const struct virtio_device *device)
{
    return device->base != 0;
}

int virtio_is_swapped(const struct virtio_device *device)
{
    return !device->is_legacy;
}

u32 virtio_read_config32(const struct virtio_device *device, u32 offset)
{
    return read_le32(device->base + CONFIG + offset);
}

void virtio_write_config32(const struct virtio_device *device, u32 offset, u32 value)
{
    write_le32(device->base + CONFIG + offset, value);
}
