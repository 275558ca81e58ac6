"""x-query-virtio and its kin: the virtio devices, what was negotiated, and their queues as they stand in RAM.

RAM is looked at without bringing back a page that the balloon gave away, and nothing that the driver wrote is trusted:
what cannot be followed is an error of the command, never of the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from devices.errors import DriverError
from devices.virtio import spec
from vmm.control.qmp import qom
from vmm.control.qmp.context import Context
from vmm.control.qmp.errors import QmpError
from vmm.control.status import run_state

if TYPE_CHECKING:
    from devices.virtio.device import VirtioDevice
    from devices.virtio.queue import Queue
    from vmm.boards.board import Transport

_STATUSES = {
    spec.Status.ACKNOWLEDGE: "VIRTIO_CONFIG_S_ACKNOWLEDGE: the driver has found the device",
    spec.Status.DRIVER: "VIRTIO_CONFIG_S_DRIVER: the driver knows how to drive it",
    spec.Status.FEATURES_OK: "VIRTIO_CONFIG_S_FEATURES_OK: the features are agreed on",
    spec.Status.DRIVER_OK: "VIRTIO_CONFIG_S_DRIVER_OK: the driver is ready",
    spec.Status.DEVICE_NEEDS_RESET: "VIRTIO_CONFIG_S_NEEDS_RESET: the device needs a reset",
    spec.Status.FAILED: "VIRTIO_CONFIG_S_FAILED: the driver has given up",
}
_RING_NAMES = {
    spec.VIRTIO_F_INDIRECT_DESC: "VIRTIO_RING_F_INDIRECT_DESC",
    spec.VIRTIO_F_EVENT_IDX: "VIRTIO_RING_F_EVENT_IDX",
}
"""Where the kernel's headers, and so QEMU, have another name."""
_FLAGS = {spec.VIRTQ_DESC_F_NEXT: "next", spec.VIRTQ_DESC_F_WRITE: "write", spec.VIRTQ_DESC_F_INDIRECT: "indirect"}


_MOST_DESCRIPTORS = 1024  # told of one chain


def x_query_virtio(context: Context) -> list[dict[str, Any]]:
    found = qom.virtio_nodes(context.machine)
    return [{"path": path, "name": _name(node.device)} for path, node in found if node.device is not None]


def x_query_virtio_status(context: Context, path: str) -> dict[str, Any]:
    transport, device = _find(context, path)
    live = device.is_ready
    return {
        "name": _name(device),
        "device-id": int(device.device_id),
        "vhost-started": False,
        "device-endian": "big" if device.legacy and device.driver_order == ">" else "little",
        "guest-features": _features(device.driver_features, device.device_id),
        "host-features": _features(device.device_features, device.device_id),
        "backend-features": _features(0, device.device_id),
        "num-vqs": len(device.queues),
        "status": _statuses(device.status),
        "isr": getattr(transport, "isr_status", None) or getattr(transport, "interrupt_status", 0),
        "queue-sel": getattr(transport, "queue_select", None) or getattr(transport, "queue_sel", 0),
        "vm-running": run_state(context.machine) == "running",
        "broken": device.needs_reset,
        "disabled": not device.dma_enabled,
        "use-started": True,
        "started": live,
        "start-on-kick": False,
        "disable-legacy-check": False,
        "bus-name": "",
        "use-guest-notifier-mask": True,
    }


def x_query_virtio_queue_status(context: Context, path: str, queue: int) -> dict[str, Any]:
    _, device = _find(context, path)
    found = _queue(device, queue)
    ring: dict[str, Any] = {} if found.ring is None else dict(found.ring.save_state())
    flying = ring.get("in_flight", b"")
    available, used = ring.get("next_available", 0), ring.get("next_used", 0)
    return {
        "name": _name(device),
        "queue-index": queue,
        "inuse": sum(flying) if isinstance(flying, bytes) else len(flying),
        "vring-num": found.size,
        "vring-num-default": found.max_size,
        "vring-align": 4096,
        "vring-desc": found.desc_gpa,
        "vring-avail": found.driver_gpa,
        "vring-used": found.device_gpa,
        "last-avail-idx": available,
        "shadow-avail-idx": available,
        "used-idx": used,
        "signalled-used": ring.get("notified_used", 0),
        "signalled-used-valid": found.enabled,
    }


def x_query_virtio_queue_element(context: Context, path: str, queue: int, index: int | None = None) -> dict[str, Any]:
    """The chain in the available ring at `index`, or the one that the device takes next."""
    _, device = _find(context, path)
    found = _queue(device, queue)
    if found.ring is None:
        raise QmpError("Region caches not initialized")
    if device.has_feature(spec.VIRTIO_F_RING_PACKED):
        raise QmpError("Packed ring not supported")
    ring: dict[str, Any] = dict(found.ring.save_state())
    place = ring["next_available"] if index is None else index
    try:
        return _Ring(context, device, found).element(place % found.size)
    except DriverError as error:
        raise QmpError(f"Cannot follow the queue: {error.detail}") from error


class _Ring:
    """The three parts of a split ring, read anew, in the driver's byte order."""

    def __init__(self, context: Context, device: VirtioDevice, queue: Queue) -> None:
        self._memory = context.machine.memory
        self._name = _name(device)
        self._queue = queue
        self._order = device.order

    def element(self, place: int) -> dict[str, Any]:
        queue = self._queue
        flags, idx = self._words(queue.driver_gpa, 2)
        (head,) = self._words(queue.driver_gpa + 4 + 2 * place, 1)
        used_flags, used_idx = self._words(queue.device_gpa, 2)
        return {
            "name": self._name,
            "index": head,
            "descs": self._descriptors(head),
            "avail": {"flags": flags, "idx": idx, "ring": head},
            "used": {"flags": used_flags, "idx": used_idx},
        }

    def _words(self, gpa: int, count: int) -> list[int]:
        return [int(word) for word in np.frombuffer(self._memory.peek(gpa, 2 * count), self._order + "u2")]

    def _descriptors(self, head: int) -> list[dict[str, Any]]:
        """At most as many as the table has; a table of indirect ones is followed once, as a driver may say."""
        table, size, index = self._queue.desc_gpa, self._queue.size, head
        found: list[dict[str, Any]] = []
        is_indirect = False
        while len(found) < min(size, _MOST_DESCRIPTORS) and index < size:
            addr, length, flags, following = self._descriptor(table, index)
            if flags & spec.VIRTQ_DESC_F_INDIRECT and not is_indirect:
                table, size, index, is_indirect = addr, min(length // 16, spec.VIRTQ_MAX_SIZE), 0, True
                continue
            found.append({"addr": addr, "len": length, "flags": [word for bit, word in _FLAGS.items() if flags & bit]})
            if not flags & spec.VIRTQ_DESC_F_NEXT:
                break
            index = following
        return found

    def _descriptor(self, table: int, index: int) -> tuple[int, int, int, int]:
        record = np.dtype(spec.virtq_desc).newbyteorder(self._order)
        (entry,) = np.frombuffer(self._memory.peek(table + record.itemsize * index, record.itemsize), record)
        return int(entry["addr"]), int(entry["len"]), int(entry["flags"]), int(entry["next"])


def _find(context: Context, path: str) -> tuple[Transport, VirtioDevice]:
    found = dict(qom.virtio_nodes(context.machine)).get(path)
    if found is None or found.device is None or found.transport is None:
        raise QmpError(f"Path {path} is not a VirtIODevice")
    return found.transport, found.device


def _queue(device: VirtioDevice, number: int) -> Queue:
    if number >= len(device.queues):
        raise QmpError(f"Invalid virtqueue number {number}")
    return device.queues[number]


def _name(device: VirtioDevice | None) -> str:
    is_balloon = device is not None and device.device_id == spec.DeviceId.BALLOON
    return "virtio-balloon" if is_balloon else "virtio-rng"


def _statuses(status: int) -> dict[str, Any]:
    known = [text for bit, text in _STATUSES.items() if status & bit]
    unknown = status & ~sum(int(bit) for bit in _STATUSES)
    return {"statuses": known} | ({"unknown-statuses": unknown} if unknown else {})


def _features(features: int, device_id: int) -> dict[str, Any]:
    """By name, those of the transport and the rings apart from the device's own; the rest as a mask."""
    own = spec.BALLOON_FEATURE_NAMES if device_id == spec.DeviceId.BALLOON else {}
    transports = spec.FEATURE_NAMES | _RING_NAMES
    unknown = features & ~sum(1 << bit for bit in {**own, **transports})
    found: dict[str, Any] = {
        "transports": [name for bit, name in transports.items() if features >> bit & 1],
        "dev-features": [name for bit, name in own.items() if features >> bit & 1],
    }
    return found | ({"unknown-dev-features": unknown} if unknown else {})
