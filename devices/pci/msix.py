"""MSI-X (PCI 3.0 §6.8.2): the vector table, the pending bits and the capability that points at them.

Owns what each vector's message is, which are masked and which wait.  Refuses to know what a vector stands for and where
a message goes: it is a bus write to whatever address software has put into the table.

A vector that may not be sent now (masked, the whole function masked, or the function no bus master) is remembered in
its pending bit and sent by the very write that lifts the last obstacle.  While MSI-X is disabled nothing is sent and
nothing is remembered.

Software shall use aligned accesses of four or eight bytes; any other is defined here to reach exactly the bytes it
covers.  Bytes outside the table and the pending bits read as zero; the pending bits and those bytes ignore writes.
"""

from __future__ import annotations

from typing import ClassVar

from devices.effects import NOTHING, Effects, Message
from devices.pci.config import Bar, BarKind, Capability, Field
from devices.state import FLAG, Bytes, Stateful, Table, uint

CAPABILITY_ID = 0x11
MAX_VECTORS = 0x800
CONTROL_FUNCTION_MASK = 1 << 14
CONTROL_ENABLE = 1 << 15

# An entry as one number: address in bits 0 to 63, data in 64 to 95, vector control above with the mask as its lowest.
_ENTRY_BYTES = 16
_ENTRY_MASKED = 1 << 96
# The address is aligned to four bytes, and of the vector control only the mask exists.
_ENTRY_WRITABLE = (0xFFFFFFFF_FFFFFFFC | 0xFFFFFFFF << 64 | _ENTRY_MASKED).to_bytes(_ENTRY_BYTES, "little")
_ENTRY_AFTER_RESET = _ENTRY_MASKED.to_bytes(_ENTRY_BYTES, "little")


class MsixTable(Stateful):
    """`vectors` vectors in base address register `bar`, which holds the table at 0 and the pending bits half way up.

    ValueError unless there are 1 to 2048 vectors.
    """

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("enabled", "function_mask", "bus_master"), FLAG),
        "_entries": Bytes(),
        "_pending": uint(MAX_VECTORS),
    }

    def __init__(self, vectors: int, bar: int) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"the number of MSI-X vectors must be 1 to {MAX_VECTORS}, not {vectors}")
        self.vectors = vectors
        self.pba_offset = max(0x800, 1 << (_ENTRY_BYTES * vectors - 1).bit_length())
        self.bar = Bar(bar, 2 * self.pba_offset, BarKind.MEMORY32)
        self.reset()

    def reset(self) -> None:
        """All vectors masked and empty, nothing pending, MSI-X disabled."""
        self.enabled = False
        self.function_mask = False
        self.bus_master = False
        self._entries = bytearray(_ENTRY_AFTER_RESET * self.vectors)
        self._pending = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MsixTable) and vars(self) == vars(other)

    def capability(self) -> Capability:
        """The capability structure, §6.8.2.1 to §6.8.2.5."""
        control = Field(2, 2, "control", self.vectors - 1, CONTROL_ENABLE | CONTROL_FUNCTION_MASK)
        table = Field(4, 4, "table", self.bar.index)
        pba = Field(8, 4, "pba", self.pba_offset | self.bar.index)
        return Capability("msix", CAPABILITY_ID, 12, (control, table, pba))

    # -- what the device asks for ------------------------------------------------------------------------------------

    def notify(self, vector: int) -> Effects:
        """The message of `vector`, or nothing and its pending bit set.  A vector that does not exist is ignored."""
        if not self.enabled or not 0 <= vector < self.vectors:
            return NOTHING
        entry = self._entry(vector)
        if self._may_send(entry):
            return Effects(messages=(_message(entry),))
        self._pending |= 1 << vector
        return NOTHING

    def forget_pending(self) -> None:
        """Clear every pending bit: what the device wanted to say is no longer so (§6.8.3.5)."""
        self._pending = 0

    def is_pending(self, vector: int) -> bool:
        """Whether `vector` waits to be sent."""
        return bool(self._pending >> vector & 1)

    # -- what software does ------------------------------------------------------------------------------------------

    def configure(self, control: int, bus_master: bool) -> Effects:
        """Take over the message control word and bus mastering; sends what waited for either."""
        self.enabled = bool(control & CONTROL_ENABLE)
        self.function_mask = bool(control & CONTROL_FUNCTION_MASK)
        self.bus_master = bus_master
        return self._send_pending(range(self.vectors)) if self._pending else NOTHING

    def read(self, offset: int, size: int) -> int:
        """The little-endian value of `size` bytes at `offset` of the base address register's range."""
        return sum(self._byte(offset + i) << 8 * i for i in range(size))

    def write(self, offset: int, size: int, value: int) -> Effects:
        """Write the low `size` bytes of `value` at `offset`; sends what a vector unmasked by it had waiting."""
        end = min(offset + size, len(self._entries))
        for position in range(offset, end):
            writable = _ENTRY_WRITABLE[position % _ENTRY_BYTES]
            byte = value >> 8 * (position - offset) & 0xFF
            self._entries[position] = self._entries[position] & ~writable | byte & writable
        if not self._pending:
            return NOTHING
        return self._send_pending(range(offset // _ENTRY_BYTES, (end + _ENTRY_BYTES - 1) // _ENTRY_BYTES))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _byte(self, position: int) -> int:
        if position < len(self._entries):
            return self._entries[position]
        if self.pba_offset <= position:
            return self._pending >> 8 * (position - self.pba_offset) & 0xFF
        return 0

    def _entry(self, vector: int) -> int:
        return int.from_bytes(self._entries[_ENTRY_BYTES * vector : _ENTRY_BYTES * (vector + 1)], "little")

    def _may_send(self, entry: int) -> bool:
        return self.enabled and self.bus_master and not self.function_mask and not entry & _ENTRY_MASKED

    def _send_pending(self, candidates: range) -> Effects:
        messages = []
        for vector in candidates:
            if self.is_pending(vector) and self._may_send(entry := self._entry(vector)):
                self._pending &= ~(1 << vector)
                messages.append(_message(entry))
        return Effects(messages=tuple(messages)) if messages else NOTHING


def _message(entry: int) -> Message:
    return Message(entry & 0xFFFFFFFF_FFFFFFFF, entry >> 64 & 0xFFFFFFFF)
