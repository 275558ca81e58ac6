"""Reading descriptor chains out of a packed ring (virtio 1.3 §2.8), one by one or all in bulk.

Owns the rules of a chain.  Refuses to know who made the queue, and what is in flight but for the marks it is given.

A chain is a run of neighbours in the ring, or one descriptor that refers to a table, which is read from its first entry
to its last: nothing is followed by number, and no loop is longer than the ring.  Positions are those of `packed`.

Two ways lead to the same `Chains`.  *One by one* is plain Python and quick for few chains.  *In bulk* cuts a copy of
the ring into chains with a few numpy operations; it accepts only what breaks no rule, and otherwise says None and
throws away what it saw, so that the first way finds the error and names it.  The flags that decide that a chain is
available are read before everything else of it; all decisions about a descriptor are made on one copy of its body; a
first look may choose the way.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.errors import DriverError, Fault, OutsideRam
from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.chains import Chains, FewChains, Flags, Index
from devices.virtio.policy import RESET, Policy, Treatment

_BODY = Struct("<QIH")
_DESC = Struct("<QIHH")
_DESC_BYTES = spec.pvirtq_desc.itemsize
_WORDS, _FLAGS_WORD = _DESC_BYTES // 2, 7
_NEXT, _WRITE, _INDIRECT = spec.VIRTQ_DESC_F_NEXT, spec.VIRTQ_DESC_F_WRITE, spec.VIRTQ_DESC_F_INDIRECT
EITHER = spec.VIRTQ_DESC_F_AVAIL | spec.VIRTQ_DESC_F_USED
_PLAIN = EITHER | _NEXT | _INDIRECT
AVAILABLE = (spec.VIRTQ_DESC_F_USED, spec.VIRTQ_DESC_F_AVAIL)
"""How an available descriptor is marked where the driver's wrap counter is 0, and where it is 1 (§2.8.1)."""

Records = NDArray[Any]  # of dtype spec.pvirtq_desc


class PackedWalker:
    """The ring behind `records`, of which `ring` and `words` are the same memory as bytes and as 16-bit words.

    `indirect` tells whether VIRTIO_F_INDIRECT_DESC was negotiated, `policy` which broken rules are tolerated."""

    def __init__(
        self,
        memory: GuestMemory,
        records: Records,
        ring: memoryview,
        words: memoryview,
        indirect: bool,
        policy: Policy = RESET,
    ) -> None:
        self._memory = memory
        self._size = len(records)
        self._indirect = indirect
        self._tolerated = policy.faults(Treatment.TOLERATE)
        self._plain = policy.faults(Treatment.PLAIN)
        self._usual = max(memory.regions, key=lambda region: region.size)  # where most buffers are
        self._records = records
        self._flags = records["flags"]
        self._bytes = ring
        self._words = words

    def _at(self, position: int) -> tuple[int, int, int]:
        """Place and flags of the descriptor at `position`, and how it is marked when it is available."""
        place = position % self._size
        expected = AVAILABLE[position % (2 * self._size) < self._size]
        return place, self._words[_WORDS * place + _FLAGS_WORD], expected

    # -- one by one ------------------------------------------------------------------------------------------------

    def one_by_one(self, position: int, room: int, in_flight: bytearray) -> tuple[Chains, int]:
        """The chains from `position` on, the first of which is available, and how many descriptors of the ring they
        are; at least one chain, and no more descriptors than the queue size in all.

        `room` is how many descriptors of the ring are the driver's to give.  Marks ids in `in_flight`, one byte an id.
        DriverError at the first broken rule, with the chains before it, which are marked."""
        addr: list[int] = []
        length: list[int] = []
        writable: list[bool] = []
        ids: list[int] = []
        place, _, expected = self._at(position)
        total = self._plain_ones(place, expected, room, in_flight, addr, length, writable, ids)
        heads, slots, first, usual = list(range(place, place + total)), [1] * total, list(range(total + 1)), self._usual
        place, flags, expected = self._at(position + total)
        try:
            while flags & EITHER == expected:
                self._memory.fence()
                if total == room:
                    text = f"the descriptor at {place} is made available while it belongs to a chain in flight"
                    raise DriverError("2.8.16", text, head=place, fault=Fault.OVERRUN)
                if flags & (_NEXT | _INDIRECT):
                    occupied, name = self._follow(position + total, flags, room - total, addr, length, writable)
                    if len(addr) == first[-1]:
                        raise self._no_buffer(place)
                else:
                    gpa, size, name = _BODY.unpack_from(self._bytes, _DESC_BYTES * place)
                    if not size or not usual.gpa <= gpa <= usual.end - size:
                        self._check_single(place, gpa, size)
                    addr.append(gpa)
                    length.append(size)
                    writable.append(bool(flags & _WRITE))
                    occupied = 1
                if len(addr) > self._size:
                    break
                if in_flight[name]:
                    text = f"the buffer id {name} is made available while in flight"
                    raise DriverError("2.8.21.1", text, head=place, fault=Fault.IN_FLIGHT)
                in_flight[name] = 1
                total += occupied
                heads.append(place)
                ids.append(name)
                slots.append(occupied)
                first.append(len(addr))
                place += occupied
                if place >= self._size:
                    place, expected = place - self._size, expected ^ EITHER
                flags = self._words[_WORDS * place + _FLAGS_WORD]
        except DriverError as error:
            end = first[-1]
            error.work += len(addr) - end
            if slots:
                error.sound = FewChains(heads, slots, first, addr[:end], length[:end], writable[:end], ids)
                error.sound_slots = total
            raise
        end = first[-1]
        return FewChains(heads, slots, first, addr[:end], length[:end], writable[:end], ids), total

    def _plain_ones(
        self,
        place: int,
        expected: int,
        room: int,
        in_flight: bytearray,
        addr: list[int],
        length: list[int],
        writable: list[bool],
        ids: list[int],
    ) -> int:
        """Append what is available from `place` up to the ring's end as long as each chain is one buffer in the usual
        region and breaks no rule, which most are; returns how many chains.  The rest is `one_by_one`'s."""
        words, ring, usual, fence = self._words, self._bytes, self._usual, self._memory.fence
        start, end = place, min(place + room, self._size)
        while place < end:
            flags = words[_WORDS * place + _FLAGS_WORD]
            if flags & _PLAIN != expected:
                break
            fence()
            gpa, size, name = _BODY.unpack_from(ring, _DESC_BYTES * place)
            if not size or not usual.gpa <= gpa <= usual.end - size or in_flight[name]:
                break
            in_flight[name] = 1
            addr.append(gpa)
            length.append(size)
            writable.append(flags & _WRITE != 0)
            ids.append(name)
            place += 1
        return place - start

    def extent(self, position: int, room: int) -> tuple[int, int]:
        """How many descriptors the list at `position` has, at least one and at most `room`, and the id in the last of
        them: what there is to pass over of a chain that breaks a rule.  Where it goes on though nothing is available it
        ends there."""
        slots, name = 0, 0
        while True:
            place, flags, expected = self._at(position + slots)
            if slots and flags & EITHER != expected:
                return slots, name
            name = int(_BODY.unpack_from(self._bytes, _DESC_BYTES * place)[2])
            slots += 1
            if not flags & _NEXT or slots == room:
                return slots, name

    def _follow(
        self, position: int, flags: int, room: int, addr: list[int], length: list[int], writable: list[bool]
    ) -> tuple[int, int]:
        """Append the buffers of the chain at `position`, whose flags were read; its descriptors in the ring, its id."""
        head = place = position % self._size
        if flags & _INDIRECT and (found := self._follow_table(head, flags, addr, length, writable)) is not None:
            return 1, found
        slots, write, name = 0, False, 0
        while True:
            if slots == room:
                self._object(Fault.LOOP, "2.8.17", head, "has more descriptors than are free")
                return slots, name
            if slots and flags & _INDIRECT and Fault.TABLE_PLACE not in self._plain:
                self._object(Fault.TABLE_PLACE, "2.8.19", head, "has an indirect descriptor in a list")
            gpa, size, name = _BODY.unpack_from(self._bytes, _DESC_BYTES * place)
            write = self._add(head, gpa, size, bool(flags & _WRITE), write, addr, length, writable)
            slots += 1
            if not flags & _NEXT:
                return slots, name
            place, flags, expected = self._at(position + slots)
            if slots < room and flags & EITHER != expected:
                self._object(Fault.NEXT, "2.8.17", head, f"goes on at {place}, which is not available")
                return slots, name

    def _add(
        self,
        head: int,
        gpa: int,
        size: int,
        write: bool,
        wrote: bool,
        addr: list[int],
        length: list[int],
        writable: list[bool],
    ) -> bool:
        """Append one buffer of a chain, checked; `wrote` tells whether the one before was device-writable."""
        if wrote and not write:
            self._object(Fault.ORDER, "2.8.17", head, "has a readable buffer after writable ones")
        if not size:
            self._object(Fault.EMPTY, "2.8.13", head, "has a descriptor of length 0")
            return write
        if not self._usual.gpa <= gpa <= self._usual.end - size:
            self._check_buffer(head, gpa, size)
        addr.append(gpa)
        length.append(size)
        writable.append(write)
        return write

    def _object(self, fault: Fault, section: str, head: int, text: str) -> None:
        """Raise, unless this is tolerated."""
        if fault not in self._tolerated:
            raise DriverError(section, f"the chain at {head} {text}", head=head, fault=fault)

    @staticmethod
    def _no_buffer(head: int) -> DriverError:
        return DriverError("2.8.13", f"the chain at {head} has no buffer", head=head, fault=Fault.NO_BUFFER)

    def _check_single(self, head: int, gpa: int, size: int) -> None:
        if not size:
            self._object(Fault.EMPTY, "2.8.13", head, "has a descriptor of length 0")
            raise self._no_buffer(head)
        self._check_buffer(head, gpa, size)

    def _check_buffer(self, head: int, gpa: int, size: int, fault: Fault = Fault.OUTSIDE_RAM) -> None:
        if self._memory.region_of(gpa, size) is None and not self._memory.contains(gpa, size):
            error = OutsideRam(gpa, size, "2.8.13")
            error.head, error.fault = head, fault
            raise error

    def _follow_table(
        self, head: int, flags: int, addr: list[int], length: list[int], writable: list[bool]
    ) -> int | None:
        """Append what the table of the indirect descriptor at `head` holds; returns the buffer id.  None, and nothing
        appended, where the flag shall not be looked at.

        Of the flags in a table only WRITE means anything, and of the descriptor that refers to it WRITE means nothing
        (§2.8.7)."""
        gpa, size, name = _BODY.unpack_from(self._bytes, _DESC_BYTES * head)
        for fault, section, text in self._table_faults(size, flags):
            if fault in self._plain:
                return None
            self._object(fault, section, head, text)
        self._check_buffer(head, gpa, size, Fault.TABLE_OUTSIDE_RAM)
        write = False
        for entry in _DESC.iter_unpack(self._memory.read(gpa, size)):
            write = self._add(head, entry[0], entry[1], bool(entry[3] & _WRITE), write, addr, length, writable)
        return int(name)

    def _table_faults(self, size: int, flags: int) -> list[tuple[Fault, str, str]]:
        faults = []
        if not self._indirect:
            text = "has an indirect table: VIRTIO_F_INDIRECT_DESC was not negotiated"
            faults.append((Fault.NOT_NEGOTIATED, "2.8.19", text))
        if flags & _NEXT:
            faults.append((Fault.TABLE_AND_NEXT, "2.8.19", "has an indirect descriptor with a next one"))
        if not size or size % _DESC_BYTES:
            text = f"has an indirect table of {size} bytes, which is no multiple of {_DESC_BYTES}"
            faults.append((Fault.TABLE_LENGTH, "2.8.7", text))
        elif size > self._size * _DESC_BYTES:
            text = f"has an indirect table of {size // _DESC_BYTES} descriptors, which is too long"
            faults.append((Fault.TABLE_LENGTH, "2.8.17", text))
        return faults

    # -- in bulk ---------------------------------------------------------------------------------------------------

    def in_bulk(
        self, position: int, limit: int, room: int, ids_in_flight: NDArray[np.uint8]
    ) -> tuple[Chains, int] | None:
        """All chains from `position` on that lie in the next `limit` descriptors, and how many descriptors those are.

        None where a rule is broken, where there are more descriptors than the queue size in all, and where chains go on
        behind the limit."""
        count = self._available_from(position, limit)
        self._memory.fence()
        place = position % self._size
        upper, lower = self._records[place : place + count], self._records[: max(place + count - self._size, 0)]
        descriptors = np.concatenate((upper, lower)) if len(lower) else upper.copy()
        flags = descriptors["flags"]
        linked = flags & (_NEXT | _INDIRECT)
        last = ((linked & _NEXT) == 0).nonzero()[0]
        # What goes on behind the limit, and what is available though there is no room for it, is the other way's.
        if not count or not len(last) or last[-1] != count - 1 or self._goes_on(position + count, count == limit):
            return None
        ids = descriptors["id"][last]
        ordered = np.sort(ids)
        if ids_in_flight[ids].any() or (ordered[1:] == ordered[:-1]).any():
            return None
        first = np.concatenate((np.zeros(1, np.intp), last + 1))
        slots = first[1:] - first[:-1]
        heads = ((place + first[:-1]) % self._size).astype(np.uint16)
        refers = (linked & _INDIRECT) != 0
        if refers.any():
            if (slots[np.searchsorted(last, refers.nonzero()[0])] != 1).any():
                return None
            expanded = self._with_tables(descriptors, refers, first)
            if expanded is None:
                return None
            descriptors, first = expanded
        return self._checked(heads, slots, first, descriptors, ids, count)

    def _available_from(self, position: int, limit: int) -> int:
        """How many of the next `limit` descriptors are available without a gap."""
        place = position % self._size
        expected = AVAILABLE[position % (2 * self._size) < self._size]
        upper = self._flags[place : place + limit] ^ np.uint16(expected)
        lower = self._flags[: max(place + limit - self._size, 0)] ^ np.uint16(expected ^ EITHER)
        different = ((np.concatenate((upper, lower)) if len(lower) else upper) & EITHER).nonzero()[0]
        return int(different[0]) if len(different) else limit

    def _goes_on(self, position: int, at_limit: bool) -> bool:
        if not at_limit:
            return False
        _, flags, expected = self._at(position)
        return bool(flags & EITHER == expected)

    def _with_tables(self, descriptors: Records, refers: Flags, first: Index) -> tuple[Records, Index] | None:
        """The descriptors with what each table holds in the place of the one that refers to it, and where chains begin.

        Nothing where a table breaks a rule or they hold more than the queue size in all."""
        addr, length = descriptors["addr"][refers], descriptors["len"][refers].astype(np.uint64)
        if not self._indirect or ((length % _DESC_BYTES) | (length == 0)).any():
            return None
        # Copying costs time: where tables are larger than what can be taken from them, the other way reads less.
        if length.sum() > self._size * _DESC_BYTES or not self._memory.are_ram(addr, length).all():
            return None
        counts = np.ones(len(descriptors), np.intp)
        counts[refers] = (length // _DESC_BYTES).astype(np.intp)
        ends = np.cumsum(counts)
        if ends[-1] > self._size:
            return None
        whole = np.empty(ends[-1], spec.pvirtq_desc)
        direct = np.zeros(ends[-1], np.bool_)
        direct[ends[~refers] - 1] = True
        whole[direct] = descriptors[~refers]
        whole[~direct] = self._memory.gather(addr, length).view(spec.pvirtq_desc)
        return whole, np.concatenate((first[:1], ends[first[1:] - 1]))

    def _checked(
        self, heads: NDArray[np.uint16], slots: Index, first: Index, descriptors: Records, ids: Any, count: int
    ) -> tuple[Chains, int] | None:
        """The `Chains` of the descriptors, if they keep the rules."""
        addr, length = descriptors["addr"].copy(), descriptors["len"].astype(np.uint64)
        writable = (descriptors["flags"] & _WRITE) != 0
        if not length.all() or not self._memory.are_ram(addr, length).all():
            return None
        if len(addr) > len(heads) and writable.any():
            turns_back = writable[:-1] & ~writable[1:]
            turns_back[first[1:-1] - 1] = False  # the last of a chain and the first of the next
            if turns_back.any():
                return None
        return Chains(heads, slots, first, addr, length, writable, ids), count
