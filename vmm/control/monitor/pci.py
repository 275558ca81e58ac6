"""info pci: what query-pci answers, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vmm.control.qmp.pci import query_pci

if TYPE_CHECKING:
    from vmm.control.qmp.context import Context


def info_pci(context: Context) -> str:
    """Every function on every bus; a board without PCI has nothing to show."""
    devices = (device for bus in query_pci(context) for device in bus["devices"])
    return "".join(f"{line}\n" for device in devices for line in _device(device))


def _device(device: Mapping[str, Any]) -> Iterator[str]:
    kind, found = device["class_info"], device["id"]
    yield f"  Bus {device['bus']:2}, device {device['slot']:3}, function {device['function']}:"
    name = kind.get("desc", f"Class {kind['class']:04}")  # in decimal, as QEMU has it
    yield f"    {name}: PCI device {found['vendor']:04x}:{found['device']:04x}"
    yield f"      PCI subsystem {found['subsystem-vendor']:04x}:{found['subsystem']:04x}"
    if "irq" in device:
        yield f"      IRQ {device['irq']}, pin {chr(ord('A') + device['irq_pin'] - 1)}"
    for region in sorted(device["regions"], key=lambda each: int(each["bar"])):
        yield f"      BAR{region['bar']}: {_region(region)}"
    yield f'      id "{device["qdev_id"]}"'


def _region(region: Mapping[str, Any]) -> str:
    """A register that decodes nothing now is "not mapped", as newer versions of QEMU say it."""
    is_io, address = region["type"] == "io", region["address"]
    digits = 4 if is_io else 8
    kind = "I/O" if is_io else f"{64 if region['mem_type_64'] else 32} bit"
    if not is_io:
        kind += f"{' prefetchable' if region['prefetch'] else ''} memory"
    if address < 0:
        return f"{kind} (not mapped)"
    return f"{kind} at 0x{address:0{digits}x} [0x{address + region['size'] - 1:0{digits}x}]."
