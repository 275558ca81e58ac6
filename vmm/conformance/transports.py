"""The ways in which a driver can reach the balloon, as a table.

Owns which device a user would ask for, which of its interfaces the driver takes, and which statements' groups the way
belongs to.  Groups:

all         every transport, with a split ring
balloon     every transport, and with a packed ring too where it can have one
balloon-modern  those of them that are modern
transitional  both interfaces of a transitional PCI function
modern      the interface of virtio 1.0 and later, whatever carries it
legacy      the interface before it
pci         a PCI function
pci-modern  a non-transitional PCI function
pci-virtio  a PCI function with the structures of §4.1.4
msix        a PCI function of those whose driver uses MSI-X
mmio        virtio-mmio
mmio-v2     virtio-mmio, version 2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from devices.virtio.spec import DeviceId
from vmm.testing.legacy_pci import LegacyPciTransport
from vmm.testing.mmio import LegacyMmioTransport, MmioTransport
from vmm.testing.pages import PageAllocator
from vmm.testing.pci_interrupts import Kind
from vmm.testing.protocols import Bus, Transport
from vmm.testing.virtio_pci import PciTransport

Connect = Callable[[Bus, PageAllocator], Transport]

MMIO_BASE, MMIO_LINE = 0xFEC10000, "isa12"  # of the board's first virtio-mmio device


@dataclass(frozen=True, slots=True)
class TransportRow:
    """One way: `device` is what a user writes behind `-device`, `connect` gives the driver's end of it."""

    name: str
    device: str
    connect: Connect
    groups: frozenset[str]


def _modern(interrupts: Kind) -> Connect:
    return lambda bus, pages: PciTransport.find(bus, DeviceId.BALLOON, pages, interrupts)


def _legacy(interrupts: Kind) -> Connect:
    return lambda bus, pages: LegacyPciTransport.find(bus, DeviceId.BALLOON, pages, interrupts)


def _mmio(kind: type[MmioTransport]) -> Connect:
    return lambda bus, pages: kind(bus, MMIO_BASE, MMIO_LINE, pages)


def _row(name: str, device: str, connect: Connect, *groups: str) -> TransportRow:
    modern = ("balloon-modern",) if "modern" in groups else ()
    return TransportRow(name, device, connect, frozenset(("all", "balloon", *modern, *groups)))


def _packed(name: str, device: str, connect: Connect) -> TransportRow:
    return TransportRow(name, f"{device},packed=on", connect, frozenset(("balloon", "balloon-modern")))


_PCI, _MMIO = "virtio-balloon-pci", "virtio-balloon-device"
_TRANSITIONAL, _LEGACY = f"{_PCI},disable-legacy=off", f"{_PCI},disable-legacy=off,disable-modern=on"

TRANSPORTS = (
    _row("pci", _PCI, _modern("msix"), "modern", "pci", "pci-modern", "pci-virtio", "msix"),
    _row("pci-intx", _PCI, _modern("intx"), "modern", "pci", "pci-modern", "pci-virtio"),
    _row("transitional", _TRANSITIONAL, _modern("msix"), "modern", "pci", "pci-virtio", "msix", "transitional"),
    _row("transitional-legacy", _TRANSITIONAL, _legacy("msix"), "legacy", "pci", "transitional"),
    _row("legacy", _LEGACY, _legacy("msix"), "legacy", "pci"),
    _row("legacy-intx", _LEGACY, _legacy("intx"), "legacy", "pci"),
    _row("mmio", _MMIO, _mmio(MmioTransport), "modern", "mmio", "mmio-v2"),
    _row("mmio-legacy", f"{_MMIO},force-legacy=on", _mmio(LegacyMmioTransport), "legacy", "mmio"),
    _packed("pci-packed", _PCI, _modern("msix")),
    _packed("mmio-packed", _MMIO, _mmio(MmioTransport)),
)
