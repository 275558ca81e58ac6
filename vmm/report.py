"""The run as one JSON object: what `--json` prints and `--report` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.machine import Machine

_BALLOON = (
    *("target_pages", "actual_pages", "inflated_pages", "deflated_pages", "oom_deflated_pages"),
    *("reported_pages", "reported_bytes", "poisoned_pages", "hinted_pages", "hint_discarded_pages"),
    *("stale_hint_pages", "held_pages", "discarded_bytes", "bad_pfns"),
)


def report(machine: Machine) -> dict[str, Any]:
    """The run so far.  Times are guest nanoseconds; with the virtual clock two equal runs give equal reports.

    Without a balloon `features`, `balloon` and `stats` are None; unless its driver is watched `breaches` is.
    `memory.backing` is what the host really has behind RAM ("memfd", "anonymous", "hugepages"), in pages of
    `host_page_bytes`; `backed_bytes_peak` is sampled at device events, not by wall time.  `console` is the newest MiB
    of what the guest wrote, `console_dropped_bytes` came before.
    """
    has_balloon = machine.board.balloon is not None
    outcome = machine.outcome
    return {
        "guest": machine.config.name,
        "arch": machine.config.arch,
        "outcome": None if outcome is None else outcome.kind,
        "exit_code": None if outcome is None else outcome.exit_code,
        "detail": None if outcome is None else outcome.detail,
        "clock_ns": machine.now_ns,
        "blocks": machine.blocks,
        "features": _features(machine) if has_balloon else None,
        "balloon": _balloon(machine) if has_balloon else None,
        "memory": {
            "ram_bytes": machine.config.memory_bytes,
            "backing": machine.memory.backing,
            "host_page_bytes": machine.memory.host_page_bytes,
            "backed_bytes_peak": machine.backed_bytes_peak,
            "backed_bytes_end": machine.memory.backed_bytes(),
        },
        "stats": _stats(machine) if has_balloon else None,
        "queues": [
            {name: getattr(queue, name) for name in ("name", "size", "requests", "skipped", "dropped")}
            for device in machine.board.virtio_devices
            for queue in device.queues
        ],
        "breaches": [breach.report() for breach in machine.breaches] if machine.config.watch_driver else None,
        "console": machine.console.decode("utf-8", "replace"),
        "console_dropped_bytes": machine.console_dropped_bytes,
    }


def _features(machine: Machine) -> dict[str, list[str]]:
    return {"offered": machine.balloon.offered, "negotiated": machine.balloon.negotiated}


def _balloon(machine: Machine) -> dict[str, int]:
    return {name: getattr(machine.balloon, name) for name in _BALLOON}


def _stats(machine: Machine) -> dict[str, Any]:
    found = machine.stats.snapshot()
    return {
        "reason": found.reason,
        "age_ns": found.age_ns,
        "values": dict(found.values),
        "raw": [[tag, value] for tag, value in found.raw],
    }
