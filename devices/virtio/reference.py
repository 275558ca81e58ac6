"""The split and the packed ring, page frame numbers, reports, hints and statistics once more, one value at a time.

This is the text to read first, and the oracle of the tests: `walk`, `split`, `packed_walk`, `packed`, `balloon.pages`,
`balloon.partial`, `balloon.reporting`, `balloon.hinting` and `balloon.stats_formats` must give the same answer, or
break the same rule, on every input.  It shares no code with them and cares for nothing but being plain: every number is
read from RAM where it is needed, by its place in the specification's structures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

from devices.errors import DriverError, OutsideRam
from devices.memory import PAGE_BYTES, GuestMemory
from devices.virtio import spec


class Buffer(NamedTuple):
    """One descriptor: `length` bytes at `gpa`."""

    gpa: int
    length: int
    writable: bool


class Chain(NamedTuple):
    """The buffers of the chain that starts at descriptor `head`; `buffer_id` and `slots` are a packed ring's."""

    head: int
    buffers: list[Buffer]
    buffer_id: int = -1
    slots: int = 0


class Ring:
    """The device's side of a split virtqueue (§2.7) in one place and one size, aligned and inside RAM."""

    def __init__(self, memory: GuestMemory, size: int, desc: int, avail: int, used: int, indirect: bool) -> None:
        self.memory = memory
        self.size = size
        self.desc, self.avail, self.used = desc, avail, used
        self.indirect = indirect
        self.next_avail = 0
        self.next_used = 0
        self.in_flight: set[int] = set()

    def take_available(self) -> list[Chain]:
        """§2.7.13: every chain the driver made available, up to as many descriptors as the queue has entries."""
        idx = self.memory.read_int(self.avail + 2, 2)
        pending = (idx - self.next_avail) % 65536
        if pending > self.size:
            raise DriverError("2.7.13.3", f"{pending} entries ahead")
        chains: list[Chain] = []
        descriptors = 0
        for _ in range(pending):
            entry = self.avail + 4 + 2 * (self.next_avail % self.size)
            head = self.memory.read_int(entry, 2)
            if head >= self.size:
                raise DriverError("2.7.6", "no such descriptor", head=head)
            if head in self.in_flight:
                raise DriverError("2.7.13.1", "available while in flight", head=head)
            buffers = self.follow(head)
            descriptors += len(buffers)
            if descriptors > self.size:
                break  # the next call's work
            chains.append(Chain(head, buffers))
            self.in_flight.add(head)
            self.next_avail = (self.next_avail + 1) % 65536
        return chains

    def follow(self, head: int) -> list[Buffer]:
        """§2.7.5: the buffers of one chain."""
        table, entries = self.desc, self.size
        indirect, index = False, head
        buffers: list[Buffer] = []
        while True:
            place = table + 16 * index
            gpa, length = self.memory.read_int(place, 8), self.memory.read_int(place + 8, 4)
            flags, link = self.memory.read_int(place + 12, 2), self.memory.read_int(place + 14, 2)
            if flags & spec.VIRTQ_DESC_F_INDIRECT:  # §2.7.5.3; its WRITE flag is ignored
                if not self.indirect or indirect or flags & spec.VIRTQ_DESC_F_NEXT:
                    raise DriverError("2.7.5.3.1", "no indirect descriptor may stand here", head=head)
                if length == 0 or length % 16:
                    raise DriverError("2.7.5.3", "no table has this length", head=head)
                self.check_ram(head, gpa, length)
                table, entries, index, indirect = gpa, length // 16, 0, True
                continue
            if len(buffers) == self.size:  # §2.7.5.3.1: an indirect table does not make longer chains
                raise DriverError("2.7.5.2", "a loop, or too long", head=head)
            writable = bool(flags & spec.VIRTQ_DESC_F_WRITE)
            if buffers and buffers[-1].writable and not writable:
                raise DriverError("2.7.4.2", "readable after writable", head=head)
            if length == 0:
                raise DriverError("2.7.5", "an empty buffer", head=head)
            self.check_ram(head, gpa, length)
            buffers.append(Buffer(gpa, length, writable))
            if not flags & spec.VIRTQ_DESC_F_NEXT:
                break
            index = link
            if index >= entries:
                raise DriverError("2.7.5", "next is outside the table", head=head)
        if sum(buffer.length for buffer in buffers) > 1 << 32:
            raise DriverError("2.7.5.2", "more than 2^32 bytes", head=head)
        return buffers

    def check_ram(self, head: int, gpa: int, length: int) -> None:
        """Every byte must be RAM; Python's integers do not wrap."""
        if not self.memory.contains(gpa, length):
            error = OutsideRam(gpa, length, "2.7.5")
            error.head = head
            raise error

    def put_used(self, head: int, written: int) -> None:
        """§2.7.14: the element first, the index afterwards."""
        element = self.used + 4 + 8 * (self.next_used % self.size)
        self.memory.write_int(element, 4, head)
        self.memory.write_int(element + 4, 4, written)
        self.next_used = (self.next_used + 1) % 65536
        self.memory.write_int(self.used + 2, 2, self.next_used)
        self.in_flight.remove(head)


class PackedRing:
    """The device's side of a packed virtqueue (§2.8) in one place and one size, aligned and inside RAM."""

    def __init__(self, memory: GuestMemory, size: int, desc: int, indirect: bool) -> None:
        self.memory = memory
        self.size = size
        self.desc = desc
        self.indirect = indirect
        self.avail_place, self.avail_wrap = 0, 1
        self.used_place, self.used_wrap = 0, 1
        self.in_flight: dict[int, int] = {}  # buffer id: descriptors of the ring

    def take_available(self) -> list[Chain]:
        """§2.8.12: every chain the driver made available, up to as many descriptors as the queue has entries."""
        chains: list[Chain] = []
        descriptors = 0
        place, wrap = self.avail_place, self.avail_wrap
        free = self.size - sum(self.in_flight.values())
        while self.is_available(place, wrap):
            if free == 0:
                raise DriverError("2.8.16", "made available while it is in flight", head=place)
            chain = self.follow(place, wrap, free)
            descriptors += len(chain.buffers)
            if descriptors > self.size:
                break  # the next call's work
            if chain.buffer_id in self.in_flight:
                raise DriverError("2.8.21.1", "the id is in flight", head=place)
            chains.append(chain)
            self.in_flight[chain.buffer_id] = chain.slots
            free -= chain.slots
            for _ in range(chain.slots):
                place, wrap = self.after(place, wrap)
            self.avail_place, self.avail_wrap = place, wrap
        return chains

    def after(self, place: int, wrap: int) -> tuple[int, int]:
        """§2.8.1: the wrap counter changes behind the last descriptor."""
        return (place + 1, wrap) if place + 1 < self.size else (0, 1 - wrap)

    def is_available(self, place: int, wrap: int) -> bool:
        """§2.8.1: AVAIL is as the driver's wrap counter, USED is not."""
        flags = self.memory.read_int(self.desc + 16 * place + 14, 2)
        avail, used = bool(flags & spec.VIRTQ_DESC_F_AVAIL), bool(flags & spec.VIRTQ_DESC_F_USED)
        return avail == bool(wrap) and used != bool(wrap)

    def follow(self, head: int, wrap: int, free: int) -> Chain:
        """§2.8.6, §2.8.7: one chain, of neighbours in the ring or in one table."""
        buffers: list[Buffer] = []
        place, slots = head, 0
        while True:
            if slots == free:
                raise DriverError("2.8.17", "longer than there are free descriptors", head=head)
            gpa, length, name, flags = self.fields(self.desc + 16 * place)
            slots += 1
            if flags & spec.VIRTQ_DESC_F_INDIRECT:
                if not self.indirect or slots > 1 or flags & spec.VIRTQ_DESC_F_NEXT:
                    raise DriverError("2.8.19", "no indirect descriptor may stand here", head=head)
                if length == 0 or length % 16:
                    raise DriverError("2.8.7", "no table has this length", head=head)
                if length // 16 > self.size:
                    raise DriverError("2.8.17", "a table longer than the queue", head=head)
                self.check_ram(head, gpa, length)
                for entry in range(gpa, gpa + length, 16):
                    inner_gpa, inner_length, _, inner_flags = self.fields(entry)
                    self.add(head, buffers, inner_gpa, inner_length, inner_flags)
                return Chain(head, buffers, name, slots)
            self.add(head, buffers, gpa, length, flags)
            if not flags & spec.VIRTQ_DESC_F_NEXT:
                return Chain(head, buffers, name, slots)
            place, wrap = self.after(place, wrap)
            if slots < free and not self.is_available(place, wrap):
                raise DriverError("2.8.17", "the list goes on where nothing is available", head=head)

    def fields(self, gpa: int) -> tuple[int, int, int, int]:
        """§2.8.13: address, length, buffer id and flags of one descriptor."""
        read = self.memory.read_int
        return read(gpa, 8), read(gpa + 8, 4), read(gpa + 12, 2), read(gpa + 14, 2)

    def add(self, head: int, buffers: list[Buffer], gpa: int, length: int, flags: int) -> None:
        """One element: readable ones first, none without a byte, all of it RAM."""
        writable = bool(flags & spec.VIRTQ_DESC_F_WRITE)
        if buffers and buffers[-1].writable and not writable:
            raise DriverError("2.8.17", "readable after writable", head=head)
        if length == 0:
            raise DriverError("2.8.13", "an empty buffer", head=head)
        self.check_ram(head, gpa, length)
        buffers.append(Buffer(gpa, length, writable))

    def check_ram(self, head: int, gpa: int, length: int) -> None:
        """Every byte must be RAM."""
        if not self.memory.contains(gpa, length):
            error = OutsideRam(gpa, length, "2.8.13")
            error.head = head
            raise error

    def put_used(self, buffer_id: int, written: int) -> None:
        """§2.8.1, §2.8.4: one used descriptor for the whole chain; the next one stands behind all of the chain's."""
        gpa = self.desc + 16 * self.used_place
        flags = spec.VIRTQ_DESC_F_WRITE if written else 0
        if self.used_wrap:
            flags |= spec.VIRTQ_DESC_F_AVAIL | spec.VIRTQ_DESC_F_USED
        self.memory.write_int(gpa + 8, 4, written)
        self.memory.write_int(gpa + 12, 2, buffer_id)
        self.memory.write_int(gpa + 14, 2, flags)
        for _ in range(self.in_flight.pop(buffer_id)):
            self.used_place, self.used_wrap = self.after(self.used_place, self.used_wrap)


def wants_packed_notification(size: int, off: int, wrap: int, place: int, place_wrap: int, slots: int) -> bool:
    """§2.8.10 with EVENT_IDX: whether `off` and `wrap` name one of the `slots` descriptors used from `place` on."""
    for _ in range(slots):
        if (place, place_wrap) == (off, wrap):
            return True
        place, place_wrap = (place + 1, place_wrap) if place + 1 < size else (0, 1 - place_wrap)
    return False


def wants_notification(used_event: int, old: int, new: int) -> bool:
    """§2.7.7.2 with EVENT_IDX: whether the element that `used_event` names is among those from `old` up to `new`."""
    return any(index % 65536 == used_event for index in range(old, old + (new - old) % 65536))


def entries_of(chains: list[Chain], memory: GuestMemory, entry_bytes: int, limit_bytes: int) -> tuple[bytes, int]:
    """The readable bytes of each chain up to its last whole entry, and how many bytes were left out.

    A chain that would bring them above the limit is left out whole."""
    taken, left_out = b"", 0
    for chain in chains:
        readable = [buffer for buffer in chain.buffers if not buffer.writable]
        size = sum(buffer.length for buffer in readable)
        whole = size // entry_bytes * entry_bytes
        if len(taken) + whole > limit_bytes:
            whole = 0
        if whole:
            taken += b"".join(memory.read(buffer.gpa, buffer.length) for buffer in readable)[:whole]
        left_out += size - whole
    return taken, left_out


def pages_of(payload: bytes, memory: GuestMemory) -> tuple[list[int], int]:
    """§5.5.6: the different pages of RAM that le32 page frame numbers name, ascending, and how many entries named none.

    Bytes after the last whole entry mean nothing."""
    pages: set[int] = set()
    bad = 0
    for place in range(0, len(payload) - 3, 4):
        pfn = int.from_bytes(payload[place : place + 4], "little")
        if memory.contains(pfn * PAGE_BYTES, PAGE_BYTES):
            pages.add(pfn)
        else:
            bad += 1
    return sorted(pages), bad


def reported_of(chains: list[Chain], page_bytes: int = PAGE_BYTES) -> tuple[list[int], int]:
    """§5.5.6.7: the different 4096-byte pages that reports name, ascending, and how many bytes of their buffers are
    device-readable or in no whole page of `page_bytes`, the larger of the host's page and 4096."""
    pages: set[int] = set()
    ignored = 0
    for chain in chains:
        for buffer in chain.buffers:
            end = buffer.gpa + buffer.length
            page = buffer.gpa if buffer.gpa % page_bytes == 0 else buffer.gpa - buffer.gpa % page_bytes + page_bytes
            used = 0
            while buffer.writable and page + page_bytes <= end:
                pages.update(range(page // PAGE_BYTES, (page + page_bytes) // PAGE_BYTES))
                page += page_bytes
                used += page_bytes
            ignored += buffer.length - used
    return sorted(pages), ignored


def given_back(
    inflated: Collection[int], inside: Collection[int], ram: Collection[int], unit: int, is_clear: Callable[[int], bool]
) -> list[int]:
    """§5.5.6: which of the host's pages, `unit` pages of 4096 bytes each, go back to it when `inflated` pages come into
    the balloon, where those `inside` are by now.  All RAM in such a page is in the balloon, and what was there before
    `is_clear`, or else its driver may be using it without having told."""
    result = []
    for number in sorted({pfn // unit for pfn in inflated}):
        parts = [pfn for pfn in range(number * unit, (number + 1) * unit) if pfn in ram]
        if all(pfn in inside and (pfn in inflated or is_clear(pfn)) for pfn in parts):
            result.append(number)
    return result


class Hinted(NamedTuple):
    """What a batch over free_page_vq says: `pages` under the current id and `stale` ones under another or none, both
    ascending; bytes that are neither an id nor in a whole page; whether pages that follow are under the current id,
    and whether the driver has ended the round."""

    pages: list[int]
    stale: list[int]
    ignored: int
    answered: bool
    ended: bool


def hints_of(chains: list[Chain], memory: GuestMemory, cmd_id: int, answered: bool) -> Hinted:
    """§5.5.6.5: `cmd_id` stands in the configuration space, `answered` says whether the driver has sent it before."""
    pages: set[int] = set()
    stale: set[int] = set()
    ignored, ended = 0, False
    for chain in chains:
        said = b"".join(memory.read(buffer.gpa, buffer.length) for buffer in chain.buffers if not buffer.writable)
        if said:
            is_id = len(said) == 4
            value = int.from_bytes(said, "little")
            if not is_id:
                ignored += len(said)
            elif value == spec.VIRTIO_BALLOON_CMD_ID_STOP and answered:
                ended = True
            answered = is_id and value == cmd_id and cmd_id > spec.VIRTIO_BALLOON_CMD_ID_DONE
        for buffer in chain.buffers:
            if buffer.writable:
                named, rest = reported_of([Chain(chain.head, [buffer])])
                if answered:
                    pages.update(named)
                    ignored += rest
                else:
                    stale.update(named)
    return Hinted(sorted(pages), sorted(stale), ignored, answered, ended)


def stats_of(payload: bytes) -> tuple[list[tuple[int, int]], dict[str, int]]:
    """§5.5.6.3: the (tag, value) entries of a buffer in order, and the known ones by name, the last one winning."""
    entries: list[tuple[int, int]] = []
    values: dict[str, int] = {}
    for place in range(0, len(payload) - 9, 10):
        tag = int.from_bytes(payload[place : place + 2], "little")
        value = int.from_bytes(payload[place + 2 : place + 10], "little")
        entries.append((tag, value))
        if tag in spec.BALLOON_STATS:
            values[spec.BALLOON_STATS[tag].name] = value
    return entries, values


def stats_v2_of(payload: bytes, byteorder: Literal["little", "big"]) -> list[tuple[int, int]]:
    """The (tag, value) entries of a buffer of the patch of 2009: {u16 tag; 2 bytes of padding; u32 value} each, the tag
    in the driver's order, the value little-endian."""
    return [
        (
            int.from_bytes(payload[place : place + 2], byteorder),
            int.from_bytes(payload[place + 4 : place + 8], "little"),
        )
        for place in range(0, len(payload) - 7, 8)
    ]
