"""The statistics of a machine in the forms of other tools, from the dictionary of `vmm.control.status`.

A statistic that the guest did not send is left out, but for QEMU's form, which has a number for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from vmm.control.exposition import exposition
from vmm.control.status import qemu_stats

PAGE_BYTES, KIB, MIB = 4096, 1 << 10, 1 << 20

_VIRSH: Final = (  # libvirt's names in its order; sizes are KiB there
    ("swap_in", "stat-swap-in", KIB),
    ("swap_out", "stat-swap-out", KIB),
    ("major_fault", "stat-major-faults", 1),
    ("minor_fault", "stat-minor-faults", 1),
    ("unused", "stat-free-memory", KIB),
    ("available", "stat-total-memory", KIB),
    ("usable", "stat-available-memory", KIB),
    ("last_update", None, 1),
    ("disk_caches", "stat-disk-caches", KIB),
    ("hugetlb_pgalloc", "stat-htlb-pgalloc", 1),
    ("hugetlb_pgfail", "stat-htlb-pgfail", 1),
)
_FIRECRACKER: Final = {
    "swap_in": "stat-swap-in",
    "swap_out": "stat-swap-out",
    "major_faults": "stat-major-faults",
    "minor_faults": "stat-minor-faults",
    "free_memory": "stat-free-memory",
    "total_memory": "stat-total-memory",
    "available_memory": "stat-available-memory",
    "disk_caches": "stat-disk-caches",
    "hugetlb_allocations": "stat-htlb-pgalloc",
    "hugetlb_failures": "stat-htlb-pgfail",
}


def as_json(status: Mapping[str, Any]) -> str:
    """Everything that is known of the machine."""
    return json.dumps(status, indent=2) + "\n"


def as_virsh(status: Mapping[str, Any]) -> str:
    """As `virsh dommemstat` prints it; `actual` is the RAM left to the guest, `rss` the host memory."""
    balloon = status["balloon"]
    lines = [f"actual {balloon['guest-ram'] // KIB}"]
    for name, key, unit in _VIRSH:
        if key is None:
            lines.append(f"{name} {balloon['stats-last-update']}")
        elif key in balloon["stats"]:
            lines.append(f"{name} {balloon['stats'][key] // unit}")
    return "\n".join([*lines, f"rss {status['host-memory'] // KIB}"]) + "\n"


def as_qemu(status: Mapping[str, Any]) -> str:
    """QEMU's property guest-stats."""
    balloon = status["balloon"]
    found = {"stats": qemu_stats(balloon["stats"]), "last-update": balloon["stats-last-update"]}
    return json.dumps(found) + "\n"


def as_firecracker(status: Mapping[str, Any]) -> str:
    """What Firecracker's API answers to GET /balloon/statistics; its target is the balloon's size."""
    balloon = status["balloon"]
    found: dict[str, int] = {}
    for name in ("target", "actual"):
        found[f"{name}_pages"] = balloon[name] // PAGE_BYTES
        found[f"{name}_mib"] = balloon[name] // MIB
    found |= {name: balloon["stats"][key] for name, key in _FIRECRACKER.items() if key in balloon["stats"]}
    return json.dumps(found) + "\n"


FORMATS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "json": as_json,
    "virsh": as_virsh,
    "prometheus": exposition,
    "qemu": as_qemu,
    "firecracker": as_firecracker,
}
"""Each form but the table, which `stats` prints itself."""
