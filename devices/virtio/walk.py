"""Following descriptor chains through one descriptor table (virtio 1.3 §2.7.5), one by one or all in lock-step.

Owns the rules of a chain.  Refuses to know the rings that say which chains there are.

Two ways lead to the same `Chains`.  *One by one* is plain Python and quick for few chains, which is what drivers offer.
*Lock-step* follows every chain at once, one numpy step a level, and is quick for many; it accepts only what breaks no
rule, and otherwise says None and throws away what it saw, so that the first way finds the error and names it.
All decisions about a descriptor are made on one copy of it; a first look may choose the way.  Nothing is followed for
longer than the table is large, whatever the driver linked: the work of a call is bounded by the queue size.
"""

from __future__ import annotations

from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.errors import DriverError, Fault, OutsideRam
from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.chains import Chains, FewChains, Index, OneBuffer
from devices.virtio.policy import RESET, Policy, Treatment

_NEXT, _WRITE, _INDIRECT = spec.VIRTQ_DESC_F_NEXT, spec.VIRTQ_DESC_F_WRITE, spec.VIRTQ_DESC_F_INDIRECT
_DESC_BYTES = spec.virtq_desc.itemsize
_MAX_CHAIN_BYTES = 1 << 32  # §2.7.5.2
_REACHABLE_BYTES = 65536 * _DESC_BYTES  # `next` has 16 bits: no descriptor behind this can be reached

Records = NDArray[Any]  # of dtype spec.virtq_desc, in either byte order


class Walker:
    """The descriptor table of `size` entries at `desc_gpa`, which the caller checked to be aligned, in byte `order`.

    `indirect` tells whether VIRTIO_F_INDIRECT_DESC was negotiated, `policy` which broken rules are tolerated.
    OutsideRam unless one RAM region holds the table.
    """

    def __init__(
        self,
        memory: GuestMemory,
        desc_gpa: int,
        size: int,
        indirect: bool,
        order: spec.ByteOrder = "<",
        policy: Policy = RESET,
    ) -> None:
        self._memory = memory
        self._size = size
        self._indirect = indirect
        self._tolerated = policy.faults(Treatment.TOLERATE)
        self._plain = policy.faults(Treatment.PLAIN)
        self._usual = max(memory.regions, key=lambda region: region.size)  # where most buffers are
        view = memory.view(desc_gpa, size * _DESC_BYTES)
        self._bytes = view.data
        self._desc = Struct(order + "QIHH")
        self._dtype = spec.virtq_desc.newbyteorder(order)
        self._records: Records = view.view(self._dtype)

    def one(self, head: int, in_flight: bytearray) -> Chains:
        """`one_by_one` for a single chain, without its lists where that is a single buffer that keeps the rules."""
        if head < self._size and not in_flight[head]:
            gpa, size, flags, _ = self._desc.unpack_from(self._bytes, head * _DESC_BYTES)
            if not flags & (_NEXT | _INDIRECT) and size and self._memory.region_of(gpa, size) is not None:
                in_flight[head] = 1
                return OneBuffer(head, gpa, size, bool(flags & _WRITE), head)
        return self.one_by_one([head], in_flight)

    # -- one by one ------------------------------------------------------------------------------------------------

    def one_by_one(self, heads: list[int], in_flight: bytearray) -> Chains:
        """The first of the chains at `heads`, at least one, with no more descriptors than the queue size in all.

        Marks them in `in_flight`, one byte a head.  DriverError at the first broken rule, with the chains before it,
        which are marked."""
        addr: list[int] = []
        length: list[int] = []
        writable: list[bool] = []
        first = [0]
        slots: list[int] = []
        unpack, usual = self._desc.unpack_from, self._usual
        try:
            for head in heads:
                if head >= self._size:
                    text = f"the head {head} is not below the queue size {self._size}"
                    raise DriverError("2.7.6", text, head=head, fault=Fault.HEAD)
                if in_flight[head]:
                    text = f"the head {head} is made available while in flight"
                    raise DriverError("2.7.13.1", text, head=head, fault=Fault.IN_FLIGHT)
                gpa, size, flags, _ = unpack(self._bytes, head * _DESC_BYTES)
                if not flags & (_NEXT | _INDIRECT) and size and usual.gpa <= gpa <= usual.end - size:
                    addr.append(gpa)
                    length.append(size)
                    writable.append(flags & _WRITE != 0)
                    occupied = 1
                else:
                    occupied = self._follow(head, addr, length, writable)
                if len(addr) > self._size:
                    break
                in_flight[head] = 1
                slots.append(occupied)
                first.append(len(addr))
        except DriverError as error:
            taken, end = len(slots), first[-1]
            error.work += len(addr) - end
            if taken:
                error.sound = FewChains(heads[:taken], slots, first, addr[:end], length[:end], writable[:end])
            raise
        taken, end = len(slots), first[-1]
        return FewChains(heads[:taken], slots, first, addr[:end], length[:end], writable[:end])

    def _follow(self, head: int, addr: list[int], length: list[int], writable: list[bool]) -> int:
        """Append the buffers of the chain at `head`; returns the entries it occupies in the descriptor table."""
        table, limit, index, unpack, usual = self._bytes, self._size, head, self._desc.unpack_from, self._usual
        left, slots, in_table, write, total = self._size, 0, False, False, 0
        while True:
            gpa, size, flags, link = unpack(table, index * _DESC_BYTES)
            slots += not in_table
            if flags & _INDIRECT and (found := self._indirect_table(head, gpa, size, flags, in_table)) is not None:
                table, limit, index, in_table = found, size // _DESC_BYTES, 0, True
            else:
                if not left:
                    self._object(Fault.LOOP, "2.7.5.2", head, "has a loop or is too long")
                    break
                left -= 1
                if flags & _WRITE:
                    write = True
                elif write:
                    self._object(Fault.ORDER, "2.7.4.2", head, "has a readable buffer after writable ones")
                    write = False
                if size:
                    if not usual.gpa <= gpa <= usual.end - size:
                        self._check_buffer(head, gpa, size)
                    addr.append(gpa)
                    length.append(size)
                    writable.append(write)
                    total += size
                else:
                    self._object(Fault.EMPTY, "2.7.5", head, "has a descriptor of length 0")
                if not flags & _NEXT:
                    break
                index = link
                if index >= limit:
                    self._object(Fault.NEXT, "2.7.5", head, f"has the next {index} in a table of {limit} descriptors")
                    break
        if not 0 < total <= _MAX_CHAIN_BYTES:
            self._check_total(head, total)
        return slots

    def _check_total(self, head: int, total: int) -> None:
        if not total:
            raise DriverError("2.7.5", f"the chain at {head} has no buffer", head=head, fault=Fault.NO_BUFFER)
        self._object(Fault.TOO_LONG, "2.7.5.2", head, f"has {total} bytes, more than 2^32")

    def _object(self, fault: Fault, section: str, head: int, text: str) -> None:
        """Raise, unless this is tolerated."""
        if fault not in self._tolerated:
            raise DriverError(section, f"the chain at {head} {text}", head=head, fault=fault)

    def _check_buffer(self, head: int, gpa: int, size: int, fault: Fault = Fault.OUTSIDE_RAM) -> None:
        if self._memory.region_of(gpa, size) is None and not self._memory.contains(gpa, size):
            error = OutsideRam(gpa, size, "2.7.5")
            error.head, error.fault = head, fault
            raise error

    def _indirect_table(self, head: int, gpa: int, size: int, flags: int, in_table: bool) -> memoryview | None:
        """The table that an indirect descriptor refers to, checked (§2.7.5.3); its WRITE flag means nothing.

        None where the flag shall not be looked at."""
        if not self._indirect or in_table or flags & _NEXT or not size or size % _DESC_BYTES:
            for fault, section, text in self._table_faults(size, flags, in_table):
                if fault in self._plain:
                    return None
                self._object(fault, section, head, text)
        self._check_buffer(head, gpa, size, Fault.TABLE_OUTSIDE_RAM)
        if self._memory.region_of(gpa, size) is not None:
            return self._memory.view(gpa, size).data
        return memoryview(self._memory.read(gpa, min(size, _REACHABLE_BYTES)))

    def _table_faults(self, size: int, flags: int, in_table: bool) -> list[tuple[Fault, str, str]]:
        faults = []
        if not self._indirect:
            text = "has an indirect table: VIRTIO_F_INDIRECT_DESC was not negotiated"
            faults.append((Fault.NOT_NEGOTIATED, "2.7.5.3.1", text))
        if in_table:
            faults.append((Fault.TABLE_PLACE, "2.7.5.3.1", "has an indirect table that refers to another"))
        if flags & _NEXT:
            faults.append((Fault.TABLE_AND_NEXT, "2.7.5.3.1", "has an indirect descriptor with a next one"))
        if not size or size % _DESC_BYTES:
            text = f"has an indirect table of {size} bytes, which is no multiple of {_DESC_BYTES}"
            faults.append((Fault.TABLE_LENGTH, "2.7.5.3", text))
        return faults

    # -- lock-step -------------------------------------------------------------------------------------------------

    def in_lock_step(self, heads: Index) -> Chains | None:
        """All chains at `heads`, shape (n,), each below the queue size; or None where a rule is broken or there are
        more descriptors than the queue size in all."""
        numbers = np.arange(len(heads))
        start, end = np.zeros_like(heads), np.full_like(heads, self._size)
        direct = _levels(self._records, numbers, heads, start, end, self._size)
        if direct is None:
            return None
        chain, descriptors = direct
        slots = np.bincount(chain, minlength=len(heads))
        refers = (descriptors["flags"] & _INDIRECT) != 0
        if refers.any():
            tables = self._lock_step_tables(chain[refers], descriptors[refers])
            if tables is None:
                return None
            chain = np.concatenate((chain[~refers], tables[0]))
            descriptors = np.concatenate((descriptors[~refers], tables[1]))
        order = np.argsort(chain, kind="stable")  # levels are in order already, so chains come out in theirs
        return self._checked(heads, slots, chain[order], descriptors[order])

    def _lock_step_tables(self, chain: Index, refers: Records) -> tuple[Index, Records] | None:
        """What the indirect tables of the `refers` descriptors hold, followed in one table of them all."""
        addr, length = refers["addr"].astype(np.uint64), refers["len"].astype(np.uint64)
        regular = self._indirect and not ((refers["flags"] & _NEXT) | (length % _DESC_BYTES) | (length == 0)).any()
        # Copying costs time: where tables are larger than what can be taken from them, the other way reads less.
        if not regular or length.sum() > self._size * _DESC_BYTES or not self._memory.are_ram(addr, length).all():
            return None
        tables: Records = self._memory.gather(addr, length).view(self._dtype)
        ends = np.cumsum(length // _DESC_BYTES).astype(np.intp)
        starts = np.concatenate((ends[:1] - ends[:1], ends[:-1]))
        found = _levels(tables, chain, starts, starts, ends, self._size)
        if found is None or (found[1]["flags"] & _INDIRECT).any():
            return None
        return found

    def _checked(self, heads: Index, slots: Index, chain: Index, descriptors: Records) -> Chains | None:
        """The `Chains` of descriptors sorted by chain, if they keep the rules."""
        counts = np.bincount(chain, minlength=len(heads))
        if len(chain) > self._size:
            return None
        first = np.concatenate((np.zeros(1, np.intp), np.cumsum(counts)))
        addr, length = descriptors["addr"].astype(np.uint64), descriptors["len"].astype(np.uint64)
        writable = (descriptors["flags"] & _WRITE) != 0
        turns_back = writable[:-1] & ~writable[1:] & (chain[:-1] == chain[1:])
        if turns_back.any() or not length.all() or not self._memory.are_ram(addr, length).all():
            return None
        if (np.add.reduceat(length, first[:-1]) > _MAX_CHAIN_BYTES).any():
            return None
        return Chains(heads.astype(np.uint16), slots, first, addr, length, writable)


def _levels(
    table: Records, chain: Index, index: Index, start: Index, end: Index, budget: int
) -> tuple[Index, Records] | None:
    """Follow chains from `index` on, all one descriptor further at each step: which chain, which descriptor.

    Chain i's `next` counts from start[i] and must stay below end[i].  None when it does not, or when more than `budget`
    descriptors were seen, as with every loop.  An indirect descriptor ends its chain here."""
    chains, found = [], []
    while True:
        budget -= len(chain)
        if budget < 0 or (index >= end).any():
            return None
        descriptors = table[index]
        chains.append(chain)
        found.append(descriptors)
        goes_on = (descriptors["flags"] & (_NEXT | _INDIRECT)) == _NEXT
        if not goes_on.any():
            return np.concatenate(chains), np.concatenate(found)
        chain, start, end = chain[goes_on], start[goes_on], end[goes_on]
        index = start + descriptors["next"][goes_on]
