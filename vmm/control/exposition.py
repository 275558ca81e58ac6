"""A machine's figures in Prometheus' text format (version 0.0.4), from the dictionary of `vmm.control.status`.

Names follow node_exporter's custom: base units, counters that end with _total.  Each sample bears the label `vm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metric(NamedTuple):
    """A family of samples: labels beside `vm`, and a value, for each."""

    name: str
    type: str
    help: str
    samples: list[tuple[dict[str, str], float]]


_STATES = ("running", "paused", "prelaunch", "shutdown", "guest-panicked")
_BALLOON = (
    ("target", "vmm_balloon_target_bytes", "gauge", "Size wanted of the balloon."),
    ("actual", "vmm_balloon_actual_bytes", "gauge", "Size of the balloon, as the driver says."),
    ("guest-ram", "vmm_guest_ram_bytes", "gauge", "RAM that the balloon leaves to the guest."),
    ("target-guest-ram", "vmm_guest_ram_target_bytes", "gauge", "RAM to be left to the guest."),
    ("inflated", "vmm_balloon_inflated_bytes_total", "counter", "Pages that went into the balloon."),
    ("deflated", "vmm_balloon_deflated_bytes_total", "counter", "Pages that came out of the balloon."),
    (
        "oom-deflated",
        "vmm_balloon_oom_deflated_bytes_total",
        "counter",
        "Pages taken back below the target.",
    ),
    ("reported", "vmm_balloon_reported_bytes_total", "counter", "Pages reported free."),
    ("hinted", "vmm_balloon_hinted_bytes_total", "counter", "Pages hinted to be free."),
    ("hint-discarded", "vmm_balloon_hint_discarded_bytes_total", "counter", "Hinted pages that went back to the host."),
    ("discarded", "vmm_balloon_discarded_bytes_total", "counter", "Bytes given back to the host."),
    ("bad-pfns", "vmm_balloon_bad_pfns_total", "counter", "Page frame numbers that named no page of RAM."),
)
_STATS = {
    "stat-swap-in": ("vmm_guest_swap_in_bytes_total", "counter", "Swapped in by the guest."),
    "stat-swap-out": ("vmm_guest_swap_out_bytes_total", "counter", "Swapped out by the guest."),
    "stat-major-faults": ("vmm_guest_major_faults_total", "counter", "Major page faults in the guest."),
    "stat-minor-faults": ("vmm_guest_minor_faults_total", "counter", "Minor page faults in the guest."),
    "stat-free-memory": ("vmm_guest_memory_free_bytes", "gauge", "Unused by the guest."),
    "stat-total-memory": ("vmm_guest_memory_total_bytes", "gauge", "All that the guest has."),
    "stat-available-memory": ("vmm_guest_memory_available_bytes", "gauge", "Available to the guest without swapping."),
    "stat-disk-caches": ("vmm_guest_disk_caches_bytes", "gauge", "Caches that the guest can reclaim."),
    "stat-htlb-pgalloc": ("vmm_guest_hugetlb_allocations_total", "counter", "Huge pages allocated in the guest."),
    "stat-htlb-pgfail": (
        "vmm_guest_hugetlb_failures_total",
        "counter",
        "Huge pages that could not be allocated.",
    ),
    "stat-oom-kills": ("vmm_guest_oom_kills_total", "counter", "Invocations of the guest's OOM killer."),
    "stat-alloc-stalls": ("vmm_guest_alloc_stalls_total", "counter", "Allocations in the guest that had to wait."),
    "stat-async-scans": ("vmm_guest_async_scanned_bytes_total", "counter", "Scanned in the background."),
    "stat-direct-scans": ("vmm_guest_direct_scanned_bytes_total", "counter", "Scanned by who wanted memory."),
    "stat-async-reclaims": ("vmm_guest_async_reclaimed_bytes_total", "counter", "Reclaimed in the background."),
    "stat-direct-reclaims": ("vmm_guest_direct_reclaimed_bytes_total", "counter", "Reclaimed by who wanted memory."),
}
_QUEUES = (
    ("requests", "vmm_virtqueue_requests_total", "Requests taken from the queue."),
    ("skipped", "vmm_virtqueue_skipped_total", "Requests at fault that went back unread."),
    ("dropped", "vmm_virtqueue_dropped_total", "Requests at fault that never went back."),
)


def exposition(status: Mapping[str, Any]) -> str:
    """The text: one family after the other, each with its help and type."""
    return "".join(_lines(status["name"], metric) for metric in _metrics(status) if metric.samples)


def _metrics(status: Mapping[str, Any]) -> Iterator[Metric]:
    about = {key: str(status[key]) for key in ("guest", "arch", "clock", "version")}
    yield Metric("vmm_info", "gauge", "The machine; the value is 1.", [(about, 1)])
    states = [({"state": state}, int(status["status"] == state)) for state in _STATES]
    yield Metric("vmm_state", "gauge", "1 for what the machine does now.", [*states])
    for name, kind, text, value in (
        ("vmm_guest_time_seconds_total", "counter", "Guest time since power-on.", status["time-ns"] / 1e9),
        ("vmm_blocks_total", "counter", "Basic blocks that the processor executed.", status["blocks"]),
        ("vmm_ram_bytes", "gauge", "RAM of the machine.", status["ram"]),
        ("vmm_host_memory_bytes", "gauge", "Host memory behind the RAM.", status["host-memory"]),
        ("vmm_host_memory_peak_bytes", "gauge", "The most that was seen.", status["host-memory-peak"]),
    ):
        yield Metric(name, kind, text, [({}, value)])
    if "balloon" in status:
        yield from _balloon(status["balloon"])
    for key, name, text in _QUEUES:
        samples = [({"device": each["device"], "queue": each["name"]}, each[key]) for each in status["queues"]]
        yield Metric(name, "counter", text, [*samples])


def _balloon(balloon: Mapping[str, Any]) -> Iterator[Metric]:
    device = {"device": str(balloon["id"])}
    for key, name, kind, text in _BALLOON:
        yield Metric(name, kind, text, [(device, balloon[key])])
    ready = int(balloon["driver-ready"])
    yield Metric("vmm_balloon_driver_ready", "gauge", "1 while a driver is at work.", [(device, ready)])
    if "stats-age-ns" in balloon:
        age_s = balloon["stats-age-ns"] / 1e9
        yield Metric("vmm_guest_stats_age_seconds", "gauge", "Age of the statistics, in guest time.", [(device, age_s)])
    reports = balloon["stats-reports"]
    yield Metric("vmm_guest_stats_reports_total", "counter", "Reports of statistics.", [(device, reports)])
    for key, value in balloon["stats"].items():
        if key in _STATS:
            name, kind, text = _STATS[key]
            yield Metric(name, kind, text, [(device, value)])


def _lines(vm: str, metric: Metric) -> str:
    lines = [f"# HELP {metric.name} {metric.help}\n", f"# TYPE {metric.name} {metric.type}\n"]
    for labels, value in metric.samples:
        text = ",".join(f'{name}="{_escape(text)}"' for name, text in {"vm": vm, **labels}.items())
        lines.append(f"{metric.name}{{{text}}} {value!r}\n")
    return "".join(lines)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
