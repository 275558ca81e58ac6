"""The commands about the whole machine: its state, its balloon, its RAM, and the monitor for people."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from devices.errors import ConfigError
from vmm import __version__
from vmm.config import PAGE_BYTES, TargetStep
from vmm.control.qmp.context import Context
from vmm.control.qmp.errors import QmpError
from vmm.control.status import run_state, status

QEMU_VERSION = {"major": 7, "minor": 2, "micro": 0}
"""The version of QEMU whose commands these are; the package says who really answers."""
PACKAGE = f"balloon-vmm {__version__}"
NO_UUID = "00000000-0000-0000-0000-000000000000"
_COPY_BYTES = 1 << 20


def query_version(context: Context) -> dict[str, Any]:
    return {"qemu": QEMU_VERSION, "package": PACKAGE}


def query_name(context: Context) -> dict[str, Any]:
    return {"name": context.name} if context.name else {}


def query_uuid(context: Context) -> dict[str, Any]:
    return {"UUID": NO_UUID}


def query_kvm(context: Context) -> dict[str, Any]:
    return {"enabled": False, "present": False}


def query_target(context: Context) -> dict[str, Any]:
    return {"arch": context.machine.config.arch}


def query_memory_size_summary(context: Context) -> dict[str, Any]:
    return {"base-memory": context.machine.config.memory_bytes, "plugged-memory": 0}


def query_cpus_fast(context: Context) -> list[dict[str, Any]]:
    return [
        {
            "cpu-index": 0,
            "qom-path": "/machine/unattached/device[0]",
            "thread-id": os.getpid(),  # the one thread that there is
            "props": {"socket-id": 0, "core-id": 0, "thread-id": 0},
            "target": context.machine.config.arch,
        }
    ]


def query_status(context: Context) -> dict[str, Any]:
    state = run_state(context.machine)
    return {"status": state, "singlestep": False, "running": state == "running"}


def x_vmm_status(context: Context) -> dict[str, Any]:
    return status(context.machine, context.name)


# -- driving it --------------------------------------------------------------------------------------------------------


def stop(context: Context) -> None:
    context.machine.pause()


def cont(context: Context) -> None:
    context.machine.resume()


def system_reset(context: Context) -> None:
    _try(context.machine.reset)


def system_powerdown(context: Context) -> None:
    _try(context.machine.press_power_button)


def quit_(context: Context) -> None:
    """The event comes before the answer, which is the last thing the client hears."""
    context.machine.quit()
    context.events.emit("SHUTDOWN", guest=False, reason="host-qmp-quit")
    context.events.has_ended = True


def _try(action: Any) -> None:
    try:
        action()
    except ConfigError as error:
        raise QmpError(str(error)) from error


# -- the balloon -------------------------------------------------------------------------------------------------------


def _need_balloon(context: Context) -> None:
    if context.machine.board.balloon is None:
        raise QmpError("No balloon device has been activated", "DeviceNotActive")


def query_balloon(context: Context) -> dict[str, Any]:
    _need_balloon(context)
    return {"actual": context.machine.balloon.guest_ram_bytes}


def balloon(context: Context, value: int) -> None:
    """`value` is the RAM to be left to the guest, in bytes; more than there is means all of it."""
    _need_balloon(context)
    if value <= 0:
        raise QmpError("Parameter 'target' expects a size")
    machine = context.machine
    ram_bytes = min(value, machine.config.memory_bytes)
    machine.balloon.set_step(TargetStep(0, ram_bytes=ram_bytes))
    for observer in machine.observers:
        observer.on_target(machine.now_ns)


def x_vmm_request_stats(context: Context) -> None:
    """Ask the driver for fresh statistics; they come when it answers."""
    _need_balloon(context)
    context.machine.balloon.request_stats()


def x_vmm_snapshot(context: Context, filename: str) -> dict[str, Any]:
    """Write the whole machine to a file, from which `vmm boot --restore` goes on; the guest does not notice."""
    try:
        size = context.write_snapshot(filename)
    except ConfigError as error:
        raise QmpError(str(error).rstrip(".")) from error
    return {"size": size, "time-ns": context.machine.now_ns}


# -- its RAM -----------------------------------------------------------------------------------------------------------


def pmemsave(context: Context, val: int, size: int, filename: str) -> None:
    """Write `size` bytes of physical memory from `val` on to a file; where there is no RAM they are zeros.

    A new file is its owner's alone.  Pages that the host does not back, and zeros, are holes in the file.  Unlike QEMU
    this refuses to write more than the board has addresses up to the end of its RAM: a slip would fill the disk while
    the guest stands still."""
    end = max(region.end for region in context.machine.memory.regions)
    if val < 0 or size < 0 or val + size > end:
        raise QmpError(f"Parameter 'size' expects a range that ends with the RAM, at {end:#x}")
    try:
        with open(filename, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            for position, data in _pieces(context, val, size):
                out.seek(position)
                out.write(data)
            out.truncate(size)
    except OSError as error:
        raise QmpError(f"Could not open '{filename}': {error.strerror}") from error


def _pieces(context: Context, gpa: int, size: int) -> Iterator[tuple[int, bytes]]:
    """What is not all zeros in a range, by its position there."""
    for region in context.machine.memory.regions:
        start, end = max(gpa, region.gpa), min(gpa + size, region.end)
        for at in range(start, end, _COPY_BYTES):
            data = context.machine.memory.peek(at, min(_COPY_BYTES, end - at))
            for offset in range(0, len(data), PAGE_BYTES):
                page = data[offset : offset + PAGE_BYTES]
                if page.count(0) != len(page):
                    yield at - gpa + offset, page


def human_monitor_command(context: Context, command_line: str, cpu_index: int = 0) -> str:
    """What the other monitor says, with the line ends that QEMU gives it."""
    return context.monitor.execute(command_line).replace("\n", "\r\n")
