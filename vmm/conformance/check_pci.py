"""Virtio over PCI: the function, its capabilities and the common configuration (§4.1.1 to §4.1.4.3)."""

from __future__ import annotations

from devices.virtio import spec
from vmm.conformance.pci_structures import (
    COMMON,
    DEVICE,
    ISR,
    NOTIFY,
    SHARED_MEMORY,
    VENDOR,
    WINDOW,
    check_alignment,
    check_presence,
    field_of_queue,
    structures,
)
from vmm.conformance.registry import check
from vmm.conformance.rig import Rig, Rigs, applies, equal, holds
from vmm.testing.balloon import INFLATEQ, STATS_VQ, STATSQ, pfn_bytes
from vmm.testing.driver import RING_RESET, VERSION_1
from vmm.testing.pci import (
    BAR0,
    COMMAND_MASTER,
    DEVICE_ID,
    REVISION_ID,
    STATUS,
    STATUS_CAPABILITIES,
    SUBSYSTEM_DEVICE_ID,
    VENDOR_ID,
)

CAPABILITY_BYTES = {COMMON: 16, NOTIFY: 20, ISR: 16, DEVICE: 16, WINDOW: 20, SHARED_MEMORY: 24, VENDOR: 16}
BALLOON = 5
STRUCTURES = (COMMON, NOTIFY, ISR, DEVICE)


# -- §4.1.1, §4.1.2 the function ---------------------------------------------------------------------------------------


@check("C1")
def it_is_a_pci_function(rigs: Rigs) -> None:
    """Walked the capability list, sized every BAR, moved them all and worked with the device at its new addresses, also
    with bus mastering off, when it touches no RAM, and on again."""
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
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes(rig.filled())])
    rig.driver.queues[INFLATEQ].publish()
    function.command &= ~COMMAND_MASTER
    equal("the addresses changed without bus mastering", rig.changed_by(lambda: transport.notify(INFLATEQ)), [])
    function.command |= COMMAND_MASTER
    equal("the number of buffers used once it is on again", len(rig.driver.collect(INFLATEQ)), 1)


@check("C2")
def vendor(rigs: Rigs) -> None:
    """Read the vendor id from configuration space."""
    equal("the vendor id", rigs().function.read(VENDOR_ID, 2), 0x1AF4)


@check("C3")
def device(rigs: Rigs) -> None:
    """Read the device id from configuration space."""
    found = rigs().function.read(DEVICE_ID, 2)
    holds(f"the device id {found:#x} is 1045h or 1002h", found in (0x1040 + BALLOON, 0x1002))


@check("C4")
def subsystem(rigs: Rigs) -> None:
    """Read the subsystem ids: they are there and no driver needed them."""
    function = rigs().function
    holds("the subsystem vendor id is set", function.read(SUBSYSTEM_DEVICE_ID - 2, 2) not in (0, 0xFFFF))


@check("C5")
def modern_device_id(rigs: Rigs) -> None:
    """Read the device id from configuration space."""
    found = rigs().function.read(DEVICE_ID, 2)
    holds(f"the device id {found:#x} is within 1040h to 107Fh", 0x1040 <= found <= 0x107F)


@check("C6")
def revision(rigs: Rigs) -> None:
    """Read the revision id from configuration space."""
    holds("the revision id is at least 1", rigs().function.read(REVISION_ID, 1) >= 1)


@check("C7")
def subsystem_device_id(rigs: Rigs) -> None:
    """Read the subsystem device id from configuration space."""
    holds("the subsystem device id is at least 40h", rigs().function.read(SUBSYSTEM_DEVICE_ID, 2) >= 0x40)


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
        equal(f"the first structure of type {cfg_type}", rig.pci.capability(cfg_type), structures(rig, cfg_type)[0])
    rig.start()
    equal("the number of buffers used", len(rig.inflate(*rig.filled())), 1)


@check("C12")
def common_alignment(rigs: Rigs) -> None:
    """Read the offset of every common configuration capability."""
    check_alignment(COMMON, 4, rigs)


@check("C13")
def commoncheck_presence(rigs: Rigs) -> None:
    """Looked for the capability, and whether its BAR holds what it names."""
    check_presence(COMMON, rigs)


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
    equal("queue_desc of inflateq", field_of_queue(rig, INFLATEQ, "queue_desc"), 0)


@check("C18")
def disabled_after_reset(rigs: Rigs) -> None:
    """Enabled every queue, reset the device, and read queue_enable of each."""
    rig = rigs.started()
    count = rig.transport.num_queues
    equal("queue_enable before", [field_of_queue(rig, index, "queue_enable") for index in range(count)], [1] * count)
    rig.driver.reset()
    equal("queue_enable after", [field_of_queue(rig, index, "queue_enable") for index in range(count)], [0] * count)


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
    equal("queue_reset", [field_of_queue(rig, index, "queue_reset") for index in range(count)], [0] * count)


@check("C20")
def not_resetting_once_enabled(rigs: Rigs) -> None:
    """Reset a queue, enabled it again and read queue_reset."""
    rig = _resetting(rigs)
    rig.transport.reset_queue(INFLATEQ)
    rig.driver.set_up_queue(INFLATEQ, 16)
    equal("queue_enable and queue_reset", _enable_and_reset(rig), (1, 0))


def _enable_and_reset(rig: Rig) -> tuple[int, int]:
    return field_of_queue(rig, INFLATEQ, "queue_enable"), field_of_queue(rig, INFLATEQ, "queue_reset")


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
    while field_of_queue(rig, STATSQ, "queue_reset"):
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
        equal(f"queue_size of queue {index}", field_of_queue(rig, index, "queue_size"), 0)
    rig.start(without=STATS_VQ)
    equal("queue_size of statsq without its feature", field_of_queue(rig, STATSQ, "queue_size"), 0)


@check("C25")
def sizes_are_powers_of_two(rigs: Rigs) -> None:
    """Read queue_size of every queue, and after writing sizes that are no power of two."""
    rig = rigs()
    for index in range(rig.transport.num_queues):
        for written in (None, 3, 12, 0, 0xFFFF):
            if written is not None:
                rig.pci.write_common("queue_size", written)
            size = field_of_queue(rig, index, "queue_size")
            holds(f"queue_size {size} is 0 or a power of two", size & size - 1 == 0)


@check("C26")
def no_administration_queues(rigs: Rigs) -> None:
    """Compared admin_queue_index with num_queues."""
    rig = rigs()
    applies("VIRTIO_F_ADMIN_VQ is not offered", rig.offered >> spec.VIRTIO_F_ADMIN_VQ & 1)
    first, count = rig.pci.read_common("admin_queue_index"), rig.transport.num_queues
    holds(f"the first administration queue, {first}, is behind all {count} others", first >= count)
    holds("there is at least one", rig.pci.read_common("admin_queue_num"))
