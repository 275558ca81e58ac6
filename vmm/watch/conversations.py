"""The two conversations of a balloon's driver: its statistics, and its hints of free pages (§5.5.6.3, §5.5.6.5).

Both are pure: they are told what came and went, and say what rule that breaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from devices.state import COUNTER, FLAG, Many, Maybe, Stateful, Table, uint
from devices.virtio import spec
from vmm.watch.breaches import Breaches

_STOP, _FIRST_ID = 0, 2  # §5.5.6.5: 0 STOP, 1 DONE, from 2 on an id is a live one
_ID_BYTES = 4


class StatsRules(Stateful):
    """R16 to R23.  `_available` counts the buffers that the driver made available and has not got back."""

    STATE: ClassVar[Table] = {"_available": COUNTER, "_tags": Maybe(Many(uint(16), longest=1 << 16))}

    def __init__(self, breaches: Breaches) -> None:
        self._breaches = breaches
        self.driver_lost()

    def driver_lost(self) -> None:
        self._available = 0
        self._tags: tuple[int, ...] | None = None

    def queue_lost(self) -> None:
        """The driver took the queue back, and its buffers."""
        self._available = 0
        self._breaches.met("R17", "R18")

    def ready(self, now_ns: int) -> None:
        """DRIVER_OK, with the statsq negotiated, and what was in it was looked at."""
        if not self._available:
            self._breaches.expect("R17", now_ns)

    def came(self, outputs: Sequence[int], inputs: Sequence[int], now_ns: int) -> None:
        """Buffers came: the device-readable and the device-writable bytes of each."""
        for readable, writable in zip(outputs, inputs, strict=True):
            self._available += 1
            if self._available > 1:
                self._breaches.add("R16", now_ns, f"{self._available} buffers are available at once")
            if writable or not readable:
                self._breaches.add(
                    "R18", now_ns, f"a buffer has {readable} device-readable and {writable} device-writable bytes"
                )
        self._breaches.met("R17", "R18")

    def used(self, count: int, now_ns: int) -> None:
        """The device used so many buffers."""
        self._available = max(self._available - count, 0)
        if not self._available:
            self._breaches.expect("R18", now_ns)

    def said(self, raw: Sequence[tuple[int, int]], odd_bytes: int, now_ns: int) -> None:
        """What was read from the newest buffer, and how many bytes of it were in no entry."""
        if odd_bytes:
            self._breaches.add("R20", now_ns, f"a buffer ends {odd_bytes} bytes behind its last whole entry")
        counts = Counter(tag for tag, _ in raw)
        if twice := [tag for tag, count in counts.items() if count > 1]:
            self._breaches.add("R19", now_ns, f"tag {min(twice)} stands more than once in a buffer")
        tags = tuple(sorted(counts))
        if self._tags is not None and tags != self._tags:
            changed = ", ".join(map(str, sorted(set(tags) ^ set(self._tags))[:8]))
            self._breaches.add("R23", now_ns, f"buffers differ in the tags {changed}")
        self._tags = tags


class HintRules(Stateful):
    """R24 to R29.  `_said` is the id under which pages are hinted now, `_last_id` the last one that was ever sent.

    The driver is held to the command id that it has read last: it cannot know of a newer one."""

    STATE: ClassVar[Table] = {"_said": Maybe(uint(32)), "_last_id": Maybe(uint(32)), "_open": FLAG}

    def __init__(self, breaches: Breaches) -> None:
        self._breaches = breaches
        self.driver_lost()

    def driver_lost(self) -> None:
        self._said: int | None = None
        self._last_id: int | None = None
        self._open = False

    def output(self, payload: bytes, size: int, order: spec.ByteOrder, now_ns: int) -> None:
        """An output buffer of `size` bytes came; `payload` is what it holds if that is an id."""
        if size != _ID_BYTES:
            self._breaches.add("R24", now_ns, f"an output buffer of {size} bytes")
            return
        value = int.from_bytes(payload, "little" if order == "<" else "big")
        if value == _STOP:
            self._said, self._open = None, False
            self._breaches.met("R29")
            return
        if value == self._last_id:
            self._breaches.add("R26", now_ns, f"the command id {value:#x} was sent again")
        self._said = self._last_id = value
        self._open = True
        self._breaches.expect("R29", now_ns)

    def pages(self, count: int, seen_id: int, now_ns: int) -> None:
        """`count` buffers of free pages came; `seen_id` is the command id that the driver has read last."""
        if seen_id < _FIRST_ID:
            name = "STOP" if seen_id == _STOP else "DONE"
            self._breaches.add("R28", now_ns, f"pages were hinted although the command id was {name}", count)
        elif self._said != seen_id:
            said = "no command id" if self._said is None else f"the command id {self._said:#x}"
            self._breaches.add("R25", now_ns, f"pages were hinted under {said} and not {seen_id:#x}", count)
        if self._open:
            self._breaches.expect("R29", now_ns)

    def owes_a_stop(self, current_id: int) -> bool:
        """Whether the driver has begun hints under the id that is still current, and not ended them."""
        return self._open and self._said == current_id
