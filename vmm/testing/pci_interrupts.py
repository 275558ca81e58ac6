"""How interrupts of a virtio PCI function reach its driver: MSI-X messages, or the INTx line with the ISR status.

Owns the vectors and what arrived.  Refuses to know where the registers are through which a vector is mapped and the ISR
is read: that is each interface's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal

from devices.virtio import spec
from vmm.testing.pci import INTERRUPT_PIN, Function, Msix
from vmm.testing.protocols import ANY_QUEUE, Interrupts

MESSAGE_WINDOW = 0xFEE0_0000
CONFIG_VECTOR = 0

Kind = Literal["msix", "intx", "none"]


class PciInterrupts:
    """The interrupts of `function`, which come as `kind` says.  LookupError where it has no MSI-X and should."""

    def __init__(self, function: Function, msix: Msix | None, kind: Kind) -> None:
        self.function = function
        self.msix = msix
        self.kind = kind
        self._arrived: Counter[int] = Counter()
        if kind == "msix":
            self._point_vectors()

    def _point_vectors(self) -> None:
        if self.msix is None:
            raise LookupError(f"{self.function.name} has no MSI-X capability")
        address = MESSAGE_WINDOW | self.function.slot << 12
        self.function.bus.listen(address, self._message)
        for vector in range(self.msix.table_size):
            self.msix.point(vector, address, vector)
        self.msix.enable()

    def _message(self, data: int) -> None:
        self._arrived[data] += 1

    def queue_vector(self, index: int) -> int:
        """The vector of a queue: one each as far as the table reaches, the rest share the last."""
        assert self.msix is not None
        return min(1 + index, self.msix.table_size - 1)

    @property
    def line_name(self) -> str:
        """The name of this function's interrupt line on the board."""
        return f"{self.function.name} INT{' ABCD'[self.function.read(INTERRUPT_PIN, 1)]}"

    def take(self, num_queues: int, read_isr: Callable[[], int]) -> Interrupts:
        """What arrived since the last call.  Over INTx the ISR is read only while the line is asserted."""
        if self.kind == "msix":
            return self._take_messages(num_queues)
        if self.kind == "intx" and self.function.bus.line_level(self.line_name):
            isr = read_isr()
            queues = {ANY_QUEUE: 1} if isr & spec.VIRTIO_PCI_ISR_QUEUE else {}
            return Interrupts(queues, int(bool(isr & spec.VIRTIO_PCI_ISR_CONFIG)))
        return Interrupts({}, 0)

    def _take_messages(self, num_queues: int) -> Interrupts:
        assert self.msix is not None
        arrived, self._arrived = self._arrived, Counter()
        config = arrived.pop(CONFIG_VECTOR, 0)
        used: Counter[int] = Counter()
        for vector, count in arrived.items():
            shared = vector == self.msix.table_size - 1 < num_queues
            used[ANY_QUEUE if shared else vector - 1] += count
        return Interrupts(dict(used), config)
