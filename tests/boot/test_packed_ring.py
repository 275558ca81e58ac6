"""Debian's unmodified kernel with packed rings: the same balloon, and a source of random bytes beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices.virtio import spec
from tests.boot import debian
from tests.boot.guest import MOUNT, SHELL, SHELL_IS_UP, Linux

pytestmark = debian.needs_debian

BALLOON = "virtio-balloon-pci,id=balloon0,packed=on,free-page-reporting=on"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    """A guest at its shell whose balloon offers packed rings and everything that goes with them."""
    load = "".join(f"insmod /lib/{name}.ko\n" for name in debian.VIRTIO_MODULES)
    archive = debian.initramfs(MOUNT + load + SHELL, debian.VIRTIO_MODULES)
    options = (BALLOON + ",in_order=on,notification-data=on",)
    with Linux(tmp_path_factory.mktemp("shell"), archive, devices=options) as guest:
        guest.wait_for(SHELL_IS_UP)
        yield guest


def negotiated(shell: Linux, bit: int) -> bool:
    return bool(shell.machine.board.virtio_devices[0].driver_features >> bit & 1)


def test_the_kernel_takes_the_packed_ring(shell: Linux) -> None:
    for bit in (spec.VIRTIO_F_RING_PACKED, spec.VIRTIO_F_EVENT_IDX):
        assert negotiated(shell, bit)
    features = shell.ask("cat /sys/bus/virtio/devices/virtio0/features").strip()
    assert features[spec.VIRTIO_F_RING_PACKED] == "1"


def test_the_balloon_follows_its_target_through_many_rounds_of_the_ring(shell: Linux) -> None:
    """64 MiB are 64 requests of 256 pages, and the queue has 128 descriptors."""
    for target in ("192M", "256M", "128M", "256M", "192M", "256M"):
        shell.machine.balloon.set_target(target)
        shell.ask("sleep 1")
        assert shell.machine.balloon.actual_pages == shell.machine.balloon.target_pages
    device = shell.machine.board.virtio_devices[0]
    assert [queue.requests >= 256 for queue in device.queues[:2]] == [True, True]
    assert not device.needs_reset


def test_its_statistics_arrive(shell: Linux) -> None:
    shell.machine.balloon.request_stats()
    shell.machine.run("100ms")
    assert shell.machine.stats.values["stat-total-memory"] > 200 << 20


def test_free_memory_is_reported(shell: Linux) -> None:
    shell.ask("mount -t tmpfs none /tmp; dd if=/dev/zero of=/tmp/filled bs=1M count=64; rm /tmp/filled; sleep 4")
    assert shell.machine.board.balloon is not None
    assert shell.machine.board.balloon[1].reported_pages > 32 << 8


def test_nobody_has_anything_to_complain_about(shell: Linux) -> None:
    assert [text for text in shell.console.splitlines() if "BUG:" in text or "WARNING:" in text] == []
    assert [event.text for _, event in shell.events if event.kind in ("needs-reset", "notification-data")] == []
