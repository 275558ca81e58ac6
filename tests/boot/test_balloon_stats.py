"""The statistics of Debian's kernel (virtio 1.3 §5.5.6.3) beside what the same kernel says in /proc then."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from tests.boot.balloon import (
    INSERT,
    MIB,
    PAGE_BYTES,
    RAM_BYTES,
    SWAP_BYTES,
    SWAP_MODULES,
    Guests,
    ask_for_stats,
    event_texts,
    meminfo,
    reach,
    vmstat,
)
from tests.boot.debian import needs_debian
from tests.boot.guest import Linux

pytestmark = needs_debian

NAMES = {
    "stat-swap-in", "stat-swap-out", "stat-major-faults", "stat-minor-faults", "stat-free-memory", "stat-total-memory",
    "stat-available-memory", "stat-disk-caches", "stat-htlb-pgalloc", "stat-htlb-pgfail",
}  # fmt: skip
NAMES_FROM_6_12 = {
    "stat-oom-kills", "stat-alloc-stalls", "stat-async-scans", "stat-direct-scans", "stat-async-reclaims",
    "stat-direct-reclaims",
}  # fmt: skip
# name: the counter in /proc/vmstat, and what one of it is
COUNTERS = {
    "stat-swap-in": ("pswpin", PAGE_BYTES),
    "stat-swap-out": ("pswpout", PAGE_BYTES),
    "stat-major-faults": ("pgmajfault", 1),
    "stat-minor-faults": ("pgfault", 1),
    "stat-htlb-pgalloc": ("htlb_buddy_alloc_success", 1),
    "stat-htlb-pgfail": ("htlb_buddy_alloc_fail", 1),
    "stat-oom-kills": ("oom_kill", 1),
}
USE_SWAP = (
    f"for name in {' '.join(SWAP_MODULES)}; do insmod /lib/$name.ko; done; echo {SWAP_BYTES} >/sys/block/zram0/disksize"
    " && dd if=/lib/swap-header of=/dev/zram0 && swapon /dev/zram0"
)


def expected_names(guest: Linux) -> set[str]:
    version = re.search(r"Linux version (\d+)\.(\d+)", guest.console)
    assert version is not None
    return NAMES | NAMES_FROM_6_12 if (int(version[1]), int(version[2])) >= (6, 12) else NAMES


def test_the_first_buffer_comes_with_the_driver_and_counts(guests: Guests) -> None:
    """Linux puts it into the queue and kicks before DRIVER_OK, and never again unless the device returns it."""
    guest = guests.loaded()
    kinds = [event.kind for _, event in guest.events]
    assert kinds.count("stats") == 1
    assert kinds.index("stats") == kinds.index("driver-ok") + 1
    assert guest.machine.board.need_balloon()[1].stats_reports == 1
    assert guest.machine.stats.reason == "ok", "without being asked"
    assert guest.machine.stats.values["stat-total-memory"] == meminfo(guest)["MemTotal"]

    for number in (2, 3, 4):
        ask_for_stats(guest)
        assert guest.machine.board.need_balloon()[1].stats_reports == number
    assert len(event_texts(guest, "stats")) == 4
    guest.machine.run("5s")
    assert guest.machine.board.need_balloon()[1].stats_reports == 4, "nobody asked"


def test_before_the_driver_there_are_none_and_the_reason_says_why(guests: Guests) -> None:
    guest = guests.bare()
    assert (guest.machine.stats.reason, guest.machine.stats.values) == ("not negotiated", {})


def test_a_request_before_the_driver_is_loaded_is_answered_when_it_comes(guests: Guests) -> None:
    guest = guests.bare()
    guest.machine.balloon.request_stats()
    guest.ask(INSERT)
    assert guest.machine.stats.reason == "ok"
    assert guest.machine.stats.values["stat-total-memory"] == meminfo(guest)["MemTotal"]


def test_every_tag_that_this_kernel_sends_arrives_once(guests: Guests) -> None:
    guest = guests.loaded()
    values = ask_for_stats(guest)
    assert set(values) == expected_names(guest)
    raw = guest.machine.stats.raw
    assert len(raw) == len({tag for tag, _ in raw}) == len(values), "none twice, none unknown"
    assert {value for _, value in raw} == set(values.values())


@pytest.fixture
def busy(guests: Guests) -> Linux:
    """A guest of which every figure is more than nothing: huge pages had and refused, swapped out and in."""
    guest = guests.loaded()
    guest.ask(
        "echo 4 >/proc/sys/vm/nr_hugepages; echo 100 >/proc/sys/vm/nr_hugepages; echo 0 >/proc/sys/vm/nr_hugepages"
    )
    guest.ask(USE_SWAP)
    guest.ask("dd if=/dev/zero of=/files/large bs=1M count=110 && dd if=/files/large of=/dev/null bs=1M")
    return guest


def test_the_counters_are_those_of_proc_vmstat(busy: Linux) -> None:
    before = vmstat(busy)
    values = ask_for_stats(busy)
    after = vmstat(busy)
    for name, (counter, unit) in COUNTERS.items():
        if name in values:
            assert before[counter] * unit <= values[name] <= after[counter] * unit, name
            assert name == "stat-oom-kills" or values[name] > 0, name
    assert values["stat-swap-out"] > 10 * MIB
    assert values["stat-minor-faults"] > values["stat-major-faults"]


def test_the_gauges_are_those_of_proc_meminfo(busy: Linux) -> None:
    before = meminfo(busy)
    values = ask_for_stats(busy)
    after = meminfo(busy)

    def near(figure: int) -> object:
        return pytest.approx(figure, abs=abs(before["MemFree"] - after["MemFree"]) + MIB)

    assert values["stat-total-memory"] == before["MemTotal"]
    assert values["stat-free-memory"] == near(before["MemFree"])
    assert values["stat-available-memory"] == near(before["MemAvailable"])
    assert values["stat-disk-caches"] == near(before["Cached"] + before["Buffers"] + before["SwapCached"])
    assert values["stat-free-memory"] < values["stat-available-memory"] < values["stat-total-memory"] < RAM_BYTES


def test_what_the_guest_does_is_seen_in_the_next_report(guests: Guests) -> None:
    guest = guests.loaded()
    before = ask_for_stats(guest)
    guest.ask("dd if=/dev/zero of=/files/new bs=1M count=20")
    after = ask_for_stats(guest)
    assert after["stat-disk-caches"] - before["stat-disk-caches"] == pytest.approx(20 * MIB, abs=MIB)
    assert before["stat-free-memory"] - after["stat-free-memory"] == pytest.approx(20 * MIB, abs=2 * MIB)
    assert after["stat-minor-faults"] > before["stat-minor-faults"]

    reach(guest, "30M")
    with_balloon = ask_for_stats(guest)
    assert after["stat-total-memory"] - with_balloon["stat-total-memory"] == 30 * MIB
    assert after["stat-free-memory"] - with_balloon["stat-free-memory"] == pytest.approx(30 * MIB, abs=2 * MIB)


def test_polling_brings_one_report_an_interval_of_guest_time(guests: Guests) -> None:
    guest = guests.loaded()
    since = len(guest.events)
    guest.machine.balloon.set_polling_interval(500_000_000)
    guest.machine.run("10s")
    times = [now_ns for now_ns, event in guest.events[since:] if event.kind == "stats"]
    assert len(times) in (20, 21)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) >= 500_000_000
    assert max(gaps) < 520_000_000
    assert guest.machine.stats.age_ns is not None and guest.machine.stats.age_ns < 520_000_000

    guest.machine.balloon.set_polling_interval(0)
    guest.machine.run("1s")
    known = len(event_texts(guest, "stats"))
    guest.machine.run("5s")
    assert len(event_texts(guest, "stats")) == known


def test_statistics_of_a_driver_that_went_are_stale(guests: Guests) -> None:
    guest = guests.loaded()
    values = ask_for_stats(guest)
    guest.ask("rmmod virtio_balloon")
    assert (guest.machine.stats.reason, guest.machine.stats.values) == ("stale", values)
    guest.machine.balloon.request_stats()  # nobody is there, and nothing waits for it
    guest.machine.run("1s")
    assert guest.machine.stats.reason == "stale"
    guest.ask("insmod /lib/virtio_balloon.ko")
    assert guest.machine.stats.reason == "ok"
