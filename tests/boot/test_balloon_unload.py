"""The driver leaves the balloon and comes back: unbound, unloaded, its PCI function removed, in the middle of its work.

Whatever the way, the guest has its pages back, the device is as if nobody had been there but for the target, no task
waits for ever, and the driver that comes back does what the target says.  Every way with MSI-X; with INTx and with the
8259 pair all of them at rest, one after the other, and in the middle of its work those that differ most.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.boot.balloon import (
    INSERT,
    MIB,
    PAGE_BYTES,
    REMOVE,
    SETUPS,
    Guests,
    ask_for_stats,
    balloon_pages,
    event_texts,
    kernel_threads,
    meminfo,
    reach,
    sizes,
    stuck,
)
from tests.boot.debian import needs_debian
from tests.boot.guest import SHELL_IS_UP, Linux

pytestmark = needs_debian

PCI = "/sys/bus/pci/devices/0000:00:03.0"
BALLOON_PAGES = 40 * MIB // PAGE_BYTES
WAYS = {
    "unbind": ("cd /sys/bus/virtio/drivers/virtio_balloon; echo virtio0 >unbind; cd /",
               "cd /sys/bus/virtio/drivers/virtio_balloon; echo virtio0 >bind; cd /"),
    "unload": ("rmmod virtio_balloon", "insmod /lib/virtio_balloon.ko"),
    "unload-all": (REMOVE, INSERT),
    "unbind-pci": ("cd /sys/bus/pci/drivers/virtio-pci; echo 0000:00:03.0 >unbind; cd /",
                   "cd /sys/bus/pci/drivers/virtio-pci; echo 0000:00:03.0 >bind; cd /"),
    "unplug": (f"echo 1 >{PCI}/remove", "echo 1 >/sys/bus/pci/rescan"),
}  # fmt: skip


def ways(*elsewhere: str) -> pytest.MarkDecorator:
    """Every way with MSI-X, and those named with the other two set-ups."""
    chosen = [(setup, way) for setup in SETUPS for way in WAYS if setup == "msi-x" or way in elsewhere]
    return pytest.mark.parametrize(
        ("setup", "leave", "come_back"), [pytest.param(setup, *WAYS[way], id=f"{setup}-{way}") for setup, way in chosen]
    )


def bus_mastering(on: bool) -> str:
    """The command that sets the PCI command register: I/O and memory decoding, and bus mastering or not."""
    return rf"printf '\{7 if on else 3}\0' | dd of={PCI}/config bs=1 seek=4 count=2 conv=notrunc 2>/dev/null"


def check_gone(guest: Linux, total_bytes: int, threads: list[str]) -> None:
    """No driver, nothing of it left, and the guest has all of its memory."""
    device = guest.machine.board.need_balloon()[1]
    assert (balloon_pages(guest), device.actual_pages) == (0, 0)
    assert device.inflated_pages == device.deflated_pages
    assert not any(queue.enabled for queue in device.queues)
    assert guest.machine.balloon.negotiated == []
    assert "virtio0" not in guest.ask("cat /proc/interrupts")
    assert meminfo(guest)["MemTotal"] == total_bytes
    check_alive(guest, threads)


def check_alive(guest: Linux, threads: list[str]) -> None:
    assert stuck(guest) == set()
    assert kernel_threads(guest) == threads
    assert guest.complaints == []
    assert not guest.machine.board.need_balloon()[1].needs_reset


def check_back(guest: Linux, total_bytes: int, threads: list[str]) -> None:
    """A driver that follows the target without being told again, and that reports."""
    guest.run_until(lambda machine: machine.balloon.actual_pages == machine.balloon.target_pages)
    assert balloon_pages(guest) == BALLOON_PAGES
    assert total_bytes - meminfo(guest)["MemTotal"] == BALLOON_PAGES * PAGE_BYTES
    assert ask_for_stats(guest)["stat-total-memory"] == meminfo(guest)["MemTotal"]
    check_alive(guest, threads)


@ways()
def test_a_driver_leaves_an_inflated_balloon_and_comes_back(
    guests: Guests, setup: str, leave: str, come_back: str
) -> None:
    """Its statistics buffer is in flight all the time; a poll that is under way makes it two requests."""
    guest = guests.loaded(cmdline=SETUPS[setup])
    total, threads = meminfo(guest)["MemTotal"], kernel_threads(guest)
    reach(guest, "40M")
    guest.machine.balloon.set_polling_interval(1_000_000)
    guest.ask(leave)
    check_gone(guest, total, threads)
    assert guest.machine.stats.reason == "stale"
    guest.machine.balloon.set_polling_interval(0)
    guest.ask(come_back)
    check_back(guest, total, threads)


@ways("unbind")
def test_a_driver_leaves_in_the_middle_of_inflating(guests: Guests, setup: str, leave: str, come_back: str) -> None:
    guest = guests.loaded(cmdline=SETUPS[setup])
    total, threads = meminfo(guest)["MemTotal"], kernel_threads(guest)
    since = give_in_the_middle(guest, leave, "80M", lambda pages: pages >= 5120)
    assert 5120 <= max(sizes(guest, since)) < 20480, "it left before it was done"
    assert sizes(guest, since)[-1] == 0
    check_gone(guest, total, threads)
    guest.machine.balloon.set_size("40M")
    guest.ask(come_back)
    check_back(guest, total, threads)


@ways("unload-all")
def test_a_driver_leaves_in_the_middle_of_deflating(guests: Guests, setup: str, leave: str, come_back: str) -> None:
    guest = guests.loaded(cmdline=SETUPS[setup])
    total, threads = meminfo(guest)["MemTotal"], kernel_threads(guest)
    reach(guest, "80M")
    give_in_the_middle(guest, leave, 0, lambda pages: pages <= 18000)
    check_gone(guest, total, threads)
    guest.machine.balloon.set_size("40M")
    guest.ask(come_back)
    check_back(guest, total, threads)


def give_in_the_middle(guest: Linux, command: str, size: str | int, comes: Callable[[int], bool]) -> int:
    """Let `command` begin when that many pages have come, on the way to `size`; the number of events before."""
    guest.type(command)
    since, printed = len(guest.events), len(guest.console)
    guest.machine.balloon.set_size(size)
    guest.run_until(lambda machine: comes(machine.balloon.actual_pages))
    guest.machine.send_console(b"\n")
    guest.wait_for(SHELL_IS_UP, printed)
    return since


def test_a_request_that_the_device_may_not_see_waits_and_so_does_unloading(guests: Guests, setup: str) -> None:
    """Without bus mastering the device reads nothing: the driver waits for its request, and whoever unloads it for the
    driver.  Nothing is lost: with bus mastering all of it goes on."""
    guest = guests.loaded(cmdline=SETUPS[setup])
    total, threads = meminfo(guest)["MemTotal"], kernel_threads(guest)
    since = give_in_the_middle(guest, bus_mastering(False), "80M", lambda pages: pages >= 5120)
    stands_at = sizes(guest, since)[-1]
    assert 5120 <= stands_at < 20480
    waiting = stuck(guest)
    assert len(waiting) == 1 and {name.partition("/")[0] for _, name, *_ in waiting} == {"kworker"}, waiting

    guest.ask("rmmod virtio_balloon & true")
    guest.machine.run("2s")
    assert {name.partition("/")[0] for _, name, *_ in stuck(guest)} == {"kworker", "rmmod"}
    assert sizes(guest, since)[-1] == stands_at, "nothing was read"

    guest.ask(bus_mastering(True))
    guest.ask("wait")
    check_gone(guest, total, threads)
    guest.machine.balloon.set_size("40M")
    guest.ask("insmod /lib/virtio_balloon.ko")
    check_back(guest, total, threads)


def test_many_times(guests: Guests, setup: str) -> None:
    guest = guests.loaded(cmdline=SETUPS[setup])
    before, threads = meminfo(guest), kernel_threads(guest)
    guest.machine.balloon.set_size("40M")
    rounds = 2 if setup == "msi-x" else 1
    for leave, come_back in rounds * list(WAYS.values()):
        guest.run_until(lambda machine: machine.balloon.actual_pages == BALLOON_PAGES)
        guest.ask(leave)
        guest.ask(come_back)
    check_back(guest, before["MemTotal"], threads)
    reach(guest, 0)
    assert meminfo(guest)["MemFree"] == pytest.approx(before["MemFree"], abs=2 * MIB), "no page was forgotten"
    assert len(event_texts(guest, "driver-ok")) == 1 + rounds * len(WAYS)
