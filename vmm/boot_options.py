"""The options of `vmm boot`, one field each, and the machine that they ask for.

A field of `BootOptions` is the whole declaration of an option: its name, its help, its default, and by its type whether
a value follows it.  The parser's command, the words that are understood (`WORDS`) and the help all come from it; what
an option means is said where `config` or the runner uses the field.  QEMU's spellings are in `vmm.options`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from devices.errors import ConfigError
from vmm.config import (
    PAGE_BYTES,
    MachineConfig,
    TargetStep,
    default_device,
    make_config,
    parse_duration,
    parse_size,
    parse_targets,
)
from vmm.control.address import parse_address
from vmm.control.options import ControlOptions
from vmm.options import Word

if TYPE_CHECKING:
    from guests import GuestRow
    from vmm.runner import PlannedSnapshot

DEFAULT_GUEST, DEFAULT_MEMORY, LINUX_MEMORY = "stats", "64M", "512M"


def _option(*names: str, metavar: str | None = None, help: str) -> Any:
    """An option called after its field, or by `names`, whose help says itself what happens without it."""
    return typer.Option(*names, metavar=metavar, help=help, show_default=False)


@dataclass(frozen=True, slots=True)
class BootOptions:
    """What the user said; an empty text or None where nothing was said."""

    guest: Annotated[
        str,
        typer.Argument(
            metavar="GUEST|FILE",
            help="What to boot: a bundled guest's name or a file (stats; nothing with --bios).",
            show_default=False,
        ),
    ] = ""
    memory: Annotated[str, _option("--memory", "-m", metavar="SIZE", help="RAM of the machine (64M; Linux 512M).")] = ""
    target: Annotated[
        str | None,
        _option(metavar="SIZE[@TIME],…", help="RAM left to the guest from that guest time on, or balloon=SIZE."),
    ] = None
    hint: Annotated[
        str,
        _option(metavar="TIME,…", help="Ask then which pages are free, and give them back to the host."),
    ] = ""
    poll: Annotated[
        str | None, _option(metavar="SECONDS", help="Ask for statistics that often, in guest time; 0: never.")
    ] = None
    duration: Annotated[
        str | None, _option("--for", metavar="GUEST-TIME", help="End the run after this much guest time.")
    ] = None
    powerdown: Annotated[
        str | None,
        _option(metavar="GUEST-TIME", help="Press the power button then; a guest that listens powers off."),
    ] = None
    clock: Annotated[
        str,
        _option(
            metavar="virtual|realtime",
            help="virtual: time follows the executed blocks, every run is the same (but for a shell, the default); "
            "realtime: the host's clock.",
        ),
    ] = ""
    serial: Annotated[
        str,
        _option(
            metavar="stdio|mon:stdio|file:PATH|null",
            help="Where the guest's console goes, unchanged; stdio is typed from too, mon:stdio is the monitor's as "
            "well (Ctrl-A C). By default its lines are shown among the others.",
        ),
    ] = ""
    report: Annotated[str, _option(metavar="FILE.json", help="Also write what --json prints to a file.")] = ""
    json: Annotated[bool, _option("--json", help="Print one JSON object about the run and nothing else.")] = False
    param: Annotated[
        str | None, _option(metavar="TEXT", help="A parameter for the guest, a kernel's command line (also --append).")
    ] = None
    bios: Annotated[
        str,
        _option(
            metavar="FILE|none",
            help="Firmware to run instead of ours: a ROM image of n x 64 KiB; none starts a Linux kernel without any.",
        ),
    ] = ""
    initrd: Annotated[
        list[str] | None,
        _option(
            metavar="FILE[ WORDS],…", help="The initrd of Linux, or modules for a Multiboot kernel; may be given again."
        ),
    ] = None
    debugcon: Annotated[
        str, _option(metavar="stdio|file:PATH", help="Where the output of the debug port 402h goes.")
    ] = ""
    device: Annotated[
        list[str] | None,
        _option(
            metavar="DRIVER[,NAME=VALUE]…",
            help="A device, as for QEMU's -device; instead of the one balloon. DRIVER,help lists its properties.",
        ),
    ] = None
    arch: Annotated[
        str, _option(metavar="x86_64|ppc", help="The processor (x86_64), and with it the board: ppc is big-endian.")
    ] = ""
    ram_backing: Annotated[
        str,
        _option(
            "--ram-backing",
            metavar="memfd|anonymous|hugepages[=SIZE]",
            help="What the host has behind RAM (memfd); huge pages must have been set aside, SIZE is 2M or 1G.",
        ),
    ] = ""
    watch_driver: Annotated[
        bool, _option("--watch-driver", help="Tell which rules of the specification the balloon's driver breaks.")
    ] = False
    restore: Annotated[
        str | None,
        _option(
            metavar="FILE",
            help="Go on from a snapshot instead of booting: its machine, its guest. Times are then counted from there.",
        ),
    ] = None
    snapshot_at: Annotated[
        list[str] | None,
        _option(
            "--snapshot-at",
            metavar="GUEST-TIME=FILE",
            help="Write a snapshot of the whole machine then; may be given again.",
        ),
    ] = None
    name: Annotated[
        str, _option("--name", metavar="NAME", help="What other commands call this run (the guest's name).")
    ] = ""
    qmp: Annotated[
        list[str] | None,
        _option(metavar="unix:PATH|tcp:HOST:PORT|stdio", help="Serve QEMU's QMP there; may be given again."),
    ] = None
    monitor: Annotated[
        list[str] | None,
        _option(metavar="stdio|unix:PATH|tcp:HOST:PORT", help="Serve the monitor there; may be given again."),
    ] = None
    gdb: Annotated[str, _option(metavar="tcp:HOST:PORT|unix:PATH", help="Serve gdb there; -s is tcp::1234.")] = ""
    metrics: Annotated[str, _option(metavar="HOST:PORT", help="Serve metrics for Prometheus over HTTP there.")] = ""
    paused: Annotated[bool, _option("--paused", "-S", help="Begin paused, until somebody lets it go on.")] = False
    shell: Annotated[
        bool, _option("--shell", help="debian: an interactive shell on this terminal; Ctrl-A X leaves it.")
    ] = False
    run: Annotated[
        str | None, _option(metavar="SCRIPT", help="debian: run this in the guest; its exit status is the run's.")
    ] = None
    add: Annotated[
        list[str] | None, _option(metavar="DIR[:DST]", help="debian: a folder's files for the guest, to / or DST.")
    ] = None
    out: Annotated[str, _option(metavar="DIR", help="debian: where the files of the guest's /out come back to.")] = ""
    fetch: Annotated[bool, _option("--fetch", help="debian: look for newer packages first.")] = False

    @property
    def devices(self) -> Sequence[str]:
        """The devices asked for, or the one balloon: with hinting, if hints are wanted of it."""
        return self.device or [default_device(self.arch) + (",free-page-hint=on" if self.hint else "")]

    @property
    def is_driven(self) -> bool:
        """Whether somebody shall drive the machine while it runs: then its time is the host's, unless it is said."""
        return bool(self.qmp or self.monitor or self.gdb or self.paused or self.shares_console)

    @property
    def console(self) -> str:
        """Where the serial console goes, whoever shares it."""
        return self.serial.removeprefix("mon:")

    @property
    def shares_console(self) -> bool:
        """Whether the serial console's standard input and output is the monitor's too."""
        return self.serial.startswith("mon:")

    @property
    def control(self) -> ControlOptions:
        """The places where it can be driven.  ConfigError for one that is none."""
        metrics = f"tcp:{self.metrics}" if self.metrics else ""
        return ControlOptions(
            name=self.name,
            qmp=tuple(parse_address(text, "--qmp") for text in self.qmp or ()),
            monitor=tuple(parse_address(text, "--monitor") for text in self.monitor or ()),
            gdb=tuple(parse_address(text, "--gdb") for text in [self.gdb] if text),
            metrics=tuple(parse_address(text, "--metrics") for text in [metrics] if text),
            paused=self.paused,
        )

    @property
    def snapshots(self) -> tuple[PlannedSnapshot, ...]:
        """The snapshots to be taken, in the order of their times.  ConfigError for one that cannot be."""
        return parse_snapshots(self.snapshot_at or ())

    def config(self, row: GuestRow | None = None) -> MachineConfig:
        """The machine, completed from the demonstration of `row`, or the bundled guest's, where the user said nothing.
        ConfigError when it cannot be."""
        from guests import GUESTS

        guest = self.guest or ("" if self.bios else DEFAULT_GUEST)
        row = row or GUESTS.get(guest)
        config = make_config(
            guest,
            memory=self.memory or (row.memory if row else _default_memory(guest)),
            clock=self.clock or ("realtime" if self.is_driven else "virtual"),
            targets=self.target or "",
            hints=self.hint,
            poll=self.poll or 0,
            duration=self.duration,
            powerdown=self.powerdown,
            parameter=self.param or "",
            bios=self.bios,
            modules=self.initrd or (),
            devices=self.devices,
            arch=self.arch or "x86_64",
            watch_driver=self.watch_driver,
            ram_backing=self.ram_backing or "memfd",
        )
        return config if row is None else self._with_demonstration(config, row)

    def _with_demonstration(self, config: MachineConfig, row: GuestRow) -> MachineConfig:
        demo = make_config(row.name, poll=row.demo_poll, duration=row.demo_for or None)
        if self.target is None and config.has_balloon:
            config = replace(config, targets=_demo_targets(row, config.memory_bytes))
        if self.poll is None and config.has_balloon:
            config = replace(config, poll_ns=demo.poll_ns)
        if self.duration is None:
            config = replace(config, for_ns=demo.for_ns)
        return config


def parse_snapshots(texts: Sequence[str]) -> tuple[PlannedSnapshot, ...]:
    """What "TIME=FILE" asks for, in the order of the times."""
    from vmm.runner import PlannedSnapshot

    planned = []
    for text in texts:
        when, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"A snapshot must be TIME=FILE, such as 2s=guest.snap, not {text!r}.")
        planned.append(PlannedSnapshot(parse_duration(when), path))
    return tuple(sorted(planned, key=lambda each: each.time_ns))


def _default_memory(guest: str) -> str:
    """Enough RAM for a guest that is a file: a distribution's Linux does not start in what suits a small program."""
    from vmm.loader import is_linux

    return LINUX_MEMORY if is_linux(guest) else DEFAULT_MEMORY


def _demo_targets(row: GuestRow, memory_bytes: int) -> tuple[TargetStep, ...]:
    """The demonstration's targets, in proportion to the machine's RAM."""
    planned_bytes = parse_size(row.memory)

    def scale(size: int | None) -> int | None:
        return None if size is None else size * memory_bytes // planned_bytes // PAGE_BYTES * PAGE_BYTES

    steps = parse_targets(row.demo_target)
    return tuple(TargetStep(step.time_ns, scale(step.ram_bytes), scale(step.balloon_bytes)) for step in steps)


def _words() -> dict[str, Word]:
    """Every spelling that the fields declare, and --help."""
    words = {"--help": Word("--help", has_value=False)}
    hints = get_type_hints(BootOptions, include_extras=True)
    for field in fields(BootOptions):
        kind, declared = get_args(hints[field.name])
        if isinstance(declared, typer.models.OptionInfo):
            # The parser's module keeps the first of several names as the default of an option without one.
            names = [name for name in (declared.default, *(declared.param_decls or ())) if isinstance(name, str)]
            names = names or [f"--{field.name}"]
            words.update(dict.fromkeys(names, Word(names[0], has_value=kind is not bool)))
    return words


WORDS = _words()
