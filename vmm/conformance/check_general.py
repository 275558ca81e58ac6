"""General facilities: device status, features, reset, configuration space (§2.1 to §2.6, §3.4, §6)."""

from __future__ import annotations

from itertools import combinations_with_replacement

from devices.virtio import spec
from devices.virtio.spec import Status
from vmm.conformance.pci_structures import SHARED_MEMORY
from vmm.conformance.registry import check
from vmm.conformance.rig import Rig, Rigs, applies, equal, holds
from vmm.testing import FeaturesRefused
from vmm.testing.balloon import ACTUAL, DEFLATEQ, HINT_CMD_ID, INFLATEQ, NUM_PAGES, POISON_VAL, STATSQ, pfn_bytes
from vmm.testing.driver import VERSION_1
from vmm.testing.mmio import MmioTransport
from vmm.testing.virtio_pci import virtio_capabilities

REQUIRES = {
    spec.VIRTIO_F_RING_RESET: (),
    spec.VIRTIO_F_NOTIF_CONFIG_DATA: (spec.VIRTIO_F_NOTIFICATION_DATA,),
    spec.VIRTIO_F_ADMIN_VQ: (spec.VIRTIO_F_VERSION_1,),
    spec.VIRTIO_F_RING_PACKED: (spec.VIRTIO_F_VERSION_1,),
}
"""What §2.2.1 and §6 make some features require of others."""
EVERY_PROPERTY = (
    "deflate-on-oom=on,free-page-hint=on,page-poison=on,free-page-reporting=on,"
    "packed=on,in_order=on,queue_reset=on,notification-data=on"
)
ALIVE = Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK


def _offer(rig: Rig) -> list[int]:
    """A request for one page, made available and notified of; the page."""
    pfns = rig.filled()
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes(pfns)])
    rig.driver.kick(INFLATEQ, force=True)
    return pfns


@check("G1")
def nothing_is_consumed_early(rigs: Rigs) -> None:
    """Offered and kicked a request before DRIVER_OK: it stays where it is, and is served at DRIVER_OK."""
    rig = rigs()
    rig.prepare()
    pfns = _offer(rig)
    equal("the number of buffers used before DRIVER_OK", len(rig.driver.collect(INFLATEQ)), 0)
    holds("the page keeps its contents before DRIVER_OK", rig.are_kept(pfns))
    rig.driver.driver_ok()
    equal("the number of buffers used after DRIVER_OK", len(rig.driver.collect(INFLATEQ)), 1)


@check("G2")
def no_early_notification(rigs: Rigs) -> None:
    """Offered and kicked a request before DRIVER_OK and looked for a notification of the queue."""
    rig = rigs()
    rig.prepare()
    _offer(rig)
    equal("the number of notifications before DRIVER_OK", rig.interrupts_for(INFLATEQ), 0)


def _break(rig: Rig) -> None:
    """An available index that runs ahead of the ring."""
    raw = rig.raw()
    raw.available_index(raw.size + 1)
    raw.kick()


@check("G3")
def an_error_needs_a_reset(rigs: Rigs) -> None:
    """Let the available index jump ahead of the queue: the status shows DEVICE_NEEDS_RESET until a reset."""
    rig = rigs.started()
    _break(rig)
    holds("DEVICE_NEEDS_RESET is set", rig.driver.needs_reset)
    rig.start()
    equal("the device status after a reset", rig.driver.status & ~Status.FEATURES_OK, ALIVE)


@check("G4")
def an_error_is_notified(rigs: Rigs) -> None:
    """Broke the ring with DRIVER_OK set and counted configuration change notifications."""
    rig = rigs.started()
    _break(rig)
    equal("the number of configuration change notifications", rig.driver.take_interrupts().config, 1)


@check("G5")
def features_come_with_their_requirements(rigs: Rigs) -> None:
    """Read the features of a device that offers everything, the usual, and the usual with one more or less, and looked
    for what each requires."""
    for properties in (EVERY_PROPERTY, "", "packed=on", "in_order=on", "queue_reset=off", "notification-data=on"):
        offered = rigs(properties).offered
        for bit, needed in REQUIRES.items():
            for other in needed:
                if offered >> bit & 1:
                    holds(f"with feature {bit} feature {other} is offered", offered >> other & 1)


@check("G6")
def valid_subsets_are_accepted(rigs: Rigs) -> None:
    """Negotiated all features, none but VERSION_1, all but each one and each two, and each one and each two alone; and
    went all the way to DRIVER_OK without each one."""
    rig = rigs(EVERY_PROPERTY)
    offered = rig.offered & rig.driver.supported
    single = [1 << bit for bit in range(64) if offered >> bit & 1 and 1 << bit != VERSION_1]
    for wanted in (offered, VERSION_1, *(offered & ~bit for bit in single)):
        rig.driver.start(wanted)
        equal("the features read back", rig.transport.read_driver_features(), wanted)
        holds("FEATURES_OK stays set", Status.FEATURES_OK in rig.driver.status)
    for one, other in combinations_with_replacement(single, 2):
        for wanted in (offered & ~(one | other), VERSION_1 | one | other):
            rig.driver.reset()
            rig.driver.acknowledge()
            rig.driver.negotiate(wanted)


@check("G7")
def invalid_sets_are_refused(rigs: Rigs) -> None:
    """Accepted each feature that was not offered: FEATURES_OK must not stay set."""
    rig = rigs()
    offered = rig.offered
    for bit in range(64):
        if not offered >> bit & 1:
            rig.driver.reset()
            rig.driver.acknowledge()
            try:
                rig.driver.negotiate(offered & rig.driver.supported | 1 << bit)
            except FeaturesRefused:
                continue
            holds(f"FEATURES_OK is refused with feature {bit}, which was not offered", False)


@check("G8")
def only_known_features_are_offered(rigs: Rigs) -> None:
    """Compared everything a device with all properties offers with what the specification describes for a balloon."""
    offered = rigs(EVERY_PROPERTY).offered
    known = set(spec.FEATURE_NAMES) | set(spec.BALLOON_FEATURE_NAMES)
    known -= {spec.VIRTIO_F_SR_IOV, spec.VIRTIO_F_ADMIN_VQ, spec.VIRTIO_F_UNUSED}
    for bit in range(64):
        if offered >> bit & 1:
            holds(f"feature {bit} is described for this device", bit in known)


@check("G9")
def a_set_is_accepted_again(rigs: Rigs) -> None:
    """Negotiated the same features three times, with a reset between."""
    rig = rigs()
    for _ in range(3):
        rig.driver.start(rig.offered & rig.driver.supported)


@check("G10")
def status_is_zero_after_a_reset(rigs: Rigs) -> None:
    """Reset at every stage of the initialisation and after it, and read the status."""
    rig = rigs()
    for stage in (rig.driver.acknowledge, rig.prepare, rig.start):
        stage()
        rig.transport.write_status(0)
        equal("the device status after a reset", rig.transport.read_status(), 0)


def _after_a_reset(rig: Rig) -> None:
    """What could make a device speak that has forgotten nothing."""
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes(rig.filled())])
    for queue in rig.driver.queues.values():
        queue.publish()
    rig.transport.write_status(0)
    rig.driver.take_interrupts()
    for index in (INFLATEQ, DEFLATEQ, STATSQ):
        rig.transport.notify(index)
    rig.set_target(77)
    rig.request_stats()
    rig.advance(10**9)


@check("G11")
def silence_after_a_reset(rigs: Rigs) -> None:
    """Reset a device with work waiting and a statistics buffer held, then kicked, changed the target and asked; then
    initialised it again, with nothing in the new queues."""
    rig = rigs.started()
    rig.driver.post_stats({"stat-free-memory": 1})
    rig.driver.take_interrupts()
    _after_a_reset(rig)
    equal("the interrupts after the reset", tuple(rig.driver.take_interrupts()), ({}, 0))
    rig.driver.start(rig.offered & rig.driver.supported)
    rig.request_stats()
    equal("the interrupts for what was there before the reset", tuple(rig.driver.take_interrupts()), ({}, 0))


@check("G12")
def queues_are_left_alone_after_a_reset(rigs: Rigs) -> None:
    """The same, comparing all of RAM before and after; once initialised again the device uses nothing but what it is
    given."""
    rig = rigs.started()
    rig.driver.post_stats({"stat-free-memory": 1})
    rig.driver.offer(INFLATEQ, readable=[pfn_bytes(rig.filled())])
    rig.driver.queues[INFLATEQ].publish()
    rig.transport.write_status(0)

    def provoke() -> None:
        for index in (INFLATEQ, DEFLATEQ, STATSQ):
            rig.transport.notify(index)
        rig.request_stats()
        rig.advance(10**9)

    equal("the addresses changed after the reset", rig.changed_by(provoke), [])
    rig.start()
    rig.request_stats()
    equal("the number of statistics buffers that came back of none", len(rig.driver.collect(STATSQ)), 0)
    equal("the number of requests that came back of none", len(rig.driver.collect(INFLATEQ)), 0)
    equal("the number of requests that came back of one", len(rig.inflate(*rig.filled())), 1)


@check("G13")
def configuration_is_readable_early(rigs: Rigs) -> None:
    """Read num_pages and actual before the driver had said anything."""
    rig = rigs()
    rig.set_target(0x304)
    equal("the device status", rig.transport.read_status(), 0)
    equal("num_pages", rig.transport.read_config(NUM_PAGES, 4), 0x304)
    equal("actual", rig.transport.read_config(ACTUAL, 4), 0)


@check("G14")
def optional_fields_are_readable_early(rigs: Rigs) -> None:
    """Read free_page_hint_cmd_id and poison_val of a device that offers both, before the driver had said anything."""
    rig = rigs("free-page-hint=on,page-poison=on")
    equal("the device status", rig.transport.read_status(), 0)
    equal("free_page_hint_cmd_id", rig.transport.read_config(HINT_CMD_ID, 4), 0)
    equal("poison_val", rig.transport.read_config(POISON_VAL, 4), 0)
    rig.start()
    rig.start_hinting()
    before = rig.transport.read_config(HINT_CMD_ID, 4)
    holds("the command id of a round is there", before >= 2)


@check("G19")
def the_suspend_bit_is_ignored(rigs: Rigs) -> None:
    """Set the SUSPEND bit at every stage: it reads back as 0 and changes nothing."""
    rig = rigs()
    offered = bool(rig.offered >> spec.VIRTIO_F_SUSPEND & 1)
    for stage in (rig.driver.reset, rig.driver.acknowledge, rig.start):
        stage()
        before = rig.transport.read_status()
        if offered and before & Status.DRIVER_OK:
            break
        rig.transport.write_status(before | Status.SUSPEND)
        equal("the device status after setting SUSPEND", rig.transport.read_status(), before)
    rig.start()
    equal("the number of buffers used", len(rig.inflate(*rig.filled())), 1)


@check("G20")
def version_1_is_offered(rigs: Rigs) -> None:
    """Read the features."""
    holds("VIRTIO_F_VERSION_1 is offered", rigs().offered & VERSION_1)


@check("G21")
def without_version_1(rigs: Rigs) -> None:
    """Accepted everything but VERSION_1: the device either refuses or works."""
    rig = rigs()
    try:
        rig.driver.start(rig.offered & rig.driver.supported & ~VERSION_1)
    except FeaturesRefused:
        holds("FEATURES_OK is not set", Status.FEATURES_OK not in rig.driver.status)
        return
    equal("the number of buffers used", len(rig.inflate(*rig.filled())), 1)


@check("G22")
def addresses_are_physical(rigs: Rigs) -> None:
    """Named a page by its physical address and saw just that page given up; ACCESS_PLATFORM is not offered."""
    rig = rigs.started()
    holds("ACCESS_PLATFORM is not offered", not rig.offered >> spec.VIRTIO_F_ACCESS_PLATFORM & 1)
    mine, other = rig.filled(2)
    rig.inflate(mine)
    holds("the page named is given up", rig.are_given([mine]))
    holds("its neighbour is not", rig.are_kept([other]))


@check("G24")
def order_platform(rigs: Rigs) -> None:
    """Did not accept ORDER_PLATFORM: the device either refuses FEATURES_OK or works."""
    rig = rigs()
    applies("VIRTIO_F_ORDER_PLATFORM is not offered", rig.offered >> spec.VIRTIO_F_ORDER_PLATFORM & 1)
    try:
        rig.start(without=1 << spec.VIRTIO_F_ORDER_PLATFORM)
    except FeaturesRefused:
        return
    equal("the number of buffers used", len(rig.inflate(*rig.filled())), 1)


@check("G25")
def no_virtual_functions(rigs: Rigs) -> None:
    """Read the features: SR_IOV is not offered, since no such capability is there."""
    holds("SR_IOV is not offered", not rigs().offered >> spec.VIRTIO_F_SR_IOV & 1)


@check("G26")
def legacy_drivers_are_recognised(rigs: Rigs) -> None:
    """Drove the device on a big-endian processor: a driver with VERSION_1 finds all little-endian and FEATURES_OK kept,
    one over the legacy interface needs no FEATURES_OK and finds its own byte order."""
    rig = rigs.started(processor=">")
    equal("whether VERSION_1 was acknowledged", bool(rig.driver.features & VERSION_1), not rig.driver.is_legacy)
    equal("whether FEATURES_OK is shown", Status.FEATURES_OK in rig.driver.status, not rig.driver.is_legacy)
    pfns = rig.filled(2)
    equal("the number of buffers used", len(rig.inflate(*pfns)), 1)
    holds("the pages are given up", rig.are_given(pfns))


@check("G27")
def no_shared_memory(rigs: Rigs) -> None:
    """Looked for shared memory regions of every id: there is none that could control or carry anything."""
    rig = rigs()
    if isinstance(rig.transport, MmioTransport):
        for region in range(256 if rig.transport.VERSION > 1 else 0):
            rig.mmio.write("SHMSel", region)
            length = rig.mmio.read("SHMLenLow"), rig.mmio.read("SHMLenHigh")
            equal(f"the length of region {region}", length, (0xFFFF_FFFF, 0xFFFF_FFFF))
    else:
        regions = [each for each in virtio_capabilities(rig.function) if each.cfg_type == SHARED_MEMORY]
        equal("the number of shared memory regions", len(regions), 0)


@check("G28")
def configuration_may_come_first(rigs: Rigs) -> None:
    """Wrote `actual` before reading the features: it reads back, and the initialisation goes on as if nothing was."""
    rig = rigs()
    rig.driver.reset()
    rig.driver.acknowledge()
    rig.driver.actual = 0x01020304
    equal("actual", rig.driver.actual, 0x01020304)
    rig.driver.negotiate(rig.offered & rig.driver.supported)
    rig.driver.set_up_queues()
    rig.driver.driver_ok()
    equal("the number of buffers used", len(rig.inflate(*rig.filled())), 1)


@check("G29")
def use_may_come_first(rigs: Rigs) -> None:
    """Kicked a request before DRIVER_OK, then set it and sent another: both come back, each with its notification."""
    rig = rigs()
    rig.prepare()
    for is_ready in (False, True):
        if is_ready:
            rig.driver.driver_ok()
        pfns = rig.filled()
        equal("the number of buffers used", len(rig.inflate(*pfns)), 1)
        holds("the page is given up", rig.are_given(pfns))
        equal("the number of notifications", rig.interrupts_for(INFLATEQ), 1)
