"""Free page hinting, page poison and reporting with Linux's own driver, unmodified.

Linux clears the pages that it allocates for a hint if it was told so (init_on_alloc=1), which is a write since the id:
then nothing may go.  With init_on_free=1 it clears them when they become free, long before, and says so by PAGE_POISON.
Debian's cloud kernel has no other poison than that: CONFIG_PAGE_POISONING is off in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.boot import debian
from tests.boot.balloon import host_tracks_writes
from tests.boot.guest import MOUNT, SHELL, SHELL_IS_UP, Linux

pytestmark = debian.needs_debian

BALLOON = "virtio-balloon-pci,id=balloon0,free-page-hint=on,free-page-reporting=on"
DONE = 1
MIB_PAGES = 256


needs_tracking = pytest.mark.skipif(not host_tracks_writes(), reason="this kernel does not track writes")


def boot(folder: pytest.TempPathFactory, cmdline: str, device: str = BALLOON) -> Iterator[Linux]:
    load = "".join(f"insmod /lib/{name}.ko\n" for name in debian.VIRTIO_MODULES)
    archive = debian.initramfs(MOUNT + load + SHELL, debian.VIRTIO_MODULES)
    with Linux(folder.mktemp("hinting"), archive, cmdline, devices=(device,)) as guest:
        guest.wait_for(SHELL_IS_UP)
        yield guest


@pytest.fixture(scope="module")
def init_on_free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    """A guest that clears memory when it becomes free, with everything this balloon offers."""
    yield from boot(tmp_path_factory, "init_on_free=1")


@pytest.fixture(scope="module")
def init_on_alloc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    """A guest that clears memory when it is allocated, for a hint too."""
    yield from boot(
        tmp_path_factory, "init_on_alloc=1", "virtio-balloon-pci,id=balloon0,free-page-hint=on,free-page-reporting=off"
    )


def hint(guest: Linux) -> tuple[int, int]:
    """One round: the pages that were hinted, and those given back."""
    balloon = guest.machine.balloon
    before = balloon.hinted_pages, balloon.hint_discarded_pages
    balloon.start_hinting()
    guest.machine.run(lambda machine: machine.balloon.hint_command_id == DONE)
    return balloon.hinted_pages - before[0], balloon.hint_discarded_pages - before[1]


def fill_and_free(guest: Linux, mib: int) -> None:
    """Have the guest use memory and let it go, so that the host has to back it."""
    guest.ask("mount -t tmpfs none /tmp")
    guest.ask(f"dd if=/dev/zero of=/tmp/fill bs=1M count={mib} 2>/dev/null")
    guest.ask("rm /tmp/fill; umount /tmp")


def complaints(guest: Linux) -> list[str]:
    words = ("BUG:", "WARNING:", "pagealloc:", "poison", "corruption")
    return [
        line for line in guest.console.splitlines() if any(word in line for word in words) and "Command" not in line
    ]


@needs_tracking
def test_a_guest_that_clears_what_it_frees_gives_its_free_memory_back(init_on_free: Linux) -> None:
    balloon = init_on_free.machine.balloon
    assert {
        "VIRTIO_BALLOON_F_FREE_PAGE_HINT",
        "VIRTIO_BALLOON_F_PAGE_POISON",
        "VIRTIO_BALLOON_F_PAGE_REPORTING",
    } <= set(balloon.negotiated)
    fill_and_free(init_on_free, 96)
    hinted, discarded = hint(init_on_free)
    assert hinted >= 64 * MIB_PAGES, "blocks of 4 MiB, as many as are free"
    assert discarded > hinted * 9 // 10
    assert balloon.discarded_bytes >= discarded * 4096


def test_the_guest_works_on_after_it_and_is_asked_again(init_on_free: Linux) -> None:
    """It has its pages back, and the pages hold what it puts there."""
    first = hint(init_on_free)[0]
    fill_and_free(init_on_free, 64)
    assert hint(init_on_free)[0] >= first // 2
    assert init_on_free.ask("dd if=/dev/urandom of=/dev/shm/a bs=1M count=1 2>/dev/null || true; echo fine") == "fine\n"
    assert complaints(init_on_free) == []
    assert not init_on_free.machine.board.virtio_devices[0].needs_reset


def test_its_free_pages_are_reported_and_given_back_with_a_poison_of_0(init_on_free: Linux) -> None:
    init_on_free.ask("sleep 5")
    balloon = init_on_free.machine.balloon
    assert balloon.reported_pages > 0
    assert balloon.poisoned_pages == 0


def test_a_guest_that_clears_what_it_allocates_loses_nothing_and_gives_nothing(init_on_alloc: Linux) -> None:
    """Each hinted page was written since the id."""
    assert "VIRTIO_BALLOON_F_PAGE_POISON" not in init_on_alloc.machine.balloon.negotiated
    fill_and_free(init_on_alloc, 64)
    hinted, discarded = hint(init_on_alloc)
    assert hinted >= 32 * MIB_PAGES
    assert discarded == 0
    assert complaints(init_on_alloc) == []
