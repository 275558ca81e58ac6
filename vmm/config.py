"""What the user asked for, as one frozen value, parsed once.

This module owns the spelling of sizes, times, targets and devices, for the command line and the Python interface alike,
and every rule that can be checked without building a machine.  It refuses to know how a machine is built, and where
the words came from: a `ConfigError` is one sentence that names the value, never an option of the command line.

Sizes of the balloon come in two directions.  A target is the RAM left to the guest, as in QEMU's `balloon` command;
`balloon=SIZE` is the balloon's own size.  A `TargetStep` keeps the one that was given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, cast, get_args

from devices.backing import MEMFD, Backing, BackingName
from devices.errors import ConfigError
from vmm.models import DEFAULT_DEVICE, DEFAULT_MMIO_DEVICE, DeviceConfig, did_you_mean, parse_devices

__all__ = [
    "ArchName",
    "ClockName",
    "DeviceConfig",
    "MachineConfig",
    "TargetStep",
    "format_size",
    "host_memory_bytes",
    "make_config",
    "parse_backing",
    "parse_duration",
    "parse_size",
    "parse_targets",
    "parse_times",
]

ClockName = Literal["virtual", "realtime"]
ArchName = Literal["x86_64", "ppc"]

PAGE_BYTES = 4096
MIB = 1 << 20
SMALLEST_MEMORY_BYTES = MIB
PPC: ArchName = "ppc"
LARGEST_PPC_MEMORY_BYTES = 2048 * MIB  # above lie what guests map for themselves, and the devices
NO_FIRMWARE = "none"  # as the name of a firmware: the host sets the board up and starts the kernel itself
LONGEST_PARAMETER_BYTES = 2047  # the firmware keeps 2048 with the NUL
SHORTEST_POLL_NS = 1_000_000
LONGEST_NS = 1 << 62  # about 146 years: every sum of two times still fits in 64 bits

_UNITS = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_TIMES = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
_TIME = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ns|us|ms|s|min|h|)")


@dataclass(frozen=True, slots=True)
class TargetStep:
    """From guest time `time_ns` on the balloon has a new target; exactly one of the two sizes is given.

    `ram_bytes` is the RAM to be left to the guest, `balloon_bytes` the size wanted of the balloon.
    """

    time_ns: int
    ram_bytes: int | None = None
    balloon_bytes: int | None = None

    def __post_init__(self) -> None:
        if (self.ram_bytes is None) == (self.balloon_bytes is None):
            raise ConfigError("A target must be either the RAM left to the guest or the balloon's size.")

    def check(self, memory_bytes: int) -> None:
        """ConfigError unless a machine with `memory_bytes` of RAM can have this target."""
        if self.ram_bytes is not None and not 0 < self.ram_bytes <= memory_bytes:
            raise ConfigError(
                f"A target must be more than 0 and at most the machine's {format_size(memory_bytes)} of RAM, "
                f"not {format_size(self.ram_bytes)}."
            )
        if self.balloon_bytes is not None and not 0 <= self.balloon_bytes < memory_bytes:
            raise ConfigError(
                f"The balloon must be smaller than the machine's {format_size(memory_bytes)} of RAM, "
                f"not {format_size(self.balloon_bytes)}."
            )


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """A machine, complete.  Sizes in bytes, times in nanoseconds of guest time; `for_ns` None means "no end".

    `bios` is a file with firmware to run instead of the project's own; then `guest` may be empty.  It may be "none":
    the guest, a Linux or PVH kernel, is then started without any firmware.  `modules` are files
    for a Multiboot kernel, each with the words that go with it.  `parameter` reaches the guest as its command line.
    `targets` are in the order of their times, `hints_ns` the times at which the balloon's driver is asked for
    hints of free pages; the power button is pressed at `powerdown_ns`.  `title` is what to call
    the guest where its file's name means nothing to the user; `reset_status` is the exit status where a reset of the
    machine ends the run; `arch` is the processor, and with it the board; with `watch_driver` it is told which rules the
    balloon's driver breaks; `ram_backing` is what the host has behind RAM.  ConfigError when a field cannot be, or two
    of them cannot be together.
    """

    guest: str
    memory_bytes: int = 64 * MIB
    clock: ClockName = "virtual"
    targets: tuple[TargetStep, ...] = ()
    hints_ns: tuple[int, ...] = ()
    poll_ns: int = 0
    for_ns: int | None = None
    powerdown_ns: int | None = None
    parameter: str = ""
    bios: str = ""
    modules: tuple[str, ...] = ()
    devices: tuple[DeviceConfig, ...] = field(default_factory=lambda: parse_devices((DEFAULT_DEVICE,)))
    title: str = ""
    reset_status: int = 0
    arch: ArchName = "x86_64"
    watch_driver: bool = False
    ram_backing: Backing = MEMFD

    def __post_init__(self) -> None:
        if not self.guest and self.bios == NO_FIRMWARE:
            raise ConfigError("Without firmware there must be a kernel to start: give one with --kernel.")
        if not self.guest and not self.bios:
            raise ConfigError("The guest must be a name or a file, not ''.")
        if self.modules and not self.guest:
            raise ConfigError("Modules need a Multiboot kernel to go with, and there is no guest.")
        if self.clock not in get_args(ClockName):
            names = get_args(ClockName)
            raise ConfigError(
                f"The clock must be {' or '.join(names)}, not {self.clock!r}{did_you_mean(self.clock, names)}"
            )
        if 0 < self.poll_ns < SHORTEST_POLL_NS:
            raise ConfigError("The polling interval must be 0 (off) or at least 1 ms of guest time.")
        if self.for_ns == 0:
            raise ConfigError("The guest time to run for must be more than 0.")
        self._check_arch()
        self._check_parameter()
        self._check_memory()
        for step in self.targets:
            step.check(self.memory_bytes)
        if not self.has_balloon and (self.targets or self.poll_ns):
            raise ConfigError("A target or a polling interval needs a balloon, and this machine has none.")
        if self.hints_ns and not self.has_hinting:
            raise ConfigError("Asking for hints needs a balloon with free-page-hint=on, and this machine has none.")
        if self.watch_driver and not self.has_balloon:
            raise ConfigError("Watching the balloon's driver needs a balloon, and this machine has none.")

    def _check_arch(self) -> None:
        if self.arch not in get_args(ArchName):
            names = get_args(ArchName)
            raise ConfigError(
                f"The processor must be {' or '.join(names)}, not {self.arch!r}{did_you_mean(self.arch, names)}"
            )
        if self.arch != PPC:
            return
        if self.bios:
            raise ConfigError(f"The PowerPC board has no firmware: it cannot run {self.bios!r}, or do without.")
        if self.modules:
            raise ConfigError("The guests of the PowerPC board take no modules and no initrd.")
        if self.powerdown_ns is not None:
            raise ConfigError("The PowerPC board has no power button.")
        for device in self.devices:
            if device.bus != "mmio":
                other = device.driver.removesuffix("-pci") + "-device"
                raise ConfigError(
                    f"The PowerPC board has no PCI for {device.driver}; {other} is the same device for it."
                )
        if self.memory_bytes > LARGEST_PPC_MEMORY_BYTES:
            most = format_size(LARGEST_PPC_MEMORY_BYTES)
            raise ConfigError(
                f"The memory of the PowerPC board must be at most {most}, not {format_size(self.memory_bytes)}."
            )

    def _check_parameter(self) -> None:
        if "\0" in self.parameter:
            raise ConfigError("The guest's parameter must not contain a NUL character.")
        length = len(self.parameter_bytes)
        if length > LONGEST_PARAMETER_BYTES:
            raise ConfigError(f"The guest's parameter must have at most {LONGEST_PARAMETER_BYTES} bytes, not {length}.")

    @property
    def parameter_bytes(self) -> bytes:
        """The parameter as the guest gets it, without the NUL at its end: the very bytes of the user's command line."""
        try:
            return self.parameter.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ConfigError(f"The guest's parameter must be text, not {self.parameter!r}.") from error

    def _check_memory(self) -> None:
        size, most = self.memory_bytes, host_memory_bytes()
        if size < SMALLEST_MEMORY_BYTES:
            raise ConfigError(f"The memory must be at least 1 MiB, not {format_size(size)}.")
        if size % PAGE_BYTES:
            raise ConfigError(f"The memory must be a whole number of 4 KiB pages, not {size} bytes.")
        if size > most:
            raise ConfigError(
                f"The memory must be at most the {format_size(most)} that this host has, not {format_size(size)}."
            )

    @property
    def name(self) -> str:
        """What runs: the guest, or else the firmware."""
        return self.title or self.guest or self.bios

    @property
    def has_balloon(self) -> bool:
        return any(device.is_balloon for device in self.devices)

    @property
    def has_hinting(self) -> bool:
        balloons = (device for device in self.devices if device.is_balloon)
        return any(device.flag("free-page-hint") for device in balloons)


def host_memory_bytes() -> int:
    """The physical memory of this host in bytes, rounded down to pages of 4 KiB."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // PAGE_BYTES * PAGE_BYTES


# -- sizes and times -----------------------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Bytes.  "64M", "1.5G", "512K", "4096B"; a number without a unit is MiB, as in QEMU."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"A size must be a number with K, M, G or T (or none, for MiB), such as 64M, not {text!r}.")
    number, unit = match.groups()
    size = int(Decimal(number) * (1 << _UNITS[unit.lower() or "m"]))
    if size >= 1 << 52:
        raise ConfigError(f"A size must be smaller than 4096T, not {text!r}.")
    return size


def format_size(size_bytes: int) -> str:
    """The size in the largest unit that leaves a number of at least 1: "64 MiB", "1.5 GiB", "0 B"."""
    number, units, index = float(abs(size_bytes)), ("B", "KiB", "MiB", "GiB", "TiB"), 0
    while number >= 1024 and index + 1 < len(units):
        number, index = number / 1024, index + 1
    return f"{'-' if size_bytes < 0 else ''}{number:.4g} {units[index]}"


def parse_duration(text: str | float) -> int:
    """Nanoseconds.  "2s", "500ms", "1.5min"; a number without a unit is seconds."""
    match = _TIME.fullmatch(str(text).strip())
    if match is None:
        raise ConfigError(
            f"A time must be a number of seconds or one with ns, us, ms, s, min or h, such as 2s, not {str(text)!r}."
        )
    number, unit = match.groups()
    time_ns = int(Decimal(number) * _TIMES[unit])
    if time_ns > LONGEST_NS:
        raise ConfigError(f"A time must be at most 100 years, not {str(text)!r}.")
    return time_ns


def parse_targets(text: str) -> tuple[TargetStep, ...]:
    """A schedule such as "32M@2s,balloon=16M@4s,64M", in the order of its times; without a time it is the start's."""
    steps = [_parse_step(part) for part in text.split(",")] if text.strip() else []
    return tuple(sorted(steps, key=lambda step: step.time_ns))


def parse_times(text: str) -> tuple[int, ...]:
    """Times such as "1s,2.5s" in their order, in nanoseconds."""
    return tuple(sorted(parse_duration(part) for part in text.split(","))) if text.strip() else ()


def _parse_step(part: str) -> TargetStep:
    what, at, when = part.strip().partition("@")
    if not what or (at and not when):
        raise ConfigError(f"A target must be SIZE, SIZE@TIME or balloon=SIZE@TIME, not {part!r}.")
    time_ns = parse_duration(when) if at else 0
    name, equals, size = what.partition("=")
    if not equals:
        return TargetStep(time_ns, ram_bytes=parse_size(what))
    if name.strip() != "balloon":
        raise ConfigError(f"A target must be SIZE or balloon=SIZE, not {what!r}{did_you_mean(name, ('balloon',))}")
    return TargetStep(time_ns, balloon_bytes=parse_size(size))


def parse_backing(text: str) -> Backing:
    """What stands behind RAM on the host: "memfd", "anonymous", "hugepages" or, with their size, "hugepages=2M"."""
    name, equals, size = text.strip().partition("=")
    names = get_args(BackingName)
    if name not in names or (equals and name != "hugepages"):
        raise ConfigError(
            f"The backing of RAM must be memfd, anonymous, hugepages or hugepages=SIZE, not {text!r}"
            f"{did_you_mean(name, names) if name not in names else '.'}"
        )
    if not equals:
        return Backing(cast(BackingName, name))
    page_bytes = parse_size(size)
    if page_bytes <= PAGE_BYTES or page_bytes & (page_bytes - 1):
        raise ConfigError(f"The size of huge pages must be a power of two above 4K, such as 2M or 1G, not {size!r}.")
    return Backing("hugepages", page_bytes)


def default_device(arch: str) -> str:
    """The device that a machine has if nobody says otherwise: a balloon where its board can have one."""
    return DEFAULT_MMIO_DEVICE if arch == PPC else DEFAULT_DEVICE


# -- all of it -----------------------------------------------------------------------------------------------------


def make_config(
    guest: str,
    *,
    memory: str | int = "64M",
    clock: str = "virtual",
    targets: str = "",
    hints: str = "",
    poll: str | float = 0,
    duration: str | float | None = None,
    powerdown: str | float | None = None,
    parameter: str = "",
    bios: str = "",
    modules: Sequence[str] = (),
    devices: Sequence[str] | None = None,
    arch: str = "x86_64",
    watch_driver: bool = False,
    ram_backing: str = "memfd",
) -> MachineConfig:
    """The machine that these words describe; see `vmm.boot` for what they are.  ConfigError with one sentence."""
    return MachineConfig(
        guest=guest,
        memory_bytes=parse_size(memory) if isinstance(memory, str) else memory,
        clock=cast(ClockName, clock),
        targets=parse_targets(targets),
        hints_ns=parse_times(hints),
        poll_ns=parse_duration(poll),
        for_ns=None if duration is None else parse_duration(duration),
        powerdown_ns=None if powerdown is None else parse_duration(powerdown),
        parameter=parameter,
        bios=bios,
        modules=tuple(modules),
        devices=parse_devices((default_device(arch),) if devices is None else devices),
        arch=cast(ArchName, arch),
        watch_driver=watch_driver,
        ram_backing=parse_backing(ram_backing),
    )
