"""The driver's half of a virtqueue (§2.6): what both ring formats have in common, and the split ring (§2.7).

`Queue` owns buffers: the memory of their pieces, which are in flight, what came back.  `SplitQueue` owns the split
ring's memory and free descriptors; `vmm.testing.packed_ring` has the packed one.  They refuse to know how the device is
reached: `must_notify` says whether a kick is due, somebody else sends it.  They also watch the device: a buffer
returned that was not offered, a used index that runs ahead or backwards, more bytes "written" than there was room for,
or flags that the specification does not know raise DeviceViolation.

Invariant: every descriptor is either free or part of exactly one buffer in flight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from devices.virtio import spec
from vmm.testing.layout import DESCRIPTOR_BYTES, PackedLayout, Piece, RingLayout, chain, indirect_table
from vmm.testing.pages import PAGE_BYTES
from vmm.testing.protocols import Memory, PageSource

Readable = bytes | tuple[int, int]
Writable = int | tuple[int, int]
Layout = TypeVar("Layout", RingLayout, PackedLayout)


class DeviceViolation(AssertionError):
    """The device did what the specification forbids it; the message says what, and the section."""


class RingFull(RuntimeError):
    """There are not enough free descriptors for the buffer."""


@dataclass(frozen=True, slots=True)
class Used:
    """One buffer that came back: its head (the buffer id in a packed ring), the bytes the device says it wrote, and
    those bytes.

    `data` holds the first `length` bytes of the device-writable pieces, in order (§2.7.8.3 forbids to look further)."""

    head: int
    length: int
    data: bytes


@dataclass(slots=True)
class InFlight:
    """A buffer that was offered: the descriptors it occupies, its pieces, and the (gpa, pages) to give back."""

    slots: list[int]
    pieces: list[Piece]
    owned: list[tuple[int, int]] = field(default_factory=list)


class Queue(ABC, Generic[Layout]):
    """One queue of `size` descriptors with its rings in freshly taken, zeroed pages.

    `event_idx`, `indirect` and `in_order` say which features were negotiated; `legacy_align` is the alignment of a
    legacy queue (§2.7.2), 0 for a modern one; `order` is the byte order of the driver's processor, which such a queue
    is in (§2.7.3)."""

    layout: Layout
    section: str
    """Where the specification says what the device may return."""

    def __init__(
        self,
        memory: Memory,
        pages: PageSource,
        index: int,
        size: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
        legacy_align: int = 0,
        order: spec.ByteOrder = "<",
    ) -> None:
        self.memory = memory
        self.pages = pages
        self.index = index
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.in_order = in_order
        self.legacy_align = legacy_align
        self.order = order
        self._byteorder: Literal["little", "big"] = "little" if order == "<" else "big"
        self.suppressed = False
        self.ring_pages = -(-self.bytes_needed() // PAGE_BYTES)
        self.ring_gpa = pages.take(self.ring_pages)
        memory.write(self.ring_gpa, bytes(self.ring_pages * PAGE_BYTES))
        self._in_flight: dict[int, InFlight] = {}  # in the order in which they were offered

    @abstractmethod
    def bytes_needed(self) -> int:
        """Bytes of memory for all three parts."""

    # -- offering ------------------------------------------------------------------------------------------------------

    def offer(
        self, readable: Sequence[Readable] = (), writable: Sequence[Writable] = (), *, indirect: bool | None = None
    ) -> int:
        """Place one buffer in the ring, not yet visible; its head, or in a packed ring its buffer id, is returned.

        A readable piece is bytes (copied to pages of their own) or (gpa, length); a writable piece is a length or
        (gpa, length).  `indirect` puts the pieces into a table of their own, by default where it was negotiated and
        there is more than one.  RingFull, and nothing changed, when the descriptors do not suffice."""
        count = len(readable) + len(writable)
        if count == 0:
            raise ValueError("a buffer must have at least one element (§2.7.13.1)")
        use_table = (self.indirect and count > 1) if indirect is None else indirect
        if (1 if use_table else count) > self.free_descriptors:
            raise RingFull(f"queue {self.index}: {count} descriptors wanted, {self.free_descriptors} free")
        owned: list[tuple[int, int]] = []
        pieces = [self._readable(item, owned) for item in readable] + [self._writable(item, owned) for item in writable]
        if not use_table:
            return self._place(pieces, 0, InFlight([], pieces, owned))
        table = self._table(pieces)
        gpa = self._take(len(table), owned)
        self.memory.write(gpa, table)
        return self._place([Piece(gpa, len(table))], spec.VIRTQ_DESC_F_INDIRECT, InFlight([], pieces, owned))

    @abstractmethod
    def _table(self, pieces: list[Piece]) -> bytes:
        """An indirect table of the pieces."""

    @abstractmethod
    def _place(self, pieces: list[Piece], flags: int, buffer: InFlight) -> int:
        """Write descriptors for `pieces`, `flags` being set in the first, note which they are, and name the buffer."""

    def _readable(self, item: Readable, owned: list[tuple[int, int]]) -> Piece:
        if isinstance(item, tuple):
            return Piece(*item)
        gpa = self._take(len(item), owned)
        self.memory.write(gpa, item)
        return Piece(gpa, len(item))

    def _writable(self, item: Writable, owned: list[tuple[int, int]]) -> Piece:
        if isinstance(item, tuple):
            return Piece(*item, writable=True)
        return Piece(self._take(item, owned), item, writable=True)

    def _take(self, length: int, owned: list[tuple[int, int]]) -> int:
        count = max(1, -(-length // PAGE_BYTES))
        gpa = self.pages.take(count)
        owned.append((gpa, count))
        return gpa

    @abstractmethod
    def publish(self) -> None:
        """Let the device see everything offered so far."""

    @abstractmethod
    def must_notify(self) -> bool:
        """Whether what was published since the last call asks for a notification."""

    @abstractmethod
    def notification_data(self) -> int:
        """The upper 16 bits of a notification's data (§2.9): where the driver goes on."""

    # -- collecting ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def collect(self) -> list[Used]:
        """Take back every buffer that the device has used since the last call, in the device's order.

        Asks for a notification about the next one, unless `suppress_notifications` was called."""

    def _batch(self, head: int) -> list[int]:
        """The buffers that one used entry for `head` stands for: with IN_ORDER all up to it (§2.7.9, §2.8.8)."""
        if head not in self._in_flight:
            raise DeviceViolation(f"queue {self.index}: head {head} was returned but is not in flight ({self.section})")
        if not self.in_order:
            return [head]
        offered = list(self._in_flight)
        return offered[: offered.index(head) + 1]

    def _take_back(self, head: int, length: int | None) -> Used:
        """One buffer has come back; without a length it was skipped, which stands for used completely."""
        buffer = self._in_flight.pop(head)
        writable = [piece for piece in buffer.pieces if piece.writable]
        room = sum(piece.length for piece in writable)
        length = room if length is None else length
        if length > room:
            text = f"{length} bytes written to head {head}, more than fit"
            raise DeviceViolation(f"queue {self.index}: {text} ({self.section})")
        data = b"".join(self.memory.read(piece.gpa, min(piece.length, length)) for piece in writable)[:length]
        self._free_slots(head, buffer.slots)
        for gpa, count in buffer.owned:
            self.pages.give(gpa, count)
        return Used(head, length, data)

    @abstractmethod
    def _free_slots(self, head: int, slots: list[int]) -> None:
        """The descriptors of a buffer are free again, and so is its name."""

    # -- notifications -------------------------------------------------------------------------------------------------

    @abstractmethod
    def suppress_notifications(self) -> None:
        """Advise the device that used-buffer notifications are not needed."""

    @abstractmethod
    def want_notifications(self, after: int = 0) -> None:
        """Ask to be notified when `after` more buffers than the next one have been used.

        `after` needs VIRTIO_F_EVENT_IDX, and holds until the next `collect`."""

    def _check_after(self, after: int) -> None:
        if after and not self.event_idx:
            raise ValueError("only VIRTIO_F_EVENT_IDX lets the driver say how many buffers may pass")

    def release(self) -> None:
        """Give every page back, those of buffers in flight too: only after a reset (§2.4.2, §2.6.1)."""
        for buffer in self._in_flight.values():
            for gpa, count in buffer.owned:
                self.pages.give(gpa, count)
        self._in_flight.clear()
        self.pages.give(self.ring_gpa, self.ring_pages)

    # -- seen from outside ---------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> tuple[int, ...]:
        """The heads that were offered and have not come back, in no particular order."""
        return tuple(self._in_flight)

    @property
    @abstractmethod
    def free_descriptors(self) -> int:
        """How many descriptors are free."""

    def table_bytes(self) -> bytes:
        """The descriptor table, or the ring of descriptors, as it lies in memory."""
        return self.memory.read(self.layout.desc_gpa, DESCRIPTOR_BYTES * self.size)

    def _get16(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), self._byteorder)

    def _put16(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, (value % 2**16).to_bytes(2, self._byteorder))


class SplitQueue(Queue[RingLayout]):
    """A split queue; `size` is a power of two."""

    section = "§2.7.8"

    def __init__(
        self,
        memory: Memory,
        pages: PageSource,
        index: int,
        size: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
        legacy_align: int = 0,
        order: spec.ByteOrder = "<",
    ) -> None:
        features = {"event_idx": event_idx, "indirect": indirect, "in_order": in_order}
        super().__init__(memory, pages, index, size, **features, legacy_align=legacy_align, order=order)
        self.layout = RingLayout.at(self.ring_gpa, size, legacy_align)
        self.avail_idx = 0  # free-running, as the driver counts
        self.published_idx = 0  # what the device can see
        self.kicked_idx = 0  # published_idx when `must_notify` was last asked
        self.last_used_idx = 0
        self._free = list(range(size))  # with IN_ORDER this stays the order of the table (§2.7.9)

    def bytes_needed(self) -> int:
        return RingLayout.bytes_needed(self.size, self.legacy_align)

    def _table(self, pieces: list[Piece]) -> bytes:
        return indirect_table(pieces, self.order)

    def _place(self, pieces: list[Piece], flags: int, buffer: InFlight) -> int:
        buffer.slots = [self._free.pop(0) for _ in pieces]
        head = buffer.slots[0]
        for slot, entry in chain(pieces, buffer.slots).items():
            entry = entry._replace(flags=entry.flags | (flags if slot == head else 0))
            self.memory.write(self.layout.descriptor(slot), entry.pack(self.order))
        self._in_flight[head] = buffer
        self._put16(self.layout.avail_ring(self.avail_idx), head)
        self.avail_idx = (self.avail_idx + 1) % 2**16
        return head

    def _free_slots(self, head: int, slots: list[int]) -> None:
        self._free.extend(slots)

    @property
    def free_descriptors(self) -> int:
        return len(self._free)

    def publish(self) -> None:
        """§2.7.13.3."""
        self.published_idx = self.avail_idx
        self._put16(self.layout.avail_idx, self.avail_idx)

    def must_notify(self) -> bool:
        """§2.7.10.1."""
        old, self.kicked_idx = self.kicked_idx, self.published_idx
        if not self.event_idx:
            return self._get16(self.layout.used_flags) & spec.VIRTQ_USED_F_NO_NOTIFY == 0 and old != self.published_idx
        event = self._get16(self.layout.avail_event)
        return (self.published_idx - event - 1) % 2**16 < (self.published_idx - old) % 2**16

    def notification_data(self) -> int:
        return self.published_idx

    # -- collecting ----------------------------------------------------------------------------------------------------

    def collect(self) -> list[Used]:
        """§2.7.14."""
        self._check_flags()
        target = self._get16(self.layout.used_idx)
        count = (target - self.last_used_idx) % 2**16
        if count > len(self._in_flight):
            raise DeviceViolation(
                f"queue {self.index}: the used index went from {self.last_used_idx} to {target} "
                f"with {len(self._in_flight)} buffers in flight (§2.7.8)"
            )
        result: list[Used] = []
        while len(result) < count:
            result += self._collect_entry((self.last_used_idx + len(result)) % 2**16)
        if len(result) > count:
            raise DeviceViolation(f"queue {self.index}: an element stands for more than the index says (§2.7.9)")
        self.last_used_idx = target
        if self.event_idx and not self.suppressed:
            self._put16(self.layout.used_event, self.last_used_idx)
        return result

    def _collect_entry(self, position: int) -> list[Used]:
        entry = self.memory.read(self.layout.used_ring(position), 8)
        head, length = (int.from_bytes(part, self._byteorder) for part in (entry[:4], entry[4:]))
        *skipped, last = self._batch(head)
        return [*(self._take_back(each, None) for each in skipped), self._take_back(last, length)]

    def _check_flags(self) -> None:
        flags = self._get16(self.layout.used_flags)
        if flags not in ((0,) if self.event_idx else (0, spec.VIRTQ_USED_F_NO_NOTIFY)):
            raise DeviceViolation(f"queue {self.index}: the used ring's flags are {flags:#x} (§2.7.10.2)")

    # -- notifications -------------------------------------------------------------------------------------------------

    def suppress_notifications(self) -> None:
        """§2.7.7."""
        self.suppressed = True
        if self.event_idx:
            self._put16(self.layout.used_event, (self.last_used_idx - 1) % 2**16)
        else:
            self._put16(self.layout.avail_flags, spec.VIRTQ_AVAIL_F_NO_INTERRUPT)

    def want_notifications(self, after: int = 0) -> None:
        """§2.7.7.1."""
        self._check_after(after)
        self.suppressed = False
        if self.event_idx:
            self._put16(self.layout.used_event, (self.last_used_idx + after) % 2**16)
        else:
            self._put16(self.layout.avail_flags, 0)
