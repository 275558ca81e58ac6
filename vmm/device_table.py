"""What a running VMM tells of its virtio devices in a memory file, for somebody who looks from outside.

Guest RAM is found in the memory map of the process (`vmm.inspect.GuestRam`), but not where the rings are in it: that
the driver has told the device, which keeps it to itself.  So it stands here too, in a file named `NAME` beside that of
the RAM, where it can be read while the VMM hangs.  It is written when something is set up, reset or broken, which is
told by an event; a request costs nothing.  What changes with every request is only pointed to: marks of what is in
flight and pages in the balloon are addresses in the memory of the VMM.

Owns the layout, for writer and reader alike.  `generation` is odd while the table is written: who finds it odd in a
process that stands still has caught the VMM in the middle of that.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from devices import hostcalls
from devices.errors import ConfigError
from devices.virtio.packed import PackedQueue

if TYPE_CHECKING:
    from devices.effects import Event
    from devices.memory import GuestMemory
    from devices.virtio.device import VirtioDevice
    from devices.virtio.queue import Queue

NAME: Final = "balloon-vmm-devices"
MAGIC: Final = b"BVMMDEVS"
VERSION: Final = 1
CONFIG_BYTES: Final = 64

ENABLED, PACKED, BIG_ENDIAN = 1, 2, 4
"""Bits of a queue's `flags`."""

HEADER: Final = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("generation", "<u4"),
        ("ram_inode", "<u8"),  # of the RAM that the addresses are in
        ("devices", "<u4"),
        ("queues", "<u4"),
    ]
)
DEVICE: Final = np.dtype(
    [
        ("name", "S32"),
        ("device_id", "<u4"),
        ("status", "<u4"),
        ("offered", "<u8"),
        ("negotiated", "<u8"),  # 0 as long as negotiation goes on
        ("map_address", "<u8"),  # of one byte a page, not 0 where the driver gave it away; 0: there is no such map
        ("map_pages", "<u8"),
        ("config_bytes", "<u4"),
        ("queues", "<u4"),  # so many of the table's queues are this device's, in the order of the devices
        ("config", f"V{CONFIG_BYTES}"),
    ]
)
QUEUE: Final = np.dtype(
    [
        ("name", "S24"),
        ("index", "<u4"),
        ("size", "<u4"),
        ("flags", "<u4"),
        ("marks_bytes", "<u4"),
        ("desc_gpa", "<u8"),
        ("driver_gpa", "<u8"),
        ("device_gpa", "<u8"),
        ("marks_address", "<u8"),  # of one byte a head or buffer id, not 0 while it is in flight
        ("place_address", "<u8"),  # of a packed ring's next used position, 32 bits
    ]
)

_TOLD = frozenset(
    (
        "reset",
        "features",
        "features-refused",
        "driver-ok",
        "failed",
        "needs-reset",
        "queue-enabled",
        "queue-reset",
        "queue-stopped",
    )
)
"""Kinds of events after which the table is another one."""
_CONFIG_TOLD = frozenset(("target", "actual", "hinting", "hinted"))
"""Kinds of events, some of which come with every request, after which only configuration spaces are others."""
_CONFIG_AT: Final = DEVICE.fields["config"][1] if DEVICE.fields is not None else 0


class DeviceTable:
    """The table of `devices`, whose RAM is `memory`; where the host has no memory files there is none."""

    def __init__(self, devices: Sequence[VirtioDevice], memory: GuestMemory) -> None:
        self._devices = devices
        self._generation = 0
        self._mapping: mmap.mmap | None = None
        self._ram_inode = 0 if memory.fd is None else os.fstat(memory.fd).st_ino
        queues = sum(len(device.queues) for device in devices)
        size = HEADER.itemsize + len(devices) * DEVICE.itemsize + queues * QUEUE.itemsize
        fd = None if memory.fd is None else hostcalls.create_memory_file(NAME, size)
        if fd is not None:
            self._mapping = mmap.mmap(fd, size)
            os.close(fd)  # the mapping has a descriptor of its own
            self.update()

    def note(self, events: Sequence[Event]) -> None:
        """Something happened: is the table another one now?"""
        for event in events:
            if event.kind in _TOLD:
                self.update()
                return
            if event.kind in _CONFIG_TOLD:
                self._update_config()

    def update(self) -> None:
        """Write the table anew."""
        if self._mapping is None:
            return
        devices = np.array([_device(device) for device in self._devices], DEVICE)
        queues = np.array([_queue(queue, each) for each in self._devices for queue in each.queues], QUEUE)
        body = devices.tobytes() + queues.tobytes()
        self._write_header(len(devices), len(queues))
        self._mapping[HEADER.itemsize : HEADER.itemsize + len(body)] = body
        self._write_header(len(devices), len(queues))

    def _update_config(self) -> None:
        if self._mapping is not None:
            for place, device in enumerate(self._devices):
                start = HEADER.itemsize + place * DEVICE.itemsize + _CONFIG_AT
                self._mapping[start : start + CONFIG_BYTES] = _config(device)

    def _write_header(self, devices: int, queues: int) -> None:
        self._generation = self._generation + 1 & 0xFFFFFFFF
        row = (MAGIC, VERSION, self._generation, self._ram_inode, devices, queues)
        header = np.array([row], HEADER).tobytes()
        if self._mapping is not None:
            self._mapping[: len(header)] = header

    def close(self) -> None:
        """Take it away; a second time is no error."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None


def _device(device: VirtioDevice) -> tuple[object, ...]:
    size = min(device.config_size, CONFIG_BYTES)
    pages = device.given_away()
    where = (0, 0) if pages is None else (pages.ctypes.data, len(pages))
    features = device.device_features, device.negotiated_features
    row = (device.name.encode(), device.device_id, device.status, *features, *where)
    return (*row, size, len(device.queues), _config(device))


def _config(device: VirtioDevice) -> bytes:
    """Its configuration space, not through `read_config`, which remembers that the driver has read."""
    size = min(device.config_size, CONFIG_BYTES)
    value = device.config.read(device, 0, size)[0] if size else 0
    return value.to_bytes(CONFIG_BYTES, "little")


def _queue(queue: Queue, device: VirtioDevice) -> tuple[object, ...]:
    ring, flags, marks, place = queue.ring, 0, (0, 0), 0
    if ring is not None:
        flags = ENABLED | (BIG_ENDIAN if device.order == ">" else 0)
        marks = len(ring.marks), ring.marks.ctypes.data
        if isinstance(ring, PackedQueue):
            flags |= PACKED
            place = ring.place.ctypes.data
    parts = queue.desc_gpa, queue.driver_gpa, queue.device_gpa
    return (queue.name.encode(), queue.index, queue.size, flags, marks[0], *parts, marks[1], place)


# -- for the one who looks ---------------------------------------------------------------------------------------------


class TableView(NamedTuple):
    """A copy of a table: records of `DEVICE`, and for each device those of `QUEUE`."""

    ram_inode: int
    generation: int
    devices: NDArray[Any]
    queues: list[NDArray[Any]]


def parse(data: bytes) -> TableView:
    """The table in `data`.  ConfigError where it is of another version, or is none."""
    if len(data) < HEADER.itemsize:
        raise ConfigError("The table of devices is empty.")
    header = np.frombuffer(data, HEADER, 1)[0]
    if header["magic"] != MAGIC or header["version"] != VERSION:
        raise ConfigError("The process is a VMM of another version than this one: use the `vmm` that started it.")
    device_count, queue_count = int(header["devices"]), int(header["queues"])
    start = HEADER.itemsize + device_count * DEVICE.itemsize
    if len(data) < start + queue_count * QUEUE.itemsize:
        raise ConfigError("The table of devices ends early.")
    devices = np.frombuffer(data, DEVICE, device_count, HEADER.itemsize)
    rows = np.frombuffer(data, QUEUE, queue_count, start)
    ends = np.cumsum(devices["queues"]).tolist()
    queues = [rows[end - count : end] for end, count in zip(ends, devices["queues"].tolist(), strict=True)]
    return TableView(int(header["ram_inode"]), int(header["generation"]), devices, queues)
