"""The command `vmm`: words in, one exit status out.

A client of the Python interface and nothing more: it turns words into a `MachineConfig`, hands it to `vmm.runner`, and
answers every mistake of the user with one sentence and status 2.  Whatever happens, nobody sees a traceback.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from devices.errors import ConfigError
from vmm import __version__
from vmm.boot_debian import NAME as DEBIAN
from vmm.boot_debian import boot_debian, check_options
from vmm.boot_options import WORDS, BootOptions
from vmm.boot_restore import boot_restored
from vmm.conformance.command import CONFORMANCE_EPILOG, CONFORMANCE_HELP, conformance_command
from vmm.initramfs.command import INITRAMFS_EPILOG, INITRAMFS_HELP, initramfs_command
from vmm.inspect.command import INSPECT_EPILOG, INSPECT_HELP, WATCH_EPILOG, WATCH_HELP, inspect_command, watch_command
from vmm.models import MODELS, did_you_mean, find_model
from vmm.options import translate
from vmm.running.control import CTL_EPILOG, CTL_HELP, ctl_command
from vmm.running.listing import PS_HELP, ps_command
from vmm.running.sizing import BALLOON_EPILOG, BALLOON_HELP, balloon_command
from vmm.running.snapshot import SNAPSHOT_EPILOG, SNAPSHOT_HELP, snapshot_command
from vmm.running.statistics import STATS_EPILOG, STATS_HELP, stats_command
from vmm.streams import GuardedText, OutputGone, forget_stdout, guarded
from vmm.top.command import TOP_EPILOG, TOP_HELP, top_command

if TYPE_CHECKING:
    from guests import GuestRow

EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED = 2, 70, 130
NARROWEST_COLUMN = 32  # of text beside names, for the longest feature; on a narrower terminal it goes on below them
RUNNING = ("ps", "balloon", "stats", "ctl", "snapshot", "top")  # about machines that run
COMMANDS = ("boot", *RUNNING, "guests", "devices", "initramfs", "conformance", "inspect", "watch")
NOT_COMMANDS = {  # what other programs call them
    "run": "boot",
    "start": "boot",
    "list": "guests",
    "version": "--version",
}

EXIT_STATUSES = (
    ("0", "the guest powered off, halted or reset the machine, the time of --for is over, or somebody said quit"),
    ("N", "the guest ended with its own exit code N"),
    ("2", "a wrong option, size, guest or file, told in one sentence"),
    ("3", "the guest panicked, or reset the machine before the script of --run had ended"),
    ("4", "triple fault: the vector, CS:RIP and the registers are told"),
    ("5", "a device was left needing a reset when the guest ended"),
    ("6", "the host had no huge page left for what the balloon gave back (--ram-backing hugepages)"),
    ("70", "a mistake in vmm itself (VMM_TRACEBACK=1 shows where)"),
    ("130", "interrupted by Ctrl-C, SIGTERM or SIGHUP, killed from gdb, or nobody reads the output any more"),
)

BOOT_HELP = """Boot a guest and watch its balloon.

    GUEST is a bundled guest (`vmm guests` lists them; stats if none is named), FILE a Linux or Multiboot kernel, an
    ELF64 executable or a flat image of your own. A bundled guest brings a demonstration along: targets, polling and an
    end, each used unless you give your own. On a terminal the run is held to one guest second per second; elsewhere it
    is as fast as it can be, and the same things happen.
    """

_STATUS_LINES = "\n".join(f"  {status:<4} {meaning}" for status, meaning in EXIT_STATUSES)
BOOT_EPILOG = f"""\b
Examples:
  vmm boot                                  the stats guest and its demonstration
  vmm boot stats -m 128M --target 96M@1s,128M@3s --poll 0.5 --for 5s
  vmm boot balloon --target balloon=16M --for 2s --json
  vmm boot balloon --hint 1s --for 2s       free memory goes to the host, nothing is lost
  vmm boot ./mine.elf --param "two words" --serial file:console.txt
  vmm boot -kernel vmlinuz -initrd initrd.img -append console=ttyS0 --serial stdio
  vmm boot -kernel ./multiboot.elf -append "words" -initrd ./module.bin
  vmm boot -bios ./bios.bin --debugcon stdio --for 70s
  vmm boot -m 64M -device virtio-balloon-pci,id=b0 -device virtio-rng-pci
  vmm boot balloon --snapshot-at 1s=balloon.snap
  vmm boot --restore balloon.snap --for 2s  the same machine from there on, for two seconds more
  vmm boot stats --arch ppc                 the same guest on a big-endian processor

\b
Sizes: 64M, 1.5G, 512K; a number alone is MiB. Times: 2s, 500ms; a number alone
is seconds. A target is the RAM left to the guest, as in QEMU; balloon=SIZE is
the balloon's own size. Every answer gives both.

\b
Exit status:
{_STATUS_LINES}
"""

app = typer.Typer(
    name="vmm",
    help="A virtual machine monitor whose memory balloon can be seen at work.\n\nBegin with: vmm boot",
    epilog="Try `vmm boot --help`: it explains sizes, times and exit statuses, with examples.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        _print(version_text())
        raise typer.Exit


@app.callback()
def _vmm(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options that belong to no command."""


app.command("boot", help=BOOT_HELP, epilog=BOOT_EPILOG)(BootOptions)


@app.command("guests")
def guests_command() -> None:
    """List the bundled guests."""
    from guests import GUESTS
    from guests.debian import DEBIAN

    for row in (*GUESTS.values(), DEBIAN):
        _print(_fold(f"{row.name:<10} {row.summary}", 11))
        for text in _demonstration(row):
            _print(_fold(f"{'':<10} {text}", 13))


@app.command("devices")
def devices_command() -> None:
    """List the devices and their properties."""
    for index, model in enumerate(MODELS):
        _print("\n" * bool(index) + _fold(describe_device(model.driver), 31))


app.command("ps", help=PS_HELP)(ps_command)
app.command("balloon", help=BALLOON_HELP, epilog=BALLOON_EPILOG)(balloon_command)
app.command("stats", help=STATS_HELP, epilog=STATS_EPILOG)(stats_command)
app.command("ctl", help=CTL_HELP, epilog=CTL_EPILOG)(ctl_command)
app.command("snapshot", help=SNAPSHOT_HELP, epilog=SNAPSHOT_EPILOG)(snapshot_command)
app.command("top", help=TOP_HELP, epilog=TOP_EPILOG)(top_command)
app.command("initramfs", help=INITRAMFS_HELP, epilog=INITRAMFS_EPILOG)(initramfs_command)
app.command("conformance", help=CONFORMANCE_HELP, epilog=CONFORMANCE_EPILOG)(conformance_command)
app.command("inspect", help=INSPECT_HELP, epilog=INSPECT_EPILOG)(inspect_command)
app.command("watch", help=WATCH_HELP, epilog=WATCH_EPILOG)(watch_command)


# -- what the words mean -------------------------------------------------------------------------------------------


def boot(options: BootOptions) -> int:
    """Carry out `vmm boot`; returns the exit status."""
    if _show_device_help(options.devices):
        return 0
    if options.restore is not None:
        return boot_restored(options)
    check_options(options)
    if options.guest == DEBIAN:
        return boot_debian(options)
    config = options.config()

    from vmm.runner import Request, run

    request = Request(
        *(config, options.console, options.report, options.json, options.debugcon),
        shares_console=options.shares_console,
        control=options.control,
        snapshots=options.snapshots,
    )
    return run(request)


def _demonstration(row: GuestRow) -> list[str]:
    words = [f"--target {row.demo_target}"] if row.demo_target else []
    words += [f"--poll {row.demo_poll:g}"] if row.demo_poll else []
    words += [f"--for {row.demo_for}"] if row.demo_for else []
    lines = ["demonstration: " + " ".join([f"-m {row.memory}", *words])] if words else []
    lines += [f"also for --arch {arch}" for arch in row.architectures[1:]]
    return lines + [f"parameter {name}: {what}" for name, what in row.parameters]


def _show_device_help(devices: Sequence[str]) -> bool:
    """`-device help` and `-device DRIVER,help`, as in QEMU."""
    for text in devices:
        driver, *settings = text.split(",")
        if driver in ("help", "?"):
            devices_command()
            return True
        if "help" in settings or "?" in settings:
            _print(_fold(describe_device(driver), 31))
            return True
    return False


def _fold(text: str, indent: int) -> str:
    """The lines of `text`, on a terminal folded between words to its width and continued at column `indent`."""
    if not sys.stdout.isatty():
        return text  # a program may read it, line by line
    columns = shutil.get_terminal_size().columns
    rest = " " * (indent if columns >= indent + NARROWEST_COLUMN else 4)
    folded = (
        textwrap.wrap(line, columns, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False)
        for line in text.splitlines()
    )
    return "\n".join(line for lines in folded for line in lines)


def describe_device(driver: str) -> str:
    """The properties of `driver` as lines of text.  ConfigError when there is no such device."""
    model = find_model(driver)
    lines = [f"{model.driver}: {model.summary}"]
    for prop in model.properties:
        values = {"flag": "on|off", "fixed": prop.default, "choice": "|".join(prop.choices)}.get(prop.kind, "VALUE")
        default = f" (default: {prop.default})" if prop.kind in ("flag", "choice", "size") else ""
        what = f"{prop.help}: only this value in this version" if prop.kind == "fixed" else prop.help
        lines.append(f"  {prop.name + '=' + values:<28} {what}{default}")
    return "\n".join(lines)


# -- the outermost frame -------------------------------------------------------------------------------------------


def version_text() -> str:
    return f"vmm {__version__} (balloon-vmm)"


def main(words: Sequence[str]) -> int:
    """Carry out `vmm WORDS…`; returns the exit status.  Every error has become a sentence on the standard error."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks must not end the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return _dispatch(list(words))
    except ConfigError as error:
        return _complain(str(error), EXIT_USAGE)
    except MemoryError:
        return _complain("The host has not enough memory for this.", EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except (OutputGone, BrokenPipeError, SystemExit):  # the parser ends the process when its own help cannot be written
        forget_stdout()
        return EXIT_INTERRUPTED
    except Exception as error:
        complaint = getattr(error, "format_message", None)  # the parser's own errors have it
        if complaint is not None:
            return _complain(complaint().rstrip(".") + ".", EXIT_USAGE)
        if os.environ.get("VMM_TRACEBACK"):
            raise
        return _complain(f"A mistake in vmm itself: {type(error).__name__}: {error}", EXIT_BUG)


def _print(text: str) -> None:
    GuardedText(sys.stdout).write(text + "\n")


def _complain(sentence: str, status: int) -> int:
    with suppress(OSError):  # nobody can be told
        print(f"vmm: {sentence}", file=sys.stderr)
    return status


def _dispatch(words: list[str]) -> int:
    words = _rewrite(words)
    # The parser writes its help itself, and to a full disk as well.
    with guarded() if "--help" in words else nullcontext():
        result = app(words, prog_name="vmm", standalone_mode=False)
    if isinstance(result, BootOptions):
        return boot(result)
    return result if isinstance(result, int) else 0


def _rewrite(words: list[str]) -> list[str]:
    """Put the words into the parser's spelling.  ConfigError for a first word that is no command."""
    if not words or words[0] in ("-h", "-help", "--help", "help"):
        return ["--help"]
    first, *rest = words
    if first in ("-version", "--version"):
        return ["--version"]
    if first == "boot":
        return [first, *translate(rest, WORDS)]
    if first in COMMANDS:
        return words
    if first.startswith("-"):
        command = next((word for word in rest if word in COMMANDS), "boot")
        options = " ".join(word for word in words if word != command)
        raise ConfigError(f"A command must come first: vmm {command} {options}")
    from guests import GUESTS

    if first in GUESTS or os.path.exists(first):
        raise ConfigError(f"There is no command {first!r}; did you mean 'vmm boot {first}'?")
    hint = did_you_mean(NOT_COMMANDS.get(first, first), (*COMMANDS, "--version"))
    raise ConfigError(f"There is no command {first!r}, only {', '.join(COMMANDS)}{hint}")
