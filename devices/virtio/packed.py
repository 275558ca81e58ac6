"""The packed virtqueue, the device's side (virtio 1.3 §2.8).

Owns one ring in which both sides write: where the next available descriptor will be, where the next used one goes,
which buffer ids are in flight, and whether the driver wants to hear.  Refuses to know what a chain is for
(`packed_walk` knows what makes one valid) and what becomes of a `DriverError`.

A place in the ring together with its wrap counter is one number here, a *position* from 0 to twice the ring's size:
below the size the wrap counter is 1, from there on it is 0.  Both sides' places are positions, so that what lies
between them is a subtraction.

Invariants: a descriptor's flags are read before its body; a used descriptor becomes visible by one 16-bit store of its
flags, behind its body, and of several put together the first one is made visible last; the descriptors from
`_next_used` to `_next_available` are the chains in flight, never more than the ring has, and no buffer id is in flight
twice.  After a `DriverError` the chains before it are taken by `take_sound`, and the one at fault is left behind by
`pass_over`; without that the queue takes nothing more until it is set up again.  The place of one that is never put
stays in flight, and its id with it, unless that was another chain's already.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from devices.errors import DriverError
from devices.memory import GuestMemory
from devices.state import Int, Plain, Stateful, Table, refuse, require_list, uint
from devices.virtio import spec
from devices.virtio.chains import Chains, FewChains, OneBuffer
from devices.virtio.packed_walk import AVAILABLE, EITHER, PackedWalker
from devices.virtio.policy import RESET, Policy

BULK_FROM_CHAINS = 96
"""From so many descriptors on they are read, and from so many chains on they are returned, with numpy.

In a loop they cross at about 70 (bench/bench_balloon.py), but see `split.LOCK_STEP_FROM_CHAINS`."""

IDS = 1 << 16
"""A buffer id is any 16-bit number: §2.8 sets no bound, though drivers number from 0."""

_BODY = Struct("<QIH")
_USED = Struct("<IH")  # the length and the id that a used descriptor has, at the descriptor's byte 8
_WHOLE_USED = Struct("<IHH")  # and the flags behind them
_DESC_BYTES = spec.pvirtq_desc.itemsize
_WORDS, _FLAGS_WORD = _DESC_BYTES // 2, 7
_WRITE, _LINKED = spec.VIRTQ_DESC_F_WRITE, spec.VIRTQ_DESC_F_NEXT | spec.VIRTQ_DESC_F_INDIRECT
_BOTH = spec.VIRTQ_DESC_F_AVAIL | spec.VIRTQ_DESC_F_USED
_DISABLE, _AT_DESCRIPTOR = spec.RING_EVENT_FLAGS_DISABLE, spec.RING_EVENT_FLAGS_DESC


class _Ids:
    """The marks of ids in flight, one byte an id, saved as an ascending list of ids."""

    _id = uint(16)

    def save(self, current: bytearray) -> Plain:
        return list(np.flatnonzero(np.frombuffer(current, np.uint8)).tolist())

    def check(self, current: bytearray, saved: Any, where: str) -> None:
        before = -1
        for index, each in enumerate(require_list(where, saved)):
            self._id.check(None, each, f"{where}[{index}]")
            if each <= before:
                raise refuse(where, "an ascending list", each)
            before = each

    def restore(self, current: bytearray, saved: list[int]) -> bytearray:
        current[:] = bytes(IDS)  # in place: there is a view of it
        for each in saved:
            current[each] = 1
        return current


class PackedQueue(Stateful):
    """A queue of `size` descriptors (any number up to 32768) at `desc_gpa`; `driver_gpa` and `device_gpa` are the event
    suppression structures of driver and device.

    `indirect`, `event_idx` and `in_order` tell which features were negotiated, `policy` which broken rules are
    tolerated.  DriverError when a part is misaligned (§2.8.11) or is not inside one region of RAM."""

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("_next_available", "_next_used", "_notified_used"), Int(0, 2 * spec.VIRTQ_MAX_SIZE - 1)),
        "_in_flight": _Ids(),
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
        policy: Policy = RESET,
    ) -> None:
        _check_alignment("descriptor ring", desc_gpa, spec.PVIRTQ_DESC_ALIGN)
        _check_alignment("driver event suppression structure", driver_gpa, spec.PVIRTQ_EVENT_ALIGN)
        _check_alignment("device event suppression structure", device_gpa, spec.PVIRTQ_EVENT_ALIGN)
        self.size = size
        self._memory = memory
        self._event_idx = event_idx
        self._in_order = in_order
        self._policy = policy
        ring = memory.view(desc_gpa, size * _DESC_BYTES)
        # One load or store each: 16 bits of a descriptor, and 32 of an event suppression structure.
        self._bytes = ring.data
        self._words = ring.data.cast("H")
        self._driver_event = memory.view(driver_gpa, 4).data.cast("I")
        self._device_event = memory.view(device_gpa, 4).data.cast("I")
        self._records: NDArray[Any] = ring.view(spec.pvirtq_desc)
        self._walker = PackedWalker(memory, self._records, self._bytes, self._words, indirect, policy)
        self._ring_gpa = desc_gpa
        self._device_gpa = device_gpa
        self._round = 2 * size
        self._next_available = 0
        self._next_used = 0
        self._notified_used = 0  # `_next_used` when the driver was last asked whether it wants to hear
        self._in_flight = bytearray(IDS)
        self._ids_in_flight = np.frombuffer(self._in_flight, np.uint8)
        self._place = np.zeros(1, np.uint32)
        self._told_place = self._place.data

    @property
    def marks(self) -> NDArray[np.uint8]:
        """One byte an id, not 0 while it is in flight; the same memory as long as the queue is enabled."""
        return self._ids_in_flight

    @property
    def place(self) -> NDArray[np.uint32]:
        """Shape (1,): the position of the next used descriptor, for somebody who looks at this process from outside;
        the same memory as long as the queue is enabled.  What lies in a split ring's used index is not in this ring."""
        return self._place

    def __eq__(self, other: object) -> bool:
        """Whether both stand at the same place of the same ring."""
        return isinstance(other, PackedQueue) and self._state() == other._state()

    def _state(self) -> tuple[object, ...]:
        places = self._next_available, self._next_used, self._notified_used
        return self.size, self._ring_gpa, self._device_gpa, places, self._in_flight

    def check_state(self, saved: Any, where: str) -> None:
        super().check_state(saved, where)
        for name in ("next_available", "next_used", "notified_used"):
            if saved[name] >= self._round:
                raise refuse(f"{where}.{name}", f"below twice the ring's size, {self._round}", saved[name])
        slots = (saved["next_available"] - saved["next_used"]) % self._round
        nameless = slots and not saved["in_flight"] and self._policy is RESET  # other policies pass over a name twice
        if not len(saved["in_flight"]) <= slots <= self.size or nameless:
            raise refuse(f"{where}.in_flight", f"the ids of {slots} descriptors", saved["in_flight"])

    def restore_state(self, saved: Any) -> None:
        super().restore_state(saved)
        self._told_place[0] = self._next_used

    # -- taking ----------------------------------------------------------------------------------------------------

    def take_available(self) -> Chains | None:
        """The chains that the driver made available and nobody took yet, None if there are none.

        At least one and at most as many as have no more descriptors than the queue size in all (indirect ones counted);
        call again for the rest.  DriverError, and nothing taken, if any breaks a rule."""
        position, size = self._next_available, self.size
        place, expected = (position, AVAILABLE[1]) if position < size else (position - size, AVAILABLE[0])
        flags = self._words[_WORDS * place + _FLAGS_WORD]
        if flags & EITHER != expected:
            return None
        self._memory.fence()
        # Most drivers offer one descriptor at a time: then nothing is available behind it, and no list is needed.
        if place + 1 < size:
            following, after = position + 1, self._words[_WORDS * place + _WORDS + _FLAGS_WORD] & EITHER
        else:
            following, after = size if expected == AVAILABLE[1] else 0, self._words[_FLAGS_WORD] & EITHER ^ EITHER
        if after != expected and not flags & _LINKED:
            gpa, length, name = _BODY.unpack_from(self._bytes, _DESC_BYTES * place)
            room = (position - self._next_used) % self._round != size
            if length and room and not self._in_flight[name] and self._memory.region_of(gpa, length) is not None:
                self._in_flight[name] = 1
                self._next_available = following
                if self._event_idx:
                    self._ask_for_the_next()
                return OneBuffer(place, gpa, length, bool(flags & _WRITE), name)
        chains, slots = self._take_several(position)
        self._next_available = (position + slots) % self._round
        if self._event_idx:
            self._ask_for_the_next()
        return chains

    def _is_available(self, position: int) -> bool:
        """Whether the descriptor at `position` is marked available for the round that the position belongs to."""
        size = self.size
        place, expected = (position, AVAILABLE[1]) if position < size else (position - size, AVAILABLE[0])
        return self._words[_WORDS * place + _FLAGS_WORD] & EITHER == expected

    def _take_several(self, position: int) -> tuple[Chains, int]:
        """Chains from `position` on, and how many descriptors of the ring they are."""
        room = self.size - (position - self._next_used) % self._round
        ahead = BULK_FROM_CHAINS
        if ahead <= room and self._is_available((position + ahead - 1) % self._round):
            while ahead < room and self._is_available((position + 2 * ahead - 1) % self._round):
                ahead *= 2
            found = self._walker.in_bulk(position, min(2 * ahead, room), room, self._ids_in_flight)
            if found is not None:
                self._ids_in_flight[found[0].buffer_id] = 1
                return found
        return self._walker.one_by_one(position, room, self._in_flight)

    def _ask_for_the_next(self) -> None:
        """§2.8.10: the next descriptor made available shall be notified.  Those that came before this store are not:
        the caller must look once more."""
        position = self._next_available
        next_one = position | 1 << 15 if position < self.size else position - self.size
        self._device_event[0] = _AT_DESCRIPTOR << 16 | next_one
        self._memory.writes.add(self._device_gpa, 4)
        self._memory.fence()

    # -- taking behind a fault -------------------------------------------------------------------------------------

    def take_sound(self, error: DriverError) -> Chains | None:
        """The chains before the one that `error` is about, which are taken now."""
        if error.sound is not None:
            self._advance(error.sound_slots)
        return error.sound

    def take_carefully(self) -> Chains | None:
        """`take_available`, where a chain may be at fault."""
        position = self._next_available
        if not self._is_available(position):
            return None
        room = self.size - (position - self._next_used) % self._round
        chains, slots = self._walker.one_by_one(position, room, self._in_flight)
        self._advance(slots)
        return chains

    def pass_over(self, error: DriverError) -> Chains | None:
        """Leave the chain that `error` is about behind, up to where its list ends.

        It is in flight then, as a name to put, without its buffers.  None where its id is in flight already: nothing
        can be put for it."""
        position = self._next_available
        room = self.size - (position - self._next_used) % self._round
        if not room:
            return None
        slots, name = self._walker.extent(position, room)
        self._advance(slots)
        if self._in_flight[name]:
            return None
        self._in_flight[name] = 1
        return FewChains([position % self.size], [slots], [0, 1], [0], [1], [False], [name])

    def _advance(self, slots: int) -> None:
        self._next_available = (self._next_available + slots) % self._round
        if self._event_idx:
            self._ask_for_the_next()

    def misannounced(self, data: int) -> str:
        """What is wrong with the next offset and wrap counter of notification `data` (§2.9), now that everything was
        taken; "" if nothing is.  The ring may be ahead of what was announced, never behind."""
        offset, wrap = data >> 16 & 0x7FFF, data >> 31 & 1
        position = self._next_available
        ahead = ((offset if wrap else offset + self.size) - position) % self._round
        if offset < self.size and not 0 < ahead <= self.size:
            return ""
        place, ours = (position, 1) if position < self.size else (position - self.size, 0)
        return f"next offset {offset} and wrap counter {wrap}, the ring goes on at {place} with {ours}"

    # -- putting ---------------------------------------------------------------------------------------------------

    def put_used(self, chains: Chains, written: int | Sequence[int] = 0) -> None:
        """Return `chains`; `written` is how many bytes were stored in the buffers of each (§2.8.4), or of all.

        With IN_ORDER one used descriptor stands for all of them, unless a skipped one would pass for written."""
        position, count = self._next_used, chains.count
        if count == 1:
            buffer_id, slots = chains.id_of(0), chains.slots_of(0)
            self._in_flight[buffer_id] = 0
            self._use(position, buffer_id, written if isinstance(written, int) else written[0])
            end = position + slots
        elif self._in_order and chains.are_readable():
            end = position + int(chains.slots.sum())
            self._ids_in_flight[chains.buffer_id] = 0
            self._use(position, chains.id_of(count - 1), 0)
        elif count < BULK_FROM_CHAINS:
            end = self._put_few(position, chains, written)
        else:
            end = self._put_many(position, chains, written)
        self._next_used = self._told_place[0] = end if end < self._round else end - self._round

    def _use(self, position: int, buffer_id: int, length: int, slots: int = 1) -> None:
        """Write one used descriptor, which is visible from then on (§2.8.1, §2.8.3): both marks match the wrap counter,
        and WRITE says that the length means something.  With it so many `slots` are named as written."""
        place, flags = (position, _BOTH) if position < self.size else (position - self.size, 0)
        offset = _DESC_BYTES * place + 8
        _USED.pack_into(self._bytes, offset, length, buffer_id)
        self._words[_WORDS * place + _FLAGS_WORD] = flags | _WRITE if length else flags
        if slots == 1:
            self._memory.writes.add(self._ring_gpa + offset, 8)
        else:
            self._wrote(place, slots)

    def _put_few(self, position: int, chains: Chains, written: int | Sequence[int]) -> int:
        """Put in a loop; returns the position behind, not yet brought back below the end of the round.

        The driver looks at the first descriptor and then at the ones behind it: those may be written in any way."""
        ring, size, in_flight, round_ = self._bytes, self.size, self._in_flight, self._round
        store = _WHOLE_USED.pack_into
        lengths = [written] * chains.count if isinstance(written, int) else written
        places = zip(chains.names_and_slots(), lengths, strict=True)
        (first, slots), length = next(places)
        at = position + slots
        for (buffer_id, slots), other in places:
            flags = _WRITE if other else 0
            where = at if at < round_ else at - round_
            if where < size:
                store(ring, _DESC_BYTES * where + 8, other, buffer_id, flags | _BOTH)
            else:
                store(ring, _DESC_BYTES * (where - size) + 8, other, buffer_id, flags)
            in_flight[buffer_id] = 0
            at += slots
        in_flight[first] = 0
        self._memory.fence()
        self._use(position, first, length, at - position)
        return at

    def _put_many(self, position: int, chains: Chains, written: int | Sequence[int]) -> int:
        slots, lengths = chains.slots, np.asarray(written, np.uint32)
        ends = position + np.cumsum(slots)
        starts = (ends - slots) % self._round
        first_round = starts < self.size
        places = np.where(first_round, starts, starts - self.size)
        self._records["id"][places] = chains.buffer_id
        self._records["len"][places] = lengths
        flags = np.where(first_round, _BOTH, 0) | np.where(lengths != 0, _WRITE, 0)
        self._ids_in_flight[chains.buffer_id] = 0
        self._memory.fence()
        self._records["flags"][places[1:]] = flags[1:]
        self._memory.fence()
        self._words[_WORDS * int(places[0]) + _FLAGS_WORD] = int(flags[0])
        end = int(ends[-1])
        self._wrote(int(places[0]), end - position)
        return end

    def _wrote(self, place: int, slots: int) -> None:
        """Name `slots` descriptors from `place` on as written."""
        over = place + slots - self.size
        if over > 0:
            self._memory.writes.add(self._ring_gpa, _DESC_BYTES * over)
            slots -= over
        self._memory.writes.add(self._ring_gpa + _DESC_BYTES * place, _DESC_BYTES * slots)

    def needs_notification(self) -> bool:
        """Whether the driver wants to hear of what was put since the last call (§2.8.10)."""
        self._memory.fence()
        old, new = self._notified_used, self._next_used
        if old == new:
            return False
        self._notified_used = new
        event = self._driver_event[0]
        kind = event >> 16 & 3
        if kind == _DISABLE:
            return False
        if kind != _AT_DESCRIPTOR or not self._event_idx:
            return True
        offset = event & 0x7FFF
        wanted = offset if event & 1 << 15 else offset + self.size
        return offset < self.size and (wanted - old) % self._round < (new - old) % self._round


def _check_alignment(part: str, gpa: int, alignment: int) -> None:
    if gpa % alignment:
        raise DriverError("2.8.11", f"the {part} at {gpa:#x} must be aligned to {alignment} bytes")
