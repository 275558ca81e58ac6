"""What every virtio function on PCI has, whichever interface it shows (virtio 1.3 §4.1).

Owns the device behind the function, the ISR status, which MSI-X vector an event has, and bus mastering.  Refuses to
know the registers through which a driver reaches them: `pci_modern` and `pci_legacy` have those, and a transitional
function has both over this one state.

Invariant: after a reset of the device nothing is left of the old driver: no vector, no pending message, no ISR bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from devices.effects import NOTHING, Effects
from devices.pci.config import COMMAND_BUS_MASTER, Bar, Capability, Identity
from devices.pci.function import PciFunction
from devices.pci.msix import MsixTable
from devices.state import FLAG, PART, Many, Table, uint
from devices.virtio import spec
from devices.virtio.device import Notifications, VirtioDevice
from devices.virtio.transport.pci_layout import MSIX_BAR


class VirtioPciFunction(PciFunction):
    """`device` as a PCI function in `slot` of bus 0, with an MSI-X vector for each queue and one for its configuration.

    `bars` and `capabilities` are those of the interface that a subclass shows."""

    STATE: ClassVar[Table] = {
        **PciFunction.STATE,
        "device": PART,
        "_dma_enabled": FLAG,
        "config_msix_vector": uint(16),
        "queue_vectors": Many(uint(16)),
        "isr_status": uint(8),
    }

    def __init__(
        self,
        device: VirtioDevice,
        slot: int,
        identity: Identity,
        *,
        bars: Sequence[Bar],
        capabilities: Sequence[Capability] = (),
    ) -> None:
        self.table = MsixTable(len(device.queues) + 1, MSIX_BAR)
        super().__init__(
            slot, device.name, identity, bars=bars, capabilities=capabilities, msix=self.table, interrupt_pin=1
        )
        self.device = device
        self._dma_enabled = False
        device.set_dma_enabled(False, 0)
        self._forget_driver()

    def _forget_driver(self) -> None:
        self.config_msix_vector = spec.VIRTIO_MSI_NO_VECTOR
        self.queue_vectors = [spec.VIRTIO_MSI_NO_VECTOR] * len(self.device.queues)
        self.isr_status = 0
        self.table.forget_pending()

    # -- what the machine calls ----------------------------------------------------------------------------------------

    def signal(self, notifications: Notifications) -> Effects:
        """What a notification of the driver takes on this transport (§4.1.5.3, §4.1.5.4).

        Events that share a vector make one message."""
        queues, config, deadline, events = notifications
        if config:
            self.isr_status |= spec.VIRTIO_PCI_ISR_CONFIG  # §4.1.4.5.1: whether or not MSI-X is enabled
        effects = Effects(deadline=deadline, events=events) if deadline or events else NOTHING
        if self.table.enabled:
            vectors = [self.queue_vectors[queue] for queue in queues]
            if config:
                vectors.append(self.config_msix_vector)
            for vector in vectors if len(vectors) < 2 else dict.fromkeys(vectors):
                effects |= self.table.notify(vector)  # NO_VECTOR is none of its vectors
        elif queues:
            self.isr_status |= spec.VIRTIO_PCI_ISR_QUEUE
        return effects | self.request_interrupt(self.isr_status != 0)

    def next_deadline_ns(self) -> int | None:
        """The device's next deadline in absolute guest time."""
        return self.device.next_deadline_ns()

    def advance(self, now_ns: int) -> Effects:
        """Let the device do what is due."""
        return self.signal(self.device.advance(now_ns))

    def reset(self) -> Effects:
        """Reset the function and the device behind it."""
        self.device.reset()
        self._dma_enabled = False
        self.device.set_dma_enabled(False, 0)
        self._forget_driver()
        return super().reset() | Effects(deadline=True)

    def command_changed(self, now_ns: int) -> Effects:
        """Without bus mastering the device touches no memory (PCI 3.0 §6.2.2)."""
        if self.bus_master == self._dma_enabled:
            return NOTHING
        self._dma_enabled = self.bus_master
        return self.signal(self.device.set_dma_enabled(self.bus_master, now_ns))

    # -- what the interfaces share -------------------------------------------------------------------------------------

    def set_status(self, value: int, now_ns: int) -> Effects:
        """§2.1: the driver writes the device status. 0 resets the device and forgets the driver here."""
        notifications = self.device.write_status(value, now_ns)
        if value == 0:
            self._forget_driver()
        return self.signal(notifications)

    def enable_bus_master(self, now_ns: int) -> Effects:
        """As if the driver had done it."""
        if self.bus_master:
            return NOTHING
        command = self.config.field("command")
        return self.write_config(command.offset, command.size, self.config["command"] | COMMAND_BUS_MASTER, now_ns)

    def read_isr_status(self, now_ns: int) -> tuple[int, Effects]:
        """§4.1.4.5: reading clears it and takes the interrupt back."""
        value, self.isr_status = self.isr_status, 0
        return value, self.request_interrupt(False)

    def write_config_msix_vector(self, value: int, now_ns: int) -> Effects:
        self.config_msix_vector = self.valid_vector(value)
        return NOTHING

    def valid_vector(self, value: int) -> int:
        """§4.1.5.1.2.1: a vector that cannot be mapped reads back as NO_VECTOR."""
        return value if value < self.table.vectors else spec.VIRTIO_MSI_NO_VECTOR
