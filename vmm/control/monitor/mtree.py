"""info mtree: which addresses are RAM, ROM, devices' registers and ports, nested as QEMU has it.

It is made of the RAM's regions, of what the address spaces answer now, and on a PC of the host bridge's windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from devices.bus import AddressSpace, Range
from devices.pci.i440fx import I440fx
from devices.virtio import spec
from vmm.boards.pc import IO_APIC_BASE, PCI_MEMORY_BASE, PcBoard, Rom

if TYPE_CHECKING:
    from devices.pci.function import PciFunction
    from vmm.boards.board import Board
    from vmm.machine import Machine

_STRUCTURES = {
    spec.VIRTIO_PCI_CAP_COMMON_CFG: "common",
    spec.VIRTIO_PCI_CAP_NOTIFY_CFG: "notify",
    spec.VIRTIO_PCI_CAP_ISR_CFG: "isr",
    spec.VIRTIO_PCI_CAP_DEVICE_CFG: "device",
}
_CAPABILITIES = 0x34  # PCI 3.0 §6.7
_MOST_CAPABILITIES = 48  # as many as fit
_SHADOWS = {
    (False, False): ("", ""),
    (True, False): ("rom", "shadow-ram"),
    (True, True): ("ram", "shadow-ram"),
    (False, True): ("rom", "firmware, with shadow-ram to write to"),
}
"""By whether reads and writes go to RAM: the kind of region and its name."""


@dataclass(slots=True)
class _Region:
    """Addresses from `start` to `end`, the first behind them; of two that overlap the one with more `priority` counts.
    `kind` is ram, rom or i/o."""

    start: int
    end: int
    name: str
    kind: str = "i/o"
    priority: int = 0
    parts: list[_Region] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.start:016x}-{self.end - 1:016x} (prio {self.priority}, {self.kind}): {self.name}"


def info_mtree(machine: Machine, flags: str = "") -> str:
    """The tree of each address space; with -f what is left of it where one hides the other."""
    spaces = [("memory", _memory(machine.board))]
    if isinstance(machine.board, PcBoard):
        spaces.insert(0, ("I/O", _ports(machine.board)))
    if "f" in flags:
        return "\n".join(_flat(number, *space) for number, space in enumerate(spaces))
    return "\n".join(f"address-space: {name}\n" + _lines(root, "  ") for name, root in spaces)


def _lines(region: _Region, indent: str) -> str:
    return f"{indent}{region}\n" + "".join(_lines(part, indent + "  ") for part in region.parts)


# -- what there is ---------------------------------------------------------------------------------------------------


def _memory(board: Board) -> _Region:
    root = _Region(0, board.mmio.size, "system")
    root.parts = [_Region(region.gpa, region.end, "ram", "ram") for region in board.memory.regions]
    windows = [_of_range(each, 0) for each in board.mmio.ranges]
    if isinstance(board, PcBoard):
        _add_structures(board, windows)
        pci = _Region(PCI_MEMORY_BASE, IO_APIC_BASE, "pci", priority=-1)
        pci.parts = [each for each in windows if pci.start <= each.start < pci.end]
        root.parts += [pci, *(each for each in windows if each not in pci.parts), *_shadows(board)]
    else:
        root.parts += windows
    root.parts.sort(key=lambda each: (each.start, each.priority))
    return root


def _ports(board: PcBoard) -> _Region:
    return _Region(0, board.ports.size, "io", parts=[_of_range(each, 0) for each in board.ports.ranges])


def _of_range(found: Range, base: int) -> _Region:
    """A range, and what is in it where it is an address space of its own."""
    start, handler = base + found.base, found.handler
    made = _Region(start, start + found.length, found.owner, "rom" if isinstance(handler, Rom) else "i/o")
    if isinstance(handler, AddressSpace):
        made.parts = [_of_range(each, start) for each in handler.ranges]
    return made


def _add_structures(board: PcBoard, windows: Iterable[_Region]) -> None:
    """The structures of virtio functions, as their capabilities have them, below the base address registers."""
    found = {each.start: each for each in windows}
    for function in board.host_bridge.functions.values():
        bases = {each.bar: each.base for each in function.bar_regions() if each.space == "memory"}
        for bar, offset, length, what in _structures(function):
            if bases.get(bar) in found:
                start = bases[bar] + offset
                found[bases[bar]].parts.append(_Region(start, start + length, f"virtio-pci-{what}-{function.name}"))
    for each in found.values():
        each.parts.sort(key=lambda part: part.start)


def _structures(function: PciFunction) -> Iterator[tuple[int, int, int, str]]:
    """Of each structure of a virtio function the base address register, offset, length and kind (virtio 1.3
    §4.1.4)."""
    read = function.config.read
    if read(0, 2) != spec.VIRTIO_PCI_VENDOR_ID:
        return
    at = read(_CAPABILITIES, 1)
    for _ in range(_MOST_CAPABILITIES):
        if not at:
            return
        kind = read(at + 3, 1)
        if read(at, 1) == spec.PCI_CAP_ID_VNDR and kind in _STRUCTURES:
            yield read(at + 4, 1), read(at + 8, 4), read(at + 12, 4), _STRUCTURES[kind]
        at = read(at + 1, 1)


def _shadows(board: PcBoard) -> Iterator[_Region]:
    """Where the processor finds RAM in the firmware's place."""
    last: _Region | None = None
    bridge = board.host_bridge.functions[0]
    for shadow in bridge.shadows() if isinstance(bridge, I440fx) else ():
        kind, name = _SHADOWS[shadow.reads_ram, shadow.writes_ram]
        if last is not None and (last.end, last.kind, last.name) == (shadow.gpa, kind, name):
            last.end += shadow.length
            continue
        if last is not None:
            yield last
        last = _Region(shadow.gpa, shadow.gpa + shadow.length, name, kind, 1) if kind else None
    if last is not None:
        yield last


# -- what is left of it ------------------------------------------------------------------------------------------------


def _flat(number: int, name: str, root: _Region) -> str:
    head = f'FlatView #{number}\n AS "{name}", root: {root.name}\n Root memory region: {root.name}\n'
    return head + "".join(f"  {each}{_offset(each, whole)}\n" for each, whole in _visible(root))


def _offset(piece: _Region, whole: _Region) -> str:
    """Where in the whole a piece of it begins."""
    return f" @{piece.start - whole.start:016x}" if piece.start != whole.start else ""


def _visible(root: _Region) -> list[tuple[_Region, _Region]]:
    """The pieces of the leaves that nothing hides, in ascending order, each with its leaf."""
    leaves = sorted(_leaves(root), key=lambda each: -each.priority)
    taken: list[tuple[_Region, _Region]] = []
    for leaf in leaves:
        pieces = [(leaf.start, leaf.end)]
        for other, _ in taken:
            pieces = [rest for start, end in pieces for rest in _without(start, end, other)]
        taken += [(_Region(start, end, leaf.name, leaf.kind, leaf.priority), leaf) for start, end in pieces]
    return sorted(taken, key=lambda each: each[0].start)


def _leaves(region: _Region) -> Iterator[_Region]:
    """What is no mere container: a range with parts answers between them too."""
    for part in region.parts:
        if part.name == "pci":
            yield from part.parts
        else:
            yield part


def _without(start: int, end: int, other: _Region) -> Iterator[tuple[int, int]]:
    if start < min(end, other.start):
        yield start, min(end, other.start)
    if max(start, other.end) < end:
        yield max(start, other.end), end
