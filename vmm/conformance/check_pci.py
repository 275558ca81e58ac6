"""Virtio over PCI (§4.1)."""

from __future__ import annotations

from devices.virtio import spec
from devices.virtio.spec import Status
from vmm.conformance.registry import check
from vmm.conformance.rig import Rig, Rigs, equal, holds
from vmm.testing.balloon import DEFLATEQ, INFLATEQ, STATS_VQ, STATSQ, pfn_bytes
from vmm.testing.driver import RING_RESET, VERSION_1
from vmm.testing.pci import (
    BAR0,
    COMMAND_INTX_DISABLE,
    DEVICE_ID,
    REVISION_ID,
    STATUS,
    STATUS_CAPABILITIES,
    STATUS_INTERRUPT,
    SUBSYSTEM_DEVICE_ID,
    VENDOR_ID,
    Msix,
)
from vmm.testing.virtio_pci import Capability

COMMON, NOTIFY, ISR = spec.VIRTIO_PCI_CAP_COMMON_CFG, spec.VIRTIO_PCI_CAP_NOTIFY_CFG, spec.VIRTIO_PCI_CAP_ISR_CFG
DEVICE, WINDOW = spec.VIRTIO_PCI_CAP_DEVICE_CFG, spec.VIRTIO_PCI_CAP_PCI_CFG
SHARED_MEMORY, VENDOR = spec.VIRTIO_PCI_CAP_SHARED_MEMORY_CFG, spec.VIRTIO_PCI_CAP_VENDOR_CFG
NO_VECTOR = spec.VIRTIO_MSI_NO_VECTOR
CAPABILITY_BYTES = {COMMON: 16, NOTIFY: 20, ISR: 16, DEVICE: 16, WINDOW: 20, SHARED_MEMORY: 24, VENDOR: 16}
BALLOON = 5
STRUCTURES = (COMMON, NOTIFY, ISR, DEVICE)


def _all(rig: Rig, cfg_type: int) -> list[Capability]:
    return [capability for capability in rig.pci.capabilities if capability.cfg_type == cfg_type]


# -- §4.1.1, §4.1.2 the function ---------------------------------------------------------------------------------------


@check("C1")
def it_is_a_pci_function(rigs: Rigs) -> None:
    """Walked the capability list, sized every BAR, moved them all and worked with the device at its new addresses."""
    rig = rigs.started()
    function, transport = rig.any_pci.function, rig.any_pci
    holds("the status register announces capabilities", function.read(STATUS, 2) & STATUS_CAPABILITIES)
    bars = function.bars()
    for bar in bars:
        holds(f"BAR {bar.number} has a size that is a power of two", bar.size.bit_count() == 1)
        address = bar.address + (0x0100_0000 if bar.space == "memory" else 0x100)
        function.place_bar(bar, address)
        transport.bar_addresses[bar.number] = address
    word = function.read(BAR0, 4)
    function.write(VENDOR_ID, 2, 0xFFFF)
    equal("the vendor id after writing to it", function.read(VENDOR_ID, 2), spec.VIRTIO_PCI_VENDOR_ID)
    equal("BAR 0", function.read(BAR0, 4), word)
    pfns = rig.filled()
    rig.inflate(*pfns)
    holds("the device works after its BARs were moved", rig.are_given(pfns))


@check("C2")
def vendor(rigs: Rigs) -> None:
    """Read the vendor id from configuration space."""
    equal("the vendor id", rigs().any_pci.function.read(VENDOR_ID, 2), 0x1AF4)


@check("C3")
def device(rigs: Rigs) -> None:
    """Read the device id from configuration space."""
    found = rigs().any_pci.function.read(DEVICE_ID, 2)
    holds(f"the device id {found:#x} is 1045h or 1002h", found in (0x1040 + BALLOON, 0x1002))


@check("C4")
def subsystem(rigs: Rigs) -> None:
    """Read the subsystem ids: they are there and no driver needed them."""
    function = rigs().any_pci.function
    holds("the subsystem vendor id is set", function.read(SUBSYSTEM_DEVICE_ID - 2, 2) not in (0, 0xFFFF))


@check("C5")
def modern_device_id(rigs: Rigs) -> None:
    """Read the device id from configuration space."""
    found = rigs().pci.function.read(DEVICE_ID, 2)
    holds(f"the device id {found:#x} is within 1040h to 107Fh", 0x1040 <= found <= 0x107F)


@check("C6")
def revision(rigs: Rigs) -> None:
    """Read the revision id from configuration space."""
    holds("the revision id is at least 1", rigs().pci.function.read(REVISION_ID, 1) >= 1)


@check("C7")
def subsystem_device_id(rigs: Rigs) -> None:
    """Read the subsystem device id from configuration space."""
    holds("the subsystem device id is at least 40h", rigs().pci.function.read(SUBSYSTEM_DEVICE_ID, 2) >= 0x40)


# -- §4.1.3, §4.1.4 capabilities ---------------------------------------------------------------------------------------


@check("C8")
def halves(rigs: Rigs) -> None:
    """Wrote and read the halves of the three queue addresses in either order."""
    rig = rigs()
    transport = rig.pci
    transport.write_common("queue_select", INFLATEQ)
    for field in ("queue_desc", "queue_driver", "queue_device"):
        gpa = transport.common_gpa(field)
        rig.bus.mmio_write(gpa + 4, 4, 0x1234_5678)
        rig.bus.mmio_write(gpa, 4, 0x9ABC_DE00)
        equal(f"{field}, high half first", transport.read_common(field), 0x1234_5678_9ABC_DE00)
        rig.bus.mmio_write(gpa, 4, 0x1000)
        equal(f"{field} after its low half", transport.read_common(field), 0x1234_5678_0000_1000)
        equal(f"the high half of {field}", rig.bus.mmio_read(gpa + 4, 4), 0x1234_5678)


@check("C9")
def cap_len(rigs: Rigs) -> None:
    """Compared cap_len of each capability with the size of its structure, and with where the next one begins."""
    rig = rigs()
    places = sorted(at for _, at in rig.pci.function.capabilities())
    for capability in rig.pci.capabilities:
        least = CAPABILITY_BYTES[capability.cfg_type]
        holds(f"cap_len of type {capability.cfg_type} is at least {least}", capability.cap_len >= least)
        following = [at for at in places if at > capability.position]
        if following:
            fits = capability.position + capability.cap_len <= following[0]
            holds(f"the capability of type {capability.cfg_type} ends before the next", fits)


@check("C10")
def padding(rigs: Rigs) -> None:
    """Read every structure up to the length that its capability gives: the device works afterwards."""
    rig = rigs.started()
    for cfg_type in STRUCTURES:
        capability, gpa = rig.pci.capability(cfg_type), rig.pci.structure_gpa(cfg_type)
        for offset in range(0, min(capability.length, 256), 4):
            rig.bus.mmio_read(gpa + offset, 4)
    equal("the number of buffers used afterwards", len(rig.inflate(*rig.filled())), 1)


@check("C11")
def best_first(rigs: Rigs) -> None:
    """Took the first structure of each type and drove the device with it."""
    rig = rigs()
    for cfg_type in STRUCTURES:
        equal(f"the first structure of type {cfg_type}", rig.pci.capability(cfg_type), _all(rig, cfg_type)[0])
    rig.start()
    equal("the number of buffers used", len(rig.inflate(*rig.filled())), 1)


def _aligned(cfg_type: int, alignment: int, rigs: Rigs, properties: str = "") -> None:
    for capability in _all(rigs(properties), cfg_type):
        equal(f"the offset {capability.offset:#x} modulo {alignment}", capability.offset % alignment, 0)


def _present(cfg_type: int, rigs: Rigs) -> None:
    rig = rigs()
    found = _all(rig, cfg_type)
    holds(f"there is a capability of type {cfg_type}", found)
    sizes = {bar.number: bar.size for bar in rig.pci.function.bars()}
    for capability in found if cfg_type != WINDOW else ():
        inside = capability.bar in sizes and capability.offset + capability.length <= sizes[capability.bar]
        holds("the structure lies in its BAR", inside)


@check("C12")
def common_alignment(rigs: Rigs) -> None:
    """Read the offset of every common configuration capability."""
    _aligned(COMMON, 4, rigs)


@check("C13")
def common_present(rigs: Rigs) -> None:
    """Looked for the capability, and whether its BAR holds what it names."""
    _present(COMMON, rigs)


# -- §4.1.4.3 common configuration -------------------------------------------------------------------------------------


@check("C14")
def device_features_by_select(rigs: Rigs) -> None:
    """Read device_feature with selects 0, 1, 2, 31 and all ones."""
    rig = rigs()
    words = []
    for select in (0, 1, 2, 31, 0xFFFF_FFFF):
        rig.pci.write_common("device_feature_select", select)
        words.append(rig.pci.read_common("device_feature"))
    holds("bit 0 of word 1 is VERSION_1", words[1] & VERSION_1 >> 32)
    holds("word 0 has the balloon's STATS_VQ", words[0] & STATS_VQ)
    equal("the words beyond 63 bits", words[2:], [0, 0, 0])


@check("C15")
def driver_features_by_select(rigs: Rigs) -> None:
    """Wrote every offered bit alone and read driver_feature back with selects 0, 1, 2 and all ones."""
    rig = rigs()
    offered = rig.offered
    rig.driver.reset()
    rig.driver.acknowledge()
    for bit in (bit for bit in range(64) if offered >> bit & 1):
        rig.transport.write_driver_features(1 << bit)
        equal(f"driver_feature after writing bit {bit}", rig.transport.read_driver_features(), 1 << bit)
    for select in (2, 0xFFFF_FFFF):
        rig.pci.write_common("driver_feature_select", select)
        rig.pci.write_common("driver_feature", 0xFFFF_FFFF)
        equal(f"driver_feature with select {select:#x}", rig.pci.read_common("driver_feature") & ~0, 0)


@check("C16")
def generation(rigs: Rigs) -> None:
    """Changed num_pages between two reads, once and 256 times, and compared config_generation."""
    rig = rigs.started()
    for changes in (1, 256):
        rig.transport.read_config(0, 4)
        before = rig.transport.read_config_generation()
        for target in range(changes):
            rig.set_target(changes + target % 2)
        rig.transport.read_config(0, 4)
        holds(f"config_generation differs after {changes}", rig.transport.read_config_generation() != before)


@check("C17")
def reset_by_status(rigs: Rigs) -> None:
    """Wrote 0 to device_status of a working device: it reads 0, and features and queues are gone."""
    rig = rigs.started()
    rig.transport.write_status(0)
    equal("device_status", rig.transport.read_status(), 0)
    equal("driver_feature", rig.transport.read_driver_features(), 0)
    equal("queue_desc of inflateq", _common_of(rig, INFLATEQ, "queue_desc"), 0)


def _common_of(rig: Rig, queue: int, field: str) -> int:
    rig.pci.write_common("queue_select", queue)
    return rig.pci.read_common(field)


@check("C18")
def disabled_after_reset(rigs: Rigs) -> None:
    """Enabled every queue, reset the device, and read queue_enable of each."""
    rig = rigs.started()
    count = rig.transport.num_queues
    equal("queue_enable before", [_common_of(rig, index, "queue_enable") for index in range(count)], [1] * count)
    rig.driver.reset()
    equal("queue_enable after", [_common_of(rig, index, "queue_enable") for index in range(count)], [0] * count)


def _resetting(rigs: Rigs) -> Rig:
    rig = rigs.started("queue_reset=on")
    holds("RING_RESET was negotiated", rig.driver.features & RING_RESET)
    return rig


@check("C19")
def not_resetting_after_a_reset(rigs: Rigs) -> None:
    """Read queue_reset of every queue after a reset of the device."""
    rig = _resetting(rigs)
    count = rig.transport.num_queues
    rig.driver.reset()
    equal("queue_reset", [_common_of(rig, index, "queue_reset") for index in range(count)], [0] * count)


@check("C20")
def not_resetting_once_enabled(rigs: Rigs) -> None:
    """Reset a queue, enabled it again and read queue_reset."""
    rig = _resetting(rigs)
    rig.transport.reset_queue(INFLATEQ)
    rig.driver.set_up_queue(INFLATEQ, 16)
    equal("queue_enable and queue_reset", _enable_and_reset(rig), (1, 0))


def _enable_and_reset(rig: Rig) -> tuple[int, int]:
    return _common_of(rig, INFLATEQ, "queue_enable"), _common_of(rig, INFLATEQ, "queue_reset")


@check("C21")
def the_queue_is_reset(rigs: Rigs) -> None:
    """Wrote 1 to queue_reset with a request waiting: it is never carried out, and the queue can be set up anew."""
    rig = _resetting(rigs)
    pfns = rig.filled()
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes(pfns)])
    rig.driver.queues[INFLATEQ].publish()
    rig.transport.reset_queue(INFLATEQ)
    rig.transport.notify(INFLATEQ)
    holds("the page is kept", rig.are_kept(pfns))
    rig.driver.set_up_queue(INFLATEQ, 16)
    equal("the number of buffers used afterwards", len(rig.inflate(*rig.filled())), 1)


@check("C22")
def the_reset_goes_on(rigs: Rigs) -> None:
    """Read queue_reset right after writing 1 to it until it is 0: from then on nothing of the old queue is touched."""
    rig = _resetting(rigs)
    rig.driver.post_stats({"stat-free-memory": 1})
    rig.pci.write_common("queue_select", STATSQ)
    rig.pci.write_common("queue_reset", 1)
    while _common_of(rig, STATSQ, "queue_reset"):
        rig.advance(1_000_000)
    equal("the addresses changed afterwards", rig.changed_by(rig.request_stats), [])


@check("C23")
def both_are_zero_afterwards(rigs: Rigs) -> None:
    """Reset a queue and read queue_reset and queue_enable."""
    rig = _resetting(rigs)
    rig.transport.reset_queue(INFLATEQ)
    equal("queue_enable and queue_reset", _enable_and_reset(rig), (0, 0))


@check("C24")
def no_size_without_a_queue(rigs: Rigs) -> None:
    """Selected queues that do not exist, and statsq after it was not negotiated."""
    rig = rigs()
    for index in (rig.transport.num_queues, 100, 0xFFFF):
        equal(f"queue_size of queue {index}", _common_of(rig, index, "queue_size"), 0)
    rig.start(without=STATS_VQ)
    equal("queue_size of statsq without its feature", _common_of(rig, STATSQ, "queue_size"), 0)


@check("C25")
def sizes_are_powers_of_two(rigs: Rigs) -> None:
    """Read queue_size of every queue, and after writing sizes that are no power of two."""
    rig = rigs()
    for index in range(rig.transport.num_queues):
        for written in (None, 3, 12, 0, 0xFFFF):
            if written is not None:
                rig.pci.write_common("queue_size", written)
            size = _common_of(rig, index, "queue_size")
            holds(f"queue_size {size} is 0 or a power of two", size & size - 1 == 0)


@check("C26")
def no_administration_queues(rigs: Rigs) -> None:
    """Read the features and the two registers: ADMIN_VQ is not offered, and no such queue is named."""
    rig = rigs.started()
    holds("ADMIN_VQ is not offered", not rig.offered >> spec.VIRTIO_F_ADMIN_VQ & 1)
    equal("admin_queue_num", rig.pci.read_common("admin_queue_num"), 0)


# -- §4.1.4.4 notification ---------------------------------------------------------------------------------------------


@check("C27")
def notify_present(rigs: Rigs) -> None:
    """Looked for the capability, and whether its BAR holds what it names."""
    _present(NOTIFY, rigs)


@check("C28")
def notify_alignment(rigs: Rigs) -> None:
    """Read the offset of every notification capability."""
    _aligned(NOTIFY, 2, rigs)


@check("C29")
def notify_multiplier(rigs: Rigs) -> None:
    """Read notify_off_multiplier."""
    for capability in _all(rigs(), NOTIFY):
        value = capability.multiplier
        good = value == 0 or (value.bit_count() == 1 and value > 1)
        holds(f"notify_off_multiplier {value} is 0 or an even power of two", good)


@check("C30")
def notify_length(rigs: Rigs) -> None:
    """Read the length of every notification capability."""
    for capability in _all(rigs(), NOTIFY):
        holds(f"the length {capability.length} is at least 2", capability.length >= 2)


def _room_for(rigs: Rigs, width: int, properties: str = "") -> None:
    rig = rigs(properties)
    for capability in _all(rig, NOTIFY):
        for index in range(rig.transport.num_queues):
            end = _common_of(rig, index, "queue_notify_off") * capability.multiplier + width
            holds(f"the length {capability.length} covers {end} bytes for queue {index}", capability.length >= end)


@check("C31")
def notify_room(rigs: Rigs) -> None:
    """Computed every queue's place from queue_notify_off and the multiplier."""
    _room_for(rigs, 2, "deflate-on-oom=on,free-page-reporting=on")


NOTIFICATION_DATA = "notification-data=on"


@check("C32")
def data_multiplier(rigs: Rigs) -> None:
    """Read notify_off_multiplier of a device that offers NOTIFICATION_DATA."""
    for capability in _all(rigs(NOTIFICATION_DATA), NOTIFY):
        value = capability.multiplier
        good = value == 0 or (value.bit_count() == 1 and value % 4 == 0)
        holds(f"notify_off_multiplier {value} is 0 or a power of two and a multiple of 4", good)


@check("C33")
def data_alignment(rigs: Rigs) -> None:
    """Read the offset of every notification capability of a device that offers NOTIFICATION_DATA."""
    _aligned(NOTIFY, 4, rigs, NOTIFICATION_DATA)


@check("C34")
def data_length(rigs: Rigs) -> None:
    """Read the length of every notification capability of a device that offers NOTIFICATION_DATA, and used it."""
    rig = rigs.started(NOTIFICATION_DATA)
    for capability in _all(rig, NOTIFY):
        holds(f"the length {capability.length} is at least 4", capability.length >= 4)
    pfns = rig.filled()
    rig.inflate(*pfns)
    holds("a notification with data is heard", rig.are_given(pfns))


@check("C35")
def data_room(rigs: Rigs) -> None:
    """Computed every queue's place from queue_notify_off and the multiplier, with four bytes each."""
    _room_for(rigs, 4, f"deflate-on-oom=on,free-page-reporting=on,{NOTIFICATION_DATA}")


# -- §4.1.4.5 ISR status -----------------------------------------------------------------------------------------------


@check("C36")
def isr_present(rigs: Rigs) -> None:
    """Looked for the capability, and whether its BAR holds what it names."""
    _present(ISR, rigs)


@check("C37")
def configuration_bit(rigs: Rigs) -> None:
    """Changed the target and read the ISR status, as a driver does when the interrupt has come."""
    rig = rigs.started()
    rig.any_pci.read_isr()
    rig.set_target(5)
    holds("bit 1 of the ISR status is set", rig.any_pci.read_isr() & spec.VIRTIO_PCI_ISR_CONFIG)


def _line_driver(rigs: Rigs) -> Rig:
    """A driver that has switched MSI-X off again."""
    rig = rigs.started()
    if rig.any_pci.msix is not None:
        rig.any_pci.msix.enable(False)
    rig.any_pci.read_isr()
    return rig


@check("C38")
def queue_bit(rigs: Rigs) -> None:
    """Used a buffer without MSI-X and read the ISR status."""
    rig = _line_driver(rigs)
    rig.inflate(*rig.filled())
    holds("bit 0 of the ISR status is set", rig.any_pci.read_isr() & spec.VIRTIO_PCI_ISR_QUEUE)


def _interrupt_status(rig: Rig) -> bool:
    return bool(rig.any_pci.function.read(STATUS, 2) & STATUS_INTERRUPT)


@check("C39")
def interrupt_status_follows(rigs: Rigs) -> None:
    """Compared the PCI status register with the ISR status through both kinds of event and their acknowledgement."""
    rig = _line_driver(rigs)
    equal("the interrupt status at rest", _interrupt_status(rig), False)
    for event in (lambda: rig.inflate(*rig.filled()), lambda: rig.set_target(9)):
        event()
        equal("the interrupt status after an event", _interrupt_status(rig), True)
        rig.any_pci.read_isr()
        equal("the interrupt status after the ISR was read", _interrupt_status(rig), False)


@check("C40")
def the_line_follows(rigs: Rigs) -> None:
    """Watched the interrupt line through an event, its acknowledgement, and with INTx disabled."""
    rig = _line_driver(rigs)
    function, line = rig.any_pci.function, f"{rig.any_pci.function.name} INTA"
    rig.set_target(9)
    holds("INTx is asserted by an event", rig.bus.line_level(line))
    function.command |= COMMAND_INTX_DISABLE
    holds("INTx is deasserted while it is disabled", not rig.bus.line_level(line))
    holds("the interrupt status stays", _interrupt_status(rig))
    function.command &= ~COMMAND_INTX_DISABLE
    holds("INTx comes back when it is enabled", rig.bus.line_level(line))
    rig.any_pci.read_isr()
    holds("INTx is deasserted when the ISR is read", not rig.bus.line_level(line))


@check("C41")
def isr_read_clears(rigs: Rigs) -> None:
    """Read the ISR status twice after an event."""
    rig = rigs.started()
    rig.set_target(9)
    holds("the first read shows the event", rig.any_pci.read_isr())
    equal("the ISR status at the second read", rig.any_pci.read_isr(), 0)


# -- §4.1.4.6 to §4.1.4.9 ----------------------------------------------------------------------------------------------


@check("C42")
def device_alignment(rigs: Rigs) -> None:
    """Read the offset of every device-specific configuration capability."""
    rig = rigs()
    holds("there is a device-specific configuration", _all(rig, DEVICE))
    for capability in _all(rig, DEVICE):
        equal("the offset modulo 4", capability.offset % 4, 0)


@check("C43")
def shared_memory_inside(rigs: Rigs) -> None:
    """Looked for shared memory capabilities and compared each with its BAR: the balloon has none."""
    rig = rigs()
    sizes = {bar.number: bar.size for bar in rig.pci.function.bars()}
    for capability in _all(rig, SHARED_MEMORY):
        holds("the region lies in its BAR", capability.offset + capability.length <= sizes.get(capability.bar, 0))


@check("C44")
def shared_memory_ids(rigs: Rigs) -> None:
    """Looked for shared memory capabilities with the same id: the balloon has none."""
    ids = [capability.id for capability in _all(rigs(), SHARED_MEMORY)]
    equal("the number of different ids", len(set(ids)), len(ids))


def _vendor_ids(rig: Rig) -> list[int]:
    return [rig.pci.function.read(capability.position + 4, 2) for capability in _all(rig, VENDOR)]


@check("C45")
def vendor_data(rigs: Rigs) -> None:
    """Went through the vendor data capabilities of the list: a driver that knows none of them works."""
    rig = rigs.started()
    _vendor_ids(rig)
    equal("the number of buffers used", len(rig.inflate(*rig.filled())), 1)


@check("C46")
def vendor_data_is_not_virtios(rigs: Rigs) -> None:
    """Read vendor_id of every vendor data capability."""
    holds("no vendor_id is 1AF4h", spec.VIRTIO_PCI_VENDOR_ID not in _vendor_ids(rigs()))


@check("C47")
def vendor_data_length(rigs: Rigs) -> None:
    """Read cap_len of every vendor data capability."""
    for capability in _all(rigs(), VENDOR):
        equal("cap_len modulo 4", capability.cap_len % 4, 0)


@check("C48")
def vendor_data_is_harmless(rigs: Rigs) -> None:
    """Read all of configuration space behind the header twice and compared, RAM included."""
    rig = rigs.started()
    function = rig.pci.function
    window = rig.pci.capability(WINDOW).position
    places = [at for at in range(0x40, 0x100, 4) if not window <= at < window + 20]

    def read() -> list[int]:
        return [function.read(at, 4) for at in places]

    first = read()
    equal("configuration space read again", read(), first)
    equal("the addresses changed by reading it", rig.changed_by(read), [])


@check("C49")
def window_present(rigs: Rigs) -> None:
    """Looked for the capability."""
    _present(WINDOW, rigs)


def _point_window(rig: Rig, capability: Capability, offset: int, length: int) -> int:
    """Set the window up; where pci_cfg_data lies."""
    at, function = rig.pci.capability(WINDOW).position, rig.pci.function
    function.write(at + 4, 1, capability.bar)
    function.write(at + 8, 4, capability.offset + offset)
    function.write(at + 12, 4, length)
    return at + 16


@check("C50")
def window_writes(rigs: Rigs) -> None:
    """Wrote `actual` whole and by the byte, and a notification, through pci_cfg_data."""
    rig = rigs.started()
    function, transport = rig.pci.function, rig.pci
    device = transport.capability(DEVICE)
    function.write(_point_window(rig, device, 4, 4), 4, 0x11223344)
    equal("actual after a write of 4 bytes", rig.driver.actual, 0x11223344)
    function.write(_point_window(rig, device, 5, 1), 1, 0xFF)
    equal("actual after a write of 1 byte", rig.driver.actual, 0x1122FF44)
    pfns = rig.filled()
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes(pfns)])
    rig.driver.queues[INFLATEQ].publish()
    place = transport.notify_gpa(INFLATEQ) - transport.structure_gpa(NOTIFY)
    function.write(_point_window(rig, transport.capability(NOTIFY), place, 2), 2, INFLATEQ)
    holds("a notification through the window is heard", rig.are_given(pfns))


@check("C51")
def window_reads(rigs: Rigs) -> None:
    """Read `actual`, the number of queues and the status through pci_cfg_data, in lengths of 1, 2 and 4."""
    rig = rigs.started()
    rig.driver.actual = 0xCAFE1234
    function, device, common = rig.pci.function, rig.pci.capability(DEVICE), rig.pci.capability(COMMON)
    for offset, length, wanted in ((4, 4, 0xCAFE1234), (6, 2, 0xCAFE), (5, 1, 0x12)):
        got = function.read(_point_window(rig, device, offset, length), length)
        equal(f"{length} bytes of the configuration at {offset}", got, wanted)
    queues = function.read(_point_window(rig, common, 0x12, 2), 2)
    equal("num_queues through the window", queues, rig.transport.num_queues)
    holds("the status through the window", function.read(_point_window(rig, common, 0x14, 1), 1) & Status.DRIVER_OK)


# -- §4.1.5 MSI-X ------------------------------------------------------------------------------------------------------


def _msix(rig: Rig) -> Msix:
    if rig.pci.msix is None:
        raise TypeError("the function has no MSI-X capability")
    return rig.pci.msix


def _vector_of(rig: Rig, event: str) -> int:
    return rig.pci.read_common("config_msix_vector" if event == "config" else "queue_msix_vector")


def _map(rig: Rig, event: str, vector: int) -> int:
    """Map the configuration ("config") or the selected queue to a vector; what reads back."""
    rig.pci.write_common("config_msix_vector" if event == "config" else "queue_msix_vector", vector)
    return _vector_of(rig, event)


@check("C52")
def vector_count(rigs: Rigs) -> None:
    """Read the table size."""
    size = _msix(rigs()).table_size
    holds(f"the number of vectors, {size}, is from 2 to 800h", 2 <= size <= 0x800)


@check("C53")
def table_size(rigs: Rigs) -> None:
    """Used the last vector of the table, and tried to map the one behind it."""
    rig = rigs.started()
    last = _msix(rig).table_size - 1
    rig.pci.write_common("queue_select", INFLATEQ)
    equal("the last vector", _map(rig, "queue", last), last)
    equal("the vector behind it", _map(rig, "queue", last + 1), NO_VECTOR)


@check("C54")
def no_idle_vectors(rigs: Rigs) -> None:
    """Compared the table size with the events there are: one for each queue and one for the configuration."""
    rig = rigs()
    size, events = _msix(rig).table_size, rig.transport.num_queues + 1
    holds(f"there are no more vectors, {size}, than events, {events}", size <= events)


@check("C55")
def any_event_to_any_vector(rigs: Rigs) -> None:
    """Mapped every event to every vector, and saw events of two queues arrive over one shared vector."""
    rig = rigs.started()
    msix = _msix(rig)
    for vector in range(msix.table_size):
        equal(f"config_msix_vector after {vector}", _map(rig, "config", vector), vector)
        for queue in range(rig.transport.num_queues):
            rig.pci.write_common("queue_select", queue)
            equal(f"queue_msix_vector of queue {queue} after {vector}", _map(rig, "queue", vector), vector)
    rig.driver.take_interrupts()
    heard: list[int] = []
    address = rig.pages.take()
    rig.bus.listen(address, heard.append)
    msix.point(0, address, 0x77)
    for queue in (INFLATEQ, DEFLATEQ):
        rig.pci.write_common("queue_select", queue)
        _map(rig, "queue", 0)
        rig.driver.transfer(queue, readable=[pfn_bytes(rig.filled())])
    equal("the messages over the shared vector", heard, [0x77, 0x77])


@check("C56")
def any_event_unmapped(rigs: Rigs) -> None:
    """Unmapped the configuration and every queue, and mapped them again."""
    rig = rigs.started()
    equal("config_msix_vector", [_map(rig, "config", vector) for vector in (NO_VECTOR, 1)], [NO_VECTOR, 1])
    for queue in range(rig.transport.num_queues):
        rig.pci.write_common("queue_select", queue)
        got = [_map(rig, "queue", vector) for vector in (NO_VECTOR, 1)]
        equal(f"queue_msix_vector of queue {queue}", got, [NO_VECTOR, 1])


@check("C57")
def vectors_read_back(rigs: Rigs) -> None:
    """Gave every event a vector of its own and read all of them back."""
    rig = rigs.started()
    count = rig.transport.num_queues
    rig.pci.write_common("config_msix_vector", 0)
    for queue in range(count):
        rig.pci.write_common("queue_select", queue)
        rig.pci.write_common("queue_msix_vector", count - queue)
    equal("config_msix_vector", _vector_of(rig, "config"), 0)
    got = [_common_of(rig, queue, "queue_msix_vector") for queue in range(count)]
    equal("queue_msix_vector of every queue", got, [count - queue for queue in range(count)])


@check("C58")
def unmapped_after_reset(rigs: Rigs) -> None:
    """Mapped everything, reset the device and read the vectors."""
    rig = rigs.started()
    rig.driver.reset()
    equal("config_msix_vector", _vector_of(rig, "config"), NO_VECTOR)
    got = [_common_of(rig, queue, "queue_msix_vector") for queue in range(rig.transport.num_queues)]
    equal("queue_msix_vector of every queue", got, [NO_VECTOR] * len(got))


@check("C59")
def failed_mappings(rigs: Rigs) -> None:
    """Mapped vectors that the table does not have: NO_VECTOR reads back; those that it has are taken."""
    rig = rigs.started()
    size = _msix(rig).table_size
    rig.pci.write_common("queue_select", INFLATEQ)
    for event in ("config", "queue"):
        for vector in (size, size + 1, 0x7FF, 0xFFFE):
            equal(f"the {event} vector after {vector:#x}", _map(rig, event, vector), NO_VECTOR)
        equal(f"the {event} vector after 1", _map(rig, event, 1), 1)


@check("C60")
def unmapped_queue_is_silent(rigs: Rigs) -> None:
    """Unmapped inflateq with MSI-X enabled and used a buffer."""
    rig = rigs.started()
    rig.pci.write_common("queue_select", INFLATEQ)
    rig.pci.write_common("queue_msix_vector", NO_VECTOR)
    rig.inflate(*rig.filled())
    equal("the interrupts", tuple(rig.driver.take_interrupts()), ({}, 0))
    holds("INTx is not asserted either", not rig.bus.line_level(rig.pci.line_name))


@check("C61")
def unmapped_configuration_is_silent(rigs: Rigs) -> None:
    """Unmapped the configuration with MSI-X enabled and changed the target."""
    rig = rigs.started()
    rig.pci.write_common("config_msix_vector", NO_VECTOR)
    rig.set_target(9)
    equal("the interrupts", tuple(rig.driver.take_interrupts()), ({}, 0))
    holds("INTx is not asserted either", not rig.bus.line_level(rig.pci.line_name))
