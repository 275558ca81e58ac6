"""Debian's own balloon driver follows the host's target, and both sides say the same about the guest's memory.

In each of the three ways in which a PC's devices interrupt: there and back, the statistics, the driver unbound and
bound, a target before there is a driver, and one beyond RAM.  The rest with MSI-X.
"""

from __future__ import annotations

import pytest

from devices.errors import ConfigError
from tests.boot.balloon import (
    INSERT,
    MIB,
    PAGE_BYTES,
    RAM_BYTES,
    REPORTING_AND_OOM,
    SETUPS,
    Guests,
    ask_for_stats,
    balloon_pages,
    event_texts,
    meminfo,
    reach,
    sizes,
    stuck,
)
from tests.boot.debian import needs_debian
from tests.boot.guest import Linux

pytestmark = needs_debian

A_LITTLE = 2 * MIB  # by so much the free memory may move by itself
ROUND_TRIPS = [PAGE_BYTES, MIB, 24 * MIB + 5 * PAGE_BYTES, 80 * MIB]
UNBIND = "echo virtio0 >/sys/bus/virtio/drivers/virtio_balloon/unbind"
BIND = "echo virtio0 >/sys/bus/virtio/drivers/virtio_balloon/bind"


def check_round_trip(guest: Linux, size: int) -> None:
    """Inflate to `size` bytes and deflate, without DEFLATE_ON_OOM: MemTotal moves to the page."""
    pages, balloon = size // PAGE_BYTES, guest.machine.balloon
    before, inflated, deflated = meminfo(guest), balloon.inflated_pages, balloon.deflated_pages

    reach(guest, size)
    assert balloon_pages(guest) == balloon.actual_pages == pages
    assert (balloon.inflated_pages - inflated, balloon.deflated_pages - deflated) == (pages, 0)
    during = meminfo(guest)
    assert before["MemTotal"] - during["MemTotal"] == RAM_BYTES - balloon.guest_ram_bytes == size
    assert before["MemFree"] - during["MemFree"] == pytest.approx(size, abs=A_LITTLE)

    reach(guest, 0)
    assert balloon_pages(guest) == balloon.actual_pages == 0
    assert (balloon.inflated_pages - inflated, balloon.deflated_pages - deflated) == (pages, pages)
    after = meminfo(guest)
    assert after["MemTotal"] == before["MemTotal"]
    assert after["MemFree"] == pytest.approx(before["MemFree"], abs=A_LITTLE)
    assert (balloon.bad_pfns, balloon.oom_deflated_pages, stuck(guest)) == (0, 0, set())


@pytest.mark.parametrize("size", ROUND_TRIPS)
def test_there_and_back(guests: Guests, setup: str, size: int) -> None:
    check_round_trip(guests.loaded(cmdline=SETUPS[setup]), size)


def test_the_statistics_are_the_kernel_s_own_figures(guests: Guests, setup: str) -> None:
    guest = guests.loaded(cmdline=SETUPS[setup])
    for size in (32 * MIB, 0):
        reach(guest, size)
        figures, values = meminfo(guest), ask_for_stats(guest)
        assert values["stat-total-memory"] == figures["MemTotal"]
        assert values["stat-free-memory"] == pytest.approx(figures["MemFree"], abs=A_LITTLE)


def test_the_driver_is_unbound_and_bound_again(guests: Guests, setup: str) -> None:
    guest = guests.loaded(cmdline=SETUPS[setup])
    before = meminfo(guest)
    reach(guest, "40M")

    guest.ask(UNBIND)
    assert balloon_pages(guest) == guest.machine.balloon.actual_pages == 0
    assert meminfo(guest)["MemTotal"] == before["MemTotal"]
    assert "virtio0" not in guest.ask("cat /proc/interrupts")

    guest.ask(BIND)
    guest.run_until(lambda machine: machine.balloon.actual_pages == 40 * MIB // PAGE_BYTES)
    assert before["MemTotal"] - meminfo(guest)["MemTotal"] == 40 * MIB
    assert "virtio0" in guest.ask("cat /proc/interrupts")
    assert stuck(guest) == set()


def test_a_driver_with_the_fewest_features_goes_there_and_back(guests: Guests) -> None:
    off = "must-tell-host", "stats-vq", "page-poison", "event_idx", "indirect_desc", "queue_reset"
    guest = guests.loaded(",".join(f"{name}=off" for name in off))
    assert guest.machine.balloon.negotiated == ["VIRTIO_F_VERSION_1"]
    for size in ROUND_TRIPS:
        check_round_trip(guest, size)


@pytest.mark.parametrize("size", ROUND_TRIPS)
def test_with_deflate_on_oom_the_guest_s_total_does_not_move(guests: Guests, size: int) -> None:
    guest = guests.loaded(REPORTING_AND_OOM)
    assert "VIRTIO_BALLOON_F_DEFLATE_ON_OOM" in guest.machine.balloon.negotiated
    before = meminfo(guest)
    reach(guest, size)
    during = meminfo(guest)
    assert balloon_pages(guest) == size // PAGE_BYTES
    assert during["MemTotal"] == before["MemTotal"]
    assert before["MemFree"] - during["MemFree"] == pytest.approx(size, abs=A_LITTLE)

    reach(guest, 0)
    after = meminfo(guest)
    assert balloon_pages(guest) == 0
    assert after["MemTotal"] == before["MemTotal"]
    assert after["MemFree"] == pytest.approx(before["MemFree"], abs=A_LITTLE)
    assert event_texts(guest, "deflate-on-oom") == []  # the host asked for it


# -- targets -----------------------------------------------------------------------------------------------------------


def test_a_target_set_before_the_driver_is_loaded_is_followed_when_it_comes(guests: Guests, setup: str) -> None:
    guest = guests.bare(SETUPS[setup])
    balloon = guest.machine.balloon
    before = meminfo(guest)
    balloon.set_size("48M")
    guest.machine.run("2s")
    assert (balloon.target_pages, balloon.actual_pages, balloon.inflated_pages) == (12288, 0, 0)
    assert meminfo(guest)["MemTotal"] == before["MemTotal"]

    guest.ask(INSERT)
    guest.run_until(lambda machine: machine.balloon.actual_pages == 12288)
    assert balloon_pages(guest) == 12288
    assert before["MemTotal"] - meminfo(guest)["MemTotal"] == 48 * MIB


def test_a_target_taken_back_before_the_driver_is_loaded_is_none(guests: Guests) -> None:
    guest = guests.bare()
    guest.machine.balloon.set_size("48M")
    guest.machine.balloon.set_size(0)
    guest.ask(INSERT)
    guest.machine.run("2s")
    assert "driver-ok" in [event.kind for _, event in guest.events]
    assert (guest.machine.balloon.inflated_pages, sizes(guest)) == (0, [])


def test_a_target_that_is_changed_while_the_driver_inflates(guests: Guests) -> None:
    guest = guests.loaded()
    before, since, balloon = meminfo(guest), len(guest.events), guest.machine.balloon
    balloon.set_size("80M")
    guest.run_until(lambda machine: machine.balloon.actual_pages >= 5120)
    reach(guest, "10M")
    assert 5120 <= max(sizes(guest, since)) < 20480, "it turned back on the way"
    assert balloon_pages(guest) == 2560
    assert before["MemTotal"] - meminfo(guest)["MemTotal"] == 10 * MIB


def test_a_target_that_is_changed_while_the_driver_deflates(guests: Guests) -> None:
    guest = guests.loaded()
    before, balloon = meminfo(guest), guest.machine.balloon
    reach(guest, "80M")
    since = len(guest.events)
    balloon.set_size(0)
    guest.run_until(lambda machine: machine.balloon.actual_pages <= 15360)
    reach(guest, "70M")
    assert 0 < min(sizes(guest, since)) <= 15360, "it turned back on the way"
    assert balloon_pages(guest) == 17920
    assert before["MemTotal"] - meminfo(guest)["MemTotal"] == 70 * MIB


def test_a_host_that_changes_its_mind_all_the_time_is_followed_to_the_last_word(guests: Guests) -> None:
    guest = guests.loaded()
    before, balloon = meminfo(guest), guest.machine.balloon
    for step in range(1, 41):
        balloon.set_size(step * 37 % 80 * MIB)
        guest.machine.run("3ms")
    assert balloon.actual_pages != balloon.target_pages, "it was kept busy"
    reach(guest, "33M")
    guest.machine.run("1s")
    assert balloon_pages(guest) == balloon.actual_pages == 33 * MIB // PAGE_BYTES
    assert balloon.inflated_pages - balloon.deflated_pages == balloon.actual_pages
    assert before["MemTotal"] - meminfo(guest)["MemTotal"] == 33 * MIB
    assert (balloon.bad_pfns, stuck(guest)) == (0, set())


def test_a_target_beyond_ram_takes_what_there_is_and_zero_gives_it_back(guests: Guests, setup: str) -> None:
    guest = guests.loaded(cmdline=SETUPS[setup])
    before, balloon = meminfo(guest), guest.machine.balloon
    transport, device = guest.machine.board.need_balloon()
    with pytest.raises(ConfigError, match=r"The balloon must be smaller than the machine's 160 MiB of RAM"):
        balloon.set_size("161M")
    assert balloon.target_pages == 0

    guest.machine.platform.carry_out(transport.signal(device.set_target(1 << 40, guest.machine.now_ns)))
    assert balloon.target_pages == guest.machine.memory.size_bytes // PAGE_BYTES, "no more than there is"
    guest.machine.run("3s")
    assert "Out of puff!" in guest.console
    assert before["MemFree"] * 0.9 < balloon.actual_pages * PAGE_BYTES < before["MemFree"]
    assert balloon_pages(guest) == balloon.actual_pages
    assert guest.ask("echo I live") == "I live\n"

    reach(guest, 0)
    after = meminfo(guest)
    assert (balloon_pages(guest), after["MemTotal"]) == (0, before["MemTotal"])
    assert after["MemFree"] == pytest.approx(before["MemFree"], abs=A_LITTLE)
    assert "Killed process" not in guest.console


def test_the_kernel_has_nothing_to_complain_about(guests: Guests, setup: str) -> None:
    guest = guests.loaded(cmdline=SETUPS[setup])
    reach(guest, "80M")
    reach(guest, 0)
    assert guest.complaints == []
