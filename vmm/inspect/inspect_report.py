"""What was found in a VMM, as JSON's types and as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from devices.memory import PAGE_SHIFT
from devices.virtio import spec
from vmm.config import format_size
from vmm.inspect.look import BalloonLook, DeviceLook, MachineLook, ProcessLook
from vmm.inspect.rings import QueueLook, Request

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SHOWN = 16
"""Rows of requests or ranges that are shown of each queue or balloon; JSON has all."""
_STATES = {"R": "running", "S": "sleeping", "D": "in the kernel", "T": "stopped", "t": "traced"}


def as_json(found: ProcessLook) -> dict[str, Any]:
    """Everything, as plain data."""
    return {
        "pid": found.pid,
        "state": state_of(found),
        "threads": [{"tid": each.tid, "name": each.name, "state": each.state} for each in found.threads],
        "frozen_ns": found.frozen_ns,
        "machines": [_machine(machine) for machine in found.machines],
        "findings": found.findings(),
    }


def state_of(found: ProcessLook) -> str:
    """How the process was before: "running" or "stopped"."""
    return "stopped" if all(each.state == "T" for each in found.threads) else "running"


def _machine(machine: MachineLook) -> dict[str, Any]:
    return {
        "ram": {
            "inode": machine.inode,
            "regions": [{"gpa": gpa, "size": size} for gpa, size in machine.regions],
            "bytes": machine.ram_bytes,
            "backed_bytes": machine.backed_bytes,
        },
        "devices": [_device(device) for device in machine.devices],
        "notes": machine.notes,
    }


def _device(device: DeviceLook) -> dict[str, Any]:
    return {
        "name": device.name,
        "device_id": device.device_id,
        "status": device.status,
        "offered": device.offered,
        "negotiated": device.negotiated,
        "features": spec.feature_names(device.negotiated, device.device_id),
        "config": config_of(device),
        "queues": [_queue(queue) for queue in device.queues],
        "balloon": None if device.balloon is None else _balloon(device.balloon),
    }


def config_of(device: DeviceLook) -> dict[str, int]:
    """The fields of the configuration space of a device whose fields are known."""
    layout = spec.virtio_balloon_config
    if device.device_id != spec.DeviceId.BALLOON or not device.config:
        return {}
    record = np.frombuffer(device.config.ljust(layout.itemsize, b"\0"), layout, 1)[0]
    names = (layout.names or ())[: len(device.config) // 4]
    return {name: int(record[name]) for name in names}


def _queue(queue: QueueLook) -> dict[str, Any]:
    return {
        "name": queue.name,
        "index": queue.index,
        "size": queue.size,
        "enabled": queue.enabled,
        "kind": "packed" if queue.packed else "split",
        "byte_order": "big" if queue.big_endian else "little",
        "parts": {name: {"gpa": gpa, "bytes": length} for name, (gpa, length) in queue.parts.items()},
        "indices": queue.indices,
        "in_flight": [_request(request) for request in queue.in_flight],
        "available": [_request(request) for request in queue.available],
        "findings": queue.findings,
    }


def _request(request: Request) -> dict[str, Any]:
    return {
        "head": request.head,
        "buffer_id": request.buffer_id,
        "buffers": [buffer._asdict() for buffer in request.buffers],
    }


def _balloon(balloon: BalloonLook) -> dict[str, Any]:
    return {
        "pages": balloon.pages,
        "ranges": [{"pfn": pfn, "pages": count} for pfn, count in balloon.ranges],
        "backed_pages": balloon.backed_pages,
        "backed": [{"pfn": pfn, "pages": count} for pfn, count in balloon.backed],
    }


# -- for people --------------------------------------------------------------------------------------------------------


def as_tables(found: ProcessLook) -> Iterator[RenderableType]:
    """What rich prints, one below the other."""
    states = ", ".join(f"{each.tid} {each.name} ({_STATES.get(each.state, each.state)})" for each in found.threads)
    yield f"process {found.pid}, {state_of(found)}: it stood still for {found.frozen_ns / 1e6:.1f} ms"
    yield f"threads: {states}"
    for machine in found.machines:
        yield ""
        yield from _machine_tables(machine)
    yield ""
    for text in found.findings():
        yield f"WRONG  {text}"
    if not found.findings():
        yield "nothing is wrong: the rings keep their rules, and no page in the balloon has host memory behind it"


def _machine_tables(machine: MachineLook) -> Iterator[RenderableType]:
    regions = ", ".join(f"{gpa:x}h+{size:x}h" for gpa, size in machine.regions)
    backed = f"{format_size(machine.backed_bytes)} of {format_size(machine.ram_bytes)}"
    yield f"guest RAM: {regions}; the host backs {backed}"
    yield from machine.notes
    for device in machine.devices:
        yield f"{device.name}: {_status(device)}"
        if config := config_of(device):
            yield "  configuration: " + ", ".join(f"{name} {value}" for name, value in config.items())
        yield _queue_table(device)
        if requests := [(queue, kind, each) for queue in device.queues for kind, each in _requests(queue)]:
            yield _request_table(requests)
        if device.balloon is not None:
            yield from _balloon_tables(device.balloon)


def _status(device: DeviceLook) -> str:
    if not device.status:
        return "no driver"
    bits = ", ".join(bit.name or "?" for bit in spec.Status if device.status & bit)
    names = ", ".join(spec.feature_names(device.negotiated, device.device_id)) or "nothing"
    return f"{bits}; negotiated {names}"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("queue", "ring", "state", "buffers", "at") else "right")
    return table


def _queue_table(device: DeviceLook) -> RenderableType:
    table = _table("", "queue", "ring", "size", "available", "used", "next", "in flight", "waiting", "at")
    for queue in device.queues:
        indices = [str(queue.indices.get(name, "")) for name in ("available", "used", "next_available")]
        counts = [str(len(queue.in_flight)), str(len(queue.available))] if queue.enabled else ["", ""]
        places = " ".join(f"{gpa:x}h" for gpa, _ in queue.parts.values())
        kind = ("packed" if queue.packed else "split") if queue.enabled else "off"
        table.add_row(f"{queue.index} {queue.name}", kind, str(queue.size), *indices, *counts, places)
    return table


def _requests(queue: QueueLook) -> Iterator[tuple[str, Request]]:
    for kind, requests in (("in flight", queue.in_flight), ("waiting", queue.available)):
        for request in requests[:SHOWN]:
            yield kind, request


def _request_table(rows: list[tuple[QueueLook, str, Request]]) -> RenderableType:
    table = _table("requests", "queue", "state", "head", "id", "buffers")
    for queue, kind, request in rows:
        buffers = [f"{gpa:x}h+{length} {'w' if writable else 'r'}" for gpa, length, writable in request.buffers]
        more = f" and {len(buffers) - SHOWN} more" if len(buffers) > SHOWN else ""
        text = ", ".join(buffers[:SHOWN]) + more
        table.add_row(queue.name, kind, str(request.head), str(request.buffer_id), text)
    return table


def _balloon_tables(balloon: BalloonLook) -> Iterator[RenderableType]:
    size, count = format_size(balloon.pages << PAGE_SHIFT), len(balloon.ranges)
    yield f"balloon: {balloon.pages} pages ({size}) in {count} {'range' if count == 1 else 'ranges'}"
    if not balloon.pages:
        return
    backed = dict(_backed_in(balloon))
    table = _table("", "from", "to", "pages", "backed")
    for pfn, pages in balloon.ranges[:SHOWN]:
        start, end = pfn << PAGE_SHIFT, pfn + pages << PAGE_SHIFT
        table.add_row(f"{start:x}h", f"{end - 1:x}h", str(pages), str(backed[pfn]))
    yield table
    if count > SHOWN:
        yield f"and {count - SHOWN} more ranges (--json has all)"


def _backed_in(balloon: BalloonLook) -> Iterator[tuple[int, int]]:
    """How many pages of each range have host memory behind them."""
    starts = np.array([pfn for pfn, _ in balloon.ranges], np.int64)
    totals = np.zeros(len(starts), np.int64)
    for pfn, pages in balloon.backed:  # each inside one range: both are pages in the balloon
        totals[np.searchsorted(starts, pfn, "right") - 1] += pages
    yield from zip(starts.tolist(), totals.tolist(), strict=True)
