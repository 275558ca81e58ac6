"""A live balloon on raw rings: the smallest driver that can break every rule."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from devices.memory import GuestMemory
from devices.virtio import spec
from devices.virtio.balloon import Balloon, device, hinted, pages, sliced
from devices.virtio.device import Notifications
from tests.devices.virtio.rings import BUFFERS, NEXT, RawRing

VERSION_1 = 1 << spec.VIRTIO_F_VERSION_1
MUST_TELL_HOST = 1 << spec.VIRTIO_BALLOON_F_MUST_TELL_HOST
STATS_VQ = 1 << spec.VIRTIO_BALLOON_F_STATS_VQ
INFLATEQ, DEFLATEQ, STATSQ = range(3)


def le32(*pfns: int) -> bytes:
    return struct.pack(f"<{len(pfns)}I", *pfns)


def stats_bytes(*entries: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<HQ", *entry) for entry in entries)


@contextmanager
def tiny_slices(from_entries: int = 2) -> Iterator[None]:
    """Batches of more entries than that, or reports of more pages, are worked off in slices of a few pages."""
    with (
        mock.patch.object(device, "SLICED_FROM", from_entries),
        mock.patch.object(hinted, "SLICED_FROM", from_entries),
        mock.patch.object(device, "_SLICED_FROM_BYTES", 4 * from_entries),
        mock.patch.object(sliced, "_PIECE_BYTES", 4 * 3),
        mock.patch.object(sliced, "SLICE_WORK", 8),
        mock.patch.object(pages, "TAKEN_TOGETHER_PAGES", 3),
        mock.patch.object(pages, "_LONGEST_TAKEN_RUN", 4),
        mock.patch.object(pages, "_SEARCHED_PAGES", 8),
    ):
        yield


class Driven:
    """`balloon` and its driver.  Each request takes the next descriptors and buffers, round and round."""

    def __init__(self, memory: GuestMemory, balloon: Balloon | None = None) -> None:
        self.memory = memory
        self.balloon = Balloon(memory) if balloon is None else balloon
        self.now_ns = 0

    def start(self, features: int = VERSION_1 | STATS_VQ | MUST_TELL_HOST) -> Driven:
        """Negotiate and set every queue up that exists then."""
        device = self.balloon
        self.rings = [RawRing(16, self.memory, 0x400 * index) for index in range(len(device.queues))]
        self.next_descriptor = [0] * len(self.rings)
        self.next_gpa = BUFFERS
        device.set_dma_enabled(True, self.now_ns)
        device.write_status(0, self.now_ns)
        device.write_status(3, self.now_ns)
        device.write_driver_features(features)
        device.write_status(11, self.now_ns)
        for index, ring in enumerate(self.rings):
            for place in (ring.desc, ring.avail, ring.used):
                self.memory.write(place, bytes(256))
            parts = (("size", 16), ("desc_gpa", ring.desc), ("driver_gpa", ring.avail), ("device_gpa", ring.used))
            for field, value in (*parts, ("enabled", 1)):
                device.write_queue(index, field, value, self.now_ns)
        device.write_status(15, self.now_ns)
        return self

    def offer(self, queue: int, *payloads: bytes, flags: int = 0) -> int:
        """One chain, a descriptor for each payload; returns its head."""
        ring, first = self.rings[queue], self.next_descriptor[queue]
        for number, payload in enumerate(payloads):
            index = (first + number) % 16
            more = NEXT if number < len(payloads) - 1 else 0
            ring.set_descriptor(index, self.next_gpa, len(payload), more | flags, (index + 1) % 16)
            self.memory.write(self.next_gpa, payload)
            self.next_gpa = BUFFERS + (self.next_gpa - BUFFERS + len(payload)) % 0x40000
        self.next_descriptor[queue] = (first + len(payloads)) % 16
        ring.offer(first)
        return first

    def kick(self, queue: int) -> Notifications:
        return self.balloon.notify(queue, self.now_ns)

    def send(self, queue: int, *payloads: bytes) -> Notifications:
        self.offer(queue, *payloads)
        return self.kick(queue)

    def inflate(self, *pfns: int) -> Notifications:
        return self.send(INFLATEQ, le32(*pfns))

    def deflate(self, *pfns: int) -> Notifications:
        return self.send(DEFLATEQ, le32(*pfns))

    def post(self, *entries: tuple[int, int]) -> Notifications:
        return self.send(STATSQ, stats_bytes(*entries))

    def returned(self, queue: int) -> int:
        """How many chains came back."""
        return self.rings[queue].used_idx()

    def counters(self) -> dict[str, int]:
        """Every counter that is not 0."""
        names = (
            *("inflated_pages", "deflated_pages", "oom_deflated_pages", "reported_pages", "discarded_bytes"),
            *("poisoned_pages", "hinted_pages", "hint_discarded_pages", "stale_hint_pages"),
            *("bad_pfns", "stray_pages", "ignored_bytes", "failed_discards"),
        )
        return {name: value for name in names if (value := getattr(self.balloon, name))}
