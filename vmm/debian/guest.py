"""The guest "debian": the cached kernel, and an initramfs packed for what this run is to do.

Three things can be done: the demonstration, a shell on this terminal, or a script of the user's.  The initramfs lives
in memory only, under a name that lasts as long as the run's set-up.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devices.errors import ConfigError
from guests.debian import bundled_file
from vmm.debian.images import DebianImages, debian_images
from vmm.files import read_file
from vmm.initramfs.bundled import BALLOON_MODULES, MACHINE_MODULES, bundled_init
from vmm.initramfs.newc import Archive
from vmm.initramfs.packing import Contents, pack, parse_folder

NAME = "debian"
COMMAND_LINE = "console=ttyS0 quiet panic=-1"  # a panic ends the run, which would go on for ever
OUT_FOLDER = "out"
SCRIPT_FILE, TYPED_FILE, TERMINAL_FILE = "script", "etc/typed", "etc/terminal"
KERNEL_FILE = "vmlinuz-"  # the release follows
MIB = 1 << 20
SMALLEST_BYTES, KERNEL_BYTES = 96 * MIB, 64 * MIB  # what the kernel needs at least, and beside its files
COPIES = 3  # it unpacks the archive while it still has it, and files may take half of what is left then
NOT_ENDED = 3  # as where the guest panicked: no success, whatever the reason was
READY = b"balloon-vmm: ready for input\n"  # what the bundled shells send to the debug port


@dataclass(frozen=True, slots=True)
class Task:
    """What the guest is to do: a shell, or the script `run`, or else the demonstration.

    `takes_input`: somebody types; `interactive`: a person at a terminal.  The contents of the folders
    `add` ("DIR" or "DIR:DST") go into its files; with `returns_files` those of its /out come back.  `fetch` looks for
    newer packages first."""

    shell: bool = False
    run: str = ""
    add: Sequence[str] = ()
    returns_files: bool = False
    fetch: bool = False
    takes_input: bool = False
    interactive: bool = False

    def __post_init__(self) -> None:
        if self.shell and self.run:
            raise ConfigError("The guest can have a shell or a script to run, not both.")


@dataclass(frozen=True, slots=True)
class LinuxGuest:
    """What to boot: names of files, the kernel's command line, what to call it and the least RAM it can have.

    `reset_status` is the run's when the machine was reset before its program had ended, and told no other."""

    kernel: str
    initrd: str
    command_line: str
    title: str
    needs_bytes: int
    reset_status: int


@contextmanager
def debian_guest(task: Task, tell: Callable[[str], None], words: str = "") -> Iterator[LinuxGuest]:
    """The guest for `task`, `words` at the end of its command line.  ConfigError if anything is missing."""
    main, tells_status, programs = _main(task)
    folders = [parse_folder(text) for text in task.add]
    images = debian_images(tell, fetch=task.fetch)
    archive = pack(_contents(images, [*bundled_init(main, tell_status=tells_status), *programs], folders))
    if task.returns_files:
        archive.add_folder(OUT_FOLDER)
    if task.takes_input:
        archive.add_file(TYPED_FILE, b"")
    if task.interactive:
        _describe_terminal(archive)
    data = archive.to_bytes()
    with _in_memory(data) as initrd:
        yield LinuxGuest(
            str(images.kernel),
            initrd,
            f"{COMMAND_LINE} {words}".strip(),
            f"Debian {images.kernel.name.removeprefix(KERNEL_FILE)}",
            max(SMALLEST_BYTES, KERNEL_BYTES + -(-COPIES * len(data) // MIB) * MIB),
            reset_status=NOT_ENDED if tells_status else 0,
        )


def _main(task: Task) -> tuple[bytes, bool, list[tuple[str, bytes]]]:
    """What the bundled init runs, whether the machine ends with its exit status, and the programs it needs."""
    if task.shell:
        return (bundled_file("shell"), False, []) if task.interactive else (bundled_file("commands"), True, [])
    if not task.run:
        return bundled_file("demo"), False, []
    try:
        script = read_file(task.run)
    except OSError as error:
        raise ConfigError(f"The script {task.run} cannot be read: {error.strerror}.") from error
    if not script.startswith((b"#!", b"\x7fELF")):
        raise ConfigError(f"The script {task.run} must begin with #! and a program, such as #!/bin/sh.")
    return bundled_file("script"), True, [(SCRIPT_FILE, script)]


def _contents(
    images: DebianImages, programs: Sequence[tuple[str, bytes]], folders: Sequence[tuple[Path, str]]
) -> Contents:
    return Contents(
        busybox=images.busybox,
        kernel_modules=images.modules,
        modules=(*BALLOON_MODULES, *MACHINE_MODULES),
        programs=programs,
        folders=folders,
    )


def _describe_terminal(archive: Archive) -> None:
    """The shell reads how large the terminal is and what it is called: a serial line does not tell."""
    size = shutil.get_terminal_size()
    name = os.environ.get("TERM", "")
    name = name if re.fullmatch(r"[A-Za-z0-9.+-]+", name) else "vt100"
    lines = f"export TERM={name}\nstty rows {size.lines} cols {size.columns}\n"
    archive.add_file(TERMINAL_FILE, lines.encode())


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """The name of a file with `data` that is on no disk."""
    fd = os.memfd_create("initramfs")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
