"""The driver's half of a packed virtqueue (§2.8): one ring that both sides write.

Owns the ring's memory, the next free place and the next used one with their wrap counters, and the buffer ids.  What a
buffer is made of and who reaches the device is as in `vmm.testing.ring`.  It watches the device: a used descriptor that
names a buffer not in flight, or a length that does not fit, raises DeviceViolation.

A buffer's first descriptor gets its flags when it is published, after everything else of it (§2.8.6).
"""

from __future__ import annotations

from devices.virtio import spec
from vmm.testing.layout import PackedDescriptor, PackedLayout, Piece
from vmm.testing.protocols import Memory, PageSource
from vmm.testing.ring import InFlight, Queue, Used

AVAIL, USED = spec.VIRTQ_DESC_F_AVAIL, spec.VIRTQ_DESC_F_USED
NEXT, WRITE = spec.VIRTQ_DESC_F_NEXT, spec.VIRTQ_DESC_F_WRITE


class Place:
    """A place in a ring of `size` descriptors, and the wrap counter that goes with it (§2.8.1)."""

    def __init__(self, size: int, index: int = 0, wrap: int = 1) -> None:
        self.size = size
        self.index = index
        self.wrap = wrap

    def advance(self, count: int) -> None:
        """Go `count` descriptors on; the counter changes behind the last descriptor of the ring."""
        rounds, self.index = divmod(self.index + count, self.size)
        self.wrap ^= rounds & 1

    @property
    def position(self) -> int:
        """Descriptors since the first place with wrap counter 1, modulo two rounds."""
        return self.index + (0 if self.wrap else self.size)

    @property
    def off_wrap(self) -> int:
        """As an event suppression structure or a notification names it (§2.8.14, §2.9)."""
        return self.index | self.wrap << 15

    @property
    def available_flags(self) -> int:
        """How the driver marks a descriptor here as available."""
        return AVAIL if self.wrap else USED

    @property
    def used_flags(self) -> int:
        """How the device marks a descriptor here as used."""
        return AVAIL | USED if self.wrap else 0


class PackedQueue(Queue[PackedLayout]):
    """A packed queue; `size` is any number up to 32768."""

    section = "§2.8.12"

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
        self.layout = PackedLayout.at(self.ring_gpa, size)
        self.next_free = Place(size)
        self.next_used = Place(size)
        self.published = Place(size)  # the first place that the device cannot see
        self._kicked = 0  # where `published` stood when `must_notify` was last asked, as a position
        self._free_ids = list(range(size))
        self._free = size
        self._unpublished: list[tuple[int, int]] = []  # place and flags of first descriptors
        self.want_notifications()

    def bytes_needed(self) -> int:
        return PackedLayout.bytes_needed(self.size)

    # -- offering ------------------------------------------------------------------------------------------------------

    def _table(self, pieces: list[Piece]) -> bytes:
        """§2.8.7: of the flags only WRITE; the order is that of the table."""
        entries = [PackedDescriptor(piece.gpa, piece.length, 0, WRITE * piece.writable) for piece in pieces]
        return b"".join(entry.pack() for entry in entries)

    def _place(self, pieces: list[Piece], flags: int, buffer: InFlight) -> int:
        buffer_id = self._free_ids.pop(0)
        for number, piece in enumerate(pieces):
            marks = self.next_free.available_flags | WRITE * piece.writable
            marks |= flags if number == 0 else 0
            marks |= NEXT if number + 1 < len(pieces) else 0
            slot = self.next_free.index
            shown = marks if number else self._get16(self.layout.flags(slot))
            entry = PackedDescriptor(piece.gpa, piece.length, buffer_id, shown)
            self.memory.write(self.layout.descriptor(slot), entry.pack())
            if number == 0:
                self._unpublished.append((slot, marks))
            buffer.slots.append(slot)
            self.next_free.advance(1)
        self._free -= len(pieces)
        self._in_flight[buffer_id] = buffer
        return buffer_id

    def _free_slots(self, head: int, slots: list[int]) -> None:
        self._free += len(slots)
        self._free_ids.append(head)

    @property
    def free_descriptors(self) -> int:
        return self._free

    def publish(self) -> None:
        """§2.8.21.1."""
        for slot, flags in self._unpublished:
            self._put16(self.layout.flags(slot), flags)
        self._unpublished.clear()
        self.published = Place(self.size, self.next_free.index, self.next_free.wrap)

    def must_notify(self) -> bool:
        """§2.8.21.2."""
        old, new = self._kicked, self.published.position
        self._kicked = new
        kind = self._get16(self.layout.device_flags) & 3
        if kind == spec.RING_EVENT_FLAGS_DISABLE or old == new:
            return False
        if kind != spec.RING_EVENT_FLAGS_DESC:
            return True
        event = self._get16(self.layout.device_off_wrap)
        wanted = Place(self.size, event & 0x7FFF, event >> 15).position
        return (wanted - old) % (2 * self.size) < (new - old) % (2 * self.size)

    def notification_data(self) -> int:
        return self.published.off_wrap

    # -- collecting ----------------------------------------------------------------------------------------------------

    def collect(self) -> list[Used]:
        """§2.8.22."""
        result: list[Used] = []
        while self._in_flight and self._is_used():
            fields = PackedDescriptor.unpack(self.memory.read(self.layout.descriptor(self.next_used.index), 16))
            length = fields.len if fields.flags & WRITE else 0
            *skipped, last = self._batch(fields.id)
            for each in skipped:
                result.append(self._one(each, None))
            result.append(self._one(last, length))
        if self.event_idx and not self.suppressed:
            self._ask(self.next_used.off_wrap, spec.RING_EVENT_FLAGS_DESC)
        return result

    def _is_used(self) -> bool:
        flags = self._get16(self.layout.flags(self.next_used.index))
        return flags & (AVAIL | USED) == self.next_used.used_flags

    def _one(self, buffer_id: int, length: int | None) -> Used:
        self.next_used.advance(len(self._in_flight[buffer_id].slots))
        return self._take_back(buffer_id, length)

    # -- notifications -------------------------------------------------------------------------------------------------

    def suppress_notifications(self) -> None:
        """§2.8.10."""
        self.suppressed = True
        self._ask(0, spec.RING_EVENT_FLAGS_DISABLE)

    def want_notifications(self, after: int = 0) -> None:
        """§2.8.10; `after` counts descriptors, which are buffers where each has one."""
        self._check_after(after)
        self.suppressed = False
        if self.event_idx:
            wanted = Place(self.size, self.next_used.index, self.next_used.wrap)
            wanted.advance(after)
            self._ask(wanted.off_wrap, spec.RING_EVENT_FLAGS_DESC)
        else:
            self._ask(0, spec.RING_EVENT_FLAGS_ENABLE)

    def _ask(self, off_wrap: int, flags: int) -> None:
        self._put16(self.layout.driver_off_wrap, off_wrap)
        self._put16(self.layout.driver_flags, flags)
