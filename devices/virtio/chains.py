"""What a device receives: descriptor chains, checked, as a structure of arrays.

A `Chains` value is a snapshot.  Its descriptors were copied out of the ring once and every rule was checked on the
copy, so that nothing the driver writes afterwards can change what a device sees: each buffer is inside guest RAM, none
is empty, and within a chain the device-readable ones come first.  The buffers' *contents* are still the driver's: take
them with one gather, check the copy, and never look at the buffer again.

It refuses to know the ring format: a split and a packed ring make the same value, which is why a chain has a
`buffer_id` and a number of `slots` beside its head.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.memory import GuestMemory
from devices.state import FLAG, Int, Many, Plain, Record, Tuple, uint

Heads = NDArray[np.uint16]
Index = NDArray[np.intp]
U64 = NDArray[np.uint64]
Flags = NDArray[np.bool_]

ARRAYS = ("head", "buffer_id", "slots", "first", "addr", "length", "writable")
"""The attributes of `Chains` that are arrays."""


class Chains:
    """n chains of m descriptors in all.

    head        (n,) uint16   index of each chain's first descriptor in the descriptor table or ring
    buffer_id   (n,) uint16   what the used element names; the head in a split ring
    slots       (n,) intp     entries of the descriptor table the chain occupies (1 for an indirect table)
    first       (n + 1,) intp chain i has the descriptors first[i] .. first[i + 1] - 1
    addr        (m,) uint64   guest-physical address of each buffer
    length      (m,) uint64   its bytes, never 0
    writable    (m,) bool     device-writable; otherwise device-readable

    `count` is n, `descriptors` is m.
    """

    __slots__ = ("addr", "buffer_id", "count", "descriptors", "first", "head", "length", "slots", "writable")

    def __init__(
        self,
        head: Heads,
        slots: Index,
        first: Index,
        addr: U64,
        length: U64,
        writable: Flags,
        buffer_id: Heads | None = None,
    ) -> None:
        self.head = head
        self.buffer_id = head if buffer_id is None else buffer_id
        self.slots = slots
        self.first = first
        self.addr = addr
        self.length = length
        self.writable = writable
        self.count = len(head)
        self.descriptors = len(addr)

    def __len__(self) -> int:
        return self.count

    def id_of(self, index: int) -> int:
        """The buffer id of chain `index`."""
        return int(self.buffer_id[index])

    def slots_of(self, index: int) -> int:
        """How many entries of the descriptor table or ring chain `index` occupies."""
        return int(self.slots[index])

    def names_and_slots(self) -> list[tuple[int, int]]:
        """Buffer id and slots of each chain."""
        return list(zip(self.buffer_id.tolist(), self.slots.tolist(), strict=True))

    def buffers(self) -> list[tuple[int, int, bool]]:
        """(address, bytes, device-writable) of all buffers."""
        return list(zip(self.addr.tolist(), self.length.tolist(), self.writable.tolist(), strict=True))

    def are_readable(self) -> bool:
        """Whether no buffer of any chain is device-writable."""
        return not self.writable.any()

    def only(self, index: int) -> Chains:
        """Chain `index` alone, so that a device can hold it while the others are completed."""
        start, end = int(self.first[index]), int(self.first[index + 1])
        return Chains(
            self.head[index : index + 1],
            self.slots[index : index + 1],
            np.array([0, end - start]),
            self.addr[start:end],
            self.length[start:end],
            self.writable[start:end],
            self.buffer_id[index : index + 1],
        )

    def readable_bytes(self) -> list[int]:
        """Bytes of device-readable buffers in each chain."""
        return self._sums(~self.writable)

    def writable_bytes(self) -> list[int]:
        """Bytes of device-writable buffers in each chain."""
        return self._sums(self.writable)

    def _sums(self, wanted: Flags) -> list[int]:
        sums: list[int] = np.add.reduceat(self.length * wanted, self.first[:-1]).tolist()
        return sums

    def gather_readable(self, memory: GuestMemory, limit_bytes: int) -> bytes:
        """A copy of the device-readable bytes of all chains, in order, at most the first `limit_bytes`.

        The caller names the limit because the driver chooses the lengths: up to 4 GiB a chain."""
        addr, length = self.addr[~self.writable], self.length[~self.writable]
        ends = np.cumsum(length)
        if len(ends) and ends[-1] > limit_bytes:
            kept = int(np.searchsorted(ends, limit_bytes, "left")) + 1
            addr, length = addr[:kept], length[:kept].copy()
            length[-1] -= ends[kept - 1] - np.uint64(limit_bytes)
        return memory.gather(addr, length).tobytes()

    def gather_entries(self, memory: GuestMemory, entry_bytes: int, limit_bytes: int) -> tuple[bytes, int]:
        """The device-readable bytes of all chains as arrays of entries, one after the other, and how many bytes were
        left out.

        Each chain's array ends with its last whole entry.  One that would bring the batch above the limit is not read
        at all, so that a descriptor of 4 GiB costs nothing."""
        sizes = self.readable_bytes()
        total = sum(sizes)
        if total <= limit_bytes and not any(size % entry_bytes for size in sizes):
            return self.gather_readable(memory, total), 0
        arrays, left = [], limit_bytes
        for index, size in enumerate(sizes):
            whole = size - size % entry_bytes
            if 0 < whole <= left:
                arrays.append(self.only(index).gather_readable(memory, whole))
                left -= whole
        payload = b"".join(arrays)
        return payload, total - len(payload)

    def scatter_writable(self, memory: GuestMemory, index: int, data: bytes) -> int:
        """Write `data` into the device-writable buffers of chain `index`, from the first on; what does not fit is left
        out.  Returns the bytes written, which is the used length (§2.7.8.2)."""
        position = 0
        for i in range(int(self.first[index]), int(self.first[index + 1])):
            if self.writable[i] and position < len(data):
                piece = data[position : position + int(self.length[i])]
                memory.write(int(self.addr[i]), piece)
                position += len(piece)
        return position


class _SavedChains:
    """How chains that a device holds are saved: a list with one entry a chain."""

    _buffer = Tuple(uint(64), Int(1, (1 << 64) - 1), FLAG)
    _chain = Record(
        dict, head=uint(16), buffer_id=uint(16), slots=Int(1, 1 << 16), buffers=Many(_buffer, longest=1 << 16)
    )
    _chains = Many(_chain, longest=1 << 16)

    def save(self, current: Chains) -> Plain:
        buffers = current.buffers()
        borders = current.first.tolist()
        columns = current.head.tolist(), current.buffer_id.tolist(), current.slots.tolist(), borders, borders[1:]
        return [
            {
                "head": head,
                "buffer_id": name,
                "slots": slots,
                "buffers": [list(buffer) for buffer in buffers[start:end]],
            }
            for head, name, slots, start, end in zip(*columns, strict=False)
        ]

    def check(self, current: Chains | None, saved: Any, where: str) -> None:
        self._chains.check(None, saved, where)

    def restore(self, current: Chains | None, saved: Any) -> Chains:
        buffers = [buffer for chain in saved for buffer in chain["buffers"]]
        return Chains(
            np.array([chain["head"] for chain in saved], np.uint16),
            np.array([chain["slots"] for chain in saved], np.intp),
            np.cumsum([0, *(len(chain["buffers"]) for chain in saved)]),
            np.array([addr for addr, _, _ in buffers], np.uint64),
            np.array([length for _, length, _ in buffers], np.uint64),
            np.array([writable for _, _, writable in buffers], np.bool_),
            np.array([chain["buffer_id"] for chain in saved], np.uint16),
        )


CHAINS = _SavedChains()


class _WithoutArrays(Chains):
    """The same value in another form.  The arrays appear when one is asked for.

    They are properties, since with `__getattr__` every other attribute would take the interpreter's slow way too."""

    __slots__ = ("_arrays",)

    def __init__(self) -> None:
        self._arrays: Chains | None = None

    def arrays(self) -> Chains:
        """The value as arrays."""
        raise NotImplementedError


def _array(name: str) -> property:
    def ask(chains: _WithoutArrays) -> Any:
        if chains._arrays is None:
            chains._arrays = chains.arrays()
        return getattr(chains._arrays, name)

    return property(ask)


for _name in ARRAYS:
    setattr(_WithoutArrays, _name, _array(_name))


class FewChains(_WithoutArrays):
    """Chains in lists, for as few as plain Python is quicker for; `first` has one entry more than there are chains."""

    __slots__ = ("_addr", "_first", "_heads", "_ids", "_length", "_slots", "_writable")

    def __init__(
        self,
        heads: list[int],
        slots: list[int],
        first: list[int],
        addr: list[int],
        length: list[int],
        writable: list[bool],
        ids: list[int] | None = None,
    ) -> None:
        self._arrays = None
        self.count, self.descriptors = len(heads), len(addr)
        self._heads = heads
        self._ids = heads if ids is None else ids
        self._slots = slots
        self._first = first
        self._addr = addr
        self._length = length
        self._writable = writable

    def arrays(self) -> Chains:
        return Chains(
            np.array(self._heads, np.uint16),
            np.array(self._slots),
            np.array(self._first),
            np.array(self._addr, np.uint64),
            np.array(self._length, np.uint64),
            np.array(self._writable),
            np.array(self._ids, np.uint16),
        )

    def id_of(self, index: int) -> int:
        return self._ids[index]

    def slots_of(self, index: int) -> int:
        return self._slots[index]

    def names_and_slots(self) -> list[tuple[int, int]]:
        return list(zip(self._ids, self._slots, strict=True))

    def buffers(self) -> list[tuple[int, int, bool]]:
        return list(zip(self._addr, self._length, self._writable, strict=True))

    def are_readable(self) -> bool:
        return True not in self._writable

    def readable_bytes(self) -> list[int]:
        return self._sums_of(False)

    def writable_bytes(self) -> list[int]:
        return self._sums_of(True)

    def _sums_of(self, wanted: bool) -> list[int]:
        sizes = [size * (write == wanted) for size, write in zip(self._length, self._writable, strict=True)]
        if len(sizes) == len(self._heads):
            return sizes
        return [sum(sizes[start:end]) for start, end in pairwise(self._first)]

    def gather_entries(self, memory: GuestMemory, entry_bytes: int, limit_bytes: int) -> tuple[bytes, int]:
        sizes = self._length
        if self.are_readable() and sum(sizes) <= limit_bytes and not any(size % entry_bytes for size in sizes):
            return memory.read_together(list(zip(self._addr, sizes, strict=True))), 0
        return super().gather_entries(memory, entry_bytes, limit_bytes)

    def gather_readable(self, memory: GuestMemory, limit_bytes: int) -> bytes:
        pieces = []
        for gpa, size, write in zip(self._addr, self._length, self._writable, strict=True):
            if not write:
                if size >= limit_bytes:
                    pieces.append(memory.read(gpa, limit_bytes))
                    break
                pieces.append(memory.read(gpa, size))
                limit_bytes -= size
        return b"".join(pieces)


class OneBuffer(_WithoutArrays):
    """One chain of one descriptor, which is what most drivers offer."""

    __slots__ = ("_bytes", "_gpa", "_head", "_id", "_write")

    def __init__(self, head: int, gpa: int, length: int, writable: bool, buffer_id: int) -> None:
        self._arrays = None
        self.count = self.descriptors = 1
        self._head = head
        self._id = buffer_id
        self._gpa = gpa
        self._bytes = length
        self._write = writable

    def arrays(self) -> Chains:
        return Chains(
            np.array([self._head], np.uint16),
            np.array([1]),
            np.array([0, 1]),
            np.array([self._gpa], np.uint64),
            np.array([self._bytes], np.uint64),
            np.array([self._write]),
            np.array([self._id], np.uint16),
        )

    def id_of(self, index: int) -> int:
        return self._id

    def slots_of(self, index: int) -> int:
        return 1

    def buffers(self) -> list[tuple[int, int, bool]]:
        return [(self._gpa, self._bytes, self._write)]

    def are_readable(self) -> bool:
        return not self._write

    def only(self, index: int) -> Chains:
        return self

    def readable_bytes(self) -> list[int]:
        return [0 if self._write else self._bytes]

    def writable_bytes(self) -> list[int]:
        return [self._bytes if self._write else 0]

    def gather_readable(self, memory: GuestMemory, limit_bytes: int) -> bytes:
        return b"" if self._write else memory.read(self._gpa, min(self._bytes, limit_bytes))

    def gather_entries(self, memory: GuestMemory, entry_bytes: int, limit_bytes: int) -> tuple[bytes, int]:
        size = 0 if self._write else self._bytes
        whole = size - size % entry_bytes
        if 0 < whole <= limit_bytes:
            return memory.read(self._gpa, whole), size - whole
        return b"", size
