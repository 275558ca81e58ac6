"""`vmm boot --restore FILE`: what the other words of the command line mean for a machine that was running before.

The snapshot has the machine and its guest.  Beside it may stand what is still to come, counted from the moment of the
snapshot, and where the run's output goes and who drives it; every other word would ask for another machine.
"""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING

from devices.errors import ConfigError
from vmm.config import parse_duration, parse_targets, parse_times

if TYPE_CHECKING:
    from vmm.boot_options import BootOptions
    from vmm.machine import Machine
    from vmm.snapshots import Snapshot

BESIDE = frozenset(
    (
        *("restore", "target", "hint", "poll", "duration", "powerdown"),
        *("serial", "report", "json", "debugcon", "snapshot_at", "shell"),
        *("name", "qmp", "monitor", "gdb", "metrics", "paused"),
    )
)


def boot_restored(options: BootOptions) -> int:
    """Carry out `vmm boot --restore`; returns the exit status."""
    if not options.restore:  # a shell's variable that is not set
        raise ConfigError("The option --restore needs the name of a file.")
    _check_options(options)

    from vmm.runner import Request, run
    from vmm.snapshots import read_snapshot

    with read_snapshot(options.restore) as snapshot:
        return run(
            Request(
                snapshot.config,
                "stdio" if options.shell else options.console,
                options.report,
                options.json,
                options.debugcon,
                shell_ready=b"" if options.shell else None,
                shares_console=options.shares_console,
                control=options.control,
                snapshots=options.snapshots,
                make=partial(_restored, snapshot, options),
            )
        )


def _restored(snapshot: Snapshot, options: BootOptions) -> Machine:
    machine = snapshot.boot()
    try:
        _plan(machine, options)
    except BaseException:
        machine.close()
        raise
    return machine


def _check_options(options: BootOptions) -> None:
    """ConfigError for a word that asks for another machine."""
    if options.guest:
        raise ConfigError(f"A snapshot has its own guest: {options.guest!r} cannot stand beside --restore.")
    for field in fields(options):
        if field.name not in BESIDE and getattr(options, field.name):
            name = field.name.replace("_", "-")
            raise ConfigError(f"A snapshot has its own machine: --{name} cannot stand beside --restore.")
    if options.shell and options.serial not in ("", "stdio"):
        raise ConfigError(f"A shell is typed to, so its console can only be 'stdio', not {options.serial!r}.")


def _plan(machine: Machine, options: BootOptions) -> None:
    """What the user wants otherwise than it was when the snapshot was taken."""
    machine.plan(
        targets=None if options.target is None else parse_targets(options.target),
        hints_ns=parse_times(options.hint) if options.hint else None,
        powerdown_ns=None if options.powerdown is None else parse_duration(options.powerdown),
        for_ns=None if options.duration is None else parse_duration(options.duration),
        poll_ns=None if options.poll is None else parse_duration(options.poll),
    )
