"""A balloon whose driver is watched: it answers as the balloon it is mixed into, and looks at what passes by.

Owns where to look.  What that means is `pages`' and `conversations`'; what was found is `breaches`'.

The balloon knows nothing of this.  `vmm.boards` mixes the class in where the user asked for it, and then every call of
a transport or of the host goes through here first.  Nothing is changed: no memory, no answer, no deadline.  What a
driver owes after some time is therefore looked at when the device is called anyway, and by `look`, which the machine
calls between two runs of its CPU; who is late is found whoever looks, at the time when it was over.

What is found for the first time is an event.  Of memory outside the guest only the file is read, never the mapping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from devices.effects import Event
from devices.memory import GuestMemory
from devices.state import FLAG, PART, Bytes, Stateful, Table, uint
from devices.virtio import spec
from devices.virtio.chains import Chains
from devices.virtio.device import NO_NOTIFICATIONS, Notifications, Queue
from devices.virtio.spec import Status
from vmm.watch.breaches import PATIENCE_NS, Breaches
from vmm.watch.conversations import HintRules, StatsRules
from vmm.watch.pages import PageRules, Pfns, Runs, runs_of, whole_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.balloon import Balloon as _Balloon
    from devices.virtio.balloon.pages import PageSet
else:
    from devices.virtio.device import VirtioDevice as _Balloon

NUM_PAGES, ACTUAL, HINT_CMD_ID, POISON_VAL = 0, 4, 8, 12  # §5.5.4, four bytes each
_FIELD_BYTES, _CONFIG_BYTES = 4, 16
_MUST_TELL_HOST = spec.VIRTIO_BALLOON_F_MUST_TELL_HOST
_FEATURES_OK, _DRIVER_OK = int(Status.FEATURES_OK), int(Status.DRIVER_OK)
_CLEARABLE = 0xFF & ~int(Status.DEVICE_NEEDS_RESET)  # that one the device may have set since the driver looked
_WHEN_PENDING = {"inflateq": "R12", "reporting_vq": "R39"}
_STATS_ENTRIES_READ = 1024
_LATE = f"for {PATIENCE_NS // 10**9} s of guest time"


class DriverWatch(Stateful):
    """All that is remembered of one driver.  `seen` is the configuration space as the driver has read it last,
    `accepted` the features that it has written; `judged` and `ready` tell which steps were looked at."""

    STATE: ClassVar[Table] = {
        **dict.fromkeys(("breaches", "stats", "hints", "pages"), PART),
        "seen": Bytes(),
        "accepted": uint(64),
        **dict.fromkeys(("judged", "ready", "poison_written"), FLAG),
    }

    def __init__(self, memory: GuestMemory) -> None:
        self.breaches = Breaches()
        self.stats = StatsRules(self.breaches)
        self.hints = HintRules(self.breaches)
        self.pages = PageRules(memory, self.breaches)
        self.seen = bytearray(_CONFIG_BYTES)
        self._start()

    def _start(self) -> None:
        self.seen[:] = bytes(_CONFIG_BYTES)
        self.accepted = 0
        self.judged = self.ready = self.poison_written = False

    def driver_lost(self) -> None:
        """A reset: what was found stays, and a new driver begins."""
        self.breaches.forget_expectations()
        self.stats.driver_lost()
        self.hints.driver_lost()
        self.pages.driver_lost()
        self._start()

    def seen_field(self, offset: int) -> int:
        """A field of the configuration space as the driver knows it."""
        return int.from_bytes(self.seen[offset : offset + _FIELD_BYTES], "little")


class WatchedBalloon(_Balloon):
    """What a class of balloon becomes a watched one by: put it before that class among the bases.

    `watch` is what is remembered."""

    def __init__(self, memory: GuestMemory, **options: Any) -> None:
        super().__init__(memory, **options)
        self.watch = DriverWatch(memory)
        self._now_ns = 0
        self._failed_before = self._bad_before = 0
        self._may_sweep = False

    @property
    def breaches(self) -> Breaches:
        """What was found so far."""
        return self.watch.breaches

    def look(self, now_ns: int, *, at_the_end: bool = False) -> Notifications:
        """See what is overdue by now, and at the end of a run once more which pages are used."""
        self._enter(now_ns)
        if at_the_end and self.is_live:
            self._sweep(at_the_end=True)
        return self._told(NO_NOTIFICATIONS)

    # -- every way in ----------------------------------------------------------------------------------------------

    def write_driver_features(self, value: int) -> None:
        if not self.features_fixed:
            self.watch.accepted = value & (1 << 64) - 1
        super().write_driver_features(value)

    def write_status(self, value: int, now_ns: int) -> Notifications:
        self._enter(now_ns)
        cleared = self.status & _CLEARABLE & ~value if value & 0xFF else 0
        if cleared:
            self._add("G4", f"{value:#04x} was written over the device status {self.status:#04x}")
        if value & ~self.status & _FEATURES_OK and not self.legacy:
            self._judge_accepted(self.modern_features)
        return self._leave(super().write_status(value, now_ns))

    def write_queue(self, index: int, field: str, value: int, now_ns: int) -> Notifications:
        self._enter(now_ns)
        return self._leave(super().write_queue(index, field, value, now_ns))

    def place_queue(self, index: int, gpa: int, align: int, now_ns: int) -> Notifications:
        self._enter(now_ns)
        return self._leave(super().place_queue(index, gpa, align, now_ns))

    def notify(self, index: int, now_ns: int, data: int | None = None) -> Notifications:
        self._enter(now_ns)
        if not self.status & _DRIVER_OK:
            name = self.queues[index].name if 0 <= index < len(self.queues) else "which does not exist"
            self._add("G1", f"queue {index} ({name}) was notified")
        told = super().notify(index, now_ns, data)
        for event in told.events:
            if event.kind == "notification-data":
                self._add("G2", event.text)
        return self._leave(told)

    def read_config(self, offset: int, size: int) -> int:
        value = super().read_config(offset, size)
        kept = max(min(size, _CONFIG_BYTES - offset), 0)
        self.watch.seen[offset : offset + kept] = value.to_bytes(size, "little")[:kept]
        return value

    def write_config(self, offset: int, size: int, value: int, now_ns: int) -> Notifications:
        self._enter(now_ns)
        end, poison = offset + size, self._field(POISON_VAL)
        if not self.legacy and not self.features_fixed:
            self._add("G5", f"{size} bytes were written at {offset}")
        if self.legacy and offset < ACTUAL + _FIELD_BYTES and end > ACTUAL and (offset, size) != (ACTUAL, _FIELD_BYTES):
            self._add("G6", f"{size} bytes were written at {offset}")
        told = super().write_config(offset, size, value, now_ns)
        if offset < ACTUAL + _FIELD_BYTES <= end:
            self.watch.pages.actual_written(self.actual_pages, self.balloon_pages, now_ns)
            self._may_sweep = True
        if offset < POISON_VAL + _FIELD_BYTES and end > POISON_VAL:
            self._see_poison(poison)
        return self._leave(told)

    def set_dma_enabled(self, enabled: bool, now_ns: int) -> Notifications:
        self._enter(now_ns)
        return self._leave(super().set_dma_enabled(enabled, now_ns))

    def advance(self, now_ns: int) -> Notifications:
        self._enter(now_ns)
        return self._leave(super().advance(now_ns))

    def set_target(self, pages: int, now_ns: int) -> Notifications:
        self._enter(now_ns)
        return self._leave(super().set_target(pages, now_ns))

    def request_stats(self, now_ns: int) -> Notifications:
        self._enter(now_ns)
        return self._leave(super().request_stats(now_ns))

    def set_polling_interval(self, interval_ns: int, now_ns: int) -> Notifications:
        self._enter(now_ns)
        return self._leave(super().set_polling_interval(interval_ns, now_ns))

    # -- what the balloon does, seen from within -------------------------------------------------------------------

    def process(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        if queue.name == "statsq":
            return self._process_stats(queue, chains, now_ns)
        if queue.name == "free_page_vq":
            self._see_hints(chains)
        elif queue.name == "reporting_vq":
            self._see_reports(chains)
        ignored = self.ignored_bytes
        told = super().process(queue, chains, now_ns)
        if queue.name in ("inflateq", "deflateq") and self.ignored_bytes != ignored:
            self.watch.pages.bad_entries()
        if queue.paused and queue.name in _WHEN_PENDING:
            named = runs_of(self._named(chains)) if queue.name == "inflateq" else _reported(chains)
            self.watch.pages.pending(queue.name, named)
        return told

    def complete(self, queue: Queue, chains: Chains, written: int | Sequence[int] = 0) -> Notifications:
        if queue.name in _WHEN_PENDING:
            self._see_failures()
            self.watch.pages.acknowledged(queue.name, _WHEN_PENDING[queue.name], self._now_ns)
        told = super().complete(queue, chains, written)
        if queue.name == "statsq":
            self.watch.stats.used(chains.count, self._now_ns)
        return told

    def queue_lost(self, queue: Queue) -> None:
        super().queue_lost(queue)
        self.watch.pages.queue_lost(queue.name)
        if queue.name == "statsq":
            self.watch.stats.queue_lost()

    def lost(self) -> None:
        super().lost()
        self.watch.driver_lost()

    def _put_in(self, pages: PageSet) -> Notifications:
        if pages.pages:
            self.watch.pages.inflated(_pfns(pages), self._pages.inside, self.has_feature(_MUST_TELL_HOST), self._now_ns)
        return super()._put_in(pages)

    def _take_out(self, pages: PageSet) -> Notifications:
        watch, before = self.watch.pages, self.balloon_pages
        if pages.pages:
            watch.deflated(_pfns(pages), self._pages.inside, self.has_feature(_MUST_TELL_HOST), self._now_ns)
        told = super()._take_out(pages)
        if not self.has_feature(spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM):
            # The driver cannot know of a target that it has not read yet.
            wanted = min(self.num_pages, self.watch.seen_field(NUM_PAGES))
            watch.left(before - self.balloon_pages, self.balloon_pages, wanted, self._now_ns)
        return told

    # -- single queues -----------------------------------------------------------------------------------------------

    def _process_stats(self, queue: Queue, chains: Chains, now_ns: int) -> Notifications:
        stats = self.watch.stats
        stats.came(chains.readable_bytes(), chains.writable_bytes(), now_ns)
        reports, ignored = self.stats_reports, self.ignored_bytes
        told = super().process(queue, chains, now_ns)
        if self.stats_reports != reports:  # the first buffer of a legacy driver is not read
            raw = self.statistics(now_ns).raw
            stats.said(raw, self.ignored_bytes - ignored if len(raw) < _STATS_ENTRIES_READ else 0, now_ns)
        self._may_sweep = True
        return told

    def _see_hints(self, chains: Chains) -> None:
        hints, outputs, inputs = self.watch.hints, chains.readable_bytes(), chains.writable_bytes()
        for index, (readable, writable) in enumerate(zip(outputs, inputs, strict=True)):
            chain = chains.only(index)
            if readable:
                payload = chain.gather_readable(self.memory, _FIELD_BYTES) if readable == _FIELD_BYTES else b""
                hints.output(payload, readable, self.order, self._now_ns)
            if writable:
                buffers = int(chain.writable.sum())
                hints.pages(buffers, self.watch.seen_field(HINT_CMD_ID), self._now_ns)

    def _see_reports(self, chains: Chains) -> None:
        if self.has_feature(spec.VIRTIO_BALLOON_F_PAGE_POISON):
            self.watch.pages.reported(_reported(chains), self._field(POISON_VAL), self._now_ns)

    def _see_poison(self, before: int) -> None:
        """poison_val was written."""
        value = self._field(POISON_VAL)
        if self.status & _DRIVER_OK and value != before:
            self._add("R36", f"poison_val became {value:#x} instead of {before:#x}")
        self.watch.poison_written = True

    def _named(self, chains: Chains) -> Pfns:
        """The pages that inflate requests name, ascending."""
        payload, _ = chains.gather_entries(self.memory, _FIELD_BYTES, self._payload_limit)
        pfns = np.unique(np.frombuffer(payload, np.dtype("u4").newbyteorder(self.order)).astype(np.uint64))
        return pfns[self.memory.are_ram_pages(pfns)]

    # -- coming and going ----------------------------------------------------------------------------------------------

    def _enter(self, now_ns: int) -> None:
        self._now_ns = now_ns
        self._failed_before, self._bad_before = self.failed_discards, self.bad_pfns
        self._may_sweep = False
        for due_ns, rule_id in self.breaches.take_overdue(now_ns):
            detail = self._overdue(rule_id) if self.is_live else ""
            if detail:
                self.breaches.add(rule_id, due_ns, detail)

    def _overdue(self, rule_id: str) -> str:
        """What is wrong, now that the time for `rule_id` is over; "" where nothing is."""
        if rule_id == "R14":
            said, pages = self.actual_pages, self.balloon_pages
            wrong = self.watch.pages.actual_is_wrong(said, pages)
            return f"`actual` is {said} with {pages} pages in the balloon, {_LATE}" if wrong else ""
        if rule_id == "R29":
            owed = self.watch.hints.owes_a_stop(self._field(HINT_CMD_ID))
            return f"hints have stopped without STOP, {_LATE}" if owed else ""
        return f"there was no buffer in the statsq {_LATE}"

    def _leave(self, told: Notifications) -> Notifications:
        self._see_failures()
        if self.bad_pfns != self._bad_before:
            self.watch.pages.bad_entries()
        if self.features_fixed and not self.watch.judged:
            self._judge_features()
        if self.is_ready and not self.watch.ready:
            told |= self._judge_start()
        if self._may_sweep and self.is_live:
            self._sweep()
        return self._told(told)

    def _told(self, told: Notifications) -> Notifications:
        found = self.breaches.take_untold()
        if not found:
            return told
        return told | Notifications(events=tuple(Event(self.name, "breach", breach.text) for breach in found))

    def _sweep(self, *, at_the_end: bool = False) -> None:
        must_tell = self.has_feature(_MUST_TELL_HOST)
        self.watch.pages.sweep(self._pages.inside, must_tell, self._now_ns, at_the_end=at_the_end)

    def _see_failures(self) -> None:
        if self.failed_discards != self._failed_before:
            self.watch.pages.discards_failed()

    def _judge_features(self) -> None:
        """Negotiation is over."""
        self.watch.judged = True
        if self.legacy:
            self._judge_accepted(self.legacy_features)
        if self.device_features >> _MUST_TELL_HOST & 1 and not self.has_feature(_MUST_TELL_HOST):
            self._add("R1", "the feature was not accepted")

    def _judge_accepted(self, offered: int) -> None:
        accepted = self.watch.accepted
        wrong = [f"{name} was not offered" for name in spec.feature_names(accepted & ~offered, self.device_id)]
        for bit, needed in self.feature_requires.items():
            if accepted >> bit & 1 and not accepted >> needed & 1:
                first, second = (spec.feature_names(1 << each, self.device_id)[0] for each in (bit, needed))
                wrong.append(f"{first} needs {second}")
        if wrong:
            self._add("G3", "; ".join(wrong))

    def _judge_start(self) -> Notifications:
        """DRIVER_OK is set.  An event says so if this host does not let everything be seen."""
        self.watch.ready = True
        if self.has_feature(spec.VIRTIO_BALLOON_F_STATS_VQ):
            self.watch.stats.ready(self._now_ns)
        if self.has_feature(spec.VIRTIO_BALLOON_F_PAGE_POISON) and not self.watch.poison_written:
            self._add("R35", "poison_val was not written")
        obstacle = self.watch.pages.obstacle
        return self.event("watch", f"the use of pages cannot be seen: {obstacle}") if obstacle else NO_NOTIFICATIONS

    def _field(self, offset: int) -> int:
        """A field of the configuration space now.  Nobody must believe that the driver has read it."""
        return self.config.read(self, offset, _FIELD_BYTES)[0] if offset + _FIELD_BYTES <= self.config_size else 0

    def _add(self, rule_id: str, detail: str) -> None:
        self.breaches.add(rule_id, self._now_ns, detail)


def _pfns(pages: PageSet) -> Pfns:
    """All the pages of a set, ascending."""
    return pages.pfns.astype(np.uint64) if pages.first is None else np.arange(pages.first, pages.first + pages.pages)


def _reported(chains: Chains) -> Runs:
    """The whole pages that reports name."""
    return whole_pages(chains.addr[chains.writable], chains.length[chains.writable])
