"""Debian's kernel over every transport: its own drivers find the balloon, follow the target and report statistics."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot import debian
from tests.boot.guest import MOUNT, SHELL, SHELL_IS_UP, Linux

pytestmark = debian.needs_debian

LEGACY = "virtio-balloon-pci,disable-legacy=off,disable-modern=on"
WAYS = {
    "transitional": ("virtio-balloon-pci,disable-legacy=off", "", "PCI-MSI", True),
    "legacy, MSI-X": (LEGACY, "", "PCI-MSI", False),
    "legacy, INTx": (LEGACY, "pci=nomsi", "18-fasteoi", False),
    "virtio-mmio": ("virtio-balloon-device", "", "12-fasteoi", True),
    "virtio-mmio version 1, 8259": ("virtio-balloon-device,force-legacy=on", "noapic", "XT-PIC", False),
}
"""The device, words for the kernel, how its interrupts come, and whether it negotiates VERSION_1."""
PATIENCE = 200


def follow(guest: Linux, target: str) -> None:
    """Set a target and run until the driver says that it is there."""
    balloon = guest.machine.balloon
    balloon.set_target(target)
    for _ in range(PATIENCE):
        if balloon.actual_pages == balloon.target_pages:
            return
        guest.machine.run("20ms")
    pytest.fail(f"the balloon has {balloon.actual_pages} of {balloon.target_pages} pages:\n{guest.tail()}")


@pytest.mark.parametrize("way", WAYS)
def test_stock_linux_drives_the_balloon(way: str, tmp_path: Path) -> None:
    device, words, interrupts, modern = WAYS[way]
    modules = (*debian.VIRTIO_MODULES[:-1], "virtio_mmio", "virtio_balloon")
    load = "".join(f"insmod /lib/{name}.ko\n" for name in modules)
    with Linux(tmp_path, debian.initramfs(MOUNT + load + SHELL, modules), words, devices=(device,)) as guest:
        guest.wait_for(SHELL_IS_UP)
        balloon = guest.machine.balloon
        assert ("VIRTIO_F_VERSION_1" in balloon.negotiated) == modern
        assert "VIRTIO_BALLOON_F_STATS_VQ" in balloon.negotiated
        assert interrupts in guest.ask("grep virtio0 /proc/interrupts")
        follow(guest, "192M")
        assert balloon.inflated_pages == 64 << 8
        for _ in range(2):  # a legacy driver's first report says nothing
            balloon.request_stats()
            guest.machine.run("100ms")
        assert guest.machine.stats.reason == "ok"
        assert guest.machine.stats.values["stat-total-memory"] < 192 << 20
        follow(guest, "256M")
        assert balloon.deflated_pages == 64 << 8 and balloon.bad_pfns == 0
        assert not [event for _, event in guest.events if event.kind == "needs-reset"]
