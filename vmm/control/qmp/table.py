"""The commands, as one table: name, types of arguments and answer, and what carries it out.

What a client is told of the commands (query-commands, query-qmp-schema) and how its arguments are checked comes from
here.  A new command is one row, and its types one entry each in `types`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from vmm.control.qmp import machine_commands as machine
from vmm.control.qmp import pci, qom, virtio
from vmm.control.qmp.context import Context
from vmm.control.qmp.errors import QmpError
from vmm.control.qmp.events import EVENTS
from vmm.control.qmp.schema import check_arguments, describe


@dataclass(frozen=True, slots=True)
class Command:
    """`run(context, **arguments)` answers what has the type `returns`; None is an empty object."""

    run: Callable[..., Any]
    arguments: str = "Empty"
    returns: str = "Empty"
    features: tuple[str, ...] = ()


def _query_commands(context: Context) -> list[dict[str, str]]:
    return [{"name": name} for name in COMMANDS]


def _query_qmp_schema(context: Context) -> list[dict[str, Any]]:
    return describe({name: (each.arguments, each.returns, each.features) for name, each in COMMANDS.items()}, EVENTS)


def _query_events(context: Context) -> list[dict[str, str]]:
    return [{"name": name} for name in EVENTS]


def _qmp_capabilities(context: Context, enable: list[str] | None = None) -> None:
    """What a client says first: see `session`."""
    if enable:
        raise QmpError(f"Capability {enable[0]} not available")


UNSTABLE: Final = ("unstable",)
COMMANDS: Final = {
    "qmp_capabilities": Command(_qmp_capabilities, "Capabilities"),
    "query-commands": Command(_query_commands, returns="[CommandInfo]"),
    "query-events": Command(_query_events, returns="[CommandInfo]", features=("deprecated",)),
    "query-qmp-schema": Command(_query_qmp_schema, returns="[SchemaInfo]"),
    "query-version": Command(machine.query_version, returns="VersionInfo"),
    "query-name": Command(machine.query_name, returns="NameInfo"),
    "query-uuid": Command(machine.query_uuid, returns="UuidInfo"),
    "query-kvm": Command(machine.query_kvm, returns="KvmInfo"),
    "query-target": Command(machine.query_target, returns="TargetInfo"),
    "query-status": Command(machine.query_status, returns="StatusInfo"),
    "query-cpus-fast": Command(machine.query_cpus_fast, returns="[CpuInfoFast]"),
    "query-memory-size-summary": Command(machine.query_memory_size_summary, returns="MemoryInfo"),
    "query-balloon": Command(machine.query_balloon, returns="BalloonInfo"),
    "balloon": Command(machine.balloon, "BalloonArguments"),
    "stop": Command(machine.stop),
    "cont": Command(machine.cont),
    "system_reset": Command(machine.system_reset),
    "system_powerdown": Command(machine.system_powerdown),
    "quit": Command(machine.quit_),
    "pmemsave": Command(machine.pmemsave, "PmemsaveArguments"),
    "human-monitor-command": Command(machine.human_monitor_command, "MonitorArguments", "str"),
    "qom-list": Command(qom.qom_list, "PathArguments", "[ObjectPropertyInfo]"),
    "qom-get": Command(qom.qom_get, "PropertyArguments", "any"),
    "qom-set": Command(qom.qom_set, "SetArguments"),
    "qom-list-types": Command(qom.qom_list_types, "TypesArguments", "[ObjectTypeInfo]"),
    "device-list-properties": Command(qom.device_list_properties, "TypenameArguments", "[ObjectPropertyInfo]"),
    "query-pci": Command(pci.query_pci, returns="[PciInfo]"),
    "x-query-virtio": Command(virtio.x_query_virtio, "Empty", "[VirtioInfo]", UNSTABLE),
    "x-query-virtio-status": Command(virtio.x_query_virtio_status, "PathArguments", "VirtioStatus", UNSTABLE),
    "x-query-virtio-queue-status": Command(
        virtio.x_query_virtio_queue_status, "QueueArguments", "VirtQueueStatus", UNSTABLE
    ),
    "x-query-virtio-queue-element": Command(
        virtio.x_query_virtio_queue_element, "ElementArguments", "VirtioQueueElement", UNSTABLE
    ),
    "x-vmm-status": Command(machine.x_vmm_status, returns="VmmStatus", features=UNSTABLE),
    "x-vmm-snapshot": Command(machine.x_vmm_snapshot, "SnapshotArguments", "SnapshotInfo", UNSTABLE),
    "x-vmm-request-stats": Command(machine.x_vmm_request_stats, features=UNSTABLE),
}


def carry_out(context: Context, name: str, arguments: dict[str, Any]) -> Any:
    """What the command answers.  QmpError when it cannot be carried out."""
    command = COMMANDS.get(name)
    if command is None:
        raise command_not_found(name)
    answer = command.run(context, **check_arguments(command.arguments, arguments))
    return {} if answer is None else answer


def command_not_found(name: str) -> QmpError:
    """There is no such command."""
    return QmpError(f"The command {name} has not been found", "CommandNotFound")
