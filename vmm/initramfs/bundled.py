"""The bundled init of `guests/debian` as files of an initramfs."""

from __future__ import annotations

from guests.debian import bundled_file

BALLOON_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_balloon",
)
MACHINE_MODULES = ("pvpanic-mmio", "button", "evdev", "virtio_mmio")
"""Panics are reported, the power button acts, and devices may be on virtio-mmio instead of PCI."""
PLACES = (
    ("init", "init"),
    ("inittab", "etc/inittab"),
    ("run", "etc/run"),
    ("port.elf", "bin/port"),
    ("power-button", "etc/acpi/PWRF/00000080"),  # where busybox's acpid looks for KEY_POWER
)
EXIT_STATUS = "etc/exit-status"  # where it is, the machine ends with the exit status of /main


def bundled_init(main: bytes, *, tell_status: bool = False) -> tuple[tuple[str, bytes], ...]:
    """Programs by path: init and what it needs, and `main`, which it runs.

    With `tell_status` the machine ends with the exit status of `main`; otherwise it is powered off."""
    programs = [*((path, bundled_file(name)) for name, path in PLACES), ("main", main)]
    return (*programs, (EXIT_STATUS, b"")) if tell_status else tuple(programs)
