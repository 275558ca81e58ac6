"""`vmm ps`: the user's running machines as a table, or as JSON."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from devices.errors import ConfigError
from vmm.config import format_size
from vmm.control.client import LOOK_S, Client, NoAnswer, Refused, living
from vmm.running.output import say

PS_HELP = """List your running machines.

    NAME is what the other commands call a machine: what --name gave it, or its guest, with a number where there are
    several. RAM is what it has, LEFT what the balloon leaves to the guest, TARGET what shall be left.
    """
_HEAD = ("NAME", "PID", "GUEST", "STATE", "TIME", "RAM", "LEFT", "TARGET", "BALLOON", "HOST MEMORY")


def ps_command(
    json: Annotated[bool, typer.Option("--json", help="Print a JSON array of all that is known.")] = False,
) -> None:
    """See PS_HELP."""
    found = []
    for name, path in living().items():
        try:
            with Client(name, path, LOOK_S) as client:
                found.append(client.ask("x-vmm-status") | {"name": name})
        except NoAnswer as error:  # it is stopped, or hangs
            found.append({"name": name, "status": "unresponsive", "pid": error.pid})
        except (ConfigError, Refused):  # it has ended meanwhile
            continue
    if json:
        say(json_module.dumps(found, indent=2))
    else:
        _print_table([_HEAD, *map(_row, found)])


def _row(status: Mapping[str, Any]) -> tuple[str, ...]:
    if "time-ns" not in status:
        return (status["name"], str(status["pid"]), "-", status["status"], *["-"] * 6)
    balloon = status.get("balloon")
    sizes = ("guest-ram", "target-guest-ram", "actual")
    return (
        status["name"],
        str(status["pid"]),
        status["guest"],
        status["status"],
        f"{status['time-ns'] / 1e9:.1f} s",
        format_size(status["ram"]),
        *(format_size(balloon[key]) if balloon else "-" for key in sizes),
        format_size(status["host-memory"]),
    )


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
