"""Virtio over PCI: notification, ISR status and the other structures (§4.1.4.4 to §4.1.4.9)."""

from __future__ import annotations

from devices.virtio import spec
from devices.virtio.spec import Status
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
from vmm.testing.balloon import INFLATEQ, pfn_bytes
from vmm.testing.pci import COMMAND_INTX_DISABLE, STATUS, STATUS_INTERRUPT
from vmm.testing.virtio_pci import Capability

# -- §4.1.4.4 notification ---------------------------------------------------------------------------------------------


@check("C27")
def notifycheck_presence(rigs: Rigs) -> None:
    """Looked for the capability, and whether its BAR holds what it names."""
    check_presence(NOTIFY, rigs)


@check("C28")
def notify_alignment(rigs: Rigs) -> None:
    """Read the offset of every notification capability."""
    check_alignment(NOTIFY, 2, rigs)


@check("C29")
def notify_multiplier(rigs: Rigs) -> None:
    """Read notify_off_multiplier."""
    for capability in structures(rigs(), NOTIFY):
        value = capability.multiplier
        good = value == 0 or (value.bit_count() == 1 and value > 1)
        holds(f"notify_off_multiplier {value} is 0 or an even power of two", good)


@check("C30")
def notify_length(rigs: Rigs) -> None:
    """Read the length of every notification capability."""
    for capability in structures(rigs(), NOTIFY):
        holds(f"the length {capability.length} is at least 2", capability.length >= 2)


def _room_for(rigs: Rigs, width: int, properties: str = "") -> None:
    rig = rigs(properties)
    for capability in structures(rig, NOTIFY):
        for index in range(rig.transport.num_queues):
            end = field_of_queue(rig, index, "queue_notify_off") * capability.multiplier + width
            holds(f"the length {capability.length} covers {end} bytes for queue {index}", capability.length >= end)


@check("C31")
def notify_room(rigs: Rigs) -> None:
    """Computed every queue's place from queue_notify_off and the multiplier."""
    _room_for(rigs, 2, "deflate-on-oom=on,free-page-reporting=on")


NOTIFICATION_DATA = "notification-data=on"


@check("C32")
def data_multiplier(rigs: Rigs) -> None:
    """Read notify_off_multiplier of a device that offers NOTIFICATION_DATA."""
    for capability in structures(rigs(NOTIFICATION_DATA), NOTIFY):
        value = capability.multiplier
        good = value == 0 or (value.bit_count() == 1 and value % 4 == 0)
        holds(f"notify_off_multiplier {value} is 0 or a power of two and a multiple of 4", good)


@check("C33")
def data_alignment(rigs: Rigs) -> None:
    """Read the offset of every notification capability of a device that offers NOTIFICATION_DATA."""
    check_alignment(NOTIFY, 4, rigs, NOTIFICATION_DATA)


@check("C34")
def data_length(rigs: Rigs) -> None:
    """Read the length of every notification capability of a device that offers NOTIFICATION_DATA, and used it."""
    rig = rigs.started(NOTIFICATION_DATA)
    for capability in structures(rig, NOTIFY):
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
def isrcheck_presence(rigs: Rigs) -> None:
    """Looked for the capability, and whether its BAR holds what it names."""
    check_presence(ISR, rigs)


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
    holds("there is a device-specific configuration", structures(rig, DEVICE))
    for capability in structures(rig, DEVICE):
        equal("the offset modulo 4", capability.offset % 4, 0)


def _having(rigs: Rigs, cfg_type: int, what: str) -> Rig:
    """A rig whose device has structures of a type: else the statement does not apply."""
    rig = rigs()
    applies(f"the balloon has no {what}", structures(rig, cfg_type))
    return rig


@check("C43")
def shared_memory_inside(rigs: Rigs) -> None:
    """Compared the end of each shared memory region with the size of its BAR."""
    rig = _having(rigs, SHARED_MEMORY, "shared memory region")
    sizes = {bar.number: bar.size for bar in rig.pci.function.bars()}
    for capability in structures(rig, SHARED_MEMORY):
        holds("the region lies in its BAR", capability.offset + capability.length <= sizes.get(capability.bar, 0))


@check("C44")
def shared_memory_ids(rigs: Rigs) -> None:
    """Looked for shared memory regions with the same id."""
    ids = [
        capability.id for capability in structures(_having(rigs, SHARED_MEMORY, "shared memory region"), SHARED_MEMORY)
    ]
    equal("the number of different ids", len(set(ids)), len(ids))


VENDOR_DATA = "vendor data capability"


def _vendor_ids(rig: Rig) -> list[int]:
    return [rig.pci.function.read(capability.position + 4, 2) for capability in structures(rig, VENDOR)]


@check("C45")
def vendor_data(rigs: Rigs) -> None:
    """Went through the vendor data capabilities of the list: a driver that knows none of them works."""
    rig = _having(rigs, VENDOR, VENDOR_DATA)
    rig.start()
    equal("the number of buffers used", len(rig.inflate(*rig.filled())), 1)


@check("C46")
def vendor_data_is_not_virtios(rigs: Rigs) -> None:
    """Read vendor_id of every vendor data capability."""
    vendors = _vendor_ids(_having(rigs, VENDOR, VENDOR_DATA))
    holds("no vendor_id is 1AF4h", spec.VIRTIO_PCI_VENDOR_ID not in vendors)


@check("C47")
def vendor_data_length(rigs: Rigs) -> None:
    """Read cap_len of every vendor data capability."""
    for capability in structures(_having(rigs, VENDOR, VENDOR_DATA), VENDOR):
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
def windowcheck_presence(rigs: Rigs) -> None:
    """Looked for the capability."""
    check_presence(WINDOW, rigs)


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
