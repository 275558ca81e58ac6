"""What the tests of booting share: one shell for each way of interrupting, since a boot takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.boot import debian
from tests.boot.balloon import KEPT_KINDS, SETUPS, Guests
from tests.boot.guest import MOUNT, SHELL, SHELL_IS_UP, Linux


@pytest.fixture(scope="module", params=SETUPS)
def setup(request: pytest.FixtureRequest) -> str:
    """How the guest is interrupted."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shell(setup: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    """A guest at its shell, with the kernel's own virtio modules loaded."""
    load = "".join(f"insmod /lib/{name}.ko\n" for name in debian.VIRTIO_MODULES)
    archive = debian.initramfs(MOUNT + load + SHELL, debian.VIRTIO_MODULES)
    with Linux(tmp_path_factory.mktemp("shell"), archive, SETUPS[setup]) as guest:
        guest.wait_for(SHELL_IS_UP)
        yield guest


@pytest.fixture(scope="session")
def all_guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    guests = Guests(tmp_path_factory.mktemp("guests"))
    yield guests
    guests.close()


@pytest.fixture(scope="module")
def guests(all_guests: Guests) -> Iterator[Guests]:
    """Guests with a balloon, each booted once for all tests of a module; the commonest once for all modules."""
    yield all_guests
    all_guests.close(but=KEPT_KINDS)
