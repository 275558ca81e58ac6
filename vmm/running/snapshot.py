"""`vmm snapshot`: a running machine, whole, into a file."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from devices.errors import ConfigError
from vmm.config import format_size
from vmm.control.client import Client, Refused, choose
from vmm.running.output import fail, say

SNAPSHOT_HELP = """Write a running machine, whole, to a file.

    The guest does not notice, and goes on. `vmm boot --restore FILE` goes on from there, as often as you like. A file
    of that name is replaced when the new one is complete. NAME may be left out while only one machine runs.
    """
SNAPSHOT_EPILOG = """\b
Examples:
  vmm snapshot debian ready.snap
  vmm boot --restore ready.snap

\b
Exit status: 0, 1 where the machine cannot write it, 2 for a wrong word or where
no such machine runs.
"""
ANSWER_S = 600.0
"""Several GiB of RAM on a slow disk."""


def snapshot_command(
    words: Annotated[list[str], typer.Argument(metavar="[NAME] FILE", help="Which machine, and the file.")],
) -> None:
    """See SNAPSHOT_HELP."""
    if len(words) > 2:
        raise ConfigError(f"NAME and FILE are all there is to say, not {' '.join(words[2:])!r}.")
    path = words[-1]
    with Client(*choose(words[0] if len(words) == 2 else ""), answer_s=ANSWER_S) as client:
        try:
            found = client.ask("x-vmm-snapshot", filename=os.path.abspath(path))
        except Refused as error:
            raise fail(f"{client.name}: {error.desc}.") from error
        at_s = found["time-ns"] / 1e9
        say(f"{client.name}: {path} is written, {format_size(found['size'])}, at {at_s:.1f} s of guest time.")
