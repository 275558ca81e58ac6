"""info virtio and its kin: what x-query-virtio and its kin answer, as lines, and all queues at a glance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmm.control.qmp import qom
from vmm.control.qmp import virtio as queries

if TYPE_CHECKING:
    from vmm.control.qmp.context import Context


def info_virtio(context: Context) -> str:
    """The devices."""
    found = queries.x_query_virtio(context)
    return "".join(f"{each['path']} [{each['name']}]\n" for each in found) or "No VirtIO devices\n"


def info_virtio_status(context: Context, path: str) -> str:
    """What was negotiated with one device, and where it stands."""
    status = queries.x_query_virtio_status(context, path)
    lines = [f"{path}:", f"  device_name:             {status['name']} "]
    lines += [f"  {f'{label}:':<24} {_plain(status[key])}" for label, key in _STATUS]
    lines += ["  status:", *_list(status["status"]["statuses"])]
    if unknown := status["status"].get("unknown-statuses"):
        lines.append(f"  unknown-statuses(0x{unknown:016x})")
    for whose in ("guest", "host", "backend"):
        lines += [f"  {whose.capitalize()} features:", *_features(status[f"{whose}-features"])]
    return _joined(lines)


_STATUS = (
    *((name, name.replace("_", "-")) for name in ("device_id", "vhost_started", "bus_name", "broken", "disabled")),
    *((name, name.replace("_", "-")) for name in ("disable_legacy_check", "started", "use_started", "start_on_kick")),
    *((name, name.replace("_", "-")) for name in ("use_guest_notifier_mask", "vm_running", "num_vqs", "queue_sel")),
    *(("isr", "isr"), ("endianness", "device-endian")),
)


def _features(features: Mapping[str, Any]) -> Iterator[str]:
    yield from _list(features["transports"])
    if features["dev-features"]:
        yield from _list(features["dev-features"])
    if unknown := features.get("unknown-dev-features"):
        yield f"  unknown-features(0x{unknown:016x})"


def _list(words: Sequence[str]) -> list[str]:
    """One word a line, with commas between them; an empty line for none."""
    return "\n".join([f"\t{word}," for word in words[:-1]] + [f"\t{word}" for word in words[-1:]]).split("\n")


def info_virtio_queue_status(context: Context, path: str, queue: int) -> str:
    """One queue in QEMU's words."""
    status = queries.x_query_virtio_queue_status(context, path, queue)
    lines = [f"{path}:", f"  device_name:          {status['name']}"]
    lines += [f"  {f'{label}:':<21} {_plain(status[key])}" for label, key in _QUEUE if key in status]
    lines.append("  VRing:")
    lines += [f"    {f'{name}:':<13} {status[f'vring-{key}']}" for name, key in _SIZES]
    lines += [f"    {f'{name}:':<13} 0x{status[f'vring-{name}']:016x}" for name in ("desc", "avail", "used")]
    return _joined(lines)


_QUEUE = tuple(
    (name, name.replace("_", "-"))
    for name in (
        *("queue_index", "inuse", "used_idx", "signalled_used", "signalled_used_valid"),
        *("last_avail_idx", "shadow_avail_idx"),
    )
)
_SIZES = (("num", "num"), ("num_default", "num-default"), ("align", "align"))


def info_virtio_queue_element(context: Context, path: str, queue: int, index: int | None = None) -> str:
    """The chain in the available ring at `index`, or the one that the device takes next."""
    element = queries.x_query_virtio_queue_element(context, path, queue, index)
    lines = [f"{path}:", f"  device_name: {element['name']}", f"  index:   {element['index']}", "  desc:", "    descs:"]
    descriptors = [f"        addr {each['addr']:#x} len {each['len']}{_flags(each)}" for each in element["descs"]]
    lines.append(",\n".join(descriptors))
    for part, words in (("avail", ("flags", "idx", "ring")), ("used", ("flags", "idx"))):
        lines.append(f"  {part}:")
        lines += [f"    {f'{word}:':<6} {element[part][word]}" for word in words]
    return _joined(lines)


def _flags(descriptor: Mapping[str, Any]) -> str:
    return f" ({', '.join(descriptor['flags'])})" if descriptor["flags"] else ""


def info_virtio_queue(context: Context) -> str:
    """Every queue of every device, a paragraph for each device; this is not QEMU's."""
    lines: list[str] = []
    for path, node in qom.virtio_nodes(context.machine):
        if node.device is not None:
            lines.append(f"{path}:")
            lines += [line for queue in node.device.queues for line in _queue(context, path, queue)]
    return _joined(lines) if lines else "No VirtIO devices\n"


def _queue(context: Context, path: str, queue: Any) -> Iterator[str]:
    status = queries.x_query_virtio_queue_status(context, path, queue.index)
    state = "enabled" if queue.enabled else "not enabled"
    yield f"  queue {queue.index} {queue.name}: size {queue.size}, {state}, requests {queue.requests}"
    if queue.enabled:
        yield f"    desc 0x{queue.desc_gpa:016x} avail 0x{queue.driver_gpa:016x} used 0x{queue.device_gpa:016x}"
        yield (
            f"    next to take {status['last-avail-idx']}, next to return {status['used-idx']}, "
            f"in flight {status['inuse']}"
        )


def _plain(value: Any) -> Any:
    """A value as C prints it."""
    return str(value).lower() if isinstance(value, bool) else value


def _joined(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
