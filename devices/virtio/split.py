"""The split virtqueue, the device's side (virtio 1.3 §2.7).

Owns the available and the used ring: which chains are new, which are in flight, what was returned, and whether the
driver wants to hear of it.  Refuses to know what a chain is for (`walk` knows what makes one valid) and what becomes of
a `DriverError`.

Invariants: the available index is read before the entries it covers; the used index is written after its elements, as
one 16-bit store; every head is in flight from the moment it is taken until it is put, and no head twice.  After a
`DriverError` the chains before it are taken by `take_sound`, and the one at fault is left behind by `pass_over`;
without that the queue takes nothing more until it is set up again.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from devices.errors import DriverError, Fault
from devices.memory import GuestMemory
from devices.state import Bytes, Stateful, Table, uint
from devices.virtio import spec
from devices.virtio.chains import Chains, OneBuffer
from devices.virtio.policy import RESET, Policy
from devices.virtio.walk import Walker

LOCK_STEP_FROM_CHAINS = 128
"""From so many chains on they are followed in lock-step, and returned with numpy.

In a loop they cross at 48 chains (bench/bench_balloon.py).  But a kick comes when the driver's own work has just pushed
this code out of the caches, and of numpy's there is more."""

CAREFUL_CHAINS = 64
"""So many entries are looked at together once one was at fault: the work behind each fault stays small."""

Part = NDArray[np.uint8]
_RING = 4  # §2.7.6, §2.7.8: `ring` follows two 16-bit fields
_FLAGS, _IDX = 0, 1  # 16-bit words of both rings


class SplitQueue(Stateful):
    """A queue of `size` entries (a power of two up to 32768) whose parts are where the driver said.

    `indirect`, `event_idx`, `in_order` and `notify_on_empty` tell which features were negotiated.
    `order` is the byte order of all of it, the driver's own in a legacy queue (§2.7.3); `policy` says which broken
    rules are tolerated.
    DriverError when a part is misaligned (§2.7.1) or is not inside one region of RAM."""

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("_next_available", "_next_used", "_notified_used"), uint(16)),
        "_in_flight": Bytes(),
    }

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc_gpa: int,
        driver_gpa: int,
        device_gpa: int,
        *,
        indirect: bool = False,
        event_idx: bool = False,
        in_order: bool = False,
        notify_on_empty: bool = False,
        order: spec.ByteOrder = "<",
        policy: Policy = RESET,
    ) -> None:
        _check_alignment("descriptor table", desc_gpa, spec.VIRTQ_DESC_ALIGN)
        _check_alignment("available ring", driver_gpa, spec.VIRTQ_AVAIL_ALIGN)
        _check_alignment("used ring", device_gpa, spec.VIRTQ_USED_ALIGN)
        self.size = size
        self._memory = memory
        self._event_idx = event_idx
        self._in_order = in_order
        self._notify_on_empty = notify_on_empty
        self._walker = Walker(memory, desc_gpa, size, indirect, order, policy)
        # One more 16-bit word each for used_event and avail_event, which are there only with EVENT_IDX.
        available = memory.view(driver_gpa, 4 + 2 * size + 2 * event_idx)
        used = memory.view(device_gpa, 4 + 8 * size + 2 * event_idx)
        # One 16-bit load or store each.
        self._available = _words(available, order)
        self._used = _words(used, order)
        self._used_bytes = used.data
        self._available_ring = available[_RING : _RING + 2 * size].view(order + "u2")
        self._used_ring = used[_RING : _RING + 8 * size].view(spec.virtq_used_elem.newbyteorder(order))
        self._used_elem = Struct(order + "II")
        self._used_gpa = device_gpa
        self._next_available = 0
        self._next_used = 0
        self._notified_used = 0  # the used index when the driver was last asked whether it wants to hear
        self._in_flight = bytearray(size)
        self._heads_in_flight = np.frombuffer(self._in_flight, np.uint8)

    @property
    def marks(self) -> Part:
        """One byte a head, not 0 while it is in flight; the same memory as long as the queue is enabled."""
        return self._heads_in_flight

    def __eq__(self, other: object) -> bool:
        """Whether both stand at the same place of the same rings."""
        return isinstance(other, SplitQueue) and self._state() == other._state()

    def _state(self) -> tuple[object, ...]:
        return self.size, self._used_gpa, self._next_available, self._next_used, self._notified_used, self._in_flight

    # -- taking ----------------------------------------------------------------------------------------------------

    def take_available(self) -> Chains | None:
        """The chains that the driver made available and nobody took yet, None if there are none.

        At least one and at most as many as have no more descriptors than the queue size in all (indirect ones counted);
        call again for the rest.  DriverError, and nothing taken, if any breaks a rule."""
        index = self._available[_IDX]
        pending = (index - self._next_available) & 0xFFFF
        if not pending:
            return None
        if pending > self.size:
            raise self._jumped(index, pending)
        self._memory.fence()
        if pending == 1:
            head = self._available[2 + (self._next_available & self.size - 1)]
            chains = self._walker.one(head, self._in_flight)
        else:
            chains = self._take_many(pending)
        self._next_available = self._next_available + chains.count & 0xFFFF
        if self._event_idx:
            # As in `_ask_for_the_next`, which is not called: every kick comes through here.
            self._used[2 + 4 * self.size] = self._next_available
            self._memory.writes.add(self._used_gpa + 4 + 8 * self.size, 2)
            self._memory.fence()
        return chains

    def _ask_for_the_next(self) -> None:
        """§2.7.10.2: the next chain made available shall be notified.  Those that came before this store are not: the
        caller must look once more."""
        self._used[2 + 4 * self.size] = self._next_available
        self._memory.writes.add(self._used_gpa + 4 + 8 * self.size, 2)
        self._memory.fence()

    def _jumped(self, index: int, pending: int) -> DriverError:
        text = f"the available index {index} is {pending} entries ahead, more than the queue size {self.size}"
        return DriverError("2.7.13.3", text, fault=Fault.AVAILABLE_INDEX)

    def _take_many(self, pending: int) -> Chains:
        position = self._next_available & self.size - 1
        ring = self._available_ring
        upper, lower = ring[position : position + pending], ring[: max(position + pending - self.size, 0)]
        if pending >= LOCK_STEP_FROM_CHAINS and self._are_new(heads := np.concatenate((upper, lower))):
            chains = self._walker.in_lock_step(heads.astype(np.intp))
            if chains is not None:
                self._heads_in_flight[heads] = 1
                return chains
        return self._walker.one_by_one(upper.tolist() + lower.tolist(), self._in_flight)

    def _are_new(self, heads: np.ndarray[tuple[int], np.dtype[np.uint16]]) -> bool:
        """Whether all are in range, different, and not in flight."""
        if heads.max() >= self.size or self._heads_in_flight[heads].any():
            return False
        return int(np.bincount(heads).max()) == 1

    # -- taking behind a fault -------------------------------------------------------------------------------------

    def take_sound(self, error: DriverError) -> Chains | None:
        """The chains before the one that `error` is about, which are taken now."""
        if error.sound is not None:
            self._advance(error.sound.count)
        return error.sound

    def take_carefully(self) -> Chains | None:
        """`take_available` of a few chains, where one of them may be at fault."""
        index = self._available[_IDX]
        pending = (index - self._next_available) & 0xFFFF
        if not pending:
            return None
        if pending > self.size:
            raise self._jumped(index, pending)
        self._memory.fence()
        places = range(self._next_available, self._next_available + min(pending, CAREFUL_CHAINS))
        heads = [self._available[2 + (place & self.size - 1)] for place in places]
        chains = self._walker.one_by_one(heads, self._in_flight)
        self._advance(chains.count)
        return chains

    def pass_over(self, error: DriverError) -> Chains | None:
        """Leave what `error` is about behind.

        The chain is in flight then, as a name to put, without its buffers.  None where nothing can be put: the head is
        none, or is in flight already, or the available index jumped: then the queue goes on from the new index."""
        if error.fault is Fault.AVAILABLE_INDEX:
            self._advance(self._available[_IDX] - self._next_available)
            return None
        head = self._available[2 + (self._next_available & self.size - 1)]
        self._advance(1)
        if head >= self.size or self._in_flight[head]:
            return None
        self._in_flight[head] = 1
        return OneBuffer(head, 0, 1, False, head)

    def _advance(self, count: int) -> None:
        self._next_available = self._next_available + count & 0xFFFF
        if self._event_idx:
            self._ask_for_the_next()

    def misannounced(self, data: int) -> str:
        """What is wrong with the available index of notification `data` (§2.9), now that everything was taken; "" if
        nothing is.  The ring may be ahead of what was announced by what it holds, never behind."""
        index = data >> 16 & 0xFFFF
        if (self._next_available - index) & 0xFFFF <= self.size:
            return ""
        return f"available index {index}, the ring's is {self._next_available}"

    # -- putting ---------------------------------------------------------------------------------------------------

    def put_used(self, chains: Chains, written: int | Sequence[int] = 0) -> None:
        """Return `chains`; `written` is how many bytes were stored in the buffers of each (§2.7.8.2), or of all.

        With IN_ORDER one element stands for all of them (§2.7.9), unless a skipped one would pass for written."""
        count = chains.count
        position = self._next_used & self.size - 1
        if self._in_order and count > 1 and chains.are_readable():
            self._used_elem.pack_into(self._used_bytes, _RING + 8 * position, chains.id_of(count - 1), 0)
            self._heads_in_flight[chains.buffer_id] = 0
        elif count == 1:
            head = chains.id_of(0)
            length = written if isinstance(written, int) else written[0]
            self._used_elem.pack_into(self._used_bytes, _RING + 8 * position, head, length)
            self._in_flight[head] = 0
        elif count < LOCK_STEP_FROM_CHAINS:
            self._put_few(chains, written, position)
        else:
            self._put_many(chains, written, position)
        self._next_used = self._next_used + count & 0xFFFF
        self._used[_IDX] = self._next_used
        # The index and the elements up to the last one written; those before it are named for nothing, but only once.
        self._memory.writes.add(self._used_gpa + 2, 2 + 8 * min(position + count, self.size))

    def _put_few(self, chains: Chains, written: int | Sequence[int], position: int) -> None:
        store, used, in_flight, mask = self._used_elem.pack_into, self._used_bytes, self._in_flight, self.size - 1
        lengths = [written] * chains.count if isinstance(written, int) else written
        for place, ((head, _), length) in enumerate(zip(chains.names_and_slots(), lengths, strict=True), position):
            store(used, _RING + 8 * (place & mask), head, length)
            in_flight[head] = 0

    def _put_many(self, chains: Chains, written: int | Sequence[int], position: int) -> None:
        places = np.arange(position, position + len(chains)) & self.size - 1
        self._used_ring["id"][places] = chains.buffer_id
        self._used_ring["len"][places] = written
        self._heads_in_flight[chains.buffer_id] = 0

    def needs_notification(self) -> bool:
        """Whether the driver wants to hear of what was put since the last call (§2.7.7.2)."""
        self._memory.fence()
        old, self._notified_used = self._notified_used, self._next_used
        if self._notify_on_empty and self._next_used != old and self._available[_IDX] == self._next_available:
            return True  # §6.3: it ran out of available descriptors, however much the driver wants to be left alone
        if self._event_idx:
            used_event = self._available[2 + self.size]
            return (self._next_used - used_event - 1) & 0xFFFF < (self._next_used - old) & 0xFFFF
        suppressed = self._available[_FLAGS] & spec.VIRTQ_AVAIL_F_NO_INTERRUPT
        return self._next_used != old and not suppressed


class _ForeignWords:
    """16-bit words in the byte order that is not the host's."""

    def __init__(self, part: Part, order: spec.ByteOrder) -> None:
        self._words = part.view(order + "u2")

    def __getitem__(self, index: int) -> int:
        word: int = self._words.item(index)
        return word

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value


def _words(part: Part, order: spec.ByteOrder) -> memoryview | _ForeignWords:
    """The words of a part of the queue.  The host's order, which guest RAM sees to be little-endian, is quick."""
    return part.data.cast("H") if order == "<" else _ForeignWords(part, order)


def _check_alignment(part: str, gpa: int, alignment: int) -> None:
    if gpa % alignment:
        raise DriverError("2.7.1", f"the {part} at {gpa:#x} must be aligned to {alignment} bytes")
