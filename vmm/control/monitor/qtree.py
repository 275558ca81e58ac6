"""info qtree: the devices by the buses on which they are, with what they were made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vmm.control.qmp.pci import query_pci
from vmm.control.qmp.qom import Node, tree

if TYPE_CHECKING:
    from vmm.control.qmp.context import Context

_CHIPSET = {0: "i440FX", 1 << 3: "PIIX3", 1 << 3 | 3: "PIIX4_PM"}
"""What QEMU calls the board's own functions, by device and function number."""


def info_qtree(context: Context) -> str:
    """The newest first, as in QEMU."""
    lines = ["bus: main-system-bus", "  type System"]
    on_pci: dict[int, tuple[str, Node]] = {}
    for name, node in _devices(context):
        if "addr" in node.properties:
            on_pci[node.properties["addr"].get()] = name, node
        else:
            lines += _device(name, node, "  ")
    functions = [device for bus in query_pci(context) for device in bus["devices"]]
    if functions:
        lines += ['  dev: i440FX-pcihost, id ""', "    bus: pci.0", "      type PCI"]
    for function in functions[::-1]:
        devfn = function["slot"] << 3 | function["function"]
        lines += _function(function, *on_pci.get(devfn, ("", Node(_CHIPSET.get(devfn, "function")))))
    return "".join(f"{line}\n" for line in lines)


def _devices(context: Context) -> list[tuple[str, Node]]:
    """The user's devices with their ids, which some have none of."""
    machine = tree(context.machine).children["machine"].children
    named = list(machine["peripheral"].children.items())
    return named + [("", node) for node in machine["peripheral-anon"].children.values()]


def _device(name: str, node: Node, indent: str) -> Iterator[str]:
    yield f'{indent}dev: {node.type}, id "{name}"'
    for prop, found in node.properties.items():
        value = found.get() if found.why_not else None  # what it was made with, and cannot be changed
        if isinstance(value, bool):
            yield f"{indent}  {prop} = {str(value).lower()}"
        elif isinstance(value, str):
            yield f'{indent}  {prop} = "{value}"'


def _function(function: Mapping[str, Any], name: str, node: Node) -> Iterator[str]:
    """A device on the PCI bus, and a virtio device behind it."""
    indent, found, kind = " " * 6, function["id"], function["class_info"]
    yield from _device(name, node, indent)
    described = kind.get("desc") or f"Class {kind['class']:04x}"
    yield (
        f"{indent}  class {described}, addr {function['bus']:02x}:{function['slot']:02x}.{function['function']}, "
        f"pci id {found['vendor']:04x}:{found['device']:04x} "
        f"(sub {found['subsystem-vendor']:04x}:{found['subsystem']:04x})"
    )
    for region in sorted(function["regions"], key=lambda each: int(each["bar"])):
        address = region["address"] & (1 << 64) - 1
        end = address + region["size"] - 1 & (1 << 64) - 1
        space = "i/o" if region["type"] == "io" else "mem"
        yield f"{indent}  bar {region['bar']}: {space} at 0x{address:x} [0x{end:x}]"
    for backend in node.children.values():
        yield from (f"{indent}  bus: virtio-bus", f"{indent}    type virtio-pci-bus")
        yield f'{indent}    dev: {backend.type}, id ""'
