"""Two boots of the same kernel are the same run: to the byte, and however often they are stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot import debian
from tests.boot.guest import MOUNT, SHELL, SHELL_IS_UP, Linux

pytestmark = debian.needs_debian

# No round numbers, from ten thousand stops a second of guest time to a handful.
INTERVALS = (
    "73us", "137us", "211us", "307us", "401us", "503us", "701us", "997us", "1.31ms", "1.73ms",
    "2.39ms", "3.11ms", "4.57ms", "6.13ms", "8.29ms", "11.3ms", "17.9ms", "31.7ms", "97.3ms", "401ms",
)  # fmt: skip

Digest = tuple[str, str]


@pytest.fixture(scope="module")
def archive() -> bytes:
    load = "".join(f"insmod /lib/{name}.ko\n" for name in debian.VIRTIO_MODULES)
    return debian.initramfs(MOUNT + load + SHELL, debian.VIRTIO_MODULES)


@pytest.fixture(scope="module")
def boot(archive: bytes, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Digest]:
    """Boots to the shell, stopping after each interval of guest time, and gives digests of console and events."""
    folder: Path = tmp_path_factory.mktemp("repeatable")

    def run(interval: str) -> Digest:
        with Linux(folder, archive, memory="160M") as guest:
            guest.wait_for(SHELL_IS_UP, step=interval)
            console, events = guest.machine.console, repr(guest.events).encode()
        assert guest.events, "the balloon's driver has been heard of"
        return hashlib.sha256(console).hexdigest(), hashlib.sha256(events).hexdigest()

    return run


@pytest.fixture(scope="module")
def reference(boot: Callable[[str], Digest]) -> Digest:
    """The run that is stopped least."""
    return boot("1s")


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_boot_stopped_again_and_again_is_the_same_run(
    boot: Callable[[str], Digest], reference: Digest, interval: str
) -> None:
    assert boot(interval) == reference
