"""Debian's kernel and a balloon that counts its queues otherwise: the run says what is wrong, and what to set."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot import debian
from tests.boot.guest import MOUNT, SHELL, SHELL_IS_UP, Linux

pytestmark = debian.needs_debian

WAYS = {
    "modern": ("virtio-balloon-pci", True),
    "legacy": ("virtio-balloon-pci,disable-legacy=off,disable-modern=on", False),
}
NUMBERING = (
    "the driver looks for queue 3, which does not exist with queue-numbering=spec; "
    "set queue-numbering=offered or negotiated if it means reporting_vq"
)


@pytest.mark.parametrize("way", WAYS)
def test_linux_gives_up_over_a_gap_in_the_numbers_and_the_run_says_why(way: str, tmp_path: Path) -> None:
    device, modern = WAYS[way]
    load = "".join(f"insmod /lib/{name}.ko\n" for name in debian.VIRTIO_MODULES)
    archive = debian.initramfs(MOUNT + load + SHELL, debian.VIRTIO_MODULES)
    with Linux(tmp_path, archive, devices=(f"{device},id=b,queue-numbering=spec,free-page-reporting=on",)) as guest:
        guest.wait_for(SHELL_IS_UP)
        assert "probe of virtio0 failed" in guest.console
        assert ("VIRTIO_F_VERSION_1" in guest.machine.balloon.offered) == modern
        assert [event.text for _, event in guest.events if event.kind == "queue-numbering"] == [NUMBERING]
