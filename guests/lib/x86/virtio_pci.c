#include "../virtio.h"
#include "apic.h"
#include "../console.h"
#include "../guest.h"
#include "interrupts.h"
#include "io.h"
#include "../pages.h"
#include "pic.h"

enum {
    /* §4.1.4, struct virtio_pci_cap, as offsets */
    CAP_CFG_TYPE = 3,
    CAP_BAR = 4,
    CAP_OFFSET = 8,
    CAP_NOTIFY_MULTIPLIER = 16,

    CFG_TYPE_COMMON = 1,
    CFG_TYPE_NOTIFY = 2,
    CFG_TYPE_ISR = 3,
    CFG_TYPE_DEVICE = 4,
    ISR_CONFIG = 2, /* §4.1.4.5 */
    HIGHEST_BAR = 5,

    /* PCI 3.0 §6.8.2, the MSI-X capability, as offsets */
    MSIX_CONTROL = 2,
    MSIX_TABLE = 4,
    MSIX_CONTROL_ENABLE = 1 << 15,
    MSIX_CONTROL_SIZE = 0x7ff,
    MSIX_TABLE_BAR = 7,
};

/* Where the structure described by a capability lies in memory; 0 if its BAR has no address. */
static u64 structure_address(pci_function function, u8 capability)
{
    u8 bar = pci_read8(function, capability + CAP_BAR);
    u64 base = bar <= HIGHEST_BAR ? pci_bar_address(function, bar) : 0;
    return base ? base + pci_read32(function, capability + CAP_OFFSET) : 0;
}

/* The first capability of a type is the one to use; later ones are alternatives. */
static u64 find_structure(pci_function function, u8 type, u8 *found)
{
    u8 capability = 0;
    while ((capability = pci_capability(function, PCI_CAPABILITY_VENDOR, capability))) {
        u64 address = structure_address(function, capability);
        if (pci_read8(function, capability + CAP_CFG_TYPE) == type && address) {
            *found = capability;
            return address;
        }
    }
    panic("the virtio device at 00:%02x.%u has no structure of type %u", (u32)(function >> 3), (u32)(function & 7),
          (u32)type);
}

static struct virtio_device *configured; /* whose configuration interrupts are counted */
static struct virtio_device *on_line;    /* who uses a line */

static void mask_all(const struct virtio_device *device)
{
    for (u16 i = 0; i < device->msix_entries; i++)
        device->msix[i].control = 1;
}

static void find_msix(struct virtio_device *device)
{
    u8 capability = pci_capability(device->function, PCI_CAPABILITY_MSIX, 0);
    if (!capability)
        return;
    u16 control = pci_read16(device->function, capability + MSIX_CONTROL);
    u32 table = pci_read32(device->function, capability + MSIX_TABLE);
    u64 bar = pci_bar_address(device->function, table & MSIX_TABLE_BAR);
    if (!bar)
        return;
    device->msix = (volatile struct msix_entry *)(bar + (table & ~(u32)MSIX_TABLE_BAR));
    device->msix_entries = (control & MSIX_CONTROL_SIZE) + 1;
    mask_all(device);
    pci_write16(device->function, capability + MSIX_CONTROL, control | MSIX_CONTROL_ENABLE);
}

/* Reading the ISR takes the interrupt back; used buffers are seen by whoever was woken. */
static void acknowledge_line(struct interrupt_frame *frame)
{
    if (*on_line->isr & ISR_CONFIG)
        on_line->config_interrupts++;
    pic_end_of_interrupt((u8)(frame->vector - VECTOR_LINE));
}

static void use_line(struct virtio_device *device)
{
    u8 capability, input = pci_read8(device->function, PCI_INTERRUPT_LINE);
    if (!pci_read8(device->function, PCI_INTERRUPT_PIN))
        panic("the device at 00:%02x.%u has no interrupt line", (u32)(device->function >> 3),
              (u32)(device->function & 7));
    device->isr = (volatile u8 *)find_structure(device->function, CFG_TYPE_ISR, &capability);
    on_line = device;
    pic_start();
    pic_handle(input, acknowledge_line);
}

static int has_modern_interface(pci_function function)
{
    u8 capability = 0;
    while ((capability = pci_capability(function, PCI_CAPABILITY_VENDOR, capability))) {
        if (pci_read8(function, capability + CAP_CFG_TYPE) == CFG_TYPE_COMMON)
            return 1;
    }
    return 0;
}

/* A transitional device says of what kind it is by its subsystem (§4.1.2.3), and its modern interface is like any other.
 * A legacy device looks the same, but for that interface. */
static int find_transitional(u16 virtio_id, pci_function *function)
{
    for (u32 candidate = 0; candidate < PCI_FUNCTIONS; candidate++) {
        *function = (pci_function)candidate;
        u32 ids = pci_read32(*function, PCI_VENDOR_ID);
        u16 device = (u16)(ids >> 16);
        if ((u16)ids != VIRTIO_VENDOR || device < VIRTIO_TRANSITIONAL_DEVICE || device >= VIRTIO_MODERN_DEVICE)
            continue;
        if (pci_read16(*function, PCI_SUBSYSTEM_ID) != virtio_id)
            continue;
        if (has_modern_interface(*function))
            return 1;
        panic("the virtio device at 00:%02x.%u is a legacy one, and this guest knows the modern interface only",
              (u32)(*function >> 3), (u32)(*function & 7));
    }
    return 0;
}

int virtio_find(struct virtio_device *device, u16 virtio_id, int intx)
{
    u8 capability;
    *device = (struct virtio_device){0};
    if (!pci_find(VIRTIO_VENDOR, VIRTIO_MODERN_DEVICE + virtio_id, &device->function)
        && !find_transitional(virtio_id, &device->function))
        return 0;
    u64 common = find_structure(device->function, CFG_TYPE_COMMON, &capability);
    device->common = (volatile struct virtio_pci_common *)common;
    device->config = (volatile u8 *)find_structure(device->function, CFG_TYPE_DEVICE, &capability);
    device->notify_base = find_structure(device->function, CFG_TYPE_NOTIFY, &capability);
    device->notify_multiplier = pci_read32(device->function, capability + CAP_NOTIFY_MULTIPLIER);
    if (intx)
        use_line(device);
    else
        find_msix(device);

    /* Without bus mastering the device can neither read a queue nor send an interrupt message. */
    pci_enable_bus_master(device->function);
    return 1;
}

static void add_status(struct virtio_device *device, u8 bit)
{
    device->common->device_status = device->common->device_status | bit;
}

static u64 read_offered(struct virtio_device *device)
{
    u64 offered = 0;
    for (u32 half = 0; half < 2; half++) {
        device->common->device_feature_select = half;
        offered |= (u64)device->common->device_feature << 32 * half;
    }
    return offered;
}

static void write_accepted(struct virtio_device *device)
{
    for (u32 half = 0; half < 2; half++) {
        device->common->driver_feature_select = half;
        device->common->driver_feature = (u32)(device->features >> 32 * half);
    }
}

void virtio_start(struct virtio_device *device, u64 understood)
{
    /* §3.1.1 step 1: reset.  It is done when the status reads 0 (§4.1.4.3.2). */
    device->common->device_status = 0;
    while (device->common->device_status != 0)
        ;

    /* Step 2: the guest has noticed the device. */
    add_status(device, VIRTIO_ACKNOWLEDGE);

    /* Step 3: the guest knows how to drive it. */
    add_status(device, VIRTIO_DRIVER);

    /* Step 4: accept what the device offers and this driver implements. */
    device->offered = read_offered(device);
    device->features = device->offered & (understood | VIRTIO_F_VERSION_1);
    if (!(device->features & VIRTIO_F_VERSION_1)) {
        add_status(device, VIRTIO_FAILED);
        panic("the device at 00:%02x.%u does not offer VIRTIO_F_VERSION_1", (u32)(device->function >> 3),
              (u32)(device->function & 7));
    }
    write_accepted(device);
    print("virtio: device 00:%02x.%u offers features %lxh, accepted %lxh\n", (u32)(device->function >> 3),
          (u32)(device->function & 7), device->offered, device->features);

    /* Step 5: no more changes to the features. */
    add_status(device, VIRTIO_FEATURES_OK);

    /* Step 6: does the device agree? */
    if (!(device->common->device_status & VIRTIO_FEATURES_OK)) {
        add_status(device, VIRTIO_FAILED);
        panic("the device refuses the features %lxh", device->features);
    }
}

const char *virtio_interrupts(const struct virtio_device *device)
{
    return device->msix ? "MSI-X" : device->isr ? "INTx" : "no MSI-X, a timer must wake this guest";
}

int virtio_is_swapped(const struct virtio_device *device)
{
    (void)device;
    return 0;
}

int virtio_has_interrupts(const struct virtio_device *device)
{
    return device->msix != NULL || device->isr != NULL;
}

static void acknowledge_message(struct interrupt_frame *frame)
{
    /* Nothing else to do: whoever sleeps is awake now, and looks at the queues and the configuration. */
    (void)frame;
    apic_end_of_interrupt();
}

static void count_config_change(struct interrupt_frame *frame)
{
    (void)frame;
    configured->config_interrupts++;
    apic_end_of_interrupt();
}

/* Fills an MSI-X table entry; returns what to write into the device's vector register. */
static u16 arm_vector(struct virtio_device *device, u16 entry, interrupt_handler handler)
{
    if (!device->msix)
        return VIRTIO_NO_VECTOR;
    if (entry >= device->msix_entries)
        entry = device->msix_entries - 1; /* fewer than we want: share the last one */
    u8 vector = (u8)(VECTOR_DEVICE + entry);
    interrupts_handle(vector, handler);
    device->msix[entry].address_low = (u32)apic_message_address();
    device->msix[entry].address_high = (u32)(apic_message_address() >> 32);
    device->msix[entry].data = apic_message_data(vector);
    device->msix[entry].control = 0;
    return entry;
}

void virtio_set_config_vector(struct virtio_device *device, u16 msix_entry)
{
    configured = device;
    u16 vector = arm_vector(device, msix_entry, count_config_change);
    device->common->config_msix_vector = vector;
    if (device->common->config_msix_vector != vector)
        panic("the device has no room for configuration vector %u", (u32)vector);
}

static void write_address(volatile u32 *field, const volatile void *structure)
{
    field[0] = (u32)(u64)structure;
    field[1] = (u32)((u64)structure >> 32);
}

static void ring_doorbell(const struct virtqueue *queue)
{
    *(volatile u16 *)queue->doorbell = queue->index;
}

void virtio_set_up_queue(struct virtio_device *device, struct virtqueue *queue, u16 index, u16 msix_entry)
{
    volatile struct virtio_pci_common *common = device->common;

    /* Step 7 (§4.1.5.1.3): select the queue; a size of 0 would mean that it does not exist. */
    common->queue_select = index;
    u16 largest = common->queue_size;
    if (!largest) {
        add_status(device, VIRTIO_FAILED);
        panic("the device has no queue %u", (u32)index);
    }

    /* Choose a size (a power of two, at most what the device offers), and make its three parts. */
    u16 size = largest < VIRTQUEUE_MAX_SIZE ? largest : VIRTQUEUE_MAX_SIZE;
    common->queue_size = size;
    virtqueue_create(queue, index, size);
    write_address(common->queue_desc, queue->desc);
    write_address(common->queue_driver, queue->avail);
    write_address(common->queue_device, queue->used);
    queue->notify = ring_doorbell;
    queue->doorbell = (volatile u16 *)(device->notify_base + (u64)common->queue_notify_off * device->notify_multiplier);

    /* Choose who is told of used buffers, and see that the device could do it. */
    u16 vector = arm_vector(device, msix_entry, acknowledge_message);
    common->queue_msix_vector = vector;
    if (common->queue_msix_vector != vector)
        panic("the device has no room for the vector of queue %u", (u32)index);

    common->queue_enable = 1;
}

void virtio_driver_ok(struct virtio_device *device)
{
    /* Step 8: from here on the device is live. */
    add_status(device, VIRTIO_DRIVER_OK);
}

void virtio_check(const struct virtio_device *device)
{
    if (device->common->device_status & VIRTIO_DEVICE_NEEDS_RESET)
        panic("the device at 00:%02x.%u needs a reset", (u32)(device->function >> 3), (u32)(device->function & 7));
}

u32 virtio_read_config32(const struct virtio_device *device, u32 offset)
{
    return *(volatile u32 *)(device->config + offset);
}

void virtio_write_config32(const struct virtio_device *device, u32 offset, u32 value)
{
    *(volatile u32 *)(device->config + offset) = value;
}
