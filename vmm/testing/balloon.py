"""A driver for the memory balloon (§5.5) that keeps its rules: it inflates, deflates, follows num_pages, posts
statistics, hints and reports free pages, and it knows which pages it has given away.

Page frame numbers are of 4096-byte pages and may come as any iterable of integers.  The wrong things (a page outside
RAM, an odd length) can be sent too: what a payload says is the test's choice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np

from devices.virtio import spec
from vmm.testing.driver import Driver
from vmm.testing.pages import PAGE_BYTES
from vmm.testing.protocols import Transport
from vmm.testing.ring import Used

MUST_TELL_HOST = 1 << spec.VIRTIO_BALLOON_F_MUST_TELL_HOST
STATS_VQ = 1 << spec.VIRTIO_BALLOON_F_STATS_VQ
DEFLATE_ON_OOM = 1 << spec.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
FREE_PAGE_HINT = 1 << spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT
PAGE_POISON = 1 << spec.VIRTIO_BALLOON_F_PAGE_POISON
PAGE_REPORTING = 1 << spec.VIRTIO_BALLOON_F_PAGE_REPORTING

INFLATEQ, DEFLATEQ, STATSQ = 0, 1, 2  # statsq where it is offered; `free_page_vq` and `reporting_vq` follow
NUM_PAGES, ACTUAL, HINT_CMD_ID, POISON_VAL = 0, 4, 8, 12  # offsets in struct virtio_balloon_config (§5.5.4)
STOP, DONE = spec.VIRTIO_BALLOON_CMD_ID_STOP, spec.VIRTIO_BALLOON_CMD_ID_DONE
PFNS_PER_BUFFER = 256  # as many as Linux puts into one
RANGES_PER_REPORT = 32  # as many as Linux puts into one; its probe fails where the queue has fewer entries

_TAG_OF_NAME = {stat.name: tag for tag, stat in spec.BALLOON_STATS.items()}

Stats = Mapping[int, int] | Mapping[str, int] | Iterable[tuple[int, int]]


def pfn_bytes(pfns: Iterable[int], order: spec.ByteOrder = "<") -> bytes:
    """The payload of an inflate or deflate buffer: 32-bit page frame numbers (§5.5.6), of a legacy driver in its own
    byte order."""
    return np.array(list(pfns), order + "u4").tobytes()


def stats_bytes(stats: Stats, order: spec.ByteOrder = "<") -> bytes:
    """The payload of a statistics buffer: packed {le16 tag, le64 val} in the order given (§5.5.6.3), of a legacy driver
    in its own byte order.

    Tags are numbers or QEMU's names for them."""
    pairs = stats.items() if isinstance(stats, Mapping) else stats
    entries = [(_TAG_OF_NAME[tag] if isinstance(tag, str) else tag, value) for tag, value in pairs]
    return np.array(entries, spec.virtio_balloon_stat.newbyteorder(order)).tobytes()


def stats_v2_bytes(stats: Iterable[tuple[int, int]], order: Literal["<", ">"] = "<") -> bytes:
    """The payload that the patch of 2009 sends: {u16 tag, 2 bytes of padding, u32 val} each, the tag in the driver's
    byte `order`, the value little-endian whatever that is."""
    return b"".join(struct.pack(f"{order}H", tag) + bytes(2) + struct.pack("<I", value) for tag, value in stats)


class BalloonDriver(Driver):
    """Drives one balloon.  `held_pfns` are the pages now in the balloon, oldest first.

    `numbering` is how it counts queues: by the specification's fixed numbers ("spec"), over what is offered, or over
    what was negotiated."""

    supported = (
        Driver.supported | MUST_TELL_HOST | STATS_VQ | DEFLATE_ON_OOM | FREE_PAGE_HINT | PAGE_POISON | PAGE_REPORTING
    )

    def __init__(
        self,
        transport: Transport,
        numbering: Literal["spec", "offered", "negotiated"] = "offered",
        *,
        processor: spec.ByteOrder = "<",
    ) -> None:
        super().__init__(transport, processor=processor)
        self.numbering = numbering
        self.held_pfns: list[int] = []

    def reset(self) -> None:
        super().reset()
        self.held_pfns = []

    def has_queue(self, index: int) -> bool:
        """§5.5.2: statsq exists only with STATS_VQ, free_page_vq only with FREE_PAGE_HINT, reporting_vq only with
        PAGE_REPORTING.

        A queue that is offered keeps its number when the driver does without it, unless only what was negotiated
        counts."""
        return index in (INFLATEQ, DEFLATEQ) or any(
            self.features & feature and index == self._number(feature)
            for feature in (STATS_VQ, FREE_PAGE_HINT, PAGE_REPORTING)
        )

    def _number(self, feature: int) -> int:
        """The number of the queue that belongs to `feature`."""
        optional = (STATS_VQ, FREE_PAGE_HINT, PAGE_REPORTING)
        earlier = optional[: optional.index(feature)]
        if self.numbering == "spec":
            return STATSQ + len(earlier)
        counted = self.features if self.numbering == "negotiated" else self.transport.read_device_features()
        return STATSQ + sum(bool(counted & other) for other in earlier)

    @property
    def free_page_vq(self) -> int:
        """The number that free_page_vq has where it exists."""
        return self._number(FREE_PAGE_HINT)

    @property
    def reporting_vq(self) -> int:
        """The number that reporting_vq has where it exists."""
        return self._number(PAGE_REPORTING)

    # -- pages ---------------------------------------------------------------------------------------------------------

    def inflate(self, pfns: Iterable[int], *, per_buffer: int = PFNS_PER_BUFFER) -> list[Used]:
        """Give pages to the balloon, `per_buffer` in each buffer; the buffers that the device returned."""
        pfns = list(pfns)
        used = self._send(INFLATEQ, pfns, per_buffer)
        self.held_pfns += pfns
        return used

    def deflate(self, pfns: Iterable[int], *, per_buffer: int = PFNS_PER_BUFFER) -> list[Used]:
        """Tell the device which pages leave the balloon; the buffers that it returned."""
        pfns = list(pfns)
        used = self._send(DEFLATEQ, pfns, per_buffer)
        leaving = set(pfns)
        self.held_pfns = [pfn for pfn in self.held_pfns if pfn not in leaving]
        return used

    def _send(self, queue: int, pfns: list[int], per_buffer: int) -> list[Used]:
        used: list[Used] = []
        for start in range(0, len(pfns), per_buffer):
            if self.queues[queue].free_descriptors == 0:
                self.kick(queue)
                used += self.collect(queue)
            self.offer(queue, readable=[pfn_bytes(pfns[start : start + per_buffer], self.order)])
        self.kick(queue)
        return used + self.collect(queue)

    def follow_target(self) -> int:
        """Inflate or deflate until the balloon holds num_pages, then write `actual` (§5.5.6); the pages it holds.

        Pages come from the transport's allocator and go back to it; OutOfPages when it has no more."""
        difference = self.num_pages - len(self.held_pfns)
        if difference > 0:
            self.inflate([self.pages.take() // PAGE_BYTES for _ in range(difference)])
        elif difference < 0:
            leaving = self.held_pfns[difference:]
            self.deflate(leaving)
            for pfn in leaving:
                self.pages.give(pfn * PAGE_BYTES)
        self.actual = len(self.held_pfns)
        return len(self.held_pfns)

    @property
    def num_pages(self) -> int:
        """How many pages the device wants in the balloon."""
        return self.read_config(NUM_PAGES, 4)

    @property
    def actual(self) -> int:
        """How many pages the driver last said are in the balloon."""
        return self.read_config(ACTUAL, 4)

    @actual.setter
    def actual(self, value: int) -> None:
        self.write_config(ACTUAL, 4, value)

    @property
    def poison_val(self) -> int:
        """What the driver says that its free pages are filled with (PAGE_POISON)."""
        return self.read_config(POISON_VAL, 4)

    @poison_val.setter
    def poison_val(self, value: int) -> None:
        self.write_config(POISON_VAL, 4, value)

    # -- when memory is short, and when it is not ----------------------------------------------------------------------

    def deflate_on_oom(self, count: int) -> list[int]:
        """Take the last `count` pages out of the balloon although the target asks for them, and write `actual`, as a
        driver short of memory may with DEFLATE_ON_OOM (§5.5.6.1); their page frame numbers.  They are the caller's."""
        leaving = self.held_pfns[len(self.held_pfns) - count :]
        self.deflate(leaving)
        self.actual = len(self.held_pfns)
        return leaving

    def report(self, ranges: Iterable[tuple[int, int]], *, per_buffer: int = RANGES_PER_REPORT) -> list[Used]:
        """Report (gpa, length in bytes) ranges of free memory, `per_buffer` in each buffer (§5.5.6.7); the buffers that
        the device returned.  Until then the ranges are not to be used."""
        queue, ranges = self.reporting_vq, list(ranges)
        used: list[Used] = []
        for start in range(0, len(ranges), per_buffer):
            part = ranges[start : start + per_buffer]
            if self.queues[queue].free_descriptors < len(part):
                self.kick(queue)
                used += self.collect(queue)
            self.offer(queue, writable=part)
        self.kick(queue)
        return used + self.collect(queue)

    # -- hints ---------------------------------------------------------------------------------------------------------

    @property
    def hint_cmd_id(self) -> int:
        """The command id for hints: 0 STOP, 1 DONE, from 2 on hints are wanted under it."""
        return self.read_config(HINT_CMD_ID, 4)

    def send_id(self, value: int | bytes) -> list[Used]:
        """Send a command id, or STOP (§5.5.6.5); bytes are sent as they are.  The buffers that came back."""
        order: Literal["little", "big"] = "little" if self.order == "<" else "big"  # §5.5.6.5.3
        payload = value if isinstance(value, bytes) else value.to_bytes(4, order)
        return self.transfer(self.free_page_vq, readable=[payload])

    def hint(self, ranges: Iterable[tuple[int, int]]) -> list[Used]:
        """Hint (gpa, length in bytes) ranges of free memory, each in a buffer of its own, all in one kick.  They belong
        to the id that was sent last.  The buffers that came back."""
        queue = self.free_page_vq
        used: list[Used] = []
        for each in ranges:
            if self.queues[queue].free_descriptors == 0:
                self.kick(queue)
                used += self.collect(queue)
            self.offer(queue, writable=[each])
        self.kick(queue)
        return used + self.collect(queue)

    def hint_round(self, ranges: Iterable[tuple[int, int]]) -> int:
        """All that is wanted of a driver when a new command id appears: the id, the hints, STOP.  Returns the id."""
        cmd_id = self.hint_cmd_id
        self.send_id(cmd_id)
        self.hint(ranges)
        self.send_id(STOP)
        return cmd_id

    # -- statistics ----------------------------------------------------------------------------------------------------

    def post_stats(self, stats: Stats | bytes = ()) -> int:
        """Make one statistics buffer available and notify the device, which keeps it until it wants the next.

        Bytes are sent as they are.  The head is returned."""
        payload = stats if isinstance(stats, bytes) else stats_bytes(stats, self.order)
        head = self.offer(STATSQ, readable=[payload])
        self.kick(STATSQ)
        return head

    def stats_wanted(self) -> bool:
        """Whether the device returned the statistics buffer, which is its request for a new one (§5.5.6.3)."""
        return bool(self.collect(STATSQ))
