"""`vmm initramfs`: words to `Contents`, and a file written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from devices.errors import ConfigError
from vmm.files import read_file
from vmm.streams import GuardedText

INITRAMFS_HELP = """Pack an initramfs for a Linux guest.

    Kernel modules go in with everything they need and in the order in which they can be loaded; busybox with a link for
    each of its commands. With busybox and no --init there is a bundled init: it mounts /proc, /sys and /dev, loads the
    modules, runs --main (a shell) on the console, and powers off when that ends.
    """

INITRAMFS_EPILOG = """\b
Examples:
  vmm initramfs -o initramfs.gz --busybox /bin/busybox --module virtio_balloon \\
      --kernel-modules /lib/modules/6.1.0-56-cloud-amd64
  vmm initramfs -o initramfs --busybox /bin/busybox --add ./files:/srv --main ./test.sh

\b
The same files give the same bytes: no times, no owners, sorted.
"""


def initramfs_command(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="What to write; gzip if FILE.gz.")],
    kernel_modules: Annotated[
        str,
        typer.Option(metavar="DIR", help="Where the modules are: lib/modules/VERSION, or above.", show_default=False),
    ] = "",
    module: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A kernel module, with all it needs; may be given again.")
    ] = None,
    file: Annotated[
        list[str] | None, typer.Option(metavar="SRC[:DST]", help="A file, to the root or to DST; may be given again.")
    ] = None,
    add: Annotated[
        list[str] | None, typer.Option(metavar="DIR[:DST]", help="All of a folder, to the root or to DST.")
    ] = None,
    init: Annotated[str, typer.Option(metavar="FILE", help="The program /init.", show_default=False)] = "",
    main: Annotated[
        str, typer.Option(metavar="FILE", help="What the bundled init runs (a shell).", show_default=False)
    ] = "",
    busybox: Annotated[str, typer.Option(metavar="FILE", help="A static busybox, for /bin.", show_default=False)] = "",
) -> int:
    from guests.debian import bundled_file
    from vmm.initramfs.bundled import bundled_init
    from vmm.initramfs.packing import Contents, pack, parse_file, parse_folder, write_initramfs

    if init and main:
        raise ConfigError("There can be an init of your own, or something for the bundled one to run, not both.")
    if not init and not busybox:
        raise ConfigError("An initramfs needs a program /init, or busybox for the bundled one.")
    programs = (("init", _read(init)),) if init else bundled_init(_read(main) if main else bundled_file("shell"))
    archive = pack(
        Contents(
            busybox=Path(busybox) if busybox else None,
            kernel_modules=Path(kernel_modules) if kernel_modules else None,
            modules=module or (),
            programs=programs,
            files=[parse_file(text) for text in file or ()],
            folders=[parse_folder(text) for text in add or ()],
        )
    )
    size = write_initramfs(archive, Path(output))
    GuardedText(sys.stdout).write(f"{output}: {len(archive.entries)} entries, {size} bytes\n")
    return 0


def _read(name: str) -> bytes:
    try:
        return read_file(name)
    except OSError as error:
        raise ConfigError(f"The file {name} cannot be read: {error.strerror}.") from error
