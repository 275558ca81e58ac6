"""balloon-vmm: a virtual machine monitor whose memory balloon can be seen at work.

    with vmm.boot("stats", memory="64M") as m:
        m.balloon.set_target("32M")
        m.run(until=lambda m: m.balloon.actual_pages == m.balloon.target_pages)
        print(m.stats.values["stat-free-memory"])

The command line is a client of this interface.  Importing `vmm` is cheap: the CPU emulator and numpy are loaded by the
first `boot`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs several milliseconds, and this is the first module of every start

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from vmm.machine import Machine

__version__ = "0.1.0"


def boot(
    guest: str | PathLike[str] = "",
    *,
    memory: str | int = "64M",
    clock: str = "virtual",
    targets: str = "",
    hints: str = "",
    poll: str | float = 0,
    duration: str | None = None,
    powerdown: str | float | None = None,
    parameter: str = "",
    bios: str | PathLike[str] = "",
    modules: Sequence[str] = (),
    devices: Sequence[str] | None = None,
    arch: str = "x86_64",
    watch_driver: bool = False,
    ram_backing: str = "memfd",
) -> Machine:
    """A machine with `guest` (a bundled guest's name or a file) in its RAM, at the reset vector and not yet running.

    `memory` is a size such as "64M", or bytes; `targets` a schedule such as "32M@2s,64M@4s"; `hints` the times, such as
    "1s,3s", at which the guest is asked which of its pages are free; `poll` the seconds of guest time between two
    requests for statistics (0: none); `duration` the guest time after which the run ends, `powerdown` the one at which
    the power button is pressed; `parameter` reaches the guest; `bios` is a file with firmware to run instead of the
    project's own, and then needs no guest, or "none" to start a Linux kernel without any; `modules` are a Linux
    kernel's initrd, or files for a Multiboot kernel, "FILE" or "FILE WORDS"; `devices` are written as for QEMU's
    -device (None: one balloon); `arch` is the processor, "x86_64" or "ppc", and with it the board: a bundled guest is
    taken for it; with `watch_driver` the rules that the balloon's driver breaks are found, see `Machine.breaches`;
    `ram_backing` is what the host has behind RAM, "memfd", "anonymous", "hugepages" or "hugepages=2M".
    ConfigError with one sentence when something of it cannot be.
    """
    from vmm.config import make_config
    from vmm.machine import Machine

    return Machine(
        make_config(
            guest=str(guest),
            memory=memory,
            clock=clock,
            targets=targets,
            hints=hints,
            poll=poll,
            duration=duration,
            powerdown=powerdown,
            parameter=parameter,
            bios=str(bios),
            modules=tuple(modules),
            devices=devices,
            arch=arch,
            watch_driver=watch_driver,
            ram_backing=ram_backing,
        )
    )
