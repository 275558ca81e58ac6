"""`vmm inspect` and `vmm watch`: the words of the commands, and what they print."""

from __future__ import annotations

import json as json_format
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

from vmm.streams import GuardedText

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from vmm.inspect.watchpoint import Write

BROKEN = NOTHING_SEEN = 1

INSPECT_HELP = """Look at a running or hanging VMM from outside.

    PID is the process of a VMM. All its threads are stopped, its rings are walked by the devices' own code, and it
    runs on after a few milliseconds as if nothing had been; one that hangs or is stopped can be looked at, too. No
    page that the balloon gave back comes back by it.
    """
INSPECT_EPILOG = """\b
Exit status: 0 if every rule holds, 1 if one is broken, 2 if the process
cannot be looked at, told in one sentence, 130 if interrupted.
"""

WATCH_HELP = """Tell who writes a word of a running VM's memory.

    PID is the process of a VMM. What to watch is used.idx or avail.idx, the index of a split ring, or a guest-physical
    ADDRESS. The processor's debug registers stop whoever writes there for a moment: the guest's CPU or the device. What
    the kernel writes for a system call (read, for one) they do not see.
    """
WATCH_EPILOG = """\b
Examples:
  vmm watch 4711 used.idx --queue inflateq
  vmm watch 4711 1069548h --count 1 --timeout 10

\b
Exit status: 0 if a write was seen, 1 if none was before the end, 2 if it cannot
be watched, told in one sentence, 130 if interrupted. `kill -9` of this command would leave the
watched process with a trap that ends it at the next write; Ctrl-C and SIGTERM
take the trap away.
"""

PidArgument = Annotated[int, typer.Argument(metavar="PID", help="The process of a VMM.", show_default=False)]


def inspect_command(
    pid: PidArgument,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """See INSPECT_HELP."""
    from vmm.inspect.inspect_report import as_json, as_tables
    from vmm.inspect.look import inspect

    found = inspect(pid)
    if json:
        _print_json(as_json(found))
    else:
        _show(as_tables(found))
    return BROKEN if found.findings() else 0


def watch_command(
    pid: PidArgument,
    what: Annotated[str, typer.Argument(metavar="ADDRESS|used.idx|avail.idx", show_default=False)],
    queue: Annotated[
        str, typer.Option(metavar="NAME", help="Of this queue: inflateq, balloon0.inflateq.", show_default=False)
    ] = "",
    size: Annotated[
        int, typer.Option(metavar="BYTES", help="How many bytes at ADDRESS: 1, 2, 4 or 8; its alignment, up to 4.")
    ] = 0,
    count: Annotated[int, typer.Option(metavar="N", min=0, help="End after N writes; 0: do not end.")] = 0,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="End after so long; 0: do not end.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> int:
    """See WATCH_HELP."""
    from vmm.inspect.watchpoint import watch

    seen = 0
    with closing(watch(pid, what, queue=queue, size=size, count=count, timeout_s=timeout)) as writes:
        for write in writes:
            seen += 1
            if json:
                _print_json(write.as_json())
            else:
                GuardedText(sys.stdout).write(_line(write) + "\n")
    return 0 if seen else NOTHING_SEEN


def _line(write: Write) -> str:
    change = f"{write.old:#x} -> {write.new:#x}" if write.old != write.new else f"{write.new:#x} again"
    return f"{write.seconds:9.6f} s  {write.what}: {change}  thread {write.thread} ({write.name}): {write.writer}"


def _print_json(value: Any) -> None:
    GuardedText(sys.stdout).write(json_format.dumps(value) + "\n")


def _show(parts: Iterable[RenderableType]) -> None:
    from rich.console import Console

    console = Console(file=cast(TextIO, GuardedText(sys.stdout)), width=None if sys.stdout.isatty() else 120)
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, highlight=False, soft_wrap=True)
        else:
            console.print(part)
