"""`vmm boot debian`: what the words of the command line mean for the guest that is fetched and packed for each run."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from devices.errors import ConfigError
from guests.debian import DEBIAN
from vmm.config import MachineConfig, format_size

if TYPE_CHECKING:
    from vmm.boot_options import BootOptions
    from vmm.debian.files import ReturnedFiles
    from vmm.debian.guest import LinuxGuest

NAME = DEBIAN.name
ONLY_HERE = ("shell", "run", "add", "out", "fetch")  # options that mean nothing for any other guest


def check_options(options: BootOptions) -> None:
    """ConfigError for an option of this guest that was given for another one."""
    for name in ONLY_HERE:
        if getattr(options, name) and options.guest != NAME:
            raise ConfigError(f"The option --{name} is for the guest {NAME!r} only: vmm boot {NAME} --{name}")
    if options.run == "":  # a shell's variable that is not set; the demonstration would look like a success
        raise ConfigError("The option --run needs the name of a script.")
    if options.guest == NAME and (options.bios or options.initrd):
        raise ConfigError(f"The guest {NAME!r} brings its own initramfs, and our firmware starts it.")
    if options.arch not in ("", "x86_64"):
        if options.guest == NAME:
            raise ConfigError(f"The guest {NAME!r} is for x86_64 only, not for {options.arch!r}.")
        if options.debugcon:
            raise ConfigError(f"There is no debug port on the board of {options.arch!r}.")
    if options.shell and options.console not in ("", "stdio"):
        raise ConfigError(f"A shell is typed to, so its console can only be 'stdio', not {options.serial!r}.")


def boot_debian(options: BootOptions) -> int:
    """Carry out `vmm boot debian`; returns the exit status."""
    from vmm.debian.files import ReturnedFiles
    from vmm.debian.guest import READY, Task, debian_guest
    from vmm.runner import Request, run
    from vmm.terminal import is_interactive

    typed = _takes_input(options)
    task = Task(
        options.shell,
        options.run or "",
        options.add or (),
        bool(options.out),
        options.fetch,
        takes_input=typed,
        interactive=typed and is_interactive(),
    )
    with ExitStack() as stack:
        returned = stack.enter_context(ReturnedFiles(Path(options.out))) if options.out else None
        linux = stack.enter_context(debian_guest(task, _tell, options.param or ""))
        request = Request(
            _config(options, linux),
            "stdio" if typed else options.console,
            options.report,
            options.json,
            options.debugcon,
            shell_ready=READY if typed else None,
            shares_console=options.shares_console,
            debug_sinks=() if returned is None else (returned.receive,),
            control=options.control,
            snapshots=options.snapshots,
            on_display=None if returned is None else returned.tell_with,
        )
        _tell(f"Linux's command line is: {linux.command_line}")
        status = run(request)
        return status if returned is None else _take_files(returned, status)


def _takes_input(options: BootOptions) -> bool:
    """Whether what is typed here reaches the guest's program: a shell's always, a script's where the user says so."""
    return (options.shell and options.console in ("", "stdio")) or (bool(options.run) and options.console == "stdio")


def _config(options: BootOptions, linux: LinuxGuest) -> MachineConfig:
    """The machine.  Who types lives in the host's time; a shell or a script gets nothing of the demonstration."""
    clock = options.clock or ("realtime" if _takes_input(options) else "")
    words = replace(options, guest=linux.kernel, initrd=[linux.initrd], param=linux.command_line, clock=clock)
    if options.shell or options.run:
        words = replace(words, target=options.target or "", poll=options.poll or "0")
    config = replace(words.config(DEBIAN), title=linux.title, reset_status=linux.reset_status)
    if config.memory_bytes < linux.needs_bytes:
        raise ConfigError(
            f"With its files the guest {NAME!r} needs at least {format_size(linux.needs_bytes)} of RAM, "
            f"not {format_size(config.memory_bytes)}."
        )
    return config


def _take_files(returned: ReturnedFiles, status: int) -> int:
    """Put the guest's files in their place.  Where a run failed, why it did matters more than that none came."""
    try:
        _tell(returned.unpack())
    except ConfigError as error:
        if not status:
            raise
        _tell(str(error))
    return status


def _tell(line: str) -> None:
    with suppress(OSError):  # it is no reason to stop that nobody reads it
        print(f"{NAME}: {line}", file=sys.stderr, flush=True)
