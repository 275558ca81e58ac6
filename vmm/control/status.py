"""A running machine in figures, for those who look from outside: `vmm ps`, `vmm stats`, and Prometheus.

One dictionary of JSON's types, the type VmmStatus of `vmm.control.qmp.types`.  Sizes are bytes, times nanoseconds of
guest time; looking changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vmm import __version__
from vmm.config import PAGE_BYTES

if TYPE_CHECKING:
    from vmm.machine import Machine

UNREPORTED = (1 << 64) - 1
"""What QEMU says of a statistic that the driver did not send."""
_QEMU_STATS = (
    *("stat-swap-in", "stat-swap-out", "stat-major-faults", "stat-minor-faults", "stat-free-memory"),
    *("stat-total-memory", "stat-available-memory", "stat-disk-caches", "stat-htlb-pgalloc", "stat-htlb-pgfail"),
)


def run_state(machine: Machine) -> str:
    """QEMU's word for what the machine does."""
    if machine.outcome is not None:
        return "guest-panicked" if machine.outcome.kind == "guest-panicked" else "shutdown"
    if machine.is_paused:
        return "paused" if machine.blocks else "prelaunch"
    return "running"


def status(machine: Machine, name: str) -> dict[str, Any]:
    """All of it; `name` is what the run is called."""
    config = machine.config
    found: dict[str, Any] = {
        "name": name,
        "pid": os.getpid(),
        "guest": config.name,
        "arch": config.arch,
        "version": __version__,
        "clock": config.clock,
        "status": run_state(machine),
        "time-ns": machine.now_ns,
        "blocks": machine.blocks,
        "ram": config.memory_bytes,
        "host-memory": machine.memory.backed_bytes(),
        "host-memory-peak": machine.backed_bytes_peak,
    }
    if machine.board.balloon is not None:
        found["balloon"] = _balloon(machine)
    found["queues"] = [
        {"device": device.name}
        | {key: getattr(queue, key) for key in ("name", "size", "enabled", "requests", "skipped", "dropped")}
        for device in machine.board.virtio_devices
        for queue in device.queues
    ]
    return found


def _balloon(machine: Machine) -> dict[str, Any]:
    _, device = machine.board.need_balloon()
    balloon, statistics = machine.balloon, machine.stats.snapshot()
    pages = {
        "target": balloon.target_pages,
        "actual": balloon.actual_pages,
        "inflated": balloon.inflated_pages,
        "deflated": balloon.deflated_pages,
        "oom-deflated": balloon.oom_deflated_pages,
        "reported": balloon.reported_pages,
        "hinted": balloon.hinted_pages,
        "hint-discarded": balloon.hint_discarded_pages,
    }
    found: dict[str, Any] = {key: count * PAGE_BYTES for key, count in pages.items()}
    found |= {
        "id": device.name,
        "driver-ready": device.is_live,
        "guest-ram": balloon.guest_ram_bytes,
        "target-guest-ram": balloon.target_ram_bytes,
        "discarded": balloon.discarded_bytes,
        "bad-pfns": balloon.bad_pfns,
        "features": balloon.negotiated,
        "polling-interval-ns": device.polling_interval_ns,
        "stats-reason": statistics.reason,
        "stats-last-update": _last_update(machine),
        "stats-reports": device.stats_reports,
        "stats": dict(statistics.values),
    }
    return found | ({} if statistics.age_ns is None else {"stats-age-ns": statistics.age_ns})


def guest_stats(machine: Machine) -> dict[str, Any]:
    """The same statistics as QEMU's property guest-stats has them."""
    return {"stats": qemu_stats(machine.stats.snapshot().values), "last-update": _last_update(machine)}


def qemu_stats(values: Mapping[str, int]) -> dict[str, int]:
    """Those that were sent, and a number that says so for each of QEMU's that was not."""
    return {**dict.fromkeys(_QEMU_STATS, UNREPORTED), **values}


def _last_update(machine: Machine) -> int:
    """The host's second of the epoch in which statistics came last, 0 if they never did."""
    if machine.stats_unix_s is not None:
        return int(machine.stats_unix_s)
    age_ns = machine.stats.age_ns  # they may have come before the state was saved that this machine goes on from
    return 0 if age_ns is None else int(time.time() - age_ns / 1e9)
