"""The commands about the whole machine: its state, its balloon, its name, and what drives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm import __version__
from vmm.control.monitor.complaints import Failure
from vmm.control.qmp import machine_commands as commands
from vmm.control.qmp.errors import QmpError
from vmm.control.status import run_state

if TYPE_CHECKING:
    from vmm.control.qmp.context import Context

MIB = 1 << 20


def stop(context: Context) -> str:
    commands.stop(context)
    return ""


def cont(context: Context) -> str:
    commands.cont(context)
    return ""


def system_reset(context: Context) -> str:
    commands.system_reset(context)
    return ""


def system_powerdown(context: Context) -> str:
    commands.system_powerdown(context)
    return ""


def quit_(context: Context) -> str:
    """The run ends, and whoever listens to QMP hears of it then."""
    context.machine.quit()
    return ""


def balloon(context: Context, target: int) -> str:
    """`target` is the RAM to be left to the guest, in bytes; a line counts it in MiB."""
    commands.balloon(context, target)
    return ""


def info_balloon(context: Context) -> str:
    return f"balloon: actual={commands.query_balloon(context)['actual'] // MIB}\n"


def info_status(context: Context) -> str:
    state = run_state(context.machine)
    return f"VM status: {state if state in ('running', 'paused') else f'paused ({state})'}\n"


def info_name(context: Context) -> str:
    return f"{context.name}\n" if context.name else ""


def info_version(context: Context) -> str:
    """Ours, with QEMU's whose commands these are as QMP has it."""
    of_qemu = ".".join(str(part) for part in commands.QEMU_VERSION.values())
    return f"balloon-vmm {__version__} (the monitor of QEMU {of_qemu})\n"


def info_uuid(context: Context) -> str:
    return f"{commands.NO_UUID}\n"


def info_cpus(context: Context) -> str:
    (cpu,) = commands.query_cpus_fast(context)
    return f"* CPU #{cpu['cpu-index']}: thread_id={cpu['thread-id']}\n"


def info_stats(context: Context) -> str:
    """The balloon's statistics, and how old they are; QEMU has other statistics under this name."""
    if context.machine.board.balloon is None:
        raise QmpError("No balloon device has been activated", "DeviceNotActive")
    found = context.machine.stats.snapshot()
    if not found.values:
        raise Failure(f"No statistics: {found.reason}\n")
    age = "" if found.age_ns is None else f", {found.age_ns / 1e9:.3f} s old"
    lines = [f"statistics: {found.reason}{age}"]
    lines += [f"  {f'{name}:':<26} {value}" for name, value in found.values.items()]
    return "".join(f"{line}\n" for line in lines)
