"""query-pci: the functions on the bus as software has set them up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.control.qmp.context import Context

if TYPE_CHECKING:
    from devices.pci.config import Bar
    from devices.pci.function import PciFunction

_CLASSES = {0x0600: "Host bridge", 0x0601: "ISA bridge", 0x0680: "Bridge"}
_CLASS, _SUBSYSTEM_VENDOR, _SUBSYSTEM, _IRQ, _PIN = 0x0A, 0x2C, 0x2E, 0x3C, 0x3D  # PCI 3.0 §6.1
_COMMAND, _IO, _MEMORY = 0x04, 1, 2


def query_pci(context: Context) -> list[dict[str, Any]]:
    """One bus, or none on a board without PCI."""
    from vmm.boards.pc import PcBoard

    board = context.machine.board
    if not isinstance(board, PcBoard):
        return []
    named = {device.slot: device.id for device in board.config.devices if device.bus == "pci" and device.is_named}
    functions = sorted(board.host_bridge.functions.items())
    return [{"bus": 0, "devices": [_function(function, named.get(function.slot, "")) for _, function in functions]}]


def _function(function: PciFunction, name: str) -> dict[str, Any]:
    read = function.config.read
    class_code, pin = read(_CLASS, 2), read(_PIN, 1)
    found: dict[str, Any] = {
        "bus": 0,
        "slot": function.slot,
        "function": function.devfn & 7,
        "class_info": {"class": class_code} | ({"desc": _CLASSES[class_code]} if class_code in _CLASSES else {}),
        "id": {
            "vendor": read(0, 2),
            "device": read(2, 2),
            "subsystem-vendor": read(_SUBSYSTEM_VENDOR, 2),
            "subsystem": read(_SUBSYSTEM, 2),
        },
        "irq_pin": pin,
        "qdev_id": name,
        "regions": [_region(function, bar) for bar in function.bars.values()],
    }
    return found | ({"irq": read(_IRQ, 1)} if pin else {})


def _region(function: PciFunction, bar: Bar) -> dict[str, Any]:
    """-1 is QEMU's address of a register that decodes nothing now."""
    is_io = bar.type_mask == 0x3
    decodes = function.config.read(_COMMAND, 2) & (_IO if is_io else _MEMORY)
    base = bar.base(function.config[bar.name]) if decodes else None
    region: dict[str, Any] = {
        "bar": bar.index,
        "type": "io" if is_io else "memory",
        "address": -1 if base is None else base,
        "size": bar.size,
    }
    return region if is_io else region | {"prefetch": False, "mem_type_64": bar.bits == 64}
