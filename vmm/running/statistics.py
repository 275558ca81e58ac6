"""`vmm stats`: what a running machine and its guest say of their memory, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from devices.errors import ConfigError
from vmm.config import format_size, parse_duration
from vmm.control.client import Client, choose
from vmm.models import did_you_mean
from vmm.running.output import fail, say

STATS_HELP = """Show the statistics of a running machine's memory.

    They are those that the guest has sent last: --poll of vmm boot has it asked, --refresh asks now. NAME may be left
    out while only one machine runs.
    """
STATS_EPILOG = """\b
Formats: table; json, all that is known; virsh, as virsh dommemstat has it;
prometheus, as --metrics serves it; qemu, QEMU's property guest-stats;
firecracker, what its API answers to GET /balloon/statistics.

\b
Exit status: 0, 1 where the machine has no balloon or the guest does not answer,
2 for a wrong word or where no such machine runs.
"""
NAMES = ("table", "json", "virsh", "prometheus", "qemu", "firecracker")
REFRESH_S = 2.0
LOOK_S = 0.02


def stats_command(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Which machine.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C or the machine's end.")] = False,
    every: Annotated[str, typer.Option(metavar="TIME", help="How often, with --watch (1s).")] = "1s",
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the guest for fresh figures first.")] = False,
    format: Annotated[str, typer.Option(metavar="|".join(NAMES), help="How they are printed (table).")] = "table",
) -> None:
    """See STATS_HELP."""
    if format not in NAMES:
        raise ConfigError(f"There is no format {format!r}, only {', '.join(NAMES)}{did_you_mean(format, NAMES)}")
    every_s = parse_duration(every) / 1e9
    with Client(*choose(name)) as client:
        _show(client, format, refresh=refresh)
        while watch:
            time.sleep(every_s)
            say("")
            _show(client, format, refresh=refresh)


def _show(client: Client, format: str, *, refresh: bool) -> None:
    status = client.ask("x-vmm-status")
    if "balloon" not in status:
        raise fail(f"{client.name} has no balloon, and so no statistics.")
    if refresh:
        status = _refreshed(client, status)
    if format == "table":
        say(table(status))
        return
    from vmm.running.formats import FORMATS

    say(FORMATS[format](status).rstrip("\n"))


def _refreshed(client: Client, status: dict[str, Any]) -> dict[str, Any]:
    """The same when the guest has answered."""
    before = status["balloon"]["stats-reports"]
    client.ask("x-vmm-request-stats")
    end_s = time.monotonic() + REFRESH_S
    while status["balloon"]["stats-reports"] == before:
        if time.monotonic() >= end_s:
            raise fail(f"{client.name}: the guest sent no statistics in {REFRESH_S:g} s.")
        time.sleep(LOOK_S)
        status = client.ask("x-vmm-status")
    return status


def table(status: Mapping[str, Any]) -> str:
    """Names and values in two columns."""
    from vmm.display import format_stat

    balloon = status["balloon"]
    age = f", {balloon['stats-age-ns'] / 1e9:.1f} s old" if "stats-age-ns" in balloon else ""
    rows = [
        ("machine", f"{status['name']}, {status['status']}, guest time {status['time-ns'] / 1e9:.1f} s"),
        ("RAM", format_size(status["ram"])),
        ("target: RAM left", format_size(balloon["target-guest-ram"])),
        ("target: balloon", format_size(balloon["target"])),
        ("guest RAM", format_size(balloon["guest-ram"])),
        ("balloon", format_size(balloon["actual"])),
        ("host memory", format_size(status["host-memory"])),
        ("statistics", f"{balloon['stats-reason']}{age}"),
        *((name, format_stat(name, value)) for name, value in balloon["stats"].items()),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
