"""`vmm boot debian`: what the words of the command line mean for the guest that is fetched and packed for each run."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from devices.errors import ConfigError
from guests.debian import DEBIAN

if TYPE_CHECKING:
    from vmm.boot_options import BootOptions

NAME = DEBIAN.name
ONLY_HERE = ("shell", "run", "add", "out", "fetch")  # options that mean nothing for any other guest


def check_options(options: BootOptions) -> None:
    """ConfigError for an option of this guest that was given for another one."""
    for name in ONLY_HERE:
        if getattr(options, name) and options.guest != NAME:
            raise ConfigError(f"The option --{name} is for the guest {NAME!r} only: vmm boot {NAME} --{name}")
    if options.guest == NAME and (options.bios or options.initrd):
        raise ConfigError(f"The guest {NAME!r} brings its own initramfs, and our firmware starts it.")
    if options.arch not in ("", "x86_64"):
        if options.guest == NAME:
            raise ConfigError(f"The guest {NAME!r} is for x86_64 only, not for {options.arch!r}.")
        if options.debugcon:
            raise ConfigError(f"There is no debug port on the board of {options.arch!r}.")


def boot_debian(options: BootOptions) -> int:
    """Carry out `vmm boot debian`; returns the exit status."""
    from vmm.debian.files import ReturnedFiles
    from vmm.debian.guest import READY, Task, debian_guest
    from vmm.runner import Request, run

    task = Task(options.shell, options.run, options.add or (), bool(options.out), options.fetch)
    with ExitStack() as stack:
        returned = stack.enter_context(ReturnedFiles(Path(options.out))) if options.out else None
        linux = stack.enter_context(debian_guest(task, _tell, options.param or ""))
        config = _for_task(options, linux.kernel, linux.initrd, linux.command_line).config(DEBIAN)
        request = Request(
            replace(config, targets=(), poll_ns=0) if _does_without_demonstration(options) else config,
            "stdio" if options.shell and not options.serial else options.serial,
            options.report,
            options.json,
            options.debugcon,
            shell_ready=READY if options.shell else None,
            debug_sinks=() if returned is None else (returned.receive,),
        )
        status = run(request)
        if returned is not None:
            _tell(returned.unpack())
        return status


def _for_task(options: BootOptions, kernel: str, initrd: str, command_line: str) -> BootOptions:
    """The same wishes, with the files to boot; a shell lives in the host's time unless the user says otherwise."""
    clock = options.clock or ("realtime" if options.shell else "")
    return replace(options, guest=kernel, initrd=[initrd], param=command_line, clock=clock)


def _does_without_demonstration(options: BootOptions) -> bool:
    """A shell or a script is left alone, unless the user wants something of the balloon."""
    return bool(options.shell or options.run) and options.target is None and options.poll is None


def _tell(line: str) -> None:
    print(f"{NAME}: {line}", file=sys.stderr, flush=True)
