"""The driver's half of a split virtqueue (§2.7): offer buffers, publish them, decide about the kick, collect them.

Owns the ring's memory, the free descriptors and the buffers in flight.  It refuses to know how the device is reached:
`must_notify` says whether a kick is due, somebody else sends it.  It also watches the device: a head returned that was
not offered, a used index that runs ahead or backwards, more bytes "written" than there was room for, or flags that the
specification does not know raise DeviceViolation.

Invariant: every descriptor is either free or part of exactly one buffer in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from devices.virtio import spec
from vmm.testing.layout import DESCRIPTOR_BYTES, Piece, RingLayout, chain, indirect_table
from vmm.testing.pages import PAGE_BYTES
from vmm.testing.protocols import Memory, PageSource

Readable = bytes | tuple[int, int]
Writable = int | tuple[int, int]


class DeviceViolation(AssertionError):
    """The device did what the specification forbids it; the message says what, and the section."""


class RingFull(RuntimeError):
    """There are not enough free descriptors for the buffer."""


@dataclass(frozen=True, slots=True)
class Used:
    """One buffer that came back: its head, the bytes the device says it wrote, and those bytes.

    `data` holds the first `length` bytes of the device-writable pieces, in order (§2.7.8.3 forbids to look further)."""

    head: int
    length: int
    data: bytes


@dataclass(slots=True)
class _InFlight:
    slots: list[int]
    pieces: list[Piece]
    owned: list[tuple[int, int]] = field(default_factory=list)  # (gpa, pages) to give back


class SplitQueue:
    """One queue of `size` descriptors (a power of two) with its rings in freshly taken, zeroed pages.

    `legacy_align` is the alignment of a legacy queue (§2.7.2), 0 for a modern one; `order` is the byte order of the
    driver's processor, which such a queue is in (§2.7.3)."""

    def __init__(
        self,
        memory: Memory,
        pages: PageSource,
        index: int,
        size: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        legacy_align: int = 0,
        order: spec.ByteOrder = "<",
    ) -> None:
        self.memory = memory
        self.pages = pages
        self.index = index
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.order = order
        self._byteorder: Literal["little", "big"] = "little" if order == "<" else "big"
        self.ring_pages = -(-RingLayout.bytes_needed(size, legacy_align) // PAGE_BYTES)
        self.ring_gpa = pages.take(self.ring_pages)
        memory.write(self.ring_gpa, bytes(self.ring_pages * PAGE_BYTES))
        self.layout = RingLayout.at(self.ring_gpa, size, legacy_align)
        self.avail_idx = 0  # free-running, as the driver counts
        self.published_idx = 0  # what the device can see
        self.kicked_idx = 0  # published_idx when `must_notify` was last asked
        self.last_used_idx = 0
        self.suppressed = False
        self._free = list(range(size))
        self._in_flight: dict[int, _InFlight] = {}

    # -- offering ------------------------------------------------------------------------------------------------------

    def offer(
        self, readable: Sequence[Readable] = (), writable: Sequence[Writable] = (), *, indirect: bool | None = None
    ) -> int:
        """Place one buffer in the descriptor table and the available ring, not yet visible; its head is returned.

        A readable piece is bytes (copied to pages of their own) or (gpa, length); a writable piece is a length or
        (gpa, length).  `indirect` puts the pieces into a table of their own, by default where it was negotiated and
        there is more than one.  RingFull, and nothing changed, when the descriptors do not suffice."""
        count = len(readable) + len(writable)
        if count == 0:
            raise ValueError("a buffer must have at least one element (§2.7.13.1)")
        use_table = (self.indirect and count > 1) if indirect is None else indirect
        if (1 if use_table else count) > len(self._free):
            raise RingFull(f"queue {self.index}: {count} descriptors wanted, {len(self._free)} free")
        owned: list[tuple[int, int]] = []
        pieces = [self._readable(item, owned) for item in readable] + [self._writable(item, owned) for item in writable]
        slots = [self._free.pop(0) for _ in range(1 if use_table else count)]
        if use_table:
            self._write_indirect(slots[0], pieces, owned)
        else:
            for slot, entry in chain(pieces, slots).items():
                self.memory.write(self.layout.descriptor(slot), entry.pack(self.order))
        self._in_flight[slots[0]] = _InFlight(slots, pieces, owned)
        self._put16(self.layout.avail_ring(self.avail_idx), slots[0])
        self.avail_idx = (self.avail_idx + 1) % 2**16
        return slots[0]

    def _write_indirect(self, slot: int, pieces: list[Piece], owned: list[tuple[int, int]]) -> None:
        table = indirect_table(pieces, self.order)
        gpa = self._take(len(table), owned)
        self.memory.write(gpa, table)
        entry = chain([Piece(gpa, len(table))], [slot])[slot]._replace(flags=spec.VIRTQ_DESC_F_INDIRECT)
        self.memory.write(self.layout.descriptor(slot), entry.pack(self.order))

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

    def publish(self) -> None:
        """Let the device see everything offered so far (§2.7.13.3)."""
        self.published_idx = self.avail_idx
        self._put16(self.layout.avail_idx, self.avail_idx)

    def must_notify(self) -> bool:
        """Whether what was published since the last call asks for a notification (§2.7.10.1)."""
        old, self.kicked_idx = self.kicked_idx, self.published_idx
        if not self.event_idx:
            return self._get16(self.layout.used_flags) & spec.VIRTQ_USED_F_NO_NOTIFY == 0 and old != self.published_idx
        event = self._get16(self.layout.avail_event)
        return (self.published_idx - event - 1) % 2**16 < (self.published_idx - old) % 2**16

    # -- collecting ----------------------------------------------------------------------------------------------------

    def collect(self) -> list[Used]:
        """Take back every buffer that the device has used since the last call, in the device's order (§2.7.14).

        Asks for a notification about the next one, unless `suppress_notifications` was called."""
        self._check_flags()
        target = self._get16(self.layout.used_idx)
        count = (target - self.last_used_idx) % 2**16
        if count > len(self._in_flight):
            raise DeviceViolation(
                f"queue {self.index}: the used index went from {self.last_used_idx} to {target} "
                f"with {len(self._in_flight)} buffers in flight (§2.7.8)"
            )
        result = [self._collect_one((self.last_used_idx + i) % 2**16) for i in range(count)]
        self.last_used_idx = target
        if self.event_idx and not self.suppressed:
            self._put16(self.layout.used_event, self.last_used_idx)
        return result

    def _collect_one(self, position: int) -> Used:
        entry = self.memory.read(self.layout.used_ring(position), 8)
        head, length = (int.from_bytes(part, self._byteorder) for part in (entry[:4], entry[4:]))
        buffer = self._in_flight.pop(head, None)
        if buffer is None:
            raise DeviceViolation(f"queue {self.index}: head {head} was returned but is not in flight (§2.7.8)")
        writable = [piece for piece in buffer.pieces if piece.writable]
        if length > sum(piece.length for piece in writable):
            raise DeviceViolation(f"queue {self.index}: {length} bytes written to head {head}, more than fit (§2.7.8)")
        data = b"".join(self.memory.read(piece.gpa, min(piece.length, length)) for piece in writable)[:length]
        self._free.extend(buffer.slots)
        for gpa, count in buffer.owned:
            self.pages.give(gpa, count)
        return Used(head, length, data)

    def _check_flags(self) -> None:
        flags = self._get16(self.layout.used_flags)
        if flags not in ((0,) if self.event_idx else (0, spec.VIRTQ_USED_F_NO_NOTIFY)):
            raise DeviceViolation(f"queue {self.index}: the used ring's flags are {flags:#x} (§2.7.10.2)")

    # -- notifications -------------------------------------------------------------------------------------------------

    def suppress_notifications(self) -> None:
        """Advise the device that used-buffer notifications are not needed (§2.7.7)."""
        self.suppressed = True
        if self.event_idx:
            self._put16(self.layout.used_event, (self.last_used_idx - 1) % 2**16)
        else:
            self._put16(self.layout.avail_flags, spec.VIRTQ_AVAIL_F_NO_INTERRUPT)

    def want_notifications(self, after: int = 0) -> None:
        """Ask to be notified when `after` more buffers than the next one have been used (§2.7.7.1).

        `after` needs VIRTIO_F_EVENT_IDX, and holds until the next `collect`."""
        if after and not self.event_idx:
            raise ValueError("only VIRTIO_F_EVENT_IDX lets the driver say how many buffers may pass")
        self.suppressed = False
        if self.event_idx:
            self._put16(self.layout.used_event, (self.last_used_idx + after) % 2**16)
        else:
            self._put16(self.layout.avail_flags, 0)

    def release(self) -> None:
        """Give every page back, those of buffers in flight too: only after a reset (§2.4.2)."""
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
    def free_descriptors(self) -> int:
        return len(self._free)

    def table_bytes(self) -> bytes:
        """The descriptor table as it lies in memory."""
        return self.memory.read(self.layout.desc_gpa, DESCRIPTOR_BYTES * self.size)

    def _get16(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), self._byteorder)

    def _put16(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, (value % 2**16).to_bytes(2, self._byteorder))
