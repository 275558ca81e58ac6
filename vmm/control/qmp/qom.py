"""The tree of objects that qom-list, qom-get and qom-set walk, with the paths that QEMU has for devices.

A device that the user gave an id is /machine/peripheral/ID, any other /machine/peripheral-anon/device[N]; a virtio
device on PCI is the virtio-backend below its function.  A path that does not begin with "/" is the end of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from vmm.control.qmp.context import Context
from vmm.control.qmp.errors import QmpError, device_not_found
from vmm.control.qmp.schema import need_integer
from vmm.control.status import guest_stats
from vmm.models import MODELS, find_model

if TYPE_CHECKING:
    from devices.virtio.device import VirtioDevice
    from vmm.boards.board import Transport
    from vmm.config import DeviceConfig
    from vmm.machine import Machine

_NS = 10**9
_LONGEST_INTERVAL_S = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Property:
    """One property of an object; without `set` it is read only, for the reason of `why_not`."""

    type: str
    get: Callable[[], Any]
    set: Callable[[Any], None] | None = None
    why_not: str = ""


@dataclass(slots=True)
class Node:
    """An object: its type, its properties and children by name; `device` is the virtio device that it is."""

    type: str
    properties: dict[str, Property] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)
    device: VirtioDevice | None = None
    transport: Transport | None = None


# -- the commands ------------------------------------------------------------------------------------------------------


def qom_list(context: Context, path: str) -> list[dict[str, Any]]:
    _, node = find(context, path)
    listed = [{"name": "type", "type": "string"}]
    listed += [{"name": name, "type": prop.type} for name, prop in node.properties.items()]
    return listed + [{"name": name, "type": f"child<{child.type}>"} for name, child in node.children.items()]


def qom_get(context: Context, path: str, property: str) -> Any:
    where, node = find(context, path)
    if property == "type":
        return node.type
    if property in node.children:
        return f"{where.rstrip('/')}/{property}"
    return _property(node, property).get()


def qom_set(context: Context, path: str, property: str, value: Any) -> None:
    _, node = find(context, path)
    if property == "type" or property in node.children:
        raise QmpError(f"Property '{node.type}.{property}' is not writable")
    found = _property(node, property)
    if found.set is None:
        raise QmpError(found.why_not or f"Property '{node.type}.{property}' is not writable")
    found.set(value)


def qom_list_types(context: Context, implements: str = "", abstract: bool = False) -> list[dict[str, Any]]:
    """The kinds of devices."""
    types = [{"name": model.driver, "parent": _parent(model.driver)} for model in MODELS]
    return [each for each in types if implements in ("", each["name"], each["parent"], "device", "object")]


def device_list_properties(context: Context, typename: str) -> list[dict[str, Any]]:
    model = next((each for each in MODELS if each.driver == typename), None)
    if model is None:
        raise device_not_found(typename)
    kinds = {"flag": "bool", "fixed": "bool"}
    return [
        {"name": prop.name, "type": kinds.get(prop.kind, "str"), "description": prop.help}
        | ({"default-value": prop.default == "on"} if prop.kind in kinds else {})
        | ({"default-value": prop.default} if prop.kind == "choice" else {})
        for prop in model.properties
        if prop.name != "id"
    ]


def _parent(driver: str) -> str:
    return "virtio-pci" if find_model(driver).bus == "pci" else "virtio-device"


def _property(node: Node, name: str) -> Property:
    if name not in node.properties:
        raise QmpError(f"Property '{node.type}.{name}' not found")
    return node.properties[name]


# -- the tree ----------------------------------------------------------------------------------------------------------


def find(context: Context, path: str) -> tuple[str, Node]:
    """The object at `path`, and its whole path.  QmpError where there is none, or more than one."""
    every = dict(walk(tree(context.machine)))
    if path.startswith("/"):
        whole = path.rstrip("/") or "/"
        if whole not in every:
            raise device_not_found(path)
        return whole, every[whole]
    found = [whole for whole in every if path == "" or whole.endswith(f"/{path}")]
    if not found:
        raise device_not_found(path)
    if len(found) > 1:
        raise QmpError(f"Path '{path}' is ambiguous")
    return found[0], every[found[0]]


def walk(node: Node, path: str = "") -> Iterator[tuple[str, Node]]:
    """Every object below `node`, itself too, by its path."""
    yield path or "/", node
    for name, child in node.children.items():
        yield from walk(child, f"{path}/{name}")


def virtio_nodes(machine: Machine) -> list[tuple[str, Node]]:
    """The virtio devices, by the paths at which QEMU has them, the newest first as there."""
    return [(path, node) for path, node in walk(tree(machine)) if node.device is not None][::-1]


def tree(machine: Machine) -> Node:
    """All objects, made anew: they are views of the machine."""
    named, unnamed = Node("container"), Node("container")
    for config, transport in zip(machine.config.devices, machine.board.transports, strict=True):
        node = _device(machine, config, transport)
        if config.is_named:
            named.children[config.id] = node
        else:
            unnamed.children[f"device[{len(unnamed.children)}]"] = node
    board = "pc" if machine.config.arch == "x86_64" else machine.config.arch
    cpu = Node("qemu64-x86_64-cpu" if board == "pc" else "604e_v1.0-powerpc-cpu")
    top = Node(
        f"balloon-vmm-{board}-machine",
        {
            "kernel": Property("string", lambda: machine.config.guest),
            "firmware": Property("string", lambda: machine.config.bios),
            "append": Property("string", lambda: machine.config.parameter),
        },
        {"unattached": Node("container", {}, {"device[0]": cpu}), "peripheral": named, "peripheral-anon": unnamed},
    )
    return Node("container", {}, {"machine": top})


def _device(machine: Machine, config: DeviceConfig, transport: Transport) -> Node:
    own = {name: _fixed(config, name, value) for name, value in config.properties if name != "addr"}
    own |= {name: Property("bool", partial(bool, value)) for name, value in _LIFE.items()}
    if config.is_balloon:
        own |= _balloon(machine)
    if config.bus == "mmio":
        return Node(config.driver, own, {}, transport.device, transport)
    backend = Node(f"virtio-{find_model(config.driver).stem}-device", own, {}, transport.device, transport)
    place = {
        "addr": Property("int32", lambda: config.slot << 3),
        "legacy-addr": Property("str", lambda: f"{config.slot:02x}.0"),
    }
    return Node(config.driver, own | place, {"virtio-backend": backend})


_LIFE = {"realized": True, "hotplugged": False, "hotpluggable": False}


def _fixed(config: DeviceConfig, name: str, value: str) -> Property:
    """What a device was made with."""
    why_not = f"Attempt to set property '{name}' on device '{config.id}' (type '{config.driver}') after it was realized"
    is_flag = value in ("on", "off")
    return Property("bool" if is_flag else "str", lambda: value == "on" if is_flag else value, None, why_not)


def _balloon(machine: Machine) -> dict[str, Property]:
    _, device = machine.board.need_balloon()
    stats = "Property 'virtio-balloon-device.guest-stats' is not writable"
    return {
        "guest-stats": Property("guest statistics", lambda: guest_stats(machine), None, stats),
        "guest-stats-polling-interval": Property(
            "int", lambda: device.polling_interval_ns // _NS, lambda value: _set_interval(machine, value)
        ),
    }


def _set_interval(machine: Machine, value: Any) -> None:
    seconds = need_integer("guest-stats-polling-interval", value)
    if seconds < 0:
        raise QmpError("timer value must be greater than zero")
    if seconds > _LONGEST_INTERVAL_S:
        raise QmpError("timer value is too big")
    machine.balloon.set_polling_interval(seconds * _NS)
